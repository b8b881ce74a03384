// A fetch that goes on in the background: what is asked, and what comes back in which pieces.
#ifndef KAVERN_TIERS_FETCH_H_
#define KAVERN_TIERS_FETCH_H_

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/block_key.h"
#include "base/clock.h"
#include "tiers/leases.h"

namespace kavern::tiers {

struct FetchRequest {
  std::span<const BlockKey> keys;  // borrowed for the length of the call
  std::uint32_t shard = 0;
  std::uint32_t group = 0;
  std::uint64_t lease_bytes_max = UINT64_MAX;  // what the session's lease quota still allows
  // By the store's clock. Blocks that are not in RAM by then, or by options.disk.read_timeout,
  // whichever is first, are answered kDeadlineExceeded.
  SteadyTime deadline = SteadyTime::max();
};

// Why there is no lease on a key: kNotFound (a miss), kDataLoss (damaged on disk, dropped),
// kResourceExhausted (no room in RAM), kDeadlineExceeded (the disk was too slow), kUnavailable (the
// disk cannot be read).
struct FetchFailure {
  std::uint32_t index = 0;  // into the request's keys
  absl::StatusCode code = absl::StatusCode::kNotFound;
};

// A piece of the answer. Every key comes once, in the lease of one event or as its failure.
struct FetchEvent {
  ReadLease lease;  // of what became readable since the event before
  std::vector<FetchFailure> failed;
  std::uint64_t bytes_to_come = 0;  // of slots that later events may pin
  bool last = false;
};

// Events of one fetch come one at a time and in order, from any thread, with no lock held; what
// ends while the sink runs comes together in the next one. The sink may call the store, but must
// not wait for it: reads of others end in the same threads.
using FetchSink = std::function<void(FetchEvent)>;

// How far a prefetch is: it has ended when ready + failed is the number of keys asked for.
struct PrefetchProgress {
  std::uint32_t ready = 0;   // in RAM when they were looked for, or since
  std::uint32_t failed = 0;  // not cached at all, unreadable, or no room
  bool last = false;
};
using PrefetchSink = std::function<void(PrefetchProgress)>;

// A fetch or prefetch under way. Dropping it ends it: no event begins any more (one that is being
// delivered is), and what nobody else wants is not read. What the kernel is at and does not stop
// goes on into RAM as cache content like any other. Must not outlive the store. Move-only.
class FetchTicket {
 public:
  FetchTicket() = default;
  FetchTicket(FetchTicket&& other) noexcept : cancel_(std::exchange(other.cancel_, nullptr)) {}
  FetchTicket& operator=(FetchTicket&& other) noexcept {
    if (this != &other) {
      Cancel();
      cancel_ = std::exchange(other.cancel_, nullptr);
    }
    return *this;
  }
  ~FetchTicket() { Cancel(); }

  // Idempotent; nothing after the last event.
  void Cancel() {
    if (auto cancel = std::exchange(cancel_, nullptr)) cancel();
  }

 private:
  friend class TieredStore;
  explicit FetchTicket(std::function<void()> cancel) : cancel_(std::move(cancel)) {}
  std::function<void()> cancel_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_FETCH_H_
