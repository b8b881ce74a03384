// What a block device has yet to begin: by priority, with deadlines, cancellation and a hard limit.
//
// Not thread-safe: the device's lock guards it. Does no I/O, calls nobody and reads no clock.
#ifndef KAVERN_TIERS_NVME_IO_QUEUE_H_
#define KAVERN_TIERS_NVME_IO_QUEUE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"
#include "tiers/nvme/block_device.h"

namespace kavern::tiers {

class IoQueue {
 public:
  // `path`: for errors.
  IoQueue(std::string path, std::size_t io_max, std::uint64_t bytes_max);

  // What the queue has no room for ends as ResourceExhausted.
  void Push(DiskIo io);
  // The next to begin; nullopt: nothing is queued.
  std::optional<DiskIo> Pop();
  // Ends what has a deadline up to `now`.
  void Expire(SteadyTime now);
  // Ends what bears the token.
  void Cancel(std::uint64_t token);
  // Ends everything, as Cancelled.
  void CancelAll();

  // What ended without being begun, to be told once the lock is let go. The memory of `io` is its
  // owner's from then on.
  struct Ended {
    DiskIo io;
    absl::Status status;
  };
  std::vector<Ended> TakeEnded() { return std::exchange(ended_, {}); }
  static void Tell(std::vector<Ended> ended);
  bool has_ended() const { return !ended_.empty(); }

  // Nothing expires before.
  SteadyTime next_deadline() const { return next_deadline_; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

  struct Counts {
    std::uint64_t expired = 0;
    std::uint64_t cancelled = 0;
    std::uint64_t refused = 0;
  };
  const Counts& counts() const { return counts_; }

 private:
  // In the order in which they begin.
  static constexpr std::size_t kClasses = 5;
  struct Class {
    std::deque<DiskIo> waiting;
    int passes = 0;  // others that were begun since one of these was, or since the first came
  };

  static std::size_t ClassOf(const DiskIo& io);
  std::size_t NextClass() const;
  void EndIf(const std::function<bool(const DiskIo&)>& ends, const absl::Status& status,
             std::uint64_t* count);
  void Remove(const DiskIo& io);

  const std::string path_;
  const std::size_t io_max_;
  const std::uint64_t bytes_max_;
  std::array<Class, kClasses> classes_;
  std::size_t size_ = 0;
  std::uint64_t bytes_ = 0;
  SteadyTime next_deadline_ = SteadyTime::max();  // or earlier: of one that is gone
  std::vector<Ended> ended_;
  Counts counts_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_IO_QUEUE_H_
