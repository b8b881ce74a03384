#include "tests/fakes/memory_device.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/unique_fd.h"

namespace kavern::tiers {
namespace {

absl::Status Move(DiskImage& image, const DiskIo& io) {
  if (io.op != DiskIo::Op::kRead && io.op != DiskIo::Op::kWrite) return absl::OkStatus();
  if (io.offset + io.Bytes() > image.size()) return ErrnoStatus(EINVAL, "beyond the disk");
  std::byte* at = image.data() + io.offset;
  for (const std::span<std::byte> piece : io.pieces) {
    if (io.op == DiskIo::Op::kRead) {
      std::memcpy(piece.data(), at, piece.size());
    } else {
      std::memcpy(at, piece.data(), piece.size());
    }
    at += piece.size();
  }
  return absl::OkStatus();
}

}  // namespace

MemoryDevice::MemoryDevice(std::shared_ptr<DiskImage> image)
    : image_(std::move(image)), thread_([this] { Loop(); }) {}

MemoryDevice::~MemoryDevice() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void MemoryDevice::Submit(DiskIo io) {
  MutexLock lock(mu_);
  queue_.push_back(std::move(io));
  changed_.NotifyAll();
}

void MemoryDevice::Loop() {
  for (;;) {
    DiskIo io;
    {
      MutexLock lock(mu_);
      while (!stop_ && queue_.empty()) changed_.Wait(mu_);
      if (queue_.empty()) return;
      io = std::move(queue_.front());
      queue_.pop_front();
    }
    absl::Status status = Move(*image_, io);
    io.done(std::move(status));
  }
}

}  // namespace kavern::tiers
