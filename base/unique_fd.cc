#include "base/unique_fd.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "base/units.h"

namespace kavern {
namespace {

constexpr std::size_t kHugePageBytes = 2 * kMiB;
constexpr std::size_t kPageBytes = 4 * kKiB;

}  // namespace

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    Reset();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void UniqueFd::Reset() {
  // Linux frees the number even when close fails: never retry.
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

absl::StatusOr<Mapping> Mapping::Map(int fd, std::size_t size_bytes, Access access) {
  const int protection = access == Access::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  // Huge pages of the file can be huge in the page table only where address and offset agree.
  const std::size_t spare = size_bytes >= kHugePageBytes ? kHugePageBytes : 0;
  void* const reserved = mmap(nullptr, size_bytes + spare, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) {
    return ErrnoStatus(errno, absl::StrCat("mmap of ", size_bytes, " bytes of address space"));
  }
  auto* const begin = static_cast<std::byte*>(reserved);
  const auto start = reinterpret_cast<std::uintptr_t>(begin);
  const std::size_t lead =
      spare == 0 ? 0 : (kHugePageBytes - start % kHugePageBytes) % kHugePageBytes;
  void* const address = mmap(begin + lead, size_bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0);
  if (address == MAP_FAILED) {
    const int error = errno;
    munmap(begin, size_bytes + spare);
    return ErrnoStatus(error, absl::StrCat("mmap of ", size_bytes, " bytes"));
  }
  const std::size_t end = AlignUp(lead + size_bytes, kPageBytes);
  if (lead > 0) munmap(begin, lead);
  if (AlignUp(size_bytes + spare, kPageBytes) > end) {
    munmap(begin + end, AlignUp(size_bytes + spare, kPageBytes) - end);
  }
  Mapping mapping(static_cast<std::byte*>(address), size_bytes);
  if (madvise(address, size_bytes, MADV_DONTFORK) != 0) {
    return ErrnoStatus(errno, "madvise(MADV_DONTFORK)");
  }
  return mapping;
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    Reset();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

void Mapping::Reset() {
  if (data_ != nullptr) munmap(std::exchange(data_, nullptr), std::exchange(size_, 0));
}

absl::Status ErrnoStatus(int error_number, std::string_view what) {
  const std::string message = absl::StrCat(absl::string_view(what.data(), what.size()), ": ",
                                           std::generic_category().message(error_number));
  switch (error_number) {
    case ENOMEM:
    case ENOSPC:
    case EMFILE:
    case ENFILE:
    case EAGAIN:
      return absl::ResourceExhaustedError(message);
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(message);
    case ENOENT:
      return absl::NotFoundError(message);
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
      return absl::UnavailableError(message);
    default:
      return absl::InternalError(message);
  }
}

}  // namespace kavern
