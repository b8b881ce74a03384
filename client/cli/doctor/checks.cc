#include "client/cli/doctor/checks.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/kv_layout.h"
#include "base/units.h"
#include "client/cli/text_output.h"

namespace kavern::cli {
namespace {

// pidfd_open; the newest call that the daemon cannot work without.
constexpr int kKernelNeeded[] = {5, 3};
// MADV_COLLAPSE; the newest call that makes it faster.
constexpr int kKernelWanted[] = {6, 1};
// What the daemon leaves free beside ram.capacity by default (ram.reserve).
constexpr std::uint64_t kReserveBytes = kGiB;
// Three descriptors per session (gRPC, attach socket, pidfd), one per region and per directory
// segment: with the default limits of 4096 sessions and 16384 namespaces.
constexpr std::uint64_t kOpenFilesWanted = 32768;
constexpr std::uint64_t kOpenFilesNeeded = 1024;
constexpr std::uint64_t kMemlockWantedBytes = 64 * kMiB;
constexpr double kFlushWantedSeconds = 0.1;  // nvme.batch_interval
constexpr std::uint64_t kDiskFreeWantedBytes = 10 * kGiB;

Check Ok(std::string name, std::string found, std::string matters) {
  return {std::move(name), CheckResult::kOk, std::move(found), std::move(matters), ""};
}

bool AtLeast(const MachineFacts::Kernel& kernel, const int (&version)[2]) {
  return kernel.major != version[0] ? kernel.major > version[0] : kernel.minor >= version[1];
}

std::string ErrorText(int error) {
  return std::strerror(error);
}

// Seccomp filters and LSMs say EPERM or EACCES, old kernels ENOSYS.
bool Forbidden(int error) {
  return error == EPERM || error == EACCES;
}

Check JudgeKernel(const MachineFacts::Kernel& kernel) {
  Check check = Ok(
      "kernel", absl::StrCat("Linux ", kernel.release),
      "The daemon watches clients by pidfd (Linux 5.3) and seals shared memory (5.1); from 6.1 on "
      "it can make huge pages itself.");
  if (!AtLeast(kernel, kKernelNeeded)) {
    check.result = CheckResult::kFail;
    check.advice = "Install a kernel of at least 5.3, better 6.1 or later.";
  } else if (!AtLeast(kernel, kKernelWanted)) {
    check.result = CheckResult::kWarn;
    check.advice = "Install a kernel of 6.1 or later.";
  }
  return check;
}

Check JudgePidfd(const MachineFacts::Kernel& kernel) {
  Check check = Ok("pidfd", "a client's process can be watched",
                   "Memory that a client holds is reused only after its pidfd says that it is "
                   "dead; without one, "
                   "every attach is refused.");
  if (kernel.pidfd_error != 0) {
    check.result = CheckResult::kFail;
    check.found = absl::StrCat("no pidfd of a client: ", ErrorText(kernel.pidfd_error));
    check.advice = Forbidden(kernel.pidfd_error)
                       ? "Allow pidfd_open in the container's seccomp profile."
                       : "Install a kernel of at least 5.3.";
  }
  return check;
}

Check JudgeSharedMemory(const MachineFacts::Kernel& kernel) {
  Check check = Ok("shared memory", "memfd_create and all seals work; /dev/shm is not used",
                   "KV bytes lie in sealed memfds that daemon and workers map.");
  if (!kernel.memfd_error.empty()) {
    check.result = CheckResult::kFail;
    check.found = kernel.memfd_error;
    check.advice =
        "Allow memfd_create and fcntl(F_ADD_SEALS) in the container's seccomp profile; "
        "F_SEAL_FUTURE_WRITE needs Linux 5.1.";
  }
  return check;
}

Check JudgeProcessor(const MachineFacts::Processor& processor) {
  const auto has = [&](const char* flag) { return processor.flags.count(flag) != 0; };
  Check check =
      Ok("cpu", "",
         "Every byte is checksummed while it is copied, with the widest vectors there are.");
  if (!processor.x86) {
    check.result = CheckResult::kWarn;
    check.found = "not x86-64: the portable copy";
    check.advice = "Nothing; expect less than the speed of memcpy.";
    return check;
  }
  std::vector<std::string> present;
  std::vector<std::string> missing;
  for (const char* flag : {"sse4_2", "pclmulqdq", "avx2"}) {
    (has(flag) ? present : missing).push_back(flag);
  }
  if (has("avx512f")) present.push_back("avx512f");
  check.found = absl::StrCat("has ", absl::StrJoin(present, " "));
  if (!missing.empty()) {
    check.result = CheckResult::kWarn;
    absl::StrAppend(&check.found, ", lacks ", absl::StrJoin(missing, " "));
    check.advice = "In a virtual machine, pass the host's processor through (QEMU: -cpu host).";
  }
  return check;
}

Check JudgeMemory(const MachineFacts::Memory& memory, std::uint64_t ram_bytes) {
  Check check = Ok(
      "memory",
      absl::StrCat(FormatBytes(memory.total_bytes), ", ", FormatBytes(memory.available_bytes),
                   " available"),
      "ram.capacity and ram.reserve must fit into the machine and into the daemon's memory cgroup, "
      "or kavernd refuses to start.");
  std::uint64_t limit = memory.total_bytes;
  if (memory.cgroup_limit_bytes) {
    absl::StrAppend(&check.found, "; this cgroup may use ", FormatBytes(*memory.cgroup_limit_bytes),
                    " (", memory.cgroup_file, ")");
    limit = std::min(limit, *memory.cgroup_limit_bytes);
  }
  if (memory.total_bytes == 0) {
    check.result = CheckResult::kFail;
    check.found = "/proc/meminfo cannot be read";
    check.advice = "Mount /proc.";
  } else if (limit <= kReserveBytes || ram_bytes > limit - kReserveBytes) {
    check.result = CheckResult::kFail;
    check.advice =
        absl::StrCat("Set ram.capacity to at most ",
                     FormatBytes(limit > kReserveBytes ? limit - kReserveBytes : limit / 2),
                     limit > kReserveBytes ? "" : " and ram.reserve below its default of 1 GiB",
                     ", or raise the limit: systemctl set-property kavernd MemoryMax=...");
  } else if (ram_bytes + kReserveBytes > memory.available_bytes) {
    check.result = ram_bytes != 0 ? CheckResult::kWarn : CheckResult::kOk;
    if (ram_bytes != 0) {
      check.advice = absl::StrCat("Free memory: until then population waits, and less than ",
                                  FormatBytes(ram_bytes), " is cached.");
    }
  }
  return check;
}

Check JudgeSwap(const MachineFacts::Memory& memory) {
  Check check = Ok("swap", "none",
                   "The RAM tier is not locked: what is swapped out is fetched at the speed of the "
                   "swap device.");
  if (memory.swap_bytes != 0) {
    check.result = CheckResult::kWarn;
    check.found = FormatBytes(memory.swap_bytes);
    check.advice =
        "swapoff -a, or keep the daemon out of it: systemctl set-property kavernd MemorySwapMax=0";
  }
  return check;
}

Check JudgeHugePages(const MachineFacts::HugePages& pages) {
  Check check =
      Ok("huge pages", "", "Copies out of 4 KiB pages lose a good part of the memory's bandwidth.");
  const std::string choice = pages.shmem_enabled.empty() ? "absent" : pages.shmem_enabled;
  if (pages.collapse_error == 0) {
    check.found = absl::StrCat("a memfd gets them (shmem_enabled: ", choice, ")");
  } else if (choice == "always" || choice == "force" || choice == "advise" ||
             choice == "within_size") {
    check.found = absl::StrCat("shmem_enabled: ", choice,
                               ", but MADV_COLLAPSE: ", ErrorText(pages.collapse_error));
    if (pages.collapse_error == ENOMEM || pages.collapse_error == EAGAIN) {
      check.result = CheckResult::kWarn;
      check.advice =
          "Memory is fragmented: echo 1 > /proc/sys/vm/compact_memory, before kavernd starts.";
    }
  } else {
    check.result = CheckResult::kWarn;
    check.found = absl::StrCat("none for a memfd: shmem_enabled: ", choice,
                               ", MADV_COLLAPSE: ", ErrorText(pages.collapse_error));
    check.advice =
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, or set "
        "ram.huge_pages: hugetlb";
  }
  return check;
}

Check JudgeHugetlb(const MachineFacts::HugePages& pages, std::uint64_t ram_bytes) {
  constexpr std::uint64_t kPageBytes = 2 * kMiB;
  Check check = Ok(
      "hugetlb pool",
      pages.pool_pages == 0 ? std::string("empty")
                            : absl::StrCat(FormatBytes(pages.pool_free_pages * kPageBytes),
                                           " free of ", FormatBytes(pages.pool_pages * kPageBytes)),
      "Only for ram.huge_pages: hugetlb; memory in the pool is no use to anybody else.");
  if (pages.pool_pages != 0 && pages.pool_free_pages * kPageBytes < ram_bytes) {
    check.result = CheckResult::kWarn;
    check.advice = absl::StrCat(
        "For ram.huge_pages: hugetlb: sysctl vm.nr_hugepages=",
        pages.pool_pages - pages.pool_free_pages + (ram_bytes + kPageBytes - 1) / kPageBytes);
  }
  return check;
}

Check JudgeIoUring(const MachineFacts::IoUring& ring) {
  Check check =
      Ok("io_uring", "works", "Only a tier on disk uses it; blocks in RAM do not need it.");
  if (ring.setup_error == 0) return check;
  check.result = CheckResult::kWarn;
  check.found = absl::StrCat("io_uring_setup: ", ErrorText(ring.setup_error));
  if (ring.disabled && *ring.disabled != 0) {
    absl::StrAppend(&check.found, "; kernel.io_uring_disabled is ", *ring.disabled);
    check.advice = "sysctl kernel.io_uring_disabled=0";
  } else if (Forbidden(ring.setup_error)) {
    check.advice =
        "Allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp "
        "profile.";
  } else {
    check.advice = "Use a kernel built with CONFIG_IO_URING.";
  }
  return check;
}

std::string Limit(std::uint64_t value, bool bytes) {
  if (value == kUnlimited) return "unlimited";
  return bytes ? FormatBytes(value) : absl::StrCat(value);
}

Check JudgeMemlock(const MachineFacts::Limits& limits) {
  Check check =
      Ok("memlock", absl::StrCat(Limit(limits.memlock_soft_bytes, true), " for ", limits.owner),
         "Memory registered with io_uring counts against it; blocks in RAM lock nothing.");
  if (limits.memlock_soft_bytes < kMemlockWantedBytes) {
    check.result = CheckResult::kWarn;
    check.advice = "LimitMEMLOCK=infinity in kavernd.service; in a shell: ulimit -l unlimited";
  }
  return check;
}

Check JudgeOpenFiles(const MachineFacts::Limits& limits) {
  Check check =
      Ok("open files",
         absl::StrCat(Limit(limits.open_files_hard, false), " at most for ", limits.owner),
         "A session takes three descriptors, a region and a namespace one each; past the limit, "
         "attaches "
         "and stores are refused.");
  if (limits.open_files_hard < kOpenFilesWanted) {
    check.result =
        limits.open_files_hard < kOpenFilesNeeded ? CheckResult::kFail : CheckResult::kWarn;
    check.advice = absl::StrCat(
        "LimitNOFILE=1048576 in kavernd.service, or limits.sessions_max and "
        "limits.namespaces_max that fit");
  }
  return check;
}

Check JudgeDisk(const MachineFacts::Disk& disk) {
  Check check =
      Ok("disk",
         absl::StrCat(disk.directory, ": ", FormatBytes(disk.free_bytes), " free, O_DIRECT works"),
         "Only a tier on disk uses it, past the page cache; blocks in RAM do not need it.");
  if (!disk.error.empty()) {
    check.result = disk.chosen ? CheckResult::kFail : CheckResult::kWarn;
    check.found = absl::StrCat(disk.directory, ": ", disk.error);
    check.advice = "Name a directory that this user may write to: kavern doctor --dir /path";
  } else if (disk.direct_io_error != 0) {
    check.result = CheckResult::kWarn;
    check.found = absl::StrCat(disk.directory, ": O_DIRECT: ", ErrorText(disk.direct_io_error));
    check.advice = "Use a directory on ext4 or XFS: kavern doctor --dir /path";
  } else if (disk.free_bytes < kDiskFreeWantedBytes) {
    check.result = CheckResult::kWarn;
    check.advice = absl::StrCat("Use a disk with room, at least ",
                                FormatBytes(kDiskFreeWantedBytes), ": kavern doctor --dir /path");
  }
  return check;
}

// How fast a worker computes KV again, in bytes per second.
double RecomputeRate(const ModelPreset& model) {
  constexpr std::uint64_t kPromptTokens = 8192;
  const double seconds = model.PrefillMs(0, kPromptTokens, kReferenceFlopsPerSecond) / 1e3;
  return static_cast<double>(kPromptTokens * model.Layout(16).BytesPerToken()) / seconds;
}

std::string Rate(double bytes_per_second) {
  return FormatFixed(bytes_per_second / 1e9, 2) + " GB/s";
}

// What was measured; nullptr: nothing was, and the check says so.
const DiskSpeed* Measured(const MachineFacts::Disk& disk, Check* check) {
  if (!disk.speed.has_value()) {
    check->found = "not measured";
    return nullptr;
  }
  if (disk.speed->error.empty()) return &*disk.speed;
  check->result = CheckResult::kWarn;
  check->found = absl::StrCat("cannot be measured: ", disk.speed->error);
  check->advice = "Name a directory on the disk of the NVMe tier: kavern doctor --dir /path";
  return nullptr;
}

Check JudgeDiskSpeed(const MachineFacts::Disk& disk) {
  const ModelPreset small = FindModelPreset("llama-3-8b").value();
  const ModelPreset large = FindModelPreset("llama-3-70b").value();
  Check check =
      Ok("disk speed", "",
         absl::StrCat("A hit on disk pays where reading is faster than computing again: one H100 "
                      "at half its peak computes KV at ",
                      Rate(RecomputeRate(small)), " for ", std::string(small.name), ", ",
                      Rate(RecomputeRate(large)), " for ", std::string(large.name), "."));
  const DiskSpeed* speed = Measured(disk, &check);
  if (speed == nullptr) return check;
  check.found = absl::StrCat("reads ", Rate(speed->read_bytes_per_second), ", writes ",
                             Rate(speed->write_bytes_per_second), " in blocks of 2 MiB (",
                             speed->file_system, ")");
  if (speed->read_bytes_per_second < RecomputeRate(large)) {
    check.result = CheckResult::kWarn;
    check.advice =
        "Use a faster disk, or several (nvme.devices): on this one most hits cost more "
        "than they save.";
  }
  return check;
}

Check JudgeDiskFlush(const MachineFacts::Disk& disk) {
  Check check = Ok("disk flush", "",
                   "With nvme.durability: batch, blocks count as stored on disk only after a "
                   "flush.");
  const DiskSpeed* speed = Measured(disk, &check);
  if (speed == nullptr) return check;
  check.found =
      absl::StrCat("a write of 4 KiB is durable in ", FormatMicros(speed->flush_p50_seconds),
                   " (p50), ", FormatMicros(speed->flush_p99_seconds), " (p99)");
  if (speed->flush_p99_seconds > kFlushWantedSeconds) {
    check.result = CheckResult::kWarn;
    check.advice =
        "Raise nvme.batch_interval above that, or use a disk with power-loss protection.";
  }
  return check;
}

Check JudgeDiskUring(const MachineFacts::Disk& disk) {
  Check check = Ok("disk io_uring", "",
                   "The tier reads from disk straight into the memory that workers map; threads "
                   "take over where io_uring cannot.");
  const DiskSpeed* speed = Measured(disk, &check);
  if (speed == nullptr) return check;
  check.found = absl::StrCat("O_DIRECT reads work, ", FormatBytes(kDiskSpeedRegisteredBytes),
                             " of shared memory can be registered");
  if (speed->uring_error != 0) {
    check.result = CheckResult::kWarn;
    check.found = absl::StrCat("an O_DIRECT read fails: ", ErrorText(speed->uring_error));
    check.advice = "See the check of io_uring, or use a directory on ext4 or XFS.";
  } else if (speed->register_error != 0) {
    check.result = CheckResult::kWarn;
    check.found = absl::StrCat("registering ", FormatBytes(kDiskSpeedRegisteredBytes),
                               " of shared memory: ", ErrorText(speed->register_error));
    check.advice =
        "LimitMEMLOCK=infinity in kavernd.service; without it the kernel maps the "
        "memory anew for every read.";
  }
  return check;
}

Check JudgeDaemon(const MachineFacts::Daemon& daemon) {
  Check check = Ok("daemon", "", "Workers go on without a cache while it is away.");
  if (!daemon.error.empty()) {
    check.result = daemon.absent ? CheckResult::kWarn : CheckResult::kFail;
    check.found = absl::StrCat(daemon.address, ": ", daemon.error);
    check.advice =
        daemon.absent
            ? "systemctl start kavernd, or name another --address"
            : "journalctl -u kavernd; see tenants in its configuration if it refused this user";
    return check;
  }
  check.found = absl::StrCat("kavernd ", daemon.version, " answers at ", daemon.address);
  if (!daemon.ready) {
    check.result = CheckResult::kWarn;
    absl::StrAppend(&check.found, ", not ready");
    check.advice = "Wait: it is starting or draining; journalctl -u kavernd";
  }
  if (!daemon.degraded.empty()) {
    check.result = CheckResult::kWarn;
    absl::StrAppend(&check.found, "; degraded: ", absl::StrJoin(daemon.degraded, "; "));
    check.advice = "See \"Degraded\" in docs/OPERATIONS.md.";
  }
  return check;
}

}  // namespace

const char* CheckResultName(CheckResult result) {
  switch (result) {
    case CheckResult::kOk:
      return "ok";
    case CheckResult::kWarn:
      return "warn";
    case CheckResult::kFail:
      return "fail";
  }
  return "?";
}

std::vector<Check> JudgeMachine(const MachineFacts& facts, std::uint64_t ram_bytes) {
  return {
      JudgeKernel(facts.kernel),
      JudgePidfd(facts.kernel),
      JudgeSharedMemory(facts.kernel),
      JudgeProcessor(facts.processor),
      JudgeMemory(facts.memory, ram_bytes),
      JudgeSwap(facts.memory),
      JudgeHugePages(facts.huge_pages),
      JudgeHugetlb(facts.huge_pages, ram_bytes),
      JudgeMemlock(facts.limits),
      JudgeOpenFiles(facts.limits),
      JudgeIoUring(facts.io_uring),
      JudgeDisk(facts.disk),
      JudgeDiskSpeed(facts.disk),
      JudgeDiskFlush(facts.disk),
      JudgeDiskUring(facts.disk),
      JudgeDaemon(facts.daemon),
  };
}

}  // namespace kavern::cli
