#include "base/sealed_memfd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

// Newer than some of the headers that this is built against.
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace kavern {
namespace {

int SealsFor(MemfdWriters writers) {
  const int size = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  return writers == MemfdWriters::kOnlyThisMapping ? size | F_SEAL_FUTURE_WRITE : size;
}

}  // namespace

absl::StatusOr<UniqueFd> CreateMemfd(const char* name, std::size_t size_bytes, MemfdPages pages) {
  const unsigned int flags =
      MFD_CLOEXEC | MFD_ALLOW_SEALING | (pages == MemfdPages::kHugetlb ? MFD_HUGETLB : 0U);
  UniqueFd fd(memfd_create(name, flags | MFD_NOEXEC_SEAL));
  if (!fd.valid() && errno == EINVAL) fd = UniqueFd(memfd_create(name, flags));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("memfd_create of ", name));
  if (ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) {
    return ErrnoStatus(errno, absl::StrCat("sizing ", name, " to ", size_bytes, " bytes"));
  }
  return fd;
}

absl::Status SealMemfd(int fd, MemfdWriters writers) {
  if (fcntl(fd, F_ADD_SEALS, SealsFor(writers)) != 0) return ErrnoStatus(errno, "sealing a memfd");
  return absl::OkStatus();
}

absl::Status CheckSealedMemfd(int fd, std::size_t size_bytes, MemfdWriters writers) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) return absl::PermissionDeniedError("received descriptor: expected a memfd");
  const int wanted = SealsFor(writers);
  if ((seals & wanted) != wanted) {
    return absl::PermissionDeniedError(
        absl::StrCat("received memfd: has seals ", seals, ", expected at least ", wanted));
  }
  struct stat file {};
  if (fstat(fd, &file) != 0) return ErrnoStatus(errno, "fstat of a received memfd");
  if (static_cast<std::size_t>(file.st_size) != size_bytes) {
    return absl::PermissionDeniedError(
        absl::StrCat("received memfd: has ", file.st_size, " bytes, expected ", size_bytes));
  }
  return absl::OkStatus();
}

}  // namespace kavern
