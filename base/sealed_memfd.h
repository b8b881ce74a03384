// Memory in a file descriptor, sealed so that whoever receives it cannot change its size, and
// cannot undo the seals. What both the daemon and tests make, and clients check.
#ifndef KAVERN_BASE_SEALED_MEMFD_H_
#define KAVERN_BASE_SEALED_MEMFD_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace kavern {

enum class MemfdPages { kNormal, kHugetlb };

// A memfd of `size_bytes`, not executable where the kernel can promise that, not sealed yet.
// ResourceExhausted when the kernel has no memory, no descriptors or no reserved huge pages.
absl::StatusOr<UniqueFd> CreateMemfd(const char* name, std::size_t size_bytes, MemfdPages pages);

enum class MemfdWriters {
  kEveryone,         // whoever has the descriptor may map it for writing
  kOnlyThisMapping,  // writable mappings that exist stay; nobody can make another
};
absl::Status SealMemfd(int fd, MemfdWriters writers);

// Whether a received descriptor is a memfd sealed like that, of exactly `size_bytes`.
// PermissionDenied says what is wrong: the peer could truncate it under a reader.
absl::Status CheckSealedMemfd(int fd, std::size_t size_bytes, MemfdWriters writers);

}  // namespace kavern

#endif  // KAVERN_BASE_SEALED_MEMFD_H_
