#include "tests/fakes/fault_device.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <future>
#include <utility>

#include "base/unique_fd.h"

namespace kavern::tiers {
namespace {

constexpr std::uint64_t kSector = 512;

void CopyOut(std::span<const std::byte> bytes, const DiskIo& io) {
  for (const std::span<std::byte> piece : io.pieces) {
    std::memcpy(piece.data(), bytes.data(), piece.size());
    bytes = bytes.subspan(piece.size());
  }
}

std::vector<std::byte> CopyIn(const DiskIo& io) {
  std::vector<std::byte> bytes;
  for (const std::span<std::byte> piece : io.pieces) {
    bytes.insert(bytes.end(), piece.begin(), piece.end());
  }
  return bytes;
}

}  // namespace

std::string_view NameOf(DiskFault fault) {
  static constexpr std::array<std::string_view, kDiskFaults> kNames = {"lost_write",
                                                                       "torn_write",
                                                                       "reordered_write",
                                                                       "misdirected_write",
                                                                       "misdirected_read",
                                                                       "read_error",
                                                                       "write_error",
                                                                       "flush_error",
                                                                       "no_space",
                                                                       "read_only",
                                                                       "short_read",
                                                                       "stale_read",
                                                                       "stall"};
  return kNames[static_cast<std::size_t>(fault)];
}

void FaultCounts::Add(DiskFault fault, std::uint64_t count) {
  MutexLock lock(mu_);
  counts_[static_cast<std::size_t>(fault)] += count;
}

std::uint64_t FaultCounts::operator[](DiskFault fault) const {
  MutexLock lock(mu_);
  return counts_[static_cast<std::size_t>(fault)];
}

FaultDevice::FaultDevice(std::unique_ptr<BlockDevice> base, std::uint64_t seed, bool cache,
                         FaultCounts& counts)
    : counts_(counts), cache_(cache), random_(seed), base_(std::move(base)) {}

FaultDevice::~FaultDevice() {
  Release();
  for (Write& write : WhatIsLeft()) {
    std::promise<void> written;
    SubmitOwned(std::move(write), [&](const absl::Status&) { written.set_value(); });
    written.get_future().wait();
  }
  base_.reset();
}

void FaultDevice::LosePower() {
  MutexLock lock(mu_);
  power_ = false;
}

void FaultDevice::SetRate(DiskFault fault, double rate) {
  MutexLock lock(mu_);
  rates_[static_cast<std::size_t>(fault)] = rate;
}

void FaultDevice::SetFaultsFrom(std::uint64_t from) {
  MutexLock lock(mu_);
  faults_from_ = from;
}

void FaultDevice::IgnoreFlushes() {
  MutexLock lock(mu_);
  ignore_flushes_ = true;
}

std::uint64_t FaultDevice::stalled() const {
  MutexLock lock(mu_);
  return stalled_.size();
}

bool FaultDevice::StrikesLocked(DiskFault fault) {
  const double rate = rates_[static_cast<std::size_t>(fault)];
  // Draws only where there is something to draw: a new kind of fault changes no old run.
  if (rate == 0 || std::uniform_real_distribution<>()(random_) >= rate) return false;
  counts_.Add(fault);
  return true;
}

absl::Status FaultDevice::RefusalLocked(const DiskIo& io) {
  if (!power_) return ErrnoStatus(EIO, "power");
  if (io.op == DiskIo::Op::kRead) {
    if (StrikesLocked(DiskFault::kReadError)) return ErrnoStatus(EIO, "read");
  } else if (io.op == DiskIo::Op::kFlush) {
    if (StrikesLocked(DiskFault::kFlushError)) return ErrnoStatus(EIO, "flush");
  } else {
    if (StrikesLocked(DiskFault::kWriteError)) return ErrnoStatus(EIO, "write");
    if (StrikesLocked(DiskFault::kNoSpace)) return ErrnoStatus(ENOSPC, "write");
    if (StrikesLocked(DiskFault::kReadOnly)) return ErrnoStatus(EROFS, "write");
  }
  return absl::OkStatus();
}

void FaultDevice::End(DiskIo io, absl::Status status) {
  // In a thread of the device, as its contract says.
  auto done = [status = std::move(status), done = std::move(io.done)](const absl::Status&) {
    done(status);
  };
  base_->Submit({.op = DiskIo::Op::kRead, .offset = 0, .pieces = {}, .done = std::move(done)});
}

void FaultDevice::Submit(DiskIo io) {
  absl::Status refusal;
  {
    MutexLock lock(mu_);
    if (!released_ && StrikesLocked(DiskFault::kStall)) {
      stalled_.push_back(std::move(io));
      return;
    }
    refusal = RefusalLocked(io);
  }
  if (!refusal.ok()) {
    End(std::move(io), std::move(refusal));
  } else if (io.op == DiskIo::Op::kRead) {
    Read(std::move(io));
  } else if (io.op == DiskIo::Op::kWrite) {
    WriteThrough(std::move(io));
  } else if (io.op == DiskIo::Op::kFlush) {
    Flush(std::move(io));
  } else {
    base_->Submit(std::move(io));
  }
}

void FaultDevice::Cancel(std::uint64_t token) {
  std::vector<DiskIo> ended;
  {
    MutexLock lock(mu_);
    std::vector<DiskIo> stay;
    for (DiskIo& io : std::exchange(stalled_, {})) {
      (io.token == token ? ended : stay).push_back(std::move(io));
    }
    stalled_ = std::move(stay);
  }
  for (DiskIo& io : ended) End(std::move(io), absl::CancelledError("cancelled"));
  base_->Cancel(token);
}

void FaultDevice::Release() {
  std::vector<DiskIo> held;
  {
    MutexLock lock(mu_);
    released_ = true;
    held.swap(stalled_);
  }
  for (DiskIo& io : held) Submit(std::move(io));
}

void FaultDevice::Read(DiskIo io) {
  const std::uint64_t bytes = io.Bytes();
  const IoPriority priority = io.priority;
  const SteadyTime deadline = io.deadline;
  const std::uint64_t token = io.token;
  std::uint64_t from = io.offset;
  bool short_read = false;
  bool stale = false;
  std::vector<Write> cached;
  {
    MutexLock lock(mu_);
    if (io.offset >= faults_from_ && bytes > 0) {
      if (StrikesLocked(DiskFault::kMisdirectedRead)) {
        const std::uint64_t places = (size_bytes() - bytes) / kDiskPage + 1;
        from = random_() % places * kDiskPage;
      }
      short_read = StrikesLocked(DiskFault::kShortRead);
      stale = rates_[static_cast<std::size_t>(DiskFault::kStaleRead)] > 0 &&
              history_.contains(io.offset) && !history_[io.offset][1].empty() &&
              StrikesLocked(DiskFault::kStaleRead);
    }
    for (const Write& write : unflushed_) {
      if (write.offset < from + bytes && from < write.offset + write.bytes.size()) {
        cached.push_back(write);
      }
    }
  }
  auto whole = std::make_shared<Page>(bytes);
  const std::span<std::byte> memory(*whole);
  auto done = [this, io = std::move(io), whole, cached = std::move(cached), from, short_read,
               stale](absl::Status status) mutable {
    if (status.ok()) {
      MutexLock lock(mu_);
      for (const Write& write : cached) {
        const std::uint64_t begin = std::max(write.offset, from);
        const std::uint64_t end = std::min(write.offset + write.bytes.size(), from + whole->size());
        std::memcpy(whole->data() + (begin - from), write.bytes.data() + (begin - write.offset),
                    end - begin);
      }
      for (std::uint64_t at = 0; stale && at < whole->size(); at += kDiskPage) {
        const auto page = history_.find(io.offset + at);
        if (page == history_.end() || page->second[1].empty()) continue;
        std::memcpy(whole->data() + at, page->second[1].data(), kDiskPage);
      }
    }
    if (status.ok() && short_read) {
      // Half of what is asked for, into memory that keeps what it had behind it.
      std::vector<std::byte> filled = CopyIn(io);
      std::memcpy(filled.data(), whole->data(), whole->size() / 2);
      CopyOut(filled, io);
    } else if (status.ok()) {
      CopyOut(*whole, io);
    }
    io.done(std::move(status));
  };
  DiskIo real;
  real.op = DiskIo::Op::kRead;
  real.offset = from;
  real.priority = priority;
  real.deadline = deadline;
  real.token = token;
  if (!memory.empty()) real.pieces = {memory};
  real.done = std::move(done);
  base_->Submit(std::move(real));
}

void FaultDevice::RememberLocked(std::uint64_t offset, const Page& bytes) {
  if (rates_[static_cast<std::size_t>(DiskFault::kStaleRead)] == 0) return;
  for (std::uint64_t at = 0; at < bytes.size(); at += kDiskPage) {
    auto& page = history_[offset + at];
    page[1] = std::move(page[0]);
    page[0].assign(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                   bytes.begin() + static_cast<std::ptrdiff_t>(at + kDiskPage));
  }
}

void FaultDevice::WriteThrough(DiskIo io) {
  Write write = {io.offset, CopyIn(io)};
  {
    MutexLock lock(mu_);
    RememberLocked(write.offset, write.bytes);
    if (io.offset >= faults_from_ && StrikesLocked(DiskFault::kMisdirectedWrite)) {
      const std::uint64_t first = faults_from_ / kDiskPage;
      const std::uint64_t places = (size_bytes() - write.bytes.size()) / kDiskPage + 1 - first;
      write.offset = (first + random_() % places) * kDiskPage;
    }
    if (cache_) {
      unflushed_.push_back(std::move(write));
      write = {};
    }
  }
  if (cache_) {
    End(std::move(io), absl::OkStatus());
  } else {
    SubmitOwned(std::move(write), std::move(io.done));
  }
}

void FaultDevice::SubmitOwned(Write write, std::function<void(absl::Status)> done) {
  auto owned = std::make_shared<Write>(std::move(write));
  DiskIo io;
  io.op = DiskIo::Op::kWrite;
  io.offset = owned->offset;
  io.pieces = {std::span(owned->bytes)};
  io.done = [owned, done = std::move(done)](absl::Status status) { done(std::move(status)); };
  base_->Submit(std::move(io));
}

void FaultDevice::Flush(DiskIo io) {
  std::vector<Write> writes;
  bool ignored = false;
  {
    MutexLock lock(mu_);
    ignored = ignore_flushes_;
    if (!ignored) {
      // They are read from the disk below as soon as they are gone from here: it has one order.
      writes = std::move(unflushed_);
      unflushed_.clear();
      for (Write& write : writes) SubmitOwned(std::move(write), [](const absl::Status&) {});
    }
  }
  if (ignored) {
    End(std::move(io), absl::OkStatus());
  } else {
    base_->Submit(std::move(io));
  }
}

std::vector<FaultDevice::Write> FaultDevice::WhatIsLeft() {
  MutexLock lock(mu_);
  std::vector<Write> writes = std::move(unflushed_);
  unflushed_.clear();
  if (power_) return writes;
  std::vector<Write> kept;
  bool lost = false;
  for (Write& write : writes) {
    const std::uint64_t fate = random_() % 3;
    if (fate == 0) {
      lost = true;
      counts_.Add(DiskFault::kLostWrite);
    } else if (fate == 1) {
      counts_.Add(DiskFault::kTornWrite);
      for (std::uint64_t at = 0; at < write.bytes.size(); at += kSector) {
        if (random_() % 2 == 0) continue;
        const auto first = write.bytes.begin() + static_cast<std::ptrdiff_t>(at);
        kept.push_back({write.offset + at, {first, first + kSector}});
      }
    } else {
      if (lost) counts_.Add(DiskFault::kReorderedWrite);
      kept.push_back(std::move(write));
    }
  }
  return kept;
}

}  // namespace kavern::tiers
