// What the parts of a turn cost in one namespace, as measured: computing tokens, and fetching bytes
// from each tier.
#ifndef KAVERN_BASE_TURN_COSTS_H_
#define KAVERN_BASE_TURN_COSTS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "base/cost_fit.h"
#include "base/tier.h"

namespace kavern {

// ---- Samples ----

// Milliseconds that an engine took to compute the KV of tokens [begin_token, end_token), with
// that of the tokens before them in place.
struct PrefillSample {
  static constexpr std::uint64_t kTokensMax = std::uint64_t{1} << 24;

  std::uint64_t begin_token = 0;
  std::uint64_t end_token = 0;
  double ms = 0;

  // InvalidArgument names the field, what it was and what was expected: also of a time that no
  // machine can have taken.
  absl::Status Validate() const;
};

// Milliseconds from asking for blocks that were all in one tier to having their bytes, verified.
struct TransferSample {
  static constexpr std::uint64_t kBytesMax = std::uint64_t{1} << 42;

  Tier tier = Tier::kNone;  // kRam or kNvme
  std::uint64_t bytes = 0;
  double ms = 0;

  absl::Status Validate() const;
};

// Those of one report.
struct TurnSamples {
  static constexpr std::size_t kMax = 256;  // of both kinds together

  std::vector<PrefillSample> prefills;
  std::vector<TransferSample> transfers;

  std::size_t size() const { return prefills.size() + transfers.size(); }
  // InvalidArgument names the first that is wrong, as "prefills[3].ms: ...".
  absl::Status Validate() const;
};

// ---- Costs ----

// Zeros, and not measured, until there are CostFit::kMeasuredFrom samples: then nobody is to
// predict with it.
struct PrefillCost {
  double fixed_ms = 0;
  double ms_per_token = 0;
  // Of the difference of the squares: attention looks at all tokens before.
  double ms_per_square_token = 0;
  std::uint64_t samples = 0;
  bool measured = false;

  // Of tokens [from, to) after those before: fixed_ms + ms_per_token * (to - from) +
  // ms_per_square_token * (to^2 - from^2), and 0 where there are none.
  double Ms(std::uint64_t from, std::uint64_t to) const;
};

struct TransferCost {
  double fixed_ms = 0;
  double ms_per_byte = 0;
  std::uint64_t samples = 0;
  bool measured = false;

  double Ms(std::uint64_t bytes) const;  // 0 of no bytes
};

struct TurnCosts {
  PrefillCost prefill;
  std::array<TransferCost, kTierCount> tiers;  // by Tier; kNone is never measured

  const TransferCost& of(Tier tier) const { return tiers[static_cast<std::size_t>(tier)]; }
  TransferCost& of(Tier tier) { return tiers[static_cast<std::size_t>(tier)]; }
};

// ---- Fits ----

// Both: `sample` is valid. Add returns what was predicted of it before, where that was measured.
class PrefillFit {
 public:
  std::optional<double> Add(const PrefillSample& sample);
  PrefillCost Cost() const;

 private:
  CostFit fit_{3, 1};
};

class TransferFit {
 public:
  std::optional<double> Add(const TransferSample& sample);
  TransferCost Cost() const;

 private:
  CostFit fit_{2, 1};
};

}  // namespace kavern

#endif  // KAVERN_BASE_TURN_COSTS_H_
