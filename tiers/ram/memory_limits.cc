#include "tiers/ram/memory_limits.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/units.h"

namespace kavern::tiers {
namespace {

// A limit this large is the kernel's way to say that there is none.
constexpr std::uint64_t kNoLimit = std::uint64_t{1} << 60;

std::optional<std::string> ReadText(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// A file that holds one number; nullopt when it is missing or says "max".
std::optional<std::uint64_t> ReadNumber(const std::string& path) {
  const auto text = ReadText(path);
  std::uint64_t number = 0;
  if (!text || !absl::SimpleAtoi(*text, &number)) return std::nullopt;
  return number;
}

// The value of `key` in lines of "key value [kB]", as /proc/meminfo and memory.stat have them.
std::optional<std::uint64_t> FindNumber(const std::string& text, const std::string& key) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<std::string> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t:"), absl::SkipEmpty());
    std::uint64_t number = 0;
    if (words.size() >= 2 && words[0] == key && absl::SimpleAtoi(words[1], &number)) return number;
  }
  return std::nullopt;
}

// File names of one cgroup version.
struct CgroupFiles {
  const char* limit;
  const char* usage;
  const char* reclaimable;  // key in memory.stat
};
constexpr CgroupFiles kVersion1 = {"memory.limit_in_bytes", "memory.usage_in_bytes",
                                   "total_inactive_file"};
constexpr CgroupFiles kVersion2 = {"memory.max", "memory.current", "inactive_file"};

// Walks from `group` up to the root of the hierarchy at `mount`, and keeps the tightest limit.
void ReadHierarchy(const std::string& mount, std::string group, const CgroupFiles& files,
                   MemoryFacts* facts) {
  for (;;) {
    const std::string directory = absl::StrCat(mount, group == "/" ? "" : group, "/");
    if (const auto limit = ReadNumber(directory + files.limit); limit && *limit < kNoLimit) {
      const std::uint64_t usage = ReadNumber(directory + files.usage).value_or(0);
      const std::uint64_t reclaimable =
          FindNumber(ReadText(directory + "memory.stat").value_or(""), files.reclaimable)
              .value_or(0);
      const std::uint64_t taken = usage - std::min(usage, reclaimable);
      const std::uint64_t free = *limit - std::min(*limit, taken);
      if (*limit < facts->cgroup_limit_bytes.value_or(UINT64_MAX)) {
        facts->cgroup_limit_bytes = limit;
        facts->cgroup_path = directory + files.limit;
      }
      facts->cgroup_free_bytes = std::min(facts->cgroup_free_bytes.value_or(UINT64_MAX), free);
    }
    const std::size_t slash = group.rfind('/');
    if (slash == std::string::npos || group == "/") return;
    group.resize(slash);
  }
}

}  // namespace

absl::StatusOr<MemoryFacts> ReadMemoryFacts(const std::string& root) {
  const auto meminfo = ReadText(root + "/proc/meminfo");
  if (!meminfo) return absl::InternalError("/proc/meminfo: cannot be read");
  MemoryFacts facts;
  facts.machine_total_bytes = FindNumber(*meminfo, "MemTotal").value_or(0) * kKiB;
  facts.machine_available_bytes = FindNumber(*meminfo, "MemAvailable").value_or(0) * kKiB;
  if (facts.machine_total_bytes == 0) {
    return absl::InternalError("/proc/meminfo: has no MemTotal");
  }
  // Lines are "hierarchy-id:controllers:path"; version 2 has id 0 and no controllers. In a
  // container the path may be the host's while the mount shows the container's own group: the walk
  // up ends at the mount.
  for (const absl::string_view line :
       absl::StrSplit(ReadText(root + "/proc/self/cgroup").value_or(""), '\n', absl::SkipEmpty())) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    if (fields[0] == "0" && fields[1].empty()) {
      ReadHierarchy(root + "/sys/fs/cgroup", fields[2], kVersion2, &facts);
      ReadHierarchy(root + "/sys/fs/cgroup/unified", fields[2], kVersion2, &facts);
    }
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    if (std::find(controllers.begin(), controllers.end(), "memory") != controllers.end()) {
      ReadHierarchy(root + "/sys/fs/cgroup/memory", fields[2], kVersion1, &facts);
    }
  }
  return facts;
}

absl::Status CheckCapacity(const MemoryFacts& facts, std::uint64_t capacity_bytes,
                           std::uint64_t headroom_bytes) {
  const auto check = [&](std::uint64_t limit, const std::string& what) {
    if (capacity_bytes <= limit && headroom_bytes <= limit - capacity_bytes) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "ram.capacity: ", FormatBytes(capacity_bytes), " and ", FormatBytes(headroom_bytes),
        " of reserve do not fit into ", what, ", ", FormatBytes(limit)));
  };
  if (absl::Status status = check(facts.machine_total_bytes, "the machine's memory");
      !status.ok()) {
    return status;
  }
  if (!facts.cgroup_limit_bytes) return absl::OkStatus();
  return check(*facts.cgroup_limit_bytes,
               absl::StrCat("the memory cgroup's limit (", facts.cgroup_path, ")"));
}

std::uint64_t PopulatableBytes(const MemoryFacts& facts, std::uint64_t reserve_bytes) {
  const std::uint64_t free =
      std::min(facts.machine_available_bytes, facts.cgroup_free_bytes.value_or(UINT64_MAX));
  return free - std::min(free, reserve_bytes);
}

}  // namespace kavern::tiers
