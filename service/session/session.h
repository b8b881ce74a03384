// A session: one client's attach connection and everything that it holds.
#ifndef KAVERN_SERVICE_SESSION_SESSION_H_
#define KAVERN_SERVICE_SESSION_SESSION_H_

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "service/session/attach_messages.h"
#include "service/session/attach_socket.h"
#include "service/session/store_news.h"
#include "service/session/tenant_map.h"
#include "tiers/tiered_store.h"

namespace kavern::service {

using SessionToken = std::array<std::uint8_t, 16>;

struct SessionLimits {
  std::uint64_t leases_max = 4096;             // per session
  std::uint64_t lease_bytes_max = UINT64_MAX;  // slots pinned by one session, quarantine included
  std::uint64_t namespaces_max = 1024;         // open per session
  std::uint64_t queued_messages_max = 4096;    // attach messages that the client does not read
};

// Life: live -> fenced (its connection ended: no new calls) -> gone (its process exited: everything
// that it held is given back). While it is fenced its leases stay pinned, because a DMA or a thread
// of a client that lives may still read or write there (P4).
//
// Thread-safe. Shared between the session table, the attach server and calls in flight; the last of
// them to let go destroys it, and leases end then at the latest.
//
// Order of locks: a write lease's own lock, then either the store's lock (inside the store's calls)
// or mu_. Nothing is locked, destroyed or asked of the store under mu_; a non-blocking send is all
// that happens there. StoreEvents come with the store's lock held and end in the attach server's
// queue, whose lock is taken last as well; its thread holds neither when it calls a session.
class Session {
 public:
  // `socket` is the attach connection; invalid for the fixed tenant of a TCP listener, which has no
  // shared memory. An empty `tenant`: an operator that may administer, but has no namespaces.
  Session(SessionToken token, std::string tenant, bool is_operator, PeerCredentials peer,
          std::string client_name, UniqueFd socket, SessionLimits limits, SteadyTime created);
  ~Session();

  const SessionToken& token() const { return token_; }
  const std::string& tenant() const { return tenant_; }
  bool is_operator() const { return is_operator_; }
  const PeerCredentials& peer() const { return peer_; }
  const std::string& client_name() const { return client_name_; }
  bool shares_memory() const { return socket_.valid(); }
  int socket_fd() const { return socket_.get(); }

  // ---- Namespaces ----
  // Shared, because the session can end while a call uses the namespace.
  using SharedNamespace = std::shared_ptr<const tiers::NamespaceRef>;

  // Keeps `ns` open for the session's life. True: it was not open before. ResourceExhausted past
  // namespaces_max; Unauthenticated when the session is fenced.
  absl::StatusOr<bool> AddNamespace(tiers::NamespaceRef ns);
  // The open namespace with this fingerprint. FailedPrecondition when it was not opened in this
  // session (the same answer whether it exists or not, P8). Let go of it before the store ends.
  absl::StatusOr<SharedNamespace> FindNamespace(const NamespaceFingerprint& fingerprint) const;
  bool HasNamespace(const NamespaceFingerprint& fingerprint) const;

  // ---- Leases ----
  // How many bytes the session may pin at a time, and how many more now.
  std::uint64_t LeaseBytesMax() const { return limits_.lease_bytes_max; }
  std::uint64_t LeaseBytesLeft() const;
  // Takes the lease over and names it. On a fenced session the lease is kept all the same
  // (quarantine) and the call fails with Unauthenticated; on one that is gone it ends.
  // ResourceExhausted past the limits: the lease is destroyed. Names are never 0, and another
  // session's are unknown here.
  // A read lease may grow: `bytes_to_come` count against the limits from now on. `id`: its name, if
  // the client has chosen one. InvalidArgument: it is in use.
  absl::StatusOr<std::uint64_t> AddLease(tiers::ReadLease lease, std::uint64_t bytes_to_come = 0,
                                         std::uint64_t id = 0);
  absl::StatusOr<std::uint64_t> AddLease(tiers::WriteLease lease);
  // What came of it, and what is left of the bytes to come. False, and `more` ends: the lease was
  // released meanwhile, or the session is fenced.
  bool ExtendLease(std::uint64_t lease_id, tiers::ReadLease more, std::uint64_t bytes_to_come);
  // Ends a read lease. False: no such lease in this session.
  bool ReleaseRead(std::uint64_t lease_id);
  // Runs `use` on a write lease while no other call can; the lease ends by itself when `use` leaves
  // no slot in it. FailedPrecondition: no such lease.
  absl::Status WithWriteLease(std::uint64_t lease_id,
                              const std::function<absl::Status(tiers::WriteLease&)>& use);
  // Ends a write lease, after the WithWriteLease that is using it. False: no such lease.
  bool ReleaseWrite(std::uint64_t lease_id);

  // ---- Attach messages ----
  // A message that cannot be sent at once waits in a queue. When that is full the session fences
  // itself (ResourceExhausted), because a client that missed one message can no longer be told the
  // truth. Unauthenticated on a fenced session, FailedPrecondition without a socket, Unavailable
  // when the peer is gone.
  absl::Status Send(AttachMessage message, SharedDescriptor descriptor = {});
  // Makes sure that the client has (been sent) the region's descriptor; call before the reply that
  // names it, and while a lease keeps the region from being given up. The session then holds a
  // share in the region until the client unmapped it. As Send.
  absl::Status ShareRegion(tiers::Region& region);
  bool HoldsRegion(std::uint64_t region_id) const;
  // The client said that it unmapped the region. False: it never had it.
  bool ForgetRegion(std::uint64_t region_id);
  // Tells the client where its namespace's directory is, or that there is none any more. Nothing is
  // sent when the namespace is not open here, or the client has been told as much. As Send.
  absl::Status SendDirectory(const NamespaceFingerprint& fingerprint, const DirectoryNews& news);
  // Sends what is queued; true when nothing is left. Called when the socket becomes writable.
  absl::StatusOr<bool> FlushQueue();

  // ---- End ----
  // No new calls, no messages; the client sees end of file. Idempotent.
  void Fence();
  bool fenced() const;
  // The process is gone: ends all leases, namespaces and region shares. Implies Fence.
  void FreeEverything();
  // Frees everything if the client holds neither a lease nor a region, so that nothing of the
  // store's is in its reach. False: it does.
  bool FreeIfNothingHeld();

  struct Facts {
    std::uint64_t leases = 0;
    std::uint64_t lease_bytes = 0;
    std::uint64_t region_shares = 0;
    std::uint64_t namespaces = 0;
    std::uint64_t queued_messages = 0;
    bool fenced = false;
    bool queue_overflowed = false;  // the client did not read its attach socket
    SteadyTime created;
  };
  Facts GetFacts() const;

 private:
  struct OpenNamespace {
    SharedNamespace ref;
    std::uint64_t directory_generation = 0;  // that the client has been sent; 0: none
  };
  struct HeldRead {
    tiers::ReadLease lease;
    std::uint64_t bytes = 0;
  };
  // Its lock outlives its place in the table: a commit in progress finishes before the lease ends.
  struct WriteLeaseCell {
    Mutex mu;
    tiers::WriteLease lease KAVERN_GUARDED_BY(mu);
  };
  struct HeldWrite {
    std::shared_ptr<WriteLeaseCell> cell;
    std::uint64_t bytes = 0;
  };
  struct QueuedMessage {
    AttachMessage message;
    SharedDescriptor descriptor;
  };
  // Everything that the client holds or waits for; moved out under mu_ and destroyed outside.
  struct Holdings {
    absl::flat_hash_map<NamespaceFingerprint, OpenNamespace> namespaces;
    absl::flat_hash_map<std::uint64_t, HeldRead> reads;
    absl::flat_hash_map<std::uint64_t, HeldWrite> writes;
    absl::flat_hash_map<std::uint64_t, std::shared_ptr<tiers::Region>> regions;
    std::deque<QueuedMessage> queue;
  };

  absl::Status CheckLeaseLimitsLocked(std::uint64_t bytes) const KAVERN_REQUIRES(mu_);
  std::uint64_t NextLeaseIdLocked() KAVERN_REQUIRES(mu_);
  absl::Status SendLocked(AttachMessage message, SharedDescriptor descriptor) KAVERN_REQUIRES(mu_);
  void FenceLocked() KAVERN_REQUIRES(mu_);
  Holdings GoLocked() KAVERN_REQUIRES(mu_);

  const SessionToken token_;
  const std::string tenant_;
  const bool is_operator_;
  const PeerCredentials peer_;
  const std::string client_name_;
  const UniqueFd socket_;
  const SessionLimits limits_;
  const SteadyTime created_;

  mutable Mutex mu_;
  Holdings held_ KAVERN_GUARDED_BY(mu_);
  std::uint64_t lease_bytes_ KAVERN_GUARDED_BY(mu_) = 0;
  std::uint64_t leases_named_ KAVERN_GUARDED_BY(mu_) = 0;
  bool fenced_ KAVERN_GUARDED_BY(mu_) = false;
  bool gone_ KAVERN_GUARDED_BY(mu_) = false;
  bool queue_overflowed_ KAVERN_GUARDED_BY(mu_) = false;
};

// 16 bytes of the kernel's randomness.
absl::StatusOr<SessionToken> RandomToken();

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_SESSION_SESSION_H_
