#include "client/cli/doctor/disk_speed.h"

#include <fcntl.h>
#include <liburing.h>
#include <linux/magic.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/sealed_memfd.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace kavern::cli {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr std::size_t kPageBytes = 4 * kKiB;
constexpr std::size_t kBlockBytes = 2 * kMiB;
constexpr std::uint64_t kFileBytesMin = 16 * kMiB;
constexpr std::uint64_t kShareOfFreeSpace = 8;
constexpr int kThreads = 8;
constexpr std::size_t kFlushesMin = 10;
constexpr std::size_t kFlushesMax = 1000;

std::string FileSystemName(long magic) {
  constexpr long kXfsMagic = 0x58465342;
  constexpr long kZfsMagic = 0x2fc12fc1;
  switch (magic) {
    case EXT4_SUPER_MAGIC:
      return "ext4";
    case kXfsMagic:
      return "xfs";
    case BTRFS_SUPER_MAGIC:
      return "btrfs";
    case TMPFS_MAGIC:
      return "tmpfs";
    case OVERLAYFS_SUPER_MAGIC:
      return "overlayfs";
    case F2FS_SUPER_MAGIC:
      return "f2fs";
    case NFS_SUPER_MAGIC:
      return "nfs";
    case kZfsMagic:
      return "zfs";
    default:
      return absl::StrCat("0x", absl::Hex(magic));
  }
}

struct Aligned {
  struct Free {
    void operator()(std::byte* memory) const {
      std::free(memory);  // NOLINT(cppcoreguidelines-no-malloc): what aligned_alloc gave
    }
  };
  explicit Aligned(std::size_t size)
      : data(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, size))) {
    if (data == nullptr) return;
    std::mt19937_64 random(size);  // disks that compress are not to profit from it
    for (std::size_t i = 0; i < size; i += sizeof(std::uint64_t)) {
      const std::uint64_t word = random();
      std::memcpy(data.get() + i, &word, sizeof(word));
    }
  }
  std::unique_ptr<std::byte, Free> data;
};

class DiskMeasurement {
 public:
  DiskMeasurement(int file, std::uint64_t blocks, const DiskSpeedOptions& options)
      : file_(file), blocks_(blocks), options_(options) {}

  // 0, or the errno that ended it.
  int Run(DiskSpeed* speed) {
    // The file's blocks are its own only once something is written there.
    std::uint64_t written = 0;
    double ignored = 0;
    if (const int error = Write(blocks_, &written, &ignored); error != 0) return error;
    blocks_ = written;
    if (const int error = Write(blocks_, &written, &speed->write_bytes_per_second); error != 0) {
      return error;
    }
    if (const int error = Read(&speed->read_bytes_per_second); error != 0) return error;
    return Flush(speed);
  }

 private:
  // Blocks 0, 1, ... by all threads, until all are done or it takes too long.
  int ForBlocks(std::uint64_t blocks, const std::function<bool(std::byte*, off_t)>& move,
                std::uint64_t* moved) {
    const auto give_up = SteadyClock::now() + options_.patience;
    std::atomic<std::uint64_t> next = 0;
    std::atomic<std::uint64_t> done = 0;
    std::atomic<int> failure = 0;
    const auto work = [&] {
      const Aligned memory(kBlockBytes);
      if (memory.data == nullptr) {
        failure = ENOMEM;
        return;
      }
      while (failure == 0 && (done == 0 || SteadyClock::now() < give_up)) {
        const std::uint64_t block = next++;
        if (block >= blocks) return;
        if (!move(memory.data.get(), static_cast<off_t>(block * kBlockBytes))) {
          failure = errno != 0 ? errno : EIO;
          return;
        }
        ++done;
      }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) threads.emplace_back(work);
    for (std::thread& thread : threads) thread.join();
    *moved = done;
    return failure;
  }

  int Write(std::uint64_t blocks, std::uint64_t* written, double* bytes_per_second) {
    const auto start = SteadyClock::now();
    const int error = ForBlocks(
        blocks,
        [this](std::byte* memory, off_t offset) {
          return pwrite(file_, memory, kBlockBytes, offset) == static_cast<ssize_t>(kBlockBytes);
        },
        written);
    if (error != 0) return error;
    if (fdatasync(file_) != 0) return errno;
    *bytes_per_second = Rate(*written, start);
    return 0;
  }

  int Read(double* bytes_per_second) {
    const auto start = SteadyClock::now();
    std::uint64_t read = 0;
    const int error = ForBlocks(
        blocks_,
        [this](std::byte* memory, off_t offset) {
          return pread(file_, memory, kBlockBytes, offset) == static_cast<ssize_t>(kBlockBytes);
        },
        &read);
    *bytes_per_second = Rate(read, start);
    return error;
  }

  int Flush(DiskSpeed* speed) {
    const Aligned page(kPageBytes);
    if (page.data == nullptr) return ENOMEM;
    std::vector<double> seconds;
    const auto give_up = SteadyClock::now() + options_.patience;
    while (seconds.size() < kFlushesMax &&
           (seconds.size() < kFlushesMin || SteadyClock::now() < give_up)) {
      const auto offset =
          static_cast<off_t>(seconds.size() % (kBlockBytes / kPageBytes) * kPageBytes);
      const auto start = SteadyClock::now();
      if (pwrite(file_, page.data.get(), kPageBytes, offset) != static_cast<ssize_t>(kPageBytes) ||
          fdatasync(file_) != 0) {
        return errno != 0 ? errno : EIO;
      }
      seconds.push_back(Since(start));
    }
    std::sort(seconds.begin(), seconds.end());
    speed->flush_p50_seconds = seconds[seconds.size() / 2];
    speed->flush_p99_seconds = seconds[seconds.size() * 99 / 100];
    return 0;
  }

  static double Since(SteadyClock::time_point start) {
    return std::chrono::duration<double>(SteadyClock::now() - start).count();
  }
  static double Rate(std::uint64_t blocks, SteadyClock::time_point start) {
    return static_cast<double>(blocks * kBlockBytes) / Since(start);
  }

  const int file_;
  std::uint64_t blocks_;
  const DiskSpeedOptions options_;
};

// A direct read of the file's first page.
int TryUringRead(io_uring& ring, int file) {
  const Aligned page(kPageBytes);
  if (page.data == nullptr) return ENOMEM;
  io_uring_sqe* entry = io_uring_get_sqe(&ring);
  io_uring_prep_read(entry, file, page.data.get(), kPageBytes, 0);
  const int submitted = io_uring_submit_and_wait(&ring, 1);
  if (submitted < 0) return -submitted;
  io_uring_cqe* completion = nullptr;
  if (const int error = -io_uring_wait_cqe(&ring, &completion); error != 0) return error;
  const int result = completion->res;
  io_uring_cqe_seen(&ring, completion);
  return result < 0 ? -result : result == static_cast<int>(kPageBytes) ? 0 : EIO;
}

int TryRegister(io_uring& ring) {
  const auto memfd = CreateMemfd("kavern-doctor", kDiskSpeedRegisteredBytes, MemfdPages::kNormal);
  if (!memfd.ok()) return ENOMEM;
  const auto mapping =
      Mapping::Map(memfd->get(), kDiskSpeedRegisteredBytes, Mapping::Access::kReadWrite);
  if (!mapping.ok()) return ENOMEM;
  const iovec buffer = {mapping->data(), kDiskSpeedRegisteredBytes};
  return -io_uring_register_buffers(&ring, &buffer, 1);
}

void TryUring(int file, DiskSpeed* speed) {
  io_uring ring = {};
  if (const int error = -io_uring_queue_init(8, &ring, 0); error != 0) {
    speed->uring_error = speed->register_error = error;
    return;
  }
  speed->uring_error = TryUringRead(ring, file);
  speed->register_error = TryRegister(ring);
  io_uring_queue_exit(&ring);
}

// For direct I/O, and without a name. An invalid one leaves errno.
UniqueFd OpenNameless(const std::string& directory) {
  std::string path = directory + "/.kavern-doctor-XXXXXX";
  const UniqueFd named(mkstemp(path.data()));
  if (!named.valid()) return {};
  UniqueFd direct(open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
  const int error = errno;
  unlink(path.c_str());
  errno = error;
  return direct;
}

}  // namespace

DiskSpeed MeasureDiskSpeed(const std::string& directory, const DiskSpeedOptions& options) {
  DiskSpeed speed;
  struct statfs facts {};
  if (statfs(directory.c_str(), &facts) != 0) {
    speed.error = std::strerror(errno);
    return speed;
  }
  speed.file_system = FileSystemName(static_cast<long>(facts.f_type));
  const std::uint64_t free_bytes = std::uint64_t{facts.f_bavail} * facts.f_bsize;
  const std::uint64_t bytes = std::min(options.file_bytes_max, free_bytes / kShareOfFreeSpace);
  if (bytes < kFileBytesMin) {
    speed.error = absl::StrCat("too little space to measure with: ", FormatBytes(free_bytes));
    return speed;
  }
  const UniqueFd file = OpenNameless(directory);
  if (!file.valid()) {
    speed.error = std::strerror(errno);
    return speed;
  }
  if (const int error = DiskMeasurement(file.get(), bytes / kBlockBytes, options).Run(&speed);
      error != 0) {
    speed.error = std::strerror(error);
    return speed;
  }
  TryUring(file.get(), &speed);
  return speed;
}

}  // namespace kavern::cli
