// One disk, or one file that stands for it: reads and writes of whole pages that end in the
// background.
//
// The seam under the NVMe tier: tests put a device with faults here.
#ifndef KAVERN_TIERS_NVME_BLOCK_DEVICE_H_
#define KAVERN_TIERS_NVME_BLOCK_DEVICE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/unique_fd.h"

namespace kavern::tiers {

// Offsets, addresses and lengths of all I/O are multiples of it.
inline constexpr std::uint64_t kDiskPage = 4096;

// What is queued begins in this order, the most urgent first; flushes begin after prefetches and
// before write-back, whatever their priority. Nobody waits for ever: a class that has been passed
// over kPassesMax times in a row is next.
enum class IoPriority : std::uint8_t { kFetch, kPrefetch, kWriteBack, kScrub };
inline constexpr int kPassesMax = 16;

struct DiskIo {
  enum class Op : std::uint8_t {
    kRead,
    kWrite,
    kFlush,  // makes durable what was written and reported before it was submitted
    // The bytes [offset, offset + discard_bytes) are of no use any more, and zeros when they are
    // read. A block device is told so (TRIM, or what it has for it). A file keeps the space, which
    // must stay reserved, so nothing below it is told: its extents only become unwritten ones.
    // Unimplemented where the file system or the device knows no such thing.
    kDiscard,
  };
  Op op = Op::kRead;
  IoPriority priority = IoPriority::kFetch;
  std::uint64_t offset = 0;
  // One after the other on disk. The memory belongs to the device until `done` is called.
  std::vector<std::span<std::byte>> pieces;
  std::uint64_t discard_bytes = 0;
  // What is still queued at this time ends as DeadlineExceeded, and is not begun. What the kernel
  // has by then ends when the kernel says so, as it would have ended, and counts as late: its
  // memory may be written to until then.
  SteadyTime deadline = SteadyTime::max();
  std::uint64_t token = 0;  // for Cancel(); several may share one; 0: cannot be cancelled
  // Called once, in a thread of the device: all of it was read, written or flushed, or why not.
  // Must not wait for other I/O. Internal and whatever else the system said: the disk failed.
  // DataLoss: the file ends too early. DeadlineExceeded, Cancelled: as above. ResourceExhausted:
  // the queue is full, or the system lacks memory or space.
  std::function<void(absl::Status)> done;
  // What DiskDevices calls where the device hangs, once, perhaps beside `done`: nobody is to wait
  // for that any more. The memory is the device's nonetheless until it is called.
  std::function<void(absl::Status)> given_up = nullptr;

  std::uint64_t Bytes() const;
};

struct BlockDeviceFacts {
  std::uint64_t queued = 0;     // requests that wait to be begun
  std::uint64_t in_flight = 0;  // that the kernel has
  // When the first of those was begun; max: it has none.
  SteadyTime first_begun = SteadyTime::max();
  // Since it was opened.
  std::uint64_t late = 0;       // ended after their deadline
  std::uint64_t expired = 0;    // not begun by their deadline
  std::uint64_t cancelled = 0;  // by Cancel()
  std::uint64_t refused = 0;    // the queue was full
  // Memory that goes to and from the disk without being pinned for each I/O.
  std::uint64_t registered_bytes = 0;
  std::string registration_refusal;  // why the kernel refused to register; empty: it did not
};

// Thread-safe.
class BlockDevice {
 public:
  virtual ~BlockDevice() = default;  // waits for what was submitted

  virtual void Submit(DiskIo io) = 0;

  // Ends what bears `token` (not 0): as Cancelled what is queued, and what the kernel has where the
  // kernel can still be stopped, once it has stopped. Returns without waiting for either.
  virtual void Cancel(std::uint64_t /*token*/) {}

  // The device hangs, and is not used any more. Ends as Cancelled what is queued, and whoever is in
  // UnregisterMemory() waits no longer. What the kernel has ends when the kernel says so.
  virtual void GiveUp() {}

  // I/O of this memory costs less from some moment after this call on, where the device can do
  // that. Returns at once. The memory, whole pages, stays mapped until UnregisterMemory() or the
  // device's end; it must not overlap what is registered already.
  virtual void RegisterMemory(std::span<std::byte> /*memory*/) {}
  // Exactly what was registered, also if that was refused. Returns once the device has nothing in
  // flight by way of the registration and has let go of the memory, so that it can be unmapped.
  // Never called from `done`.
  virtual void UnregisterMemory(std::span<std::byte> /*memory*/) {}

  virtual std::uint64_t size_bytes() const = 0;
  // "io_uring", or "threads" where the kernel refuses it.
  virtual std::string_view method() const = 0;
  virtual BlockDeviceFacts facts() const { return {}; }
};

struct BlockDeviceOptions {
  std::string path;
  bool create = true;            // false: NotFound where there is no such file, or an empty one
  std::uint64_t size_bytes = 0;  // a multiple of kDiskPage
  int depth = 32;                // I/O that the kernel has at a time
  // Beyond either, what is submitted ends as ResourceExhausted.
  std::size_t queued_io_max = 16384;
  std::uint64_t queued_bytes_max = std::uint64_t{4} << 30;
  // How long a file that another process has is waited for: a daemon that was killed has it until
  // the kernel has ended its I/O.
  std::chrono::milliseconds lock_patience{5000};
  bool io_uring = true;  // false: threads
  // False: memory is never registered, as on a kernel that cannot.
  bool register_memory = true;
  // A slot's header is not registered, so its payload needs an entry of the ring and a request of
  // the disk for itself; a smaller payload is cheaper with its header in one.
  // tests/bench/disk_bench measures it.
  std::uint64_t registered_io_min_bytes = std::uint64_t{512} << 10;
  // Completions are worked off when the device's thread waits for them, where the kernel can do
  // that, and not whenever they happen.
  bool defer_taskrun = true;
  const Clock* clock = &Clock::System();  // of the deadlines
};

// A file of exactly `size_bytes`, made where there is none, or an empty one, and `create` says so,
// its space reserved; one of another size is left as it is; or a block device at least as large.
// Opened for direct I/O and locked: no two processes have it. No file is made below /dev. The
// errors name the path: FailedPrecondition (another process has it, or it is mounted; its file
// system has no direct I/O; a disk that is missing), ResourceExhausted (no space), InvalidArgument
// (size), Unavailable (its file system is read-only), NotFound, otherwise what the system said.
absl::StatusOr<UniqueFd> OpenDiskFile(const BlockDeviceOptions& options);

// io_uring where the kernel has it and allows it, else threads; method() tells.
absl::StatusOr<std::unique_ptr<BlockDevice>> OpenBlockDevice(const BlockDeviceOptions& options);

// Unimplemented: the kernel has none, or does not let us (seccomp, kernel.io_uring_disabled).
absl::StatusOr<std::unique_ptr<BlockDevice>> MakeUringDevice(UniqueFd file,
                                                             const BlockDeviceOptions& options);
std::unique_ptr<BlockDevice> MakeThreadDevice(UniqueFd file, const BlockDeviceOptions& options);

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_BLOCK_DEVICE_H_
