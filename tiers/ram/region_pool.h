// All the memory of the RAM tier: makes regions up to a hard cap, populates them in the background.
#ifndef KAVERN_TIERS_RAM_REGION_POOL_H_
#define KAVERN_TIERS_RAM_REGION_POOL_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "tiers/ram/memory_limits.h"
#include "tiers/ram/region.h"

namespace kavern::tiers {

struct RegionPoolOptions {
  std::uint64_t capacity_bytes = 0;  // a multiple of region_bytes
  std::uint64_t region_bytes = 0;    // a multiple of 4096 (of 2 MiB for huge pages)
  std::uint64_t reserve_bytes = 0;   // stays free on the machine and in the cgroup
  HugePages huge_pages = HugePages::kAuto;
  bool prepopulate = true;  // populate ahead of use, in the background; else when taken
  std::function<absl::StatusOr<MemoryFacts>()> read_memory;  // seam; the real machine by default
};

// Regions in existence (ready, taken and retired) never exceed the capacity: a region that a dead
// or slow client still maps counts until it is gone. Thread-safe.
class RegionPool {
 public:
  // Starts the background thread. InvalidArgument for options that contradict each other.
  static absl::StatusOr<std::unique_ptr<RegionPool>> Create(RegionPoolOptions options);
  // Joins the thread. Regions may outlive the pool (their shared state is its own).
  ~RegionPool();

  // A populated, zeroed region that nobody else has ever seen, or nullptr: none is ready. What it
  // would take is then in `waiting_for` of Status.
  std::shared_ptr<Region> Take();

  // Called from the background thread whenever a region became ready. Set once, before Take is
  // used.
  void SetReadyCallback(std::function<void()> ready);

  // Blocks until no region can be added at the present (all populated, or waiting for memory).
  void WaitUntilSettled();

  // The process is about to end: regions are no longer emptied when they are destroyed, so that
  // clients that still hold leases read on.
  void LeaveMemory();

  struct Status {
    std::uint64_t capacity_bytes = 0;
    std::uint64_t existing_bytes = 0;  // ready + taken + retired but still mapped + being made
    std::uint64_t making_bytes = 0;    // being populated now: a region or nothing
    std::uint64_t ready_bytes = 0;
    std::uint64_t huge_page_bytes = 0;  // of the existing
    std::uint64_t region_bytes = 0;
    std::string waiting_for;  // a sentence with numbers; empty: nothing
  };
  Status GetStatus() const;

 private:
  struct Shared;  // what regions' destructors reach after the pool is gone
  class Populator;
  explicit RegionPool(std::shared_ptr<Shared> shared);

  const std::shared_ptr<Shared> shared_;
  std::thread populator_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_RAM_REGION_POOL_H_
