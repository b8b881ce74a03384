// The system calls under the attach server: the listening file, packets, and who the peer is.
#ifndef KAVERN_SERVICE_SESSION_ATTACH_SOCKET_H_
#define KAVERN_SERVICE_SESSION_ATTACH_SOCKET_H_

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "proto/kavern/v1/shm_layout.h"
#include "service/session/tenant_map.h"

namespace kavern::service {

// A listening SOCK_SEQPACKET Unix socket and its file. While it lives it holds a lock on
// `path`.lock, so of two daemons that start at once one is refused, and neither takes the other's
// file away. Move-only.
class ListeningSocket {
 public:
  // A file that nobody listens on is replaced. AlreadyExists: somebody listens there, or something
  // else than a socket lies there. InvalidArgument: the path is too long or there is no such group.
  // Nobody can connect before mode and group are in place.
  static absl::StatusOr<ListeningSocket> Create(const std::string& path, std::uint32_t mode,
                                                const std::string& group);
  ListeningSocket() = default;
  ListeningSocket(ListeningSocket&& other) noexcept = default;
  ListeningSocket& operator=(ListeningSocket&& other) noexcept;
  ~ListeningSocket() { Close(); }

  int fd() const { return socket_.get(); }
  bool open() const { return socket_.valid(); }
  // Refuses new connections and removes the file, if it is still this socket's. Idempotent.
  void Close();

 private:
  std::string path_;
  UniqueFd socket_;
  UniqueFd lock_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

// A descriptor to send, and what keeps it open until it is sent.
struct SharedDescriptor {
  int fd = -1;
  std::shared_ptr<const void> owner;
};

// Sends one packet without waiting; `passed_fd` goes with it unless it is -1. False: the socket
// takes no more at present. Unavailable: the peer is gone. ResourceExhausted: too many descriptors
// are on their way.
absl::StatusOr<bool> SendPacket(int socket, std::span<const std::byte> packet, int passed_fd);

struct ReceivedPacket {
  enum class Kind {
    kNothing,  // for now
    kPacket,
    kEnd,         // end of file, or an error that ends the connection
    kNotAllowed,  // too long, empty, or with descriptors (the kernel closed them)
  };
  Kind kind = Kind::kNothing;
  std::size_t size = 0;
  std::array<std::byte, shm::kAttachMessageBytesMax> buffer;

  std::span<const std::byte> bytes() const { return std::span(buffer).first(size); }
};
// Receives one packet without waiting.
void ReceivePacket(int socket, ReceivedPacket& packet);

// Credentials of the process that connected.
absl::StatusOr<PeerCredentials> GetPeerCredentials(int socket);
// A pidfd of that process: readable once it exited. By the socket (SO_PEERPIDFD) where the kernel
// has it, else by number. FailedPrecondition: it cannot be watched from here (another pid
// namespace) or exited already.
absl::StatusOr<UniqueFd> OpenPeerPidfd(int socket, const PeerCredentials& peer);
// The way by number, for kernels before 6.5.
absl::StatusOr<UniqueFd> OpenPidfd(std::int32_t pid);

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_SESSION_ATTACH_SOCKET_H_
