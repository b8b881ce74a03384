// What operators' tools ask a daemon. Not part of the public library.
#ifndef KAVERN_CLIENT_ADMIN_CLIENT_H_
#define KAVERN_CLIENT_ADMIN_CLIENT_H_

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "kavern/v1/admin.pb.h"

namespace kavern::client {

// Thread-safe. Every call ends within the deadline given to Connect; Unavailable when the daemon is
// away.
class AdminClient {
 public:
  // Attaches to the daemon at `address` ("unix:///..." or "tcp://..."), once.
  static absl::StatusOr<std::unique_ptr<AdminClient>> Connect(const std::string& address,
                                                              const std::string& tenant,
                                                              std::chrono::milliseconds deadline);
  virtual ~AdminClient() = default;

  virtual absl::StatusOr<v1::GetStatusResponse> GetStatus() = 0;
  virtual absl::StatusOr<v1::ListNamespacesResponse> ListNamespaces() = 0;
  virtual absl::StatusOr<v1::PurgeNamespaceResponse> PurgeNamespace(
      const NamespaceFingerprint& fingerprint) = 0;
  virtual absl::Status Quiesce() = 0;
  // How many blocks left RAM.
  virtual absl::StatusOr<std::uint64_t> Demote() = 0;
};

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_ADMIN_CLIENT_H_
