#include "base/turn_costs.h"

#include <cmath>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kavern {
namespace {

// An hour: who waits longer has other troubles than a cache.
constexpr double kMsMax = 3.6e6;
// A thousand million tokens a second, ten terabytes a second.
constexpr double kTokensPerMsMax = 1e6;
constexpr double kBytesPerMsMax = 1e10;

absl::Status CheckMs(double ms, double ms_min, std::string_view what) {
  if (std::isfinite(ms) && ms > 0 && ms >= ms_min && ms <= kMsMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("ms: got ", ms, ", expected ", ms_min, " to ",
                                                 kMsMax, " for ", std::string(what)));
}

CostFit::Terms TermsOf(const PrefillSample& sample) {
  const auto from = static_cast<double>(sample.begin_token);
  const auto to = static_cast<double>(sample.end_token);
  return {1, to - from, (to - from) * (to + from)};
}

CostFit::Terms TermsOf(const TransferSample& sample) {
  return {1, static_cast<double>(sample.bytes), 0};
}

}  // namespace

absl::Status PrefillSample::Validate() const {
  if (end_token > kTokensMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("end_token: got ", end_token, ", expected at most ", kTokensMax));
  }
  if (end_token <= begin_token) {
    return absl::InvalidArgumentError(
        absl::StrCat("end_token: got ", end_token, ", expected above begin_token = ", begin_token));
  }
  const std::uint64_t tokens = end_token - begin_token;
  return CheckMs(ms, static_cast<double>(tokens) / kTokensPerMsMax,
                 absl::StrCat(tokens, " tokens"));
}

absl::Status TransferSample::Validate() const {
  if (tier != Tier::kRam && tier != Tier::kNvme) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tier: got ", static_cast<int>(tier), ", expected ", static_cast<int>(Tier::kRam),
        " (ram) or ", static_cast<int>(Tier::kNvme), " (nvme)"));
  }
  if (bytes == 0 || bytes > kBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("bytes: got ", bytes, ", expected 1 to ", kBytesMax));
  }
  return CheckMs(ms, static_cast<double>(bytes) / kBytesPerMsMax, absl::StrCat(bytes, " bytes"));
}

namespace {

template <typename Sample>
absl::Status ValidateAll(std::string_view field, const std::vector<Sample>& samples) {
  for (std::size_t i = 0; i < samples.size(); ++i) {
    if (const absl::Status status = samples[i].Validate(); !status.ok()) {
      return {status.code(), absl::StrCat(std::string(field), "[", i, "].", status.message())};
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status TurnSamples::Validate() const {
  if (size() > kMax) {
    return absl::InvalidArgumentError(absl::StrCat("prefills, transfers: got ", size(),
                                                   ", expected at most ", kMax, " together"));
  }
  KAVERN_RETURN_IF_ERROR(ValidateAll("prefills", prefills));
  return ValidateAll("transfers", transfers);
}

double PrefillCost::Ms(std::uint64_t from, std::uint64_t to) const {
  if (to <= from) return 0;
  const auto a = static_cast<double>(from);
  const auto b = static_cast<double>(to);
  return fixed_ms + ms_per_token * (b - a) + ms_per_square_token * (b - a) * (b + a);
}

double TransferCost::Ms(std::uint64_t bytes) const {
  return bytes == 0 ? 0 : fixed_ms + ms_per_byte * static_cast<double>(bytes);
}

std::optional<double> PrefillFit::Add(const PrefillSample& sample) {
  return fit_.Add(TermsOf(sample), sample.ms);
}

PrefillCost PrefillFit::Cost() const {
  PrefillCost cost;
  cost.samples = fit_.samples();
  cost.measured = fit_.measured();
  if (!cost.measured) return cost;
  cost.fixed_ms = fit_.coefficients()[0];
  cost.ms_per_token = fit_.coefficients()[1];
  cost.ms_per_square_token = fit_.coefficients()[2];
  return cost;
}

std::optional<double> TransferFit::Add(const TransferSample& sample) {
  return fit_.Add(TermsOf(sample), sample.ms);
}

TransferCost TransferFit::Cost() const {
  TransferCost cost;
  cost.samples = fit_.samples();
  cost.measured = fit_.measured();
  if (!cost.measured) return cost;
  cost.fixed_ms = fit_.coefficients()[0];
  cost.ms_per_byte = fit_.coefficients()[1];
  return cost;
}

}  // namespace kavern
