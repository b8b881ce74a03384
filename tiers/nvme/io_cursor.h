// What is left of one read or write: the kernel may do less than it was asked for.
#ifndef KAVERN_TIERS_NVME_IO_CURSOR_H_
#define KAVERN_TIERS_NVME_IO_CURSOR_H_

#include <linux/falloc.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"
#include "tiers/nvme/block_device.h"

namespace kavern::tiers {

// What the system said of I/O to `path`, as DiskIo::done is told.
inline absl::Status IoError(int error, const std::string& path) {
  if (error == ECANCELED) return absl::CancelledError(absl::StrCat(path, ": cancelled"));
  if (error == EOPNOTSUPP) {
    return absl::UnimplementedError(absl::StrCat(path, ": knows no such operation"));
  }
  return ErrnoStatus(error, path);
}

inline absl::Status EndsTooEarly(const std::string& path) {
  return absl::DataLossError(absl::StrCat(path, ": ends too early"));
}

// Of fallocate(), for DiskIo::Op::kDiscard. A hole in a file would give up the space that was
// reserved for it; unwritten extents do not.
inline int DiscardMode(bool block_device) {
  return FALLOC_FL_KEEP_SIZE | (block_device ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

class IoCursor {
 public:
  explicit IoCursor(std::uint64_t offset) : offset_(offset) {}
  explicit IoCursor(const DiskIo& io) : offset_(io.offset) {
    vectors_.reserve(io.pieces.size());
    for (const std::span<std::byte> piece : io.pieces) Append(piece);
  }

  // More, that lies behind the rest on disk. Before the first Advance().
  void Append(std::span<std::byte> piece) { vectors_.push_back({piece.data(), piece.size()}); }

  bool done() const { return first_ == vectors_.size(); }
  std::uint64_t offset() const { return offset_; }
  std::span<const iovec> vectors() const { return std::span(vectors_).subspan(first_); }

  // `bytes` were read or written: at most what is left.
  void Advance(std::size_t bytes) {
    offset_ += bytes;
    while (bytes > 0 && first_ < vectors_.size()) {
      iovec& vector = vectors_[first_];
      if (bytes < vector.iov_len) {
        vector.iov_base = static_cast<std::byte*>(vector.iov_base) + bytes;
        vector.iov_len -= bytes;
        return;
      }
      bytes -= vector.iov_len;
      ++first_;
    }
  }

 private:
  std::uint64_t offset_;
  std::vector<iovec> vectors_;
  std::size_t first_ = 0;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_IO_CURSOR_H_
