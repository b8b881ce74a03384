#include "service/socket_file.h"

#include <grp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"

namespace kavern::service {
namespace {

absl::StatusOr<gid_t> FindGroup(const std::string& group) {
  std::uint32_t number = 0;
  if (absl::SimpleAtoi(group, &number)) return static_cast<gid_t>(number);
  std::vector<char> buffer(16384);
  struct group entry {};
  struct group* found = nullptr;
  getgrnam_r(group.c_str(), &entry, buffer.data(), buffer.size(), &found);
  if (found == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("listen.socket_group: there is no group \"", group, "\""));
  }
  return found->gr_gid;
}

}  // namespace

absl::Status RemoveStaleSocket(const std::string& path, int socket_type) {
  struct stat file {};
  if (lstat(path.c_str(), &file) != 0) {
    if (errno == ENOENT) return absl::OkStatus();
    return ErrnoStatus(errno, absl::StrCat("stat of ", path));
  }
  if (!S_ISSOCK(file.st_mode)) {
    return absl::AlreadyExistsError(absl::StrCat(path, ": exists and is not a socket"));
  }
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": too long for a socket"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const UniqueFd probe(socket(AF_UNIX, socket_type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe.valid()) return ErrnoStatus(errno, "socket");
  if (connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ||
      errno == EAGAIN) {
    return absl::AlreadyExistsError(
        absl::StrCat(path, ": another process listens there; is kavernd running already?"));
  }
  if (errno != ECONNREFUSED) return ErrnoStatus(errno, absl::StrCat("connect to ", path));
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat("unlink of the stale socket ", path));
  }
  return absl::OkStatus();
}

absl::Status SetSocketAccess(const std::string& path, std::uint32_t mode,
                             const std::string& group) {
  if (!group.empty()) {
    const auto gid = FindGroup(group);
    if (!gid.ok()) return gid.status();
    if (chown(path.c_str(), static_cast<uid_t>(-1), *gid) != 0) {
      return ErrnoStatus(errno, absl::StrCat("chown of ", path, " to group ", group));
    }
  }
  if (chmod(path.c_str(), mode) != 0) return ErrnoStatus(errno, absl::StrCat("chmod of ", path));
  return absl::OkStatus();
}

UmaskGuard::UmaskGuard(mode_t mask) : former_(umask(mask)) {}
UmaskGuard::~UmaskGuard() {
  umask(former_);
}

}  // namespace kavern::service
