// The attach server's thread: connections, from accept to the exit of their process.
#ifndef KAVERN_SERVICE_SESSION_ATTACH_LOOP_H_
#define KAVERN_SERVICE_SESSION_ATTACH_LOOP_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <thread>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "service/session/attach_server.h"
#include "service/session/attach_socket.h"
#include "service/session/store_news.h"

namespace kavern::service {

// Behind AttachServer, whose contract it keeps.
class AttachLoop {
 public:
  static absl::StatusOr<std::unique_ptr<AttachLoop>> Create(AttachServerOptions options,
                                                            const TenantMap& tenants,
                                                            SessionTable& sessions);
  ~AttachLoop() { Stop(); }

  void Start();
  void Drain();
  void Stop();
  // Runs `add` on the news that the thread delivers next. Any thread, under any lock but a
  // session's.
  void AddNews(const std::function<void(StoreNews&)>& add);

  const SessionToken& incarnation() const { return incarnation_; }
  AttachServer::Counters GetCounters() const;

 private:
  // A handshake has the socket; once greeted, the session has it. `pidfd` is open throughout.
  struct Connection {
    UniqueFd socket;
    std::shared_ptr<Session> session;
    PeerCredentials peer;
    UniqueFd pidfd;
    SteadyTime hello_deadline;

    int fd() const { return session != nullptr ? session->socket_fd() : socket.get(); }
  };
  enum class Source : std::uint64_t { kListener, kWakeup, kSocket, kProcess };

  AttachLoop(AttachServerOptions options, const TenantMap& tenants, SessionTable& sessions)
      : options_(std::move(options)), tenants_(tenants), sessions_(sessions) {}

  // ---- On the thread ----
  void Run();
  int TimeoutMs() const;
  void Dispatch(std::uint64_t tag, std::uint32_t events);
  // False: stop.
  bool HandleRequests();
  void Deliver(const StoreNews& news);
  void BeginDrain();

  void AcceptSome();
  void PauseAccepting();
  void AddHandshake(UniqueFd socket);
  void Reject(std::uint64_t id, const absl::Status& status);
  void DropHandshake(std::uint64_t id);
  void ExpireTimers();

  void OnSocket(std::uint64_t id, std::uint32_t events);
  // False: the connection has ended.
  bool OnPacket(std::uint64_t id, Connection& connection, const ReceivedPacket& packet);
  absl::Status Greet(std::uint64_t id, Connection& connection, const Hello& hello);
  enum class End { kEndOfFile, kProtocol };
  void EndConnection(std::uint64_t id, Connection& connection, End end);
  void OnProcessExit(std::uint64_t id);
  void Forget(std::uint64_t id);

  absl::Status Watch(int fd, Source source, std::uint64_t id, std::uint32_t events, int operation);

  const AttachServerOptions options_;
  const TenantMap& tenants_;
  SessionTable& sessions_;
  SessionToken incarnation_{};
  UniqueFd epoll_;
  UniqueFd wakeup_;

  std::atomic<std::uint64_t> accepted_ = 0;
  std::atomic<std::uint64_t> rejected_ = 0;
  std::atomic<std::uint64_t> fenced_by_protocol_ = 0;
  std::atomic<std::uint64_t> ended_ = 0;
  std::atomic<std::uint64_t> accept_pauses_ = 0;

  // The thread's own; everybody else's before Start and after Stop joined it.
  ListeningSocket listener_;
  absl::flat_hash_map<std::uint64_t, std::unique_ptr<Connection>> connections_;
  std::set<std::uint64_t> handshakes_;  // ids ascend with time: the first is the oldest
  std::uint64_t last_id_ = 0;
  std::optional<SteadyTime> accept_again_at_;

  Mutex mu_;
  StoreNews news_ KAVERN_GUARDED_BY(mu_);
  bool drain_ KAVERN_GUARDED_BY(mu_) = false;
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_SESSION_ATTACH_LOOP_H_
