// Owner of one file descriptor.
#ifndef KAVERN_BASE_UNIQUE_FD_H_
#define KAVERN_BASE_UNIQUE_FD_H_

#include <cstddef>
#include <span>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kavern {

// Move-only; closes on destruction. -1 means none.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  ~UniqueFd() { Reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }
  void Reset();

 private:
  int fd_ = -1;
};

// A shared mapping of a file descriptor. Move-only; unmaps on destruction.
class Mapping {
 public:
  enum class Access { kReadOnly, kReadWrite };

  // Maps `size_bytes` (> 0) from offset 0, shared, MADV_DONTFORK: a child of fork() does not see
  // it. From 2 MiB on it starts at a multiple of 2 MiB. Fails with ErrnoStatus. A mapping past the
  // file's end succeeds and kills whoever touches it: check the file's size first.
  static absl::StatusOr<Mapping> Map(int fd, std::size_t size_bytes, Access access);

  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping() { Reset(); }

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool valid() const { return data_ != nullptr; }
  void Reset();

 private:
  Mapping(std::byte* data, std::size_t size) : data_(data), size_(size) {}

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Status from errno: `what` is the action that failed ("mmap of region 7, 64 MiB"). ENOMEM, ENOSPC,
// EMFILE, ENFILE and EAGAIN are ResourceExhausted, EACCES and EPERM PermissionDenied, ENOENT
// NotFound, ECONNREFUSED, ECONNRESET and EPIPE Unavailable, anything else Internal.
absl::Status ErrnoStatus(int error_number, std::string_view what);

}  // namespace kavern

#endif  // KAVERN_BASE_UNIQUE_FD_H_
