// What turns of one namespace cost, by the timings that its workers report.
#ifndef KAVERN_TIERS_TURN_TIMINGS_H_
#define KAVERN_TIERS_TURN_TIMINGS_H_

#include <array>
#include <cstdint>

#include "base/mutex.h"
#include "base/tier.h"
#include "base/turn_costs.h"

namespace kavern::tiers {

// How measured times compare with what had been predicted of them: a histogram of actual /
// predicted.
struct PredictionRatios {
  static constexpr std::array<double, 9> kBounds = {0.25, 0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 2.0, 4.0};
  std::array<std::uint64_t, kBounds.size() + 1> counts{};  // up to each bound; last: above all
  double sum = 0;

  void Count(double ratio);
  void Add(const PredictionRatios& more);
};

struct TurnPredictions {
  PredictionRatios prefill;
  std::array<PredictionRatios, kTierCount> tiers;  // by Tier

  void Add(const TurnPredictions& more);
};

// Thread-safe; guards itself rather than rely on the store's lock, under which nothing takes as
// long as fitting a few hundred samples. Takes no other lock.
class TurnTimings {
 public:
  struct Answer {
    TurnCosts costs;
    TurnPredictions predictions;  // of these samples, where there was one
  };
  // `samples` are valid.
  Answer Add(const TurnSamples& samples);
  TurnCosts Costs() const;

 private:
  TurnCosts CostsLocked() const KAVERN_REQUIRES(mu_);

  mutable Mutex mu_;
  PrefillFit prefill_ KAVERN_GUARDED_BY(mu_);
  std::array<TransferFit, kTierCount> tiers_ KAVERN_GUARDED_BY(mu_);
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_TURN_TIMINGS_H_
