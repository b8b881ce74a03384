// Memory that is registered with one ring: pinned once, and not for each I/O.
//
// Belongs to the ring's thread.
#ifndef KAVERN_TIERS_NVME_REGISTERED_MEMORY_H_
#define KAVERN_TIERS_NVME_REGISTERED_MEMORY_H_

#include <liburing.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "absl/status/status.h"

namespace kavern::tiers {

class RegisteredMemory {
 public:
  struct Buffer {
    std::span<std::byte> memory;
    unsigned slot = 0;  // in the ring's table
    std::uint32_t in_flight = 0;
    bool leaving = false;
  };

  // An empty table in the ring. Where the kernel knows none, Add() says so.
  void SetUp(io_uring& ring);

  // ResourceExhausted: the table is full, or RLIMIT_MEMLOCK is reached. Otherwise what the kernel
  // said. Nothing is registered then.
  absl::Status Add(std::span<std::byte> memory);
  // The buffer that holds all of it; nullptr: none does, or it leaves. It stays while it is in
  // flight.
  Buffer* Find(std::span<const std::byte> piece);
  // Takes what lies in `memory` out of the table. False: some is in flight, and the rest leaves
  // with another call.
  bool Remove(std::span<const std::byte> memory);

  std::uint64_t bytes() const { return bytes_; }

 private:
  int Update(unsigned slot, std::span<std::byte> memory);

  io_uring* ring_ = nullptr;
  absl::Status refusal_;
  std::vector<unsigned> free_slots_;
  std::map<const std::byte*, Buffer, std::less<>> buffers_;  // by address
  std::uint64_t bytes_ = 0;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_REGISTERED_MEMORY_H_
