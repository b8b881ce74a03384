// What `kavern doctor` knows of this machine. Reading it touches the kernel; judging it (checks.h)
// does not.
#ifndef KAVERN_CLIENT_CLI_DOCTOR_MACHINE_FACTS_H_
#define KAVERN_CLIENT_CLI_DOCTOR_MACHINE_FACTS_H_

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "client/cli/doctor/disk_speed.h"

namespace kavern::cli {

inline constexpr std::uint64_t kUnlimited = UINT64_MAX;

// Errors are errno values; 0 means that it worked.
struct MachineFacts {
  struct Kernel {
    std::string release;  // "6.1.0-18-amd64"
    int major = 0;
    int minor = 0;
    int pidfd_error = 0;      // of getting a pidfd of a socket's peer
    std::string memfd_error;  // making and sealing a directory segment's memfd; empty: it worked
  } kernel;

  struct Processor {
    bool x86 = false;
    std::set<std::string> flags;  // as /proc/cpuinfo names them
  } processor;

  struct Memory {
    std::uint64_t total_bytes = 0;
    std::uint64_t available_bytes = 0;
    std::uint64_t swap_bytes = 0;
    std::optional<std::uint64_t> cgroup_limit_bytes;  // the tightest up to the root; nullopt: none
    std::string cgroup_file;                          // where it was read
  } memory;

  struct HugePages {
    std::string shmem_enabled;  // the chosen word: "never", "advise", ...; empty: cannot be read
    // MADV_HUGEPAGE, then MADV_COLLAPSE of 2 MiB of a memfd, as the RAM tier does it.
    int collapse_error = 0;
    std::uint64_t pool_pages = 0;  // hugetlb pages of 2 MiB
    std::uint64_t pool_free_pages = 0;
  } huge_pages;

  struct IoUring {
    int setup_error = 0;  // of io_uring_queue_init
    std::optional<int>
        disabled;  // /proc/sys/kernel/io_uring_disabled; nullopt: the kernel has no such file
  } io_uring;

  // Hard and soft limits: the daemon raises open files to the hard one.
  struct Limits {
    std::string owner;  // "kavernd (pid 17)", or "this shell" where no daemon can be seen
    std::uint64_t open_files_hard = 0;
    std::uint64_t memlock_soft_bytes = 0;
  } limits;

  struct Disk {
    std::string directory;
    bool chosen = false;  // the user named it
    std::string error;    // it cannot be written to; empty: it can
    std::uint64_t free_bytes = 0;
    int direct_io_error = 0;         // an O_DIRECT write and read of 4 KiB
    std::optional<DiskSpeed> speed;  // nullopt: it was not to be measured
  } disk;

  struct Daemon {
    std::string address;
    bool absent = false;  // nothing listens there
    std::string error;    // why it did not answer; empty: it did
    std::string version;
    bool ready = false;
    std::vector<std::string> degraded;
  } daemon;
};

// Reads all but `daemon` and `disk.speed`. Files below /proc and /sys are looked for under `root`,
// "" on the real machine; the kernel's calls are tried on this machine in any case. `daemon_pid` is
// whose limits are read where the process of that number is a kavernd; 0: none. Writes and removes
// one file in `directory`.
MachineFacts ReadMachineFacts(const std::string& root, const std::string& directory,
                              std::uint64_t daemon_pid);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_DOCTOR_MACHINE_FACTS_H_
