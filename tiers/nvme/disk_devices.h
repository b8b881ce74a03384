// The devices of one store, and which of them have failed.
//
// A device is out after a write or a flush that failed, because nobody knows what is on it then, or
// after kFailedReadsMax reads in a row: it is not touched again, and the others go on. So is one
// that fails when the store is opened.
#ifndef KAVERN_TIERS_NVME_DISK_DEVICES_H_
#define KAVERN_TIERS_NVME_DISK_DEVICES_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
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

// Several operations, and one wait for all.
class Together {
 public:
  // Waits while very many are under way: a device's queue is bounded.
  std::function<void(absl::Status)> Another();
  // The first error.
  absl::Status Wait();

 private:
  Mutex mu_;
  CondVar changed_;
  std::size_t left_ KAVERN_GUARDED_BY(mu_) = 0;
  absl::Status first_error_ KAVERN_GUARDED_BY(mu_);
};

// Thread-safe, but for Add(), AddFailed(), PutIn() and SetOnFailed(), which come before everything
// else.
class DiskDevices {
 public:
  void Add(std::string path, std::unique_ptr<BlockDevice> device);
  // One that cannot be opened: it is out from the beginning.
  void AddFailed(std::string path, const absl::Status& why);
  // In place of one that could not be opened.
  void PutIn(std::uint32_t device, std::unique_ptr<BlockDevice> opened);
  // As after a failure, but SetOnFailed()'s is not called. A device that is out keeps its reason.
  void TakeOut(std::uint32_t device, const absl::Status& why);
  // Called once for each device that fails, in a thread of that device, before the I/O that showed
  // it ends. Must not wait for I/O.
  void SetOnFailed(std::function<void(std::uint32_t)> on_failed) {
    on_failed_ = std::move(on_failed);
  }

  // Of a device that is out it ends as Unavailable, within this call.
  void Submit(std::uint32_t device, DiskIo io);
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
  };
  void NoteEnd(std::uint32_t device, DiskIo::Op op, const absl::Status& status);

  std::function<void(std::uint32_t)> on_failed_;
  mutable Mutex mu_;  // of what changes in the devices
  std::vector<Device> devices_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_DISK_DEVICES_H_
