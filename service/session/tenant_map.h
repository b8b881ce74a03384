// Who a peer is: from its credentials to a tenant. Pure decisions over configuration.
#ifndef KAVERN_SERVICE_SESSION_TENANT_MAP_H_
#define KAVERN_SERVICE_SESSION_TENANT_MAP_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kavern::service {

// What the kernel says of the process at the other end of the attach socket.
struct PeerCredentials {
  std::int32_t pid = 0;  // in the daemon's pid namespace; 0: not visible from it
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
};

struct TenantRule {
  std::string name;  // not empty, at most 63 bytes of [A-Za-z0-9._-]
  std::vector<std::uint64_t> uids;
  std::vector<std::uint64_t> gids;  // the peer's primary group
};

// InvalidArgument says what a tenant's name may be.
absl::Status CheckTenantName(const std::string& name);

class TenantMap {
 public:
  // Without rules: `daemon_uid` is tenant "default", everybody else is refused. With rules: only
  // they count. `operator_uids` in addition to `daemon_uid` and 0. InvalidArgument names the rule
  // that is wrong.
  static absl::StatusOr<TenantMap> Create(std::vector<TenantRule> rules,
                                          std::vector<std::uint64_t> operator_uids,
                                          std::uint32_t daemon_uid);

  // The tenant that `peer` acts for. A peer may map to several: then `requested` chooses among
  // them, and when it is empty the first rule wins. PermissionDenied for a peer without a tenant,
  // and for a requested tenant that is not the peer's (the same message whether it exists or not).
  // An operator without a tenant gets "" when it requests none: it may administer the node, but has
  // no namespaces.
  absl::StatusOr<std::string> Resolve(const PeerCredentials& peer,
                                      const std::string& requested) const;

  bool IsOperator(const PeerCredentials& peer) const;

 private:
  TenantMap() = default;
  std::vector<TenantRule> rules_;
  std::vector<std::uint64_t> operator_uids_;
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_SESSION_TENANT_MAP_H_
