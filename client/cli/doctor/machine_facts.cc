#include "client/cli/doctor/machine_facts.h"

#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/sealed_memfd.h"
#include "base/unique_fd.h"
#include "base/units.h"

// Newer than some of the headers that this is built against.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace kavern::cli {
namespace {

constexpr std::size_t kHugePageBytes = 2 * kMiB;
constexpr std::size_t kDirectBlockBytes = 4 * kKiB;
// A cgroup limit this large is the kernel's way to say that there is none.
constexpr std::uint64_t kNoCgroupLimit = std::uint64_t{1} << 60;

using Words = std::vector<std::string>;

// The file's text, empty when it cannot be read.
std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::optional<std::uint64_t> ReadNumber(const std::string& path) {
  std::uint64_t number = 0;
  if (!absl::SimpleAtoi(ReadText(path), &number)) return std::nullopt;
  return number;
}

// Words of the first line that begins with `label`, behind the label.
Words FindLine(const std::string& text, const std::string& label) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (absl::ConsumePrefix(&line, label)) {
      return absl::StrSplit(line, absl::ByAnyChar(" \t:"), absl::SkipEmpty());
    }
  }
  return {};
}

std::uint64_t NumberAt(const Words& words, std::size_t index) {
  std::uint64_t number = 0;
  if (index < words.size() && words[index] == "unlimited") return kUnlimited;
  if (index < words.size()) (void)absl::SimpleAtoi(words[index], &number);
  return number;
}

// As the attach socket does it: from the socket (Linux 6.5), else by the process's number.
int TryPidfd() {
  int ends[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return errno;
  const UniqueFd first(ends[0]);
  const UniqueFd second(ends[1]);
  int pidfd = -1;
  socklen_t size = sizeof(pidfd);
  if (getsockopt(first.get(), SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) != 0) {
    if (errno != ENOPROTOOPT) return errno;
    pidfd = static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0U));
    if (pidfd < 0) return errno;
  }
  const UniqueFd owner(pidfd);
  return 0;
}

MachineFacts::Kernel ReadKernel(const std::string& root) {
  MachineFacts::Kernel kernel;
  kernel.release =
      std::string(absl::StripAsciiWhitespace(ReadText(root + "/proc/sys/kernel/osrelease")));
  const std::vector<std::string> numbers = absl::StrSplit(kernel.release, absl::ByAnyChar(".-+"));
  if (numbers.size() < 2 || !absl::SimpleAtoi(numbers[0], &kernel.major) ||
      !absl::SimpleAtoi(numbers[1], &kernel.minor)) {
    kernel.major = kernel.minor = 0;
  }
  kernel.pidfd_error = TryPidfd();
  const auto memfd = CreateMemfd("kavern-doctor", kHugePageBytes, MemfdPages::kNormal);
  absl::Status status = memfd.status();
  if (status.ok()) status = SealMemfd(memfd->get(), MemfdWriters::kOnlyThisMapping);
  kernel.memfd_error = std::string(status.message());
  return kernel;
}

MachineFacts::Processor ReadProcessor(const std::string& root) {
  MachineFacts::Processor processor;
  const std::string text = ReadText(root + "/proc/cpuinfo");
  Words flags = FindLine(text, "flags");
  processor.x86 = !flags.empty();
  if (flags.empty()) flags = FindLine(text, "Features");
  processor.flags.insert(flags.begin(), flags.end());
  return processor;
}

// Walks from `group` up to the root of the hierarchy at `mount`, and keeps the tightest limit. In a
// container the path may be the host's while the mount shows the container's own group: the walk up
// ends at the mount.
void ReadCgroup(const std::string& mount, std::string group, const char* limit_file,
                MachineFacts::Memory* memory) {
  for (;;) {
    const std::string file = absl::StrCat(mount, group == "/" ? "" : group, "/", limit_file);
    const auto limit = ReadNumber(file);
    if (limit &&
        *limit < std::min(kNoCgroupLimit, memory->cgroup_limit_bytes.value_or(kUnlimited))) {
      memory->cgroup_limit_bytes = limit;
      memory->cgroup_file = file;
    }
    if (group.empty() || group == "/") return;
    group.erase(group.rfind('/'));
  }
}

MachineFacts::Memory ReadMemory(const std::string& root) {
  MachineFacts::Memory memory;
  const std::string meminfo = ReadText(root + "/proc/meminfo");
  memory.total_bytes = NumberAt(FindLine(meminfo, "MemTotal:"), 0) * kKiB;
  memory.available_bytes = NumberAt(FindLine(meminfo, "MemAvailable:"), 0) * kKiB;
  memory.swap_bytes = NumberAt(FindLine(meminfo, "SwapTotal:"), 0) * kKiB;
  // Lines are "hierarchy-id:controllers:path"; version 2 has id 0 and no controllers.
  for (const absl::string_view line :
       absl::StrSplit(ReadText(root + "/proc/self/cgroup"), '\n', absl::SkipEmpty())) {
    const Words fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3 || fields[2].empty() || fields[2][0] != '/') continue;
    const Words controllers = absl::StrSplit(fields[1], ',');
    if (fields[1].empty()) {
      ReadCgroup(root + "/sys/fs/cgroup", fields[2], "memory.max", &memory);
      ReadCgroup(root + "/sys/fs/cgroup/unified", fields[2], "memory.max", &memory);
    } else if (std::find(controllers.begin(), controllers.end(), "memory") != controllers.end()) {
      ReadCgroup(root + "/sys/fs/cgroup/memory", fields[2], "memory.limit_in_bytes", &memory);
    }
  }
  return memory;
}

int TryCollapse() {
  const auto memfd = CreateMemfd("kavern-doctor", kHugePageBytes, MemfdPages::kNormal);
  if (!memfd.ok()) return ENOMEM;
  const auto mapping = Mapping::Map(memfd->get(), kHugePageBytes, Mapping::Access::kReadWrite);
  if (!mapping.ok()) return ENOMEM;
  // Either may be unknown to the kernel; what counts is the last answer.
  madvise(mapping->data(), kHugePageBytes, MADV_HUGEPAGE);
  madvise(mapping->data(), kHugePageBytes, MADV_POPULATE_WRITE);
  return madvise(mapping->data(), kHugePageBytes, MADV_COLLAPSE) == 0 ? 0 : errno;
}

MachineFacts::HugePages ReadHugePages(const std::string& root) {
  MachineFacts::HugePages pages;
  const std::string choice = ReadText(root + "/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  const std::size_t begin = choice.find('[');
  const std::size_t end = choice.find(']');
  if (begin != std::string::npos && end != std::string::npos && begin < end) {
    pages.shmem_enabled = choice.substr(begin + 1, end - begin - 1);
  }
  pages.collapse_error = TryCollapse();
  const std::string pool = root + "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  pages.pool_pages = ReadNumber(pool + "nr_hugepages").value_or(0);
  pages.pool_free_pages = ReadNumber(pool + "free_hugepages").value_or(0);
  return pages;
}

MachineFacts::IoUring ReadIoUring(const std::string& root) {
  MachineFacts::IoUring facts;
  struct io_uring ring {};
  const int result = io_uring_queue_init(8, &ring, 0);
  if (result == 0) {
    io_uring_queue_exit(&ring);
  } else {
    facts.setup_error = -result;
  }
  if (const auto disabled = ReadNumber(root + "/proc/sys/kernel/io_uring_disabled")) {
    facts.disabled = static_cast<int>(*disabled);
  }
  return facts;
}

MachineFacts::Limits ReadLimits(const std::string& root, std::uint64_t daemon_pid) {
  MachineFacts::Limits limits;
  const std::string process = absl::StrCat(root, "/proc/", daemon_pid);
  std::string text;
  // In a container the daemon's number may be another process's here.
  if (daemon_pid != 0 && ReadText(process + "/comm") == "kavernd\n") {
    text = ReadText(process + "/limits");
    limits.owner = absl::StrCat("kavernd (pid ", daemon_pid, ")");
  }
  if (text.empty()) {
    text = ReadText(root + "/proc/self/limits");
    limits.owner = "this shell";
  }
  limits.open_files_hard = NumberAt(FindLine(text, "Max open files"), 1);
  limits.memlock_soft_bytes = NumberAt(FindLine(text, "Max locked memory"), 0);
  return limits;
}

int TryDirectIo(int fd) {
  const std::unique_ptr<void, decltype(&std::free)> block(
      std::aligned_alloc(kDirectBlockBytes, kDirectBlockBytes), &std::free);
  if (block == nullptr) return ENOMEM;
  std::memset(block.get(), 0x5a, kDirectBlockBytes);
  const auto expected = static_cast<ssize_t>(kDirectBlockBytes);
  if (pwrite(fd, block.get(), kDirectBlockBytes, 0) != expected) return errno != 0 ? errno : EIO;
  if (pread(fd, block.get(), kDirectBlockBytes, 0) != expected) return errno != 0 ? errno : EIO;
  return 0;
}

MachineFacts::Disk ReadDisk(const std::string& directory) {
  MachineFacts::Disk disk;
  disk.directory = directory;
  struct statvfs space {};
  if (statvfs(directory.c_str(), &space) != 0) {
    disk.error = std::strerror(errno);
    return disk;
  }
  disk.free_bytes = std::uint64_t{space.f_bavail} * space.f_frsize;
  std::string path = directory + "/.kavern-doctor-XXXXXX";
  const UniqueFd fd(mkstemp(path.data()));
  if (!fd.valid()) {
    disk.error = std::strerror(errno);
    return disk;
  }
  const UniqueFd direct(open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
  disk.direct_io_error = direct.valid() ? TryDirectIo(direct.get()) : errno;
  unlink(path.c_str());
  return disk;
}

}  // namespace

MachineFacts ReadMachineFacts(const std::string& root, const std::string& directory,
                              std::uint64_t daemon_pid) {
  MachineFacts facts;
  facts.kernel = ReadKernel(root);
  facts.processor = ReadProcessor(root);
  facts.memory = ReadMemory(root);
  facts.huge_pages = ReadHugePages(root);
  facts.io_uring = ReadIoUring(root);
  facts.limits = ReadLimits(root, daemon_pid);
  facts.disk = ReadDisk(directory);
  return facts;
}

}  // namespace kavern::cli
