#include "service/session/session_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kavern::service {

absl::Status SessionTable::Add(const std::shared_ptr<Session>& session) {
  MutexLock lock(mu_);
  if (by_token_.size() >= sessions_max_) {
    return absl::ResourceExhaustedError(absl::StrCat("there are sessions_max = ", sessions_max_,
                                                     " sessions, those in quarantine included"));
  }
  const SessionToken token = session->token();
  if (!by_token_.try_emplace(token, session).second) {
    return absl::InternalError("two sessions drew the same token");
  }
  return absl::OkStatus();
}

void SessionTable::Remove(const SessionToken& token) {
  // May be the last share; a session gives its leases back to the store, and not under this lock.
  std::shared_ptr<Session> removed;
  MutexLock lock(mu_);
  const auto it = by_token_.find(token);
  if (it == by_token_.end()) return;
  removed = std::move(it->second);
  by_token_.erase(it);
}

absl::StatusOr<std::shared_ptr<Session>> SessionTable::Authenticate(std::string_view token) const {
  std::shared_ptr<Session> session;
  if (SessionToken key; token.size() == key.size()) {
    std::transform(token.begin(), token.end(), key.begin(),
                   [](char c) { return static_cast<std::uint8_t>(c); });
    MutexLock lock(mu_);
    const auto it = by_token_.find(key);
    if (it != by_token_.end()) session = it->second;
  }
  if (session == nullptr || session->fenced()) {
    return absl::UnauthenticatedError(
        "kavern-session-bin: not the token of a live session; attach anew");
  }
  return session;
}

std::vector<std::shared_ptr<Session>> SessionTable::All() const {
  std::vector<std::shared_ptr<Session>> sessions;
  MutexLock lock(mu_);
  sessions.reserve(by_token_.size());
  for (const auto& [token, session] : by_token_) sessions.push_back(session);
  return sessions;
}

SessionTable::Totals SessionTable::GetTotals() const {
  Totals totals;
  for (const std::shared_ptr<Session>& session : All()) {
    const Session::Facts facts = session->GetFacts();
    ++(facts.fenced ? totals.fenced : totals.live);
    totals.leases += facts.leases;
    totals.lease_bytes += facts.lease_bytes;
    if (facts.fenced) totals.quarantined_bytes += facts.lease_bytes;
  }
  return totals;
}

}  // namespace kavern::service
