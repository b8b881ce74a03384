// A block device over io_uring: one ring and one thread, which alone submits, registers and reaps.

#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <deque>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_set.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "tiers/nvme/block_device.h"
#include "tiers/nvme/io_cursor.h"
#include "tiers/nvme/io_queue.h"
#include "tiers/nvme/registered_memory.h"

namespace kavern::tiers {
namespace {

// The file is registered: the kernel looks it up once.
constexpr int kRegisteredFile = 0;
// User data of what is no part of a request.
constexpr std::uint64_t kWakeUp = 0;  // the read that new work ends
constexpr std::uint64_t kCancel = 1;  // its own answer says nothing that the request's does not
// A wait that is longer ends early, and is begun again.
constexpr std::chrono::seconds kWaitMax(3600);
// So much is prepared before it is submitted.
constexpr std::uint64_t kSubmittedBytesAtATime = std::uint64_t{4} << 20;
// Of what has ended, so much is told before the ring is looked at again.
constexpr std::uint64_t kToldBytesAtATime = std::uint64_t{4} << 20;

class UringDevice final : public BlockDevice {
 public:
  UringDevice(UniqueFd file, const BlockDeviceOptions& options)
      : options_(options),
        depth_(static_cast<std::size_t>(options.depth)),
        file_(std::move(file)),
        wake_(eventfd(0, EFD_CLOEXEC)),
        queue_(options.path, options.queued_io_max, options.queued_bytes_max) {
    struct stat facts {};
    block_device_ = fstat(file_.get(), &facts) == 0 && S_ISBLK(facts.st_mode);
  }

  absl::Status Start() {
    if (!wake_.valid()) return ErrnoStatus(errno, "eventfd");
    std::promise<absl::Status> started;
    auto result = started.get_future();
    // The ring belongs to the one thread that uses it (IORING_SETUP_SINGLE_ISSUER), from its
    // making.
    thread_ = NamedThread("disk", [this, &started] {
      absl::Status status = SetUp();
      const bool ok = status.ok();
      started.set_value(std::move(status));
      if (ok) Loop();
    });
    absl::Status status = result.get();
    if (!status.ok()) thread_.join();
    return status;
  }

  ~UringDevice() override {
    if (!thread_.joinable()) return;
    {
      MutexLock lock(mu_);
      stop_ = true;
      Wake();
    }
    thread_.join();
    // The kernel forgets the ring, and the file with it, only some time later.
    (void)flock(file_.get(), LOCK_UN);
  }

  void Submit(DiskIo io) override {
    MutexLock lock(mu_);
    queue_.Push(std::move(io));
    if (sleeps_) Wake();
  }

  void Cancel(std::uint64_t token) override {
    MutexLock lock(mu_);
    queue_.Cancel(token);
    cancels_.push_back(token);
    if (sleeps_) Wake();
  }

  void RegisterMemory(std::span<std::byte> memory) override {
    MutexLock lock(mu_);
    registrations_.push_back({memory, nullptr});
    if (sleeps_) Wake();
  }

  void UnregisterMemory(std::span<std::byte> memory) override {
    // Shared with the thread, which may be stuck in the kernel when nobody waits any more.
    const auto gone = std::make_shared<bool>(false);
    MutexLock lock(mu_);
    registrations_.push_back({memory, gone});
    if (sleeps_) Wake();
    while (!*gone && !given_up_) unregistered_.Wait(mu_);
  }

  void GiveUp() override {
    MutexLock lock(mu_);
    given_up_ = true;
    unregistered_.NotifyAll();
    queue_.CancelAll();
    if (sleeps_) Wake();
  }

  std::uint64_t size_bytes() const override { return options_.size_bytes; }
  std::string_view method() const override { return "io_uring"; }

  BlockDeviceFacts facts() const override {
    MutexLock lock(mu_);
    BlockDeviceFacts facts;
    facts.queued = queue_.size();
    facts.in_flight = begun_.size();
    if (!begun_.empty()) facts.first_begun = *begun_.begin();
    facts.late = late_;
    facts.expired = queue_.counts().expired;
    facts.cancelled = queue_.counts().cancelled + cancelled_;
    facts.refused = queue_.counts().refused;
    facts.registered_bytes = registered_bytes_;
    facts.registration_refusal = registration_refusal_;
    return facts;
  }

 private:
  struct Request;
  // What one entry of the ring does: a run of pieces.
  struct Part {
    Request* request = nullptr;
    IoCursor cursor;
    RegisteredMemory::Buffer* buffer = nullptr;  // that its one piece lies in
  };
  // One that the kernel has.
  struct Request {
    DiskIo io;
    SteadyTime begun;
    std::vector<Part> parts;
    std::size_t parts_left = 0;
    absl::Status status;
    bool cancelled = false;
  };
  struct Registration {
    std::span<std::byte> memory;
    std::shared_ptr<bool> gone;  // nullptr: it comes
  };
  // What there is to do before the next wait.
  struct Turn {
    std::vector<Registration> registrations;
    std::vector<DiskIo> begun;
    SteadyTime now;
    std::vector<std::uint64_t> cancels;
    std::vector<IoQueue::Ended> ended;
    SteadyTime next_deadline = SteadyTime::max();
    bool stop = false;
  };

  absl::Status SetUp() {
    // Per request two entries, its header and its payload; more are submitted in between.
    const auto entries = static_cast<unsigned>(2 * depth_ + 2);
    const std::array<unsigned, 3> all_flags = {
        IORING_SETUP_SINGLE_ISSUER | (options_.defer_taskrun ? IORING_SETUP_DEFER_TASKRUN : 0U),
        IORING_SETUP_SINGLE_ISSUER, 0};
    int error = 0;
    // What older kernels do not know is left out.
    for (const unsigned flags : all_flags) {
      error = -io_uring_queue_init(entries, &ring_, flags);
      if (error != EINVAL) break;
    }
    if (error != 0) {
      return absl::UnimplementedError(ErrnoStatus(error, "io_uring_setup").message());
    }
    // Without it a wait with a time limit would need an entry of its own.
    const int file = file_.get();
    error = (ring_.features & IORING_FEAT_EXT_ARG) == 0
                ? ENOSYS
                : -io_uring_register_files(&ring_, &file, 1);
    if (error != 0) {
      io_uring_queue_exit(&ring_);
      return absl::UnimplementedError(ErrnoStatus(error, "io_uring_register").message());
    }
    if (options_.register_memory) registered_.SetUp(ring_);
    return absl::OkStatus();
  }

  void Wake() KAVERN_REQUIRES(mu_) {
    sleeps_ = false;
    const std::uint64_t one = 1;
    // Cannot fail but for a full counter, and then the thread is awake already.
    [[maybe_unused]] const ssize_t written = write(wake_.get(), &one, sizeof(one));
  }

  void Loop() {
    ArmWakeUp();
    for (;;) {
      Turn turn = TakeTurn();
      IoQueue::Tell(std::move(turn.ended));
      for (const Registration& registration : turn.registrations) Register(registration);
      BeginAll(std::move(turn.begun), turn.now);
      for (const std::uint64_t token : turn.cancels) CancelInFlight(token);
      if (turn.stop) break;
      if (ended_.empty()) {
        Wait(turn.next_deadline);
      } else {
        // Those who are told verify checksums: the disk has its next work before.
        Check(io_uring_submit_and_get_events(&ring_));
        TellSome();
      }
      Reap();
      FinishLeaving();
    }
    io_uring_queue_exit(&ring_);
  }

  Turn TakeTurn() {
    Turn turn;
    turn.now = options_.clock->Now();
    MutexLock lock(mu_);
    if (queue_.next_deadline() != SteadyTime::max()) queue_.Expire(turn.now);
    while (begun_.size() < depth_) {
      std::optional<DiskIo> io = queue_.Pop();
      if (!io.has_value()) break;
      turn.begun.push_back(*std::move(io));
      begun_.insert(turn.now);
    }
    turn.ended = queue_.TakeEnded();
    turn.next_deadline = queue_.next_deadline();
    turn.registrations.swap(registrations_);
    turn.cancels.swap(cancels_);
    // What leaves then has nothing in flight, and is gone before the loop ends.
    turn.stop = stop_ && begun_.empty() && ended_.empty();
    sleeps_ = ended_.empty();
    return turn;
  }

  void Wait(SteadyTime next_deadline) {
    __kernel_timespec limit = {};
    const bool limited = next_deadline != SteadyTime::max();
    if (limited) {
      const auto left = std::clamp<SteadyDuration>(next_deadline - options_.clock->Now(),
                                                   SteadyDuration::zero(), kWaitMax);
      const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
      limit.tv_sec = seconds.count();
      limit.tv_nsec = std::chrono::nanoseconds(left - seconds).count();
    }
    io_uring_cqe* first = nullptr;
    const int result =
        io_uring_submit_and_wait_timeout(&ring_, &first, 1, limited ? &limit : nullptr, nullptr);
    Check(result);
  }

  // Out of memory and the like: completions are reaped, then the rest is submitted.
  static void Check(int result) {
    const bool usable = result >= 0 || result == -EINTR || result == -EBUSY || result == -EAGAIN ||
                        result == -ETIME || result == -ENOMEM;
    // A ring that was set up refuses to be used: nothing is known of our memory.
    if (!usable) std::abort();
  }

  io_uring_sqe* NextEntry() {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    while (entry == nullptr) {
      Check(io_uring_submit(&ring_));
      entry = io_uring_get_sqe(&ring_);
    }
    return entry;
  }

  // ---- Requests ----

  // The kernel takes its time over large requests, and a disk that has ended all it had waits
  // meanwhile: it gets the first of them before the last are prepared.
  void BeginAll(std::vector<DiskIo> all, SteadyTime now) {
    std::uint64_t bytes = 0;
    for (DiskIo& io : all) {
      bytes += io.Bytes();
      Begin(std::move(io), now);
      if (bytes < kSubmittedBytesAtATime) continue;
      Check(io_uring_submit(&ring_));
      bytes = 0;
    }
  }

  void Begin(DiskIo io, SteadyTime now) {
    // Owned by requests_, and by the kernel's user data, until it is reaped.
    auto* request = new Request;
    request->io = std::move(io);
    request->begun = now;
    Split(*request);
    request->parts_left = request->parts.size();
    if (request->io.token != 0) cancellable_.insert(request);
    for (Part& part : request->parts) Prepare(part);
  }

  // Large pieces in registered memory go each by an entry of its own, the rest in as few as may
  // be.
  void Split(Request& request) {
    std::uint64_t offset = request.io.offset;
    bool joins = false;
    for (const std::span<std::byte> piece : request.io.pieces) {
      RegisteredMemory::Buffer* buffer =
          piece.size() < options_.registered_io_min_bytes ? nullptr : registered_.Find(piece);
      if (buffer != nullptr) ++buffer->in_flight;
      if (buffer != nullptr || !joins) {
        request.parts.push_back({&request, IoCursor(offset), buffer});
      }
      request.parts.back().cursor.Append(piece);
      joins = buffer == nullptr;
      offset += piece.size();
    }
    if (request.parts.empty()) request.parts.push_back({&request, IoCursor(offset), nullptr});
  }

  void Prepare(Part& part) {
    io_uring_sqe* entry = NextEntry();
    const DiskIo& io = part.request->io;
    const auto vectors = part.cursor.vectors();
    const auto count = static_cast<unsigned>(vectors.size());
    const std::uint64_t offset = part.cursor.offset();
    const bool read = io.op == DiskIo::Op::kRead;
    if (io.op == DiskIo::Op::kFlush) {
      io_uring_prep_fsync(entry, kRegisteredFile, IORING_FSYNC_DATASYNC);
    } else if (io.op == DiskIo::Op::kDiscard) {
      io_uring_prep_fallocate(entry, kRegisteredFile, DiscardMode(block_device_),
                              static_cast<off_t>(offset), static_cast<off_t>(io.discard_bytes));
    } else if (part.buffer != nullptr) {
      const auto bytes = static_cast<unsigned>(vectors[0].iov_len);
      const auto slot = static_cast<int>(part.buffer->slot);
      (read ? io_uring_prep_read_fixed(entry, kRegisteredFile, vectors[0].iov_base, bytes, offset,
                                       slot)
            : io_uring_prep_write_fixed(entry, kRegisteredFile, vectors[0].iov_base, bytes, offset,
                                        slot));
    } else if (read) {
      io_uring_prep_readv(entry, kRegisteredFile, vectors.data(), count, offset);
    } else {
      io_uring_prep_writev(entry, kRegisteredFile, vectors.data(), count, offset);
    }
    entry->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(entry, &part);
  }

  void ArmWakeUp() {
    io_uring_sqe* entry = NextEntry();
    io_uring_prep_read(entry, wake_.get(), &wakes_, sizeof(wakes_), 0);
    io_uring_sqe_set_data64(entry, kWakeUp);
  }

  void CancelInFlight(std::uint64_t token) {
    for (Request* request : cancellable_) {
      if (request->io.token != token || request->cancelled) continue;
      request->cancelled = true;
      for (Part& part : request->parts) {
        io_uring_sqe* entry = NextEntry();
        io_uring_prep_cancel(entry, &part, 0);
        io_uring_sqe_set_data64(entry, kCancel);
      }
    }
  }

  void Reap() {
    {
      MutexLock lock(mu_);
      sleeps_ = false;
    }
    io_uring_cqe* completion = nullptr;
    while (io_uring_peek_cqe(&ring_, &completion) == 0) {
      const std::uint64_t data = io_uring_cqe_get_data64(completion);
      void* const part = io_uring_cqe_get_data(completion);  // the same, where it is one
      const int result = completion->res;
      io_uring_cqe_seen(&ring_, completion);
      if (data == kWakeUp) {
        ArmWakeUp();
      } else if (data != kCancel) {
        Completed(*static_cast<Part*>(part), result);
      }
    }
  }

  void Completed(Part& part, int result) {
    Request& request = *part.request;
    const bool moves = !part.cursor.done();
    if (moves && result > 0) part.cursor.Advance(static_cast<std::size_t>(result));
    const bool again = result == -EINTR || result == -EAGAIN || (result > 0 && !part.cursor.done());
    if (again && !request.cancelled) {
      Prepare(part);
      return;
    }
    absl::Status status;
    if (again) {
      status = IoError(ECANCELED, options_.path);
    } else if (result < 0) {
      status = IoError(-result, options_.path);
    } else if (!part.cursor.done()) {
      status = EndsTooEarly(options_.path);
    }
    if (request.status.ok()) request.status = std::move(status);
    if (part.buffer != nullptr) --part.buffer->in_flight;
    if (--request.parts_left == 0) End(&request);
  }

  void End(Request* ended) {
    cancellable_.erase(ended);
    ended_.emplace_back(ended);
    const DiskIo& io = ended->io;
    const bool late = io.deadline != SteadyTime::max() && options_.clock->Now() >= io.deadline;
    MutexLock lock(mu_);
    begun_.erase(begun_.find(ended->begun));
    late_ += late ? 1 : 0;
    cancelled_ += absl::IsCancelled(ended->status) ? 1 : 0;
  }

  void TellSome() {
    std::uint64_t bytes = 0;
    while (!ended_.empty() && bytes < kToldBytesAtATime) {
      const std::unique_ptr<Request> request = std::move(ended_.front());
      ended_.pop_front();
      bytes += request->io.Bytes();
      request->io.done(std::move(request->status));
    }
  }

  // ---- Registration ----

  void Register(const Registration& registration) {
    if (registration.gone != nullptr) {
      leaving_.push_back(registration);
      FinishLeaving();
      return;
    }
    if (!options_.register_memory) return;
    const absl::Status status = registered_.Add(registration.memory);
    MutexLock lock(mu_);
    registered_bytes_ = registered_.bytes();
    if (!status.ok()) registration_refusal_ = std::string(status.message());
  }

  void FinishLeaving() {
    // The memory of what has ended is its owner's once that is told.
    if (leaving_.empty() || !ended_.empty()) return;
    std::erase_if(leaving_, [this](const Registration& registration) {
      if (!registered_.Remove(registration.memory)) return false;
      MutexLock lock(mu_);
      registered_bytes_ = registered_.bytes();
      *registration.gone = true;
      unregistered_.NotifyAll();
      return true;
    });
  }

  const BlockDeviceOptions options_;
  const std::size_t depth_;
  const UniqueFd file_;
  const UniqueFd wake_;
  bool block_device_ = false;

  mutable Mutex mu_;
  CondVar unregistered_;
  IoQueue queue_ KAVERN_GUARDED_BY(mu_);
  std::vector<std::uint64_t> cancels_ KAVERN_GUARDED_BY(mu_);
  std::vector<Registration> registrations_ KAVERN_GUARDED_BY(mu_);
  absl::btree_multiset<SteadyTime> begun_ KAVERN_GUARDED_BY(mu_);  // when, of what is in flight
  std::uint64_t late_ KAVERN_GUARDED_BY(mu_) = 0;
  std::uint64_t cancelled_ KAVERN_GUARDED_BY(mu_) = 0;
  std::uint64_t registered_bytes_ KAVERN_GUARDED_BY(mu_) = 0;
  std::string registration_refusal_ KAVERN_GUARDED_BY(mu_);
  bool sleeps_ KAVERN_GUARDED_BY(mu_) = false;  // or is about to
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  bool given_up_ KAVERN_GUARDED_BY(mu_) = false;

  // The thread's own.
  io_uring ring_ = {};
  std::uint64_t wakes_ = 0;
  RegisteredMemory registered_;
  absl::flat_hash_set<Request*> cancellable_;   // of those that bear a token
  std::deque<std::unique_ptr<Request>> ended_;  // to be told
  std::vector<Registration> leaving_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockDevice>> MakeUringDevice(UniqueFd file,
                                                             const BlockDeviceOptions& options) {
  auto device = std::make_unique<UringDevice>(std::move(file), options);
  KAVERN_RETURN_IF_ERROR(device->Start());
  return device;
}

}  // namespace kavern::tiers
