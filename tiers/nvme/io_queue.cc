#include "tiers/nvme/io_queue.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/units.h"

namespace kavern::tiers {

IoQueue::IoQueue(std::string path, std::size_t io_max, std::uint64_t bytes_max)
    : path_(std::move(path)), io_max_(io_max), bytes_max_(bytes_max) {}

std::size_t IoQueue::ClassOf(const DiskIo& io) {
  if (io.op == DiskIo::Op::kFlush) return 2;
  switch (io.priority) {
    case IoPriority::kFetch:
      return 0;
    case IoPriority::kPrefetch:
      return 1;
    case IoPriority::kWriteBack:
      return 3;
    case IoPriority::kScrub:
      return 4;
  }
  return kClasses - 1;
}

void IoQueue::Push(DiskIo io) {
  // One that is alone may be larger than all may be together: it would never fit otherwise.
  const std::uint64_t bytes = io.Bytes();
  const bool full = size_ >= io_max_ || (size_ > 0 && bytes_ + bytes > bytes_max_);
  if (full) {
    ++counts_.refused;
    ended_.push_back(
        {std::move(io), absl::ResourceExhaustedError(absl::StrCat(
                            path_, ": ", size_, " requests of ", FormatBytes(bytes_),
                            " are queued, at most ", io_max_, " of ", FormatBytes(bytes_max_)))});
    return;
  }
  ++size_;
  bytes_ += bytes;
  next_deadline_ = std::min(next_deadline_, io.deadline);
  classes_[ClassOf(io)].waiting.push_back(std::move(io));
}

std::size_t IoQueue::NextClass() const {
  std::size_t next = kClasses;
  for (std::size_t i = 0; i < kClasses; ++i) {
    if (classes_[i].waiting.empty()) continue;
    if (classes_[i].passes >= kPassesMax) return i;
    next = std::min(next, i);
  }
  return next;
}

std::optional<DiskIo> IoQueue::Pop() {
  const std::size_t next = NextClass();
  if (next == kClasses) return std::nullopt;
  for (Class& other : classes_) other.passes += other.waiting.empty() ? 0 : 1;
  classes_[next].passes = 0;
  DiskIo io = std::move(classes_[next].waiting.front());
  classes_[next].waiting.pop_front();
  Remove(io);
  return io;
}

void IoQueue::Remove(const DiskIo& io) {
  --size_;
  bytes_ -= io.Bytes();
  if (size_ == 0) next_deadline_ = SteadyTime::max();
}

void IoQueue::EndIf(const std::function<bool(const DiskIo&)>& ends, const absl::Status& status,
                    std::uint64_t* count) {
  next_deadline_ = SteadyTime::max();
  for (Class& some : classes_) {
    std::deque<DiskIo> stay;
    for (DiskIo& io : some.waiting) {
      if (!ends(io)) {
        next_deadline_ = std::min(next_deadline_, io.deadline);
        stay.push_back(std::move(io));
        continue;
      }
      --size_;
      bytes_ -= io.Bytes();
      ++*count;
      ended_.push_back({std::move(io), status});
    }
    some.waiting = std::move(stay);
    if (some.waiting.empty()) some.passes = 0;
  }
}

void IoQueue::Expire(SteadyTime now) {
  if (now < next_deadline_) return;
  EndIf([now](const DiskIo& io) { return io.deadline <= now; },
        absl::DeadlineExceededError(absl::StrCat(path_, ": not begun by its deadline")),
        &counts_.expired);
}

void IoQueue::Cancel(std::uint64_t token) {
  if (token == 0) return;
  EndIf([token](const DiskIo& io) { return io.token == token; },
        absl::CancelledError(absl::StrCat(path_, ": cancelled")), &counts_.cancelled);
}

void IoQueue::CancelAll() {
  EndIf([](const DiskIo&) { return true; },
        absl::CancelledError(absl::StrCat(path_, ": the device hangs")), &counts_.cancelled);
}

void IoQueue::Tell(std::vector<Ended> ended) {
  for (Ended& one : ended) one.io.done(std::move(one.status));
}

}  // namespace kavern::tiers
