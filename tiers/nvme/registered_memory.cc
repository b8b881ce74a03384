#include "tiers/nvme/registered_memory.h"

#include <algorithm>

#include "base/unique_fd.h"
#include "base/units.h"

namespace kavern::tiers {
namespace {

// The kernel's own limits.
constexpr unsigned kTableSlots = 16384;
constexpr std::size_t kBufferBytesMax = kGiB;

}  // namespace

void RegisteredMemory::SetUp(io_uring& ring) {
  ring_ = &ring;
  const int error = -io_uring_register_buffers_sparse(ring_, kTableSlots);
  if (error != 0) {
    refusal_ = ErrnoStatus(error, "io_uring_register of a table of buffers");
    return;
  }
  for (unsigned slot = kTableSlots; slot > 0; --slot) free_slots_.push_back(slot - 1);
}

int RegisteredMemory::Update(unsigned slot, std::span<std::byte> memory) {
  const iovec vector = {memory.data(), memory.size()};
  const __u64 tag = 0;
  const int updated = io_uring_register_buffers_update_tag(ring_, slot, &vector, &tag, 1);
  return updated < 0 ? -updated : 0;
}

absl::Status RegisteredMemory::Add(std::span<std::byte> memory) {
  if (!refusal_.ok()) return refusal_;
  for (std::size_t at = 0; at < memory.size(); at += kBufferBytesMax) {
    const auto some = memory.subspan(at, std::min(kBufferBytesMax, memory.size() - at));
    absl::Status status;
    if (free_slots_.empty()) {
      status = absl::ResourceExhaustedError("the ring's table of buffers is full");
    } else if (const int error = Update(free_slots_.back(), some); error != 0) {
      status = ErrnoStatus(error, "io_uring_register of memory (RLIMIT_MEMLOCK bounds it)");
    }
    if (!status.ok()) {
      Remove(memory);
      return status;
    }
    buffers_[some.data()] = {some, free_slots_.back(), 0, false};
    free_slots_.pop_back();
    bytes_ += some.size();
  }
  return absl::OkStatus();
}

RegisteredMemory::Buffer* RegisteredMemory::Find(std::span<const std::byte> piece) {
  auto behind = buffers_.upper_bound(piece.data());
  if (behind == buffers_.begin()) return nullptr;
  Buffer& buffer = std::prev(behind)->second;
  const auto at = static_cast<std::size_t>(piece.data() - buffer.memory.data());
  const bool inside =
      at <= buffer.memory.size() && piece.size() <= buffer.memory.size() - at && !piece.empty();
  return inside && !buffer.leaving ? &buffer : nullptr;
}

bool RegisteredMemory::Remove(std::span<const std::byte> memory) {
  bool all = true;
  auto buffer = buffers_.lower_bound(memory.data());
  while (buffer != buffers_.end() && buffer->first < memory.data() + memory.size()) {
    buffer->second.leaving = true;
    if (buffer->second.in_flight > 0) {
      all = false;
      ++buffer;
      continue;
    }
    // Emptying a slot cannot fail but for a table that is not there.
    (void)Update(buffer->second.slot, {});
    free_slots_.push_back(buffer->second.slot);
    bytes_ -= buffer->second.memory.size();
    buffer = buffers_.erase(buffer);
  }
  return all;
}

}  // namespace kavern::tiers
