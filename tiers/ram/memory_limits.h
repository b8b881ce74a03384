// How much memory this process may take: the machine's, and its cgroup's.
#ifndef KAVERN_TIERS_RAM_MEMORY_LIMITS_H_
#define KAVERN_TIERS_RAM_MEMORY_LIMITS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kavern::tiers {

struct MemoryFacts {
  std::uint64_t machine_total_bytes = 0;      // MemTotal
  std::uint64_t machine_available_bytes = 0;  // MemAvailable
  // The tightest memory limit between this process's cgroup and the root, and what is free below it
  // (page cache that can be reclaimed counts as free); nullopt: no limit.
  std::optional<std::uint64_t> cgroup_limit_bytes;
  std::optional<std::uint64_t> cgroup_free_bytes;
  std::string cgroup_path;  // where the limit was read, for messages
};

// Reads /proc/meminfo, /proc/self/cgroup and the cgroup file system (v2, v1 and hybrid). `root` is
// prepended to every path: "" for the real machine, a directory with made-up files in tests. What
// cannot be read is treated as no limit, but for /proc/meminfo (Internal).
absl::StatusOr<MemoryFacts> ReadMemoryFacts(const std::string& root = "");

// Whether `capacity_bytes` of RAM tier can ever hold, leaving `headroom_bytes` for the daemon
// itself. InvalidArgument says which limit it breaks, with all numbers. What is merely in use by
// others at the moment is no reason to refuse: population waits for it.
absl::Status CheckCapacity(const MemoryFacts& facts, std::uint64_t capacity_bytes,
                           std::uint64_t headroom_bytes);

// Bytes that may be populated now while `reserve_bytes` stay free on the machine and in the cgroup.
std::uint64_t PopulatableBytes(const MemoryFacts& facts, std::uint64_t reserve_bytes);

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_RAM_MEMORY_LIMITS_H_
