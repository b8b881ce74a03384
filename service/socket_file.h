// The file that a Unix socket is: stale ones, modes, groups.
#ifndef KAVERN_SERVICE_SOCKET_FILE_H_
#define KAVERN_SERVICE_SOCKET_FILE_H_

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace kavern::service {

// Removes the socket file that a dead process left at `path`. AlreadyExists when somebody listens
// there or when the file is no socket; OK when there is none. `socket_type` is SOCK_STREAM or
// SOCK_SEQPACKET.
absl::Status RemoveStaleSocket(const std::string& path, int socket_type);

// Sets mode and, unless empty, group (by name or number) of a socket file. InvalidArgument for a
// group that does not exist.
absl::Status SetSocketAccess(const std::string& path, std::uint32_t mode, const std::string& group);

// The process's umask while it lives. The umask is the whole process's: for start-up, when there is
// one thread that makes files.
class UmaskGuard {
 public:
  explicit UmaskGuard(mode_t mask);
  ~UmaskGuard();
  UmaskGuard(const UmaskGuard&) = delete;
  UmaskGuard& operator=(const UmaskGuard&) = delete;

 private:
  const mode_t former_;
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_SOCKET_FILE_H_
