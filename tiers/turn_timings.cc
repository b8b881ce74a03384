#include "tiers/turn_timings.h"

#include <algorithm>

#include "base/status_macros.h"
#include "tiers/namespace_store.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {

void PredictionRatios::Count(double ratio) {
  ++counts[static_cast<std::size_t>(std::lower_bound(kBounds.begin(), kBounds.end(), ratio) -
                                    kBounds.begin())];
  constexpr double kRatioMax = 1000;  // what one tenant reports must not drown what all others do
  sum += std::min(ratio, kRatioMax);
}

void PredictionRatios::Add(const PredictionRatios& more) {
  for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += more.counts[i];
  sum += more.sum;
}

void TurnPredictions::Add(const TurnPredictions& more) {
  prefill.Add(more.prefill);
  for (std::size_t i = 0; i < tiers.size(); ++i) tiers[i].Add(more.tiers[i]);
}

TurnTimings::Answer TurnTimings::Add(const TurnSamples& samples) {
  Answer answer;
  MutexLock lock(mu_);
  for (const PrefillSample& sample : samples.prefills) {
    if (const auto predicted = prefill_.Add(sample); predicted.has_value()) {
      answer.predictions.prefill.Count(sample.ms / *predicted);
    }
  }
  for (const TransferSample& sample : samples.transfers) {
    const auto tier = static_cast<std::size_t>(sample.tier);
    if (const auto predicted = tiers_[tier].Add(sample); predicted.has_value()) {
      answer.predictions.tiers[tier].Count(sample.ms / *predicted);
    }
  }
  answer.costs = CostsLocked();
  return answer;
}

TurnCosts TurnTimings::Costs() const {
  MutexLock lock(mu_);
  return CostsLocked();
}

TurnCosts TurnTimings::CostsLocked() const {
  TurnCosts costs;
  costs.prefill = prefill_.Cost();
  for (std::size_t i = 0; i < tiers_.size(); ++i) costs.tiers[i] = tiers_[i].Cost();
  return costs;
}

// ---- The store's calls ----

absl::StatusOr<TurnCosts> TieredStore::ReportTimings(const NamespaceRef& ns,
                                                     const TurnSamples& samples) {
  KAVERN_RETURN_IF_ERROR(samples.Validate());
  TurnTimings::Answer answer = ns.ns_->timings().Add(samples);
  MutexLock lock(mu_);
  shared_.counters.predictions.Add(answer.predictions);
  return answer.costs;
}

TurnCosts TieredStore::Costs(const NamespaceRef& ns) const {
  return ns.ns_->timings().Costs();
}

}  // namespace kavern::tiers
