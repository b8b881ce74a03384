// How much may be written to disks: bytes a day, with a burst. Endurance, not bandwidth, is what
// the NVMe tier runs out of.
//
// A token bucket: pure, reads no clock, not thread-safe.
#ifndef KAVERN_TIERS_POLICY_WRITE_BUDGET_H_
#define KAVERN_TIERS_POLICY_WRITE_BUDGET_H_

#include <cstdint>

#include "base/clock.h"

namespace kavern::tiers {

class WriteBudget {
 public:
  struct Options {
    std::uint64_t bytes_per_day = 0;  // 0: no limit
    // What may be written at once after a quiet time. A write that is larger never fits.
    std::uint64_t burst_bytes = 0;
  };
  // Begins with `bytes` of the burst; UINT64_MAX: with all of it.
  WriteBudget(const Options& options, SteadyTime now, std::uint64_t bytes);

  bool limited() const { return options_.bytes_per_day != 0; }
  // Takes `bytes` out. False, and nothing is taken: there is not as much.
  bool Take(SteadyTime now, std::uint64_t bytes);
  // As if made anew.
  void Reset(SteadyTime now, std::uint64_t bytes);
  // Gives back what was taken and then not written.
  void Return(std::uint64_t bytes);
  // When Take of `bytes` will succeed; SteadyTime::max() where it never will.
  SteadyTime WhenEnough(SteadyTime now, std::uint64_t bytes) const;
  // What could be written at this moment; UINT64_MAX without a limit.
  std::uint64_t Available(SteadyTime now) const;

 private:
  void Refill(SteadyTime now);

  const Options options_;
  double bytes_ = 0;
  SteadyTime at_;  // when bytes_ was right
};

// What is left of a budget after `seconds` in which nothing wrote: between two daemons.
std::uint64_t RefilledBytes(const WriteBudget::Options& options, std::uint64_t bytes,
                            double seconds);

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_POLICY_WRITE_BUDGET_H_
