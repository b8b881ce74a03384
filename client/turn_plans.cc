// Plans of a namespace, and the timings that they are made of.
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "client/namespace_impl.h"

namespace kavern {

using client::ClientCore;

namespace {

// Every so many plans that leave cached blocks aside one recommends them all the same: else a tier
// that was slow once would never be measured again.
constexpr std::uint32_t kRefusalsPerProbe = 32;

}  // namespace

absl::StatusOr<TurnPlan> NamespaceImpl::Plan(const PlanRequest& request) {
  KAVERN_RETURN_IF_ERROR(client_.core()->CheckProcess());
  if (request.token_count > PrefillSample::kTokensMax) {
    return absl::InvalidArgumentError(absl::StrCat("token_count: got ", request.token_count,
                                                   ", expected at most ",
                                                   PrefillSample::kTokensMax));
  }
  if (request.engine_tokens > request.token_count) {
    return absl::InvalidArgumentError(
        absl::StrCat("engine_tokens: got ", request.engine_tokens,
                     ", expected at most token_count = ", request.token_count));
  }
  const std::uint64_t full_blocks = request.token_count / spec_.layout.tokens_per_block;
  if (request.keys.size() > full_blocks) {
    return absl::InvalidArgumentError(
        absl::StrCat("keys: got ", request.keys.size(), ", expected at most ", full_blocks,
                     ", the full blocks of token_count = ", request.token_count));
  }
  const std::uint64_t first = request.engine_tokens / spec_.layout.tokens_per_block;
  std::vector<Tier> tiers;
  if (first < request.keys.size()) {
    tiers = MatchTiers(request.keys.subspan(first), request.deadline);
  }
  TurnFacts facts;
  facts.layout = &spec_.layout;
  facts.token_count = request.token_count;
  facts.engine_tokens = request.engine_tokens;
  facts.tiers = tiers;
  facts.costs = timings_->Costs(UsesBytesPlane());
  if (timings_->AskIfOld(std::chrono::steady_clock::now())) {
    client_.core()->timing_reporter().Wake(timings_);
  }
  TurnPlan plan = PlanTurn(facts);
  if (plan.fetch_blocks == tiers.size() || ++refusals_ % kRefusalsPerProbe != 0) return plan;
  facts.probe = true;
  return PlanTurn(facts);
}

absl::Status NamespaceImpl::ReportPrefill(const PrefillTiming& timing) {
  ClientCore& core = *client_.core();
  KAVERN_RETURN_IF_ERROR(core.CheckProcess());
  const PrefillSample sample{timing.begin_token, timing.end_token, timing.duration.count()};
  if (const absl::Status status = sample.Validate(); !status.ok()) {
    absl::string_view what = status.message();  // begins with the sample's name of the field
    const bool is_time = absl::ConsumePrefix(&what, "ms:");
    return {status.code(), absl::StrCat("timing.", is_time ? "duration in ms:" : "", what)};
  }
  if (timings_->Add(sample)) core.timing_reporter().Wake(timings_);
  return absl::OkStatus();
}

void NamespaceImpl::ReportTransfers(std::span<const TransferSample> samples) {
  const bool bytes_plane = UsesBytesPlane();
  for (const TransferSample& sample : samples) {
    if (bytes_plane) {
      timings_->AddOwn(sample);
    } else if (timings_->Add(sample)) {
      client_.core()->timing_reporter().Wake(timings_);
    }
  }
}

}  // namespace kavern
