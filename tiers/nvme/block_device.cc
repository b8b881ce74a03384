#include "tiers/nvme/block_device.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/units.h"

namespace kavern::tiers {
namespace {

// FailedPrecondition where the file system has no direct I/O: the mistake of a path, not of a disk.
absl::Status OpenError(int error, const std::string& path) {
  if (error == EINVAL) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": its file system has no direct I/O (O_DIRECT)"));
  }
  if (error == EBUSY) {
    return absl::FailedPreconditionError(
        absl::StrCat(path,
                     ": is in use: mounted, swap, or a part of a RAID or of a volume group. "
                     "Expected a device that nobody else has"));
  }
  // The kernel makes a file system read-only that has errors.
  if (error == EROFS) return absl::UnavailableError(ErrnoStatus(error, path).message());
  return ErrnoStatus(error, path);
}

// Where a disk is missing, a file in its place would fill the system's memory.
bool IsBelowDev(const std::string& path) {
  std::error_code ignored;
  const std::filesystem::path real = std::filesystem::weakly_canonical(path, ignored);
  const auto parts = std::distance(real.begin(), real.end());
  return parts > 2 && *std::next(real.begin()) == "dev";
}

// A block device is opened exclusively: the kernel then says whether a file system on it, or
// anybody else, has it. One that another daemon has is waited for, as for a lock.
UniqueFd OpenIfThere(const std::string& path, std::chrono::milliseconds patience) {
  const auto give_up = std::chrono::steady_clock::now() + patience;
  for (;;) {
    struct stat facts {};
    const bool is_block = stat(path.c_str(), &facts) == 0 && S_ISBLK(facts.st_mode);
    const int flags = O_RDWR | O_DIRECT | O_CLOEXEC | (is_block ? O_EXCL : 0);
    UniqueFd fd(open(path.c_str(), flags));
    const int error = errno;
    if (fd.valid() || error != EBUSY || std::chrono::steady_clock::now() >= give_up) {
      errno = error;
      return fd;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

absl::StatusOr<UniqueFd> OpenOrMake(const BlockDeviceOptions& options) {
  const std::string& path = options.path;
  UniqueFd fd = OpenIfThere(path, options.lock_patience);
  if (fd.valid()) return fd;
  if (errno != ENOENT || !options.create) return OpenError(errno, path);
  if (IsBelowDev(path)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": there is no such device, and no file is made below /dev"));
  }
  // Not through a link that leads nowhere, which may lead below /dev.
  fd = UniqueFd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600));
  if (fd.valid()) return fd;
  if (errno != EEXIST) return OpenError(errno, path);
  return absl::FailedPreconditionError(
      absl::StrCat(path, ": expected a file or a device, and is a link to what is not there"));
}

absl::Status LockFile(int fd, const std::string& path, std::chrono::milliseconds patience) {
  const auto give_up = std::chrono::steady_clock::now() + patience;
  while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, absl::StrCat(path, ": flock"));
    if (std::chrono::steady_clock::now() >= give_up) {
      return absl::FailedPreconditionError(absl::StrCat(path, ": another process has it"));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return absl::OkStatus();
}

// An empty file is one that is not made yet; any other is what it was made, and never resized.
absl::Status ReserveSpace(int fd, const BlockDeviceOptions& options, const struct stat& facts) {
  const std::string& path = options.path;
  const std::uint64_t size_bytes = options.size_bytes;
  const auto have = static_cast<std::uint64_t>(facts.st_size);
  if (have == 0 && !options.create) {
    return absl::NotFoundError(absl::StrCat(path, ": is an empty file"));
  }
  if (have != 0 && have != size_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": is ", have, " bytes (", FormatBytes(have), "), expected the configured capacity, ",
        size_bytes, " bytes (", FormatBytes(size_bytes),
        "). It is left as it is: configure the capacity that it was made with; or, to begin anew, "
        "also where a crash ended its making, remove the devices' files and the catalog"));
  }
  const int error = posix_fallocate(fd, 0, static_cast<off_t>(size_bytes));
  if (error == 0) return absl::OkStatus();
  // What is half made would be of another size at the next start.
  if (have == 0 && ftruncate(fd, 0) != 0) return ErrnoStatus(errno, path);
  if (error == ENOSPC) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": no space for ", FormatBytes(size_bytes)));
  }
  return ErrnoStatus(error, absl::StrCat(path, ": posix_fallocate"));
}

}  // namespace

std::uint64_t DiskIo::Bytes() const {
  std::uint64_t bytes = 0;
  for (const std::span<const std::byte> piece : pieces) bytes += piece.size();
  return bytes;
}

absl::StatusOr<UniqueFd> OpenDiskFile(const BlockDeviceOptions& options) {
  const std::string& path = options.path;
  const std::uint64_t size_bytes = options.size_bytes;
  KAVERN_ASSIGN_OR_RETURN(UniqueFd fd, OpenOrMake(options));
  KAVERN_RETURN_IF_ERROR(LockFile(fd.get(), path, options.lock_patience));
  struct stat facts {};
  if (fstat(fd.get(), &facts) != 0) return ErrnoStatus(errno, path);
  if (S_ISBLK(facts.st_mode)) {
    std::uint64_t bytes = 0;
    if (ioctl(fd.get(), BLKGETSIZE64, &bytes) != 0) return ErrnoStatus(errno, path);
    if (bytes < size_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": the device has ", FormatBytes(bytes),
                                                     ", expected at least ",
                                                     FormatBytes(size_bytes)));
    }
  } else if (S_ISREG(facts.st_mode)) {
    KAVERN_RETURN_IF_ERROR(ReserveSpace(fd.get(), options, facts));
  } else {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a file or a block device"));
  }
  return fd;
}

absl::StatusOr<std::unique_ptr<BlockDevice>> OpenBlockDevice(const BlockDeviceOptions& options) {
  KAVERN_ASSIGN_OR_RETURN(UniqueFd file, OpenDiskFile(options));
  if (options.io_uring) {
    UniqueFd same(fcntl(file.get(), F_DUPFD_CLOEXEC, 0));
    if (!same.valid()) return ErrnoStatus(errno, options.path);
    auto device = MakeUringDevice(std::move(same), options);
    if (device.ok() || !absl::IsUnimplemented(device.status())) return device;
  }
  return MakeThreadDevice(std::move(file), options);
}

}  // namespace kavern::tiers
