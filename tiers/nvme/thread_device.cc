// A block device without io_uring: threads that wait in preadv and pwritev.

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "absl/container/btree_set.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "tiers/nvme/block_device.h"
#include "tiers/nvme/io_cursor.h"
#include "tiers/nvme/io_queue.h"

namespace kavern::tiers {
namespace {

// More would only wait for the same disk.
constexpr int kThreadsMax = 16;

class ThreadDevice final : public BlockDevice {
 public:
  ThreadDevice(UniqueFd file, const BlockDeviceOptions& options)
      : path_(options.path),
        size_bytes_(options.size_bytes),
        clock_(*options.clock),
        file_(std::move(file)),
        queue_(options.path, options.queued_io_max, options.queued_bytes_max) {
    struct stat facts {};
    block_device_ = fstat(file_.get(), &facts) == 0 && S_ISBLK(facts.st_mode);
    for (int i = 0; i < std::min(options.depth, kThreadsMax); ++i) {
      threads_.push_back(NamedThread("disk", [this] { Loop(); }));
    }
    threads_.push_back(NamedThread("disk-late", [this] { TellLoop(); }));
  }

  ~ThreadDevice() override {
    {
      MutexLock lock(mu_);
      stop_ = true;
      changed_.NotifyAll();
      to_tell_.NotifyAll();
    }
    for (std::thread& thread : threads_) thread.join();
  }

  void Submit(DiskIo io) override {
    MutexLock lock(mu_);
    queue_.Push(std::move(io));
    changed_.NotifyOne();
    // It waits for the first deadline, which may be this one's.
    if (queue_.has_ended() || queue_.next_deadline() < teller_waits_until_) to_tell_.NotifyAll();
  }

  void Cancel(std::uint64_t token) override {
    MutexLock lock(mu_);
    queue_.Cancel(token);
    to_tell_.NotifyAll();
  }

  void GiveUp() override {
    MutexLock lock(mu_);
    queue_.CancelAll();
    to_tell_.NotifyAll();
  }

  std::uint64_t size_bytes() const override { return size_bytes_; }
  std::string_view method() const override { return "threads"; }

  BlockDeviceFacts facts() const override {
    MutexLock lock(mu_);
    BlockDeviceFacts facts;
    facts.queued = queue_.size();
    facts.in_flight = begun_.size();
    if (!begun_.empty()) facts.first_begun = *begun_.begin();
    facts.late = late_;
    facts.expired = queue_.counts().expired;
    facts.cancelled = queue_.counts().cancelled;
    facts.refused = queue_.counts().refused;
    return facts;
  }

 private:
  void Loop() {
    for (;;) {
      std::optional<DiskIo> io;
      SteadyTime begun;
      {
        MutexLock lock(mu_);
        for (;;) {
          Expire();
          io = queue_.Pop();
          if (io.has_value()) break;
          if (stop_) {
            to_tell_.NotifyAll();
            return;
          }
          changed_.Wait(mu_);
        }
        begun = clock_.Now();
        begun_.insert(begun);
      }
      absl::Status status = Run(*io);
      {
        MutexLock lock(mu_);
        begun_.erase(begun_.find(begun));
        if (io->deadline != SteadyTime::max() && clock_.Now() >= io->deadline) ++late_;
      }
      io->done(std::move(status));
    }
  }

  // Those that end in the queue: also while every other thread waits for the disk.
  void TellLoop() {
    for (;;) {
      std::vector<IoQueue::Ended> ended;
      {
        MutexLock lock(mu_);
        for (;;) {
          Expire();
          ended = queue_.TakeEnded();
          if (!ended.empty()) break;
          if (stop_ && queue_.empty()) return;
          teller_waits_until_ = queue_.next_deadline();
          if (teller_waits_until_ == SteadyTime::max()) {
            to_tell_.Wait(mu_);
          } else {
            // The clock may be a test's.
            to_tell_.WaitUntil(
                mu_, std::chrono::steady_clock::now() + (teller_waits_until_ - clock_.Now()));
          }
        }
      }
      IoQueue::Tell(std::move(ended));
    }
  }

  void Expire() KAVERN_REQUIRES(mu_) {
    if (queue_.next_deadline() == SteadyTime::max()) return;
    queue_.Expire(clock_.Now());
    if (queue_.has_ended()) to_tell_.NotifyAll();
  }

  absl::Status Run(const DiskIo& io) const {
    switch (io.op) {
      case DiskIo::Op::kFlush:
        return fdatasync(file_.get()) == 0 ? absl::OkStatus() : IoError(errno, path_);
      case DiskIo::Op::kDiscard: {
        const auto offset = static_cast<off_t>(io.offset);
        const auto length = static_cast<off_t>(io.discard_bytes);
        const int failed = fallocate(file_.get(), DiscardMode(block_device_), offset, length);
        return failed == 0 ? absl::OkStatus() : IoError(errno, path_);
      }
      case DiskIo::Op::kRead:
      case DiskIo::Op::kWrite:
        return Move(io);
    }
    return absl::OkStatus();
  }

  absl::Status Move(const DiskIo& io) const {
    IoCursor cursor(io);
    while (!cursor.done()) {
      const auto vectors = cursor.vectors();
      const auto count = static_cast<int>(vectors.size());
      const auto offset = static_cast<off_t>(cursor.offset());
      const ssize_t moved = io.op == DiskIo::Op::kRead
                                ? preadv2(file_.get(), vectors.data(), count, offset, 0)
                                : pwritev2(file_.get(), vectors.data(), count, offset, 0);
      if (moved < 0 && errno == EINTR) continue;
      if (moved < 0) return IoError(errno, path_);
      if (moved == 0) return EndsTooEarly(path_);
      cursor.Advance(static_cast<std::size_t>(moved));
    }
    return absl::OkStatus();
  }

  const std::string path_;
  const std::uint64_t size_bytes_;
  const Clock& clock_;
  const UniqueFd file_;
  bool block_device_ = false;

  mutable Mutex mu_;
  CondVar changed_;
  CondVar to_tell_;
  IoQueue queue_ KAVERN_GUARDED_BY(mu_);
  SteadyTime teller_waits_until_ KAVERN_GUARDED_BY(mu_) = SteadyTime::min();
  absl::btree_multiset<SteadyTime> begun_ KAVERN_GUARDED_BY(mu_);  // when, of what is in flight
  std::uint64_t late_ KAVERN_GUARDED_BY(mu_) = 0;
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<BlockDevice> MakeThreadDevice(UniqueFd file, const BlockDeviceOptions& options) {
  return std::make_unique<ThreadDevice>(std::move(file), options);
}

}  // namespace kavern::tiers
