#include "tiers/nvme/disk_devices.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/units.h"
#include "tiers/nvme/disk_pages.h"

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

std::function<void(absl::Status)> FirstOf(std::function<void(absl::Status)> done) {
  auto called = std::make_shared<std::atomic<bool>>(false);
  return [called, done = std::move(done)](absl::Status status) {
    if (!called->exchange(true)) done(std::move(status));
  };
}

std::function<void(absl::Status)> Together::Another() {
  MutexLock lock(state_->mu);
  while (state_->left >= kTogetherMax) state_->changed.Wait(state_->mu);
  ++state_->left;
  return [state = state_](absl::Status status) {
    MutexLock ended(state->mu);
    if (!status.ok() && state->first_error.ok()) state->first_error = std::move(status);
    --state->left;
    state->changed.NotifyAll();
  };
}

absl::Status Together::Wait() {
  MutexLock lock(state_->mu);
  while (state_->left > 0) state_->changed.Wait(state_->mu);
  return state_->first_error;
}

DiskDevices::~DiskDevices() {
  // What ends meanwhile is noted: the table is to be whole.
  for (Device& device : devices_) device.device.reset();
}

void DiskDevices::Add(std::string path, std::unique_ptr<BlockDevice> device) {
  MutexLock lock(mu_);
  devices_.push_back({std::move(path), std::move(device), 0, false, ""});
}

void DiskDevices::AddFailed(std::string path, const absl::Status& why) {
  MutexLock lock(mu_);
  devices_.push_back({std::move(path), nullptr, 0, true, std::string(why.message())});
}

void DiskDevices::PutIn(std::uint32_t device, std::unique_ptr<BlockDevice> opened) {
  MutexLock lock(mu_);
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

void DiskDevices::SetOnFailed(std::function<void(std::uint32_t)> on_failed) {
  MutexLock lock(mu_);
  on_failed_ = std::move(on_failed);
}

// ---- I/O ----

absl::Status DiskDevices::OutLocked(const Device& device) const {
  return absl::UnavailableError(absl::StrCat(device.path, ": out of use: ", device.last_error));
}

void DiskDevices::Submit(std::uint32_t device, DiskIo io) {
  absl::Status out;
  std::uint64_t number = 0;
  {
    MutexLock lock(mu_);
    Device& one = devices_[device];
    if (one.out) {
      out = OutLocked(one);
    } else {
      number = ++submitted_;
      one.under_way[number] = std::move(io.given_up);
    }
  }
  if (!out.ok()) {
    io.done(std::move(out));
    return;
  }
  io.done = [this, device, number, op = io.op, done = std::move(io.done)](absl::Status status) {
    done(NoteEnd(device, number, op, std::move(status)));
  };
  devices_[device].device->Submit(std::move(io));
}

void DiskDevices::SubmitOwned(std::uint32_t device, DiskIo io) {
  io.done = FirstOf(std::move(io.done));
  io.given_up = io.done;
  Submit(device, std::move(io));
}

absl::Status DiskDevices::NoteEnd(std::uint32_t device, std::uint64_t number, DiskIo::Op op,
                                  absl::Status status) {
  const bool failed = IsFailure(status);
  std::function<void(std::uint32_t)> on_failed;
  {
    MutexLock lock(mu_);
    Device& one = devices_[device];
    one.under_way.erase(number);
    changed_.NotifyAll();
    if (one.hangs) return OutLocked(one);
    if (op == DiskIo::Op::kRead && status.ok()) one.failed_reads = 0;
    if (!failed || one.out) return status;
    one.last_error = std::string(status.message());
    const bool forgivable = op == DiskIo::Op::kRead || op == DiskIo::Op::kDiscard;
    if (forgivable && (op != DiskIo::Op::kRead || ++one.failed_reads < kFailedReadsMax)) {
      return status;
    }
    one.out = true;
    on_failed = on_failed_;
  }
  if (on_failed) on_failed(device);
  return status;
}

absl::Status DiskDevices::Run(std::uint32_t device, DiskIo::Op op, std::uint64_t offset,
                              std::span<std::byte> memory) {
  std::shared_ptr<const DiskPages> pages;
  DiskIo io;
  io.op = op;
  io.offset = offset;
  if (!memory.empty()) {
    pages = std::make_shared<const DiskPages>(memory.size() / kDiskPage);
    if (op == DiskIo::Op::kWrite) std::memcpy(pages->all().data(), memory.data(), memory.size());
    io.pieces = {pages->all()};
  }
  Together one;
  io.done = [pages, done = one.Another()](absl::Status status) { done(std::move(status)); };
  SubmitOwned(device, std::move(io));
  absl::Status status = one.Wait();
  if (status.ok() && op == DiskIo::Op::kRead && pages != nullptr) {
    std::memcpy(memory.data(), pages->all().data(), memory.size());
  }
  return status;
}

std::vector<absl::Status> DiskDevices::Flush() {
  std::vector<Together> flushes(devices_.size());
  for (std::uint32_t device = 0; device < size(); ++device) {
    DiskIo io;
    io.op = DiskIo::Op::kFlush;
    io.priority = IoPriority::kWriteBack;
    io.done = flushes[device].Another();
    SubmitOwned(device, std::move(io));
  }
  std::vector<absl::Status> statuses;
  statuses.reserve(flushes.size());
  for (Together& flush : flushes) statuses.push_back(flush.Wait());
  return statuses;
}

// ---- Devices that hang ----

void DiskDevices::TakeOutWhatHangs(SteadyTime now, SteadyDuration limit) {
  std::vector<std::pair<std::uint32_t, std::string>> found;
  {
    MutexLock lock(mu_);
    for (std::uint32_t device = 0; device < devices_.size(); ++device) {
      Device& one = devices_[device];
      if (one.device == nullptr || one.hangs) continue;
      const SteadyTime first = one.device->facts().first_begun;
      const bool old = first != SteadyTime::max() && now - first >= limit;
      if (old && one.suspect == first) {
        const auto since = std::chrono::floor<std::chrono::seconds>(now - first);
        found.emplace_back(device, absl::StrCat("it hangs: a request has been under way for ",
                                                FormatDuration(since)));
      }
      one.suspect = old ? first : SteadyTime::max();
    }
  }
  for (const auto& [device, why] : found) GiveUp(device, why);
}

void DiskDevices::GiveUp(std::uint32_t device, const std::string& why) {
  std::function<void(std::uint32_t)> on_failed;
  std::vector<std::function<void(absl::Status)>> given_up;
  absl::Status status;
  {
    MutexLock lock(mu_);
    Device& one = devices_[device];
    if (std::exchange(one.hangs, true)) return;
    // One that failed before keeps its reason.
    if (!std::exchange(one.out, true)) {
      one.last_error = why;
      on_failed = on_failed_;
    }
    status = OutLocked(one);
    for (auto& [number, told] : one.under_way) {
      if (auto tell = std::exchange(told, nullptr)) given_up.push_back(std::move(tell));
    }
  }
  if (on_failed) on_failed(device);
  for (const auto& tell : given_up) tell(status);
  devices_[device].device->GiveUp();
}

std::vector<std::string> DiskDevices::EndIo(std::chrono::steady_clock::time_point deadline) {
  std::vector<std::uint32_t> hanging;
  {
    MutexLock lock(mu_);
    const std::uint64_t last = submitted_;
    const auto waits_for = [last](const Device& one) {
      return !one.hangs && !one.under_way.empty() && one.under_way.begin()->first <= last;
    };
    while (std::any_of(devices_.begin(), devices_.end(), waits_for) &&
           changed_.WaitUntil(mu_, deadline)) {
    }
    for (std::uint32_t device = 0; device < devices_.size(); ++device) {
      if (waits_for(devices_[device])) hanging.push_back(device);
    }
  }
  for (const std::uint32_t device : hanging) {
    GiveUp(device, "it hangs: requests had not ended when the daemon was to end");
  }
  std::vector<std::string> left;
  MutexLock lock(mu_);
  for (const Device& one : devices_) {
    if (!one.hangs || one.under_way.empty()) continue;
    left.push_back(absl::StrCat(one.path, ": ", one.under_way.size(), " requests have not ended"));
  }
  return left;
}

// ---- All of them ----

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
