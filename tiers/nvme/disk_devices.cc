#include "tiers/nvme/disk_devices.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kavern::tiers {
namespace {

constexpr std::size_t kTogetherMax = 1024;

// The device did not do what it was asked for; all else is an answer about the request.
bool IsFailure(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnimplemented:
      return false;
    default:
      return true;
  }
}

}  // namespace

bool IsDeviceFailure(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kFailedPrecondition:  // somebody else's, another store's, in use
    case absl::StatusCode::kInvalidArgument:     // sizes
    case absl::StatusCode::kPermissionDenied:    // the daemon's user may not
    case absl::StatusCode::kResourceExhausted:   // no room for the capacity, no memory
      return false;
    default:
      return true;
  }
}

std::function<void(absl::Status)> Together::Another() {
  MutexLock lock(mu_);
  while (left_ >= kTogetherMax) changed_.Wait(mu_);
  ++left_;
  return [this](absl::Status status) {
    MutexLock ended(mu_);
    if (!status.ok() && first_error_.ok()) first_error_ = std::move(status);
    --left_;
    changed_.NotifyAll();
  };
}

absl::Status Together::Wait() {
  MutexLock lock(mu_);
  while (left_ > 0) changed_.Wait(mu_);
  return first_error_;
}

void DiskDevices::Add(std::string path, std::unique_ptr<BlockDevice> device) {
  devices_.push_back({std::move(path), std::move(device), 0, false, ""});
}

void DiskDevices::AddFailed(std::string path, const absl::Status& why) {
  devices_.push_back({std::move(path), nullptr, 0, true, std::string(why.message())});
}

void DiskDevices::PutIn(std::uint32_t device, std::unique_ptr<BlockDevice> opened) {
  Device& one = devices_[device];
  one = {std::move(one.path), std::move(opened), 0, false, ""};
}

void DiskDevices::TakeOut(std::uint32_t device, const absl::Status& why) {
  MutexLock lock(mu_);
  Device& one = devices_[device];
  if (one.out) return;
  one.out = true;
  one.last_error = std::string(why.message());
}

void DiskDevices::Submit(std::uint32_t device, DiskIo io) {
  absl::Status out;
  {
    MutexLock lock(mu_);
    const Device& one = devices_[device];
    if (one.out) {
      out = absl::UnavailableError(absl::StrCat(one.path, ": out of use: ", one.last_error));
    }
  }
  if (!out.ok()) {
    io.done(std::move(out));
    return;
  }
  io.done = [this, device, op = io.op, done = std::move(io.done)](absl::Status status) {
    NoteEnd(device, op, status);
    done(std::move(status));
  };
  devices_[device].device->Submit(std::move(io));
}

void DiskDevices::NoteEnd(std::uint32_t device, DiskIo::Op op, const absl::Status& status) {
  const bool failed = IsFailure(status);
  {
    MutexLock lock(mu_);
    Device& one = devices_[device];
    if (op == DiskIo::Op::kRead && status.ok()) one.failed_reads = 0;
    if (!failed || one.out) return;
    one.last_error = std::string(status.message());
    const bool forgivable = op == DiskIo::Op::kRead || op == DiskIo::Op::kDiscard;
    if (forgivable && (op != DiskIo::Op::kRead || ++one.failed_reads < kFailedReadsMax)) return;
    one.out = true;
  }
  if (on_failed_) on_failed_(device);
}

absl::Status DiskDevices::Run(std::uint32_t device, DiskIo::Op op, std::uint64_t offset,
                              std::span<std::byte> memory) {
  Together one;
  DiskIo io;
  io.op = op;
  io.offset = offset;
  if (!memory.empty()) io.pieces = {memory};
  io.done = one.Another();
  Submit(device, std::move(io));
  return one.Wait();
}

std::vector<absl::Status> DiskDevices::Flush() {
  std::vector<Together> flushes(devices_.size());
  for (std::uint32_t device = 0; device < size(); ++device) {
    DiskIo io;
    io.op = DiskIo::Op::kFlush;
    io.priority = IoPriority::kWriteBack;
    io.done = flushes[device].Another();
    Submit(device, std::move(io));
  }
  std::vector<absl::Status> statuses;
  statuses.reserve(flushes.size());
  for (Together& flush : flushes) statuses.push_back(flush.Wait());
  return statuses;
}

void DiskDevices::Cancel(std::uint64_t token) {
  for (const Device& device : devices_) {
    if (device.device != nullptr) device.device->Cancel(token);
  }
}

void DiskDevices::RegisterMemory(std::span<std::byte> memory) {
  for (const Device& device : devices_) {
    if (device.device != nullptr) device.device->RegisterMemory(memory);
  }
}

void DiskDevices::UnregisterMemory(std::span<std::byte> memory) {
  for (const Device& device : devices_) {
    if (device.device != nullptr) device.device->UnregisterMemory(memory);
  }
}

bool DiskDevices::healthy(std::uint32_t device) const {
  MutexLock lock(mu_);
  return !devices_[device].out;
}

bool DiskDevices::all_healthy() const {
  MutexLock lock(mu_);
  return std::none_of(devices_.begin(), devices_.end(), [](const Device& one) { return one.out; });
}

bool DiskDevices::all_out() const {
  MutexLock lock(mu_);
  return std::all_of(devices_.begin(), devices_.end(), [](const Device& one) { return one.out; });
}

std::string DiskDevices::failure(std::uint32_t device) const {
  MutexLock lock(mu_);
  const Device& one = devices_[device];
  return one.out ? absl::StrCat(one.path, " is out of use (", one.last_error, ")") : "";
}

std::string DiskDevices::first_failure() const {
  for (std::uint32_t device = 0; device < size(); ++device) {
    if (std::string failure = this->failure(device); !failure.empty()) return failure;
  }
  return "";
}

std::vector<DeviceFacts> DiskDevices::facts() const {
  std::vector<DeviceFacts> facts;
  for (const Device& device : devices_) {
    DeviceFacts one;
    one.path = device.path;
    if (device.device != nullptr) {
      one.method = std::string(device.device->method());
      one.io = device.device->facts();
    }
    MutexLock lock(mu_);
    one.healthy = !device.out;
    one.last_error = device.last_error;
    facts.push_back(std::move(one));
  }
  return facts;
}

}  // namespace kavern::tiers
