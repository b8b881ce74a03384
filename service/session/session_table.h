// All sessions, by token.
#ifndef KAVERN_SERVICE_SESSION_SESSION_TABLE_H_
#define KAVERN_SERVICE_SESSION_SESSION_TABLE_H_

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "service/session/session.h"

namespace kavern::service {

// Thread-safe.
class SessionTable {
 public:
  explicit SessionTable(std::uint64_t sessions_max) : sessions_max_(sessions_max) {}

  // ResourceExhausted past sessions_max (fenced ones in quarantine count).
  absl::Status Add(const std::shared_ptr<Session>& session);
  void Remove(const SessionToken& token);

  // The live session that bears `token` (16 raw bytes, from call metadata). Unauthenticated when
  // there is none or it is fenced.
  absl::StatusOr<std::shared_ptr<Session>> Authenticate(std::string_view token) const;

  std::vector<std::shared_ptr<Session>> All() const;

  struct Totals {
    std::uint64_t live = 0;
    std::uint64_t fenced = 0;  // in quarantine
    std::uint64_t leases = 0;
    std::uint64_t lease_bytes = 0;        // live and fenced
    std::uint64_t quarantined_bytes = 0;  // of fenced ones
  };
  Totals GetTotals() const;

 private:
  const std::uint64_t sessions_max_;
  mutable Mutex mu_;
  absl::flat_hash_map<SessionToken, std::shared_ptr<Session>> by_token_ KAVERN_GUARDED_BY(mu_);
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_SESSION_SESSION_TABLE_H_
