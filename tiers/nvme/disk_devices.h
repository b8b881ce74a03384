// The devices of one store, and which of them have failed.
//
// A device is out after a write or a flush that failed, because nobody knows what is on it then,
// after kFailedReadsMax reads in a row, or when it hangs: it is not touched again, and the others
// go on. So is one that fails when the store is opened.
//
// What a device that hangs was asked for is given up: nobody waits for it, though the kernel may
// read or write its memory at any time until it ends.
#ifndef KAVERN_TIERS_NVME_DISK_DEVICES_H_
#define KAVERN_TIERS_NVME_DISK_DEVICES_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "tiers/nvme/block_device.h"

namespace kavern::tiers {

inline constexpr int kFailedReadsMax = 8;

struct DeviceFacts {
  std::string path;
  std::string method;  // empty: it could not be opened
  bool healthy = true;
  std::string last_error;  // empty: there was none
  BlockDeviceFacts io;
};

// Whether the error is of the device, and not of the request or of the configuration: a person sets
// the latter right, and the store refuses to open.
bool IsDeviceFailure(const absl::Status& status);

// May be called twice, also by two threads: only the first call counts. For `done` and `given_up`
// of a request whose memory `done` owns.
std::function<void(absl::Status)> FirstOf(std::function<void(absl::Status)> done);

// Several operations, and one wait for all. They may end after it is gone.
class Together {
 public:
  // Waits while very many are under way: a device's queue is bounded.
  std::function<void(absl::Status)> Another();
  // The first error.
  absl::Status Wait();

 private:
  struct State {
    Mutex mu;
    CondVar changed;
    std::size_t left KAVERN_GUARDED_BY(mu) = 0;
    absl::Status first_error KAVERN_GUARDED_BY(mu);
  };
  const std::shared_ptr<State> state_ = std::make_shared<State>();  // shared with the operations
};

// Thread-safe, but for Add(), AddFailed() and PutIn(), which come before everything else but
// TakeOutWhatHangs().
class DiskDevices {
 public:
  DiskDevices() = default;
  DiskDevices(const DiskDevices&) = delete;
  DiskDevices& operator=(const DiskDevices&) = delete;
  ~DiskDevices();  // waits for what was submitted, also where it was given up

  void Add(std::string path, std::unique_ptr<BlockDevice> device);
  // One that cannot be opened: it is out from the beginning.
  void AddFailed(std::string path, const absl::Status& why);
  // In place of one that could not be opened.
  void PutIn(std::uint32_t device, std::unique_ptr<BlockDevice> opened);
  // As after a failure, but SetOnFailed()'s is not called. A device that is out keeps its reason.
  void TakeOut(std::uint32_t device, const absl::Status& why);
  // Called once for each device that fails, in a thread of that device, before the I/O that showed
  // it ends; of one that hangs in the call that found out. Must not wait for I/O.
  void SetOnFailed(std::function<void(std::uint32_t)> on_failed);
  // Of those that have had a request in flight for `limit`, at this look and at the one before:
  // after a pause of the whole process all seem old, and end at once.
  void TakeOutWhatHangs(SteadyTime now, SteadyDuration limit);
  // Waits until `deadline` for what was submitted before this call; the devices that have some of
  // it then hang. Does not wait for those that do already. Returns a sentence for each device that
  // has some left.
  std::vector<std::string> EndIo(std::chrono::steady_clock::time_point deadline);

  // Of a device that is out it ends as Unavailable, within this call.
  void Submit(std::uint32_t device, DiskIo io);
  // The same. `done` owns the memory, and is called when the request is given up: what it holds
  // lives until the request has ended.
  void SubmitOwned(std::uint32_t device, DiskIo io);
  // Of memory of its own, since the caller's is not to be waited for where the device hangs.
  absl::Status Run(std::uint32_t device, DiskIo::Op op, std::uint64_t offset,
                   std::span<std::byte> memory);
  // All that are in use, at the same time. One status for each device; Unavailable: it is out.
  std::vector<absl::Status> Flush();
  void Cancel(std::uint64_t token);
  void RegisterMemory(std::span<std::byte> memory);
  void UnregisterMemory(std::span<std::byte> memory);

  std::uint32_t size() const { return static_cast<std::uint32_t>(devices_.size()); }
  bool healthy(std::uint32_t device) const;
  bool all_healthy() const;
  bool all_out() const;
  // "PATH is out of use (WHY)"; empty: it is not.
  std::string failure(std::uint32_t device) const;
  std::string first_failure() const;  // of the first that is out
  std::vector<DeviceFacts> facts() const;

 private:
  struct Device {
    std::string path;
    std::unique_ptr<BlockDevice> device;  // nullptr: it could not be opened
    int failed_reads = 0;                 // in a row
    bool out = false;
    std::string last_error;
    bool hangs = false;                      // what it has was given up
    SteadyTime suspect = SteadyTime::max();  // BlockDeviceFacts::first_begun at the last look
    // DiskIo::given_up of what was submitted and has not ended, by number.
    absl::btree_map<std::uint64_t, std::function<void(absl::Status)>> under_way = {};
  };
  absl::Status OutLocked(const Device& device) const KAVERN_REQUIRES(mu_);
  // What it says of a device that hangs is another status.
  absl::Status NoteEnd(std::uint32_t device, std::uint64_t number, DiskIo::Op op,
                       absl::Status status);
  void GiveUp(std::uint32_t device, const std::string& why);

  mutable Mutex mu_;  // of what changes in the devices
  CondVar changed_;   // something has ended
  std::function<void(std::uint32_t)> on_failed_ KAVERN_GUARDED_BY(mu_);
  std::uint64_t submitted_ KAVERN_GUARDED_BY(mu_) = 0;
  std::vector<Device> devices_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_DISK_DEVICES_H_
