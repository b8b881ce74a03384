#include "service/session/attach_socket.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "service/socket_file.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Linux 6.5; the same number on x86-64 and AArch64
#endif

namespace kavern::service {
namespace {

absl::StatusOr<sockaddr_un> Address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("socket path \"", path, "\": expected 1 to ",
                                                   sizeof(address.sun_path) - 1, " bytes"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

// The lock file is never removed: whoever removes one can remove another's.
absl::StatusOr<UniqueFd> LockPath(const std::string& path) {
  const std::string lock_path = path + ".lock";
  UniqueFd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid() && errno == ENOENT) {
    return absl::NotFoundError(absl::StrCat(
        "listen.socket: the directory ", std::filesystem::path(path).parent_path().string(),
        " does not exist; make it, or name a socket in another"));
  }
  if (!lock.valid()) return ErrnoStatus(errno, absl::StrCat("open of ", lock_path));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      return absl::AlreadyExistsError(
          absl::StrCat(path, ": another daemon runs or starts with this socket"));
    }
    return ErrnoStatus(errno, absl::StrCat("flock of ", lock_path));
  }
  return lock;
}

}  // namespace

absl::StatusOr<ListeningSocket> ListeningSocket::Create(const std::string& path, std::uint32_t mode,
                                                        const std::string& group) {
  KAVERN_ASSIGN_OR_RETURN(const sockaddr_un address, Address(path));
  KAVERN_ASSIGN_OR_RETURN(UniqueFd lock, LockPath(path));
  KAVERN_RETURN_IF_ERROR(RemoveStaleSocket(path, SOCK_SEQPACKET));

  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return ErrnoStatus(errno, "socket");
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoStatus(errno, absl::StrCat("bind of ", path));
  }
  ListeningSocket listening;
  listening.path_ = path;
  listening.socket_ = std::move(socket);
  listening.lock_ = std::move(lock);
  struct stat bound {};
  if (::lstat(path.c_str(), &bound) != 0) return ErrnoStatus(errno, absl::StrCat("stat of ", path));
  listening.device_ = bound.st_dev;
  listening.inode_ = bound.st_ino;
  // Until listen() every connect is refused, so there is no moment with another owner or mode.
  KAVERN_RETURN_IF_ERROR(SetSocketAccess(path, mode, group));
  if (::listen(listening.fd(), SOMAXCONN) != 0) {
    return ErrnoStatus(errno, absl::StrCat("listen on ", path));
  }
  return listening;
}

ListeningSocket& ListeningSocket::operator=(ListeningSocket&& other) noexcept {
  if (this != &other) {
    Close();
    path_ = std::move(other.path_);
    socket_ = std::move(other.socket_);
    lock_ = std::move(other.lock_);
    device_ = other.device_;
    inode_ = other.inode_;
  }
  return *this;
}

void ListeningSocket::Close() {
  if (!socket_.valid()) return;
  struct stat found {};
  if (::lstat(path_.c_str(), &found) == 0 && found.st_dev == device_ && found.st_ino == inode_) {
    ::unlink(path_.c_str());
  }
  socket_.Reset();
  lock_.Reset();
}

absl::StatusOr<bool> SendPacket(int socket, std::span<const std::byte> packet, int passed_fd) {
  iovec data{const_cast<std::byte*>(packet.data()), packet.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (passed_fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &passed_fd, sizeof(int));
  }
  while (::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
    if (errno == ETOOMANYREFS || errno == ENOBUFS || errno == ENOMEM) {
      return absl::ResourceExhaustedError(absl::StrCat("attach socket: ", std::strerror(errno)));
    }
    return absl::UnavailableError(absl::StrCat("attach socket: ", std::strerror(errno)));
  }
  return true;
}

void ReceivePacket(int socket, ReceivedPacket& packet) {
  iovec data{packet.buffer.data(), packet.buffer.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  // No room for control data: descriptors that a client passes are closed by the kernel, never
  // installed here.
  ssize_t received = 0;
  do {
    received = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (received < 0 && errno == EINTR);
  packet.size = 0;
  if (received < 0) {
    const bool later = errno == EAGAIN || errno == EWOULDBLOCK;
    packet.kind = later ? ReceivedPacket::Kind::kNothing : ReceivedPacket::Kind::kEnd;
  } else if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    packet.kind = ReceivedPacket::Kind::kNotAllowed;
  } else if (received == 0) {
    // An empty packet looks the same; both end the session.
    packet.kind = ReceivedPacket::Kind::kEnd;
  } else {
    packet.kind = ReceivedPacket::Kind::kPacket;
    packet.size = static_cast<std::size_t>(received);
  }
}

absl::StatusOr<PeerCredentials> GetPeerCredentials(int socket) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return ErrnoStatus(errno, "SO_PEERCRED");
  }
  return PeerCredentials{credentials.pid, credentials.uid, credentials.gid};
}

absl::StatusOr<UniqueFd> OpenPeerPidfd(int socket, const PeerCredentials& peer) {
  int pidfd = -1;
  socklen_t size = sizeof(pidfd);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0) return UniqueFd(pidfd);
  if (errno != ENOPROTOOPT) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the connecting process cannot be watched: SO_PEERPIDFD: ", std::strerror(errno)));
  }
  return OpenPidfd(peer.pid);
}

absl::StatusOr<UniqueFd> OpenPidfd(std::int32_t pid) {
  if (pid <= 0) {
    return absl::FailedPreconditionError(
        "the connecting process cannot be watched: it is in a pid namespace that the daemon does "
        "not see");
  }
  const long pidfd = ::syscall(SYS_pidfd_open, pid, 0U);
  if (pidfd < 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the connecting process cannot be watched: pidfd_open: ", std::strerror(errno)));
  }
  // pidfd_open sets close-on-exec by itself.
  return UniqueFd(static_cast<int>(pidfd));
}

}  // namespace kavern::service
