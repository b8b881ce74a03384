// The attach socket: where sessions begin and end, and where descriptors travel.
#ifndef KAVERN_SERVICE_SESSION_ATTACH_SERVER_H_
#define KAVERN_SERVICE_SESSION_ATTACH_SERVER_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "service/session/session_table.h"
#include "service/session/tenant_map.h"
#include "tiers/tiered_store.h"

namespace kavern::service {

struct AttachServerOptions {
  std::string socket_path;  // the gRPC socket's path + shm::kAttachSuffix
  std::uint32_t socket_mode = 0600;
  std::string socket_group;  // empty: the daemon's own
  SessionLimits session_limits;
  std::uint64_t handshakes_max = 64;  // connections that have not said hello yet
  std::chrono::milliseconds hello_timeout{5000};
  const Clock* clock = &Clock::System();
};

class AttachLoop;

// One thread with epoll serves every connection: accepts, greets, notices ends. A peer is
// identified by SO_PEERCRED, and watched through a pidfd (SO_PEERPIDFD, else pidfd_open); one that
// cannot be watched is rejected, because its memory could never be given back safely. Past
// handshakes_max the oldest connection without a hello is closed.
//
// End of file, a malformed message or a queue overflow fences the session. A session that then
// holds neither a lease nor a region is freed at once; else its quarantine ends when the pidfd
// reports the exit of the process that connected, whoever else still holds the socket.
class AttachServer : public tiers::StoreEvents {
 public:
  // Binds and listens (a stale socket file is replaced, one that somebody listens on is
  // AlreadyExists). `tenants` and `sessions` must outlive the server. Call Start() before clients
  // connect; the store may send events from now on.
  static absl::StatusOr<std::unique_ptr<AttachServer>> Create(AttachServerOptions options,
                                                              const TenantMap& tenants,
                                                              SessionTable& sessions);
  // Stops the thread and closes every connection.
  ~AttachServer() override;

  void Start();
  // Tells every client that the daemon is draining, and accepts no more: the socket's file goes.
  void Drain();
  // Ends everything: fences and frees all sessions (their processes see end of file). Once the
  // calls in flight have ended too, the store may be destroyed; its events are dropped from now on.
  // Idempotent. Not for concurrent use with Start.
  void Stop();

  // Random, made by Create.
  const std::array<std::uint8_t, 16>& incarnation() const;

  // tiers::StoreEvents: queue for the thread, and return.
  void OnRegionRetired(std::uint64_t region_id) override;
  void OnDirectory(const NamespaceFingerprint& fingerprint, std::uint64_t generation,
                   std::uint64_t size_bytes, UniqueFd fd) override;
  void OnDirectoryGone(const NamespaceFingerprint& fingerprint, std::uint64_t generation) override;

  struct Counters {
    std::uint64_t accepted = 0;            // sessions begun
    std::uint64_t rejected = 0;            // credentials, limits, no or a malformed hello
    std::uint64_t fenced_by_protocol = 0;  // malformed message or queue overflow
    std::uint64_t ended = 0;               // sessions freed
    std::uint64_t accept_pauses = 0;       // for want of descriptors or memory
  };
  Counters GetCounters() const;

 private:
  explicit AttachServer(std::unique_ptr<AttachLoop> loop);

  const std::unique_ptr<AttachLoop> loop_;
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_SESSION_ATTACH_SERVER_H_
