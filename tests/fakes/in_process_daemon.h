// The daemon's insides in the test's own process, and a control plane to them without gRPC: what
// sanitizers and slow machines can follow. Attach socket, sessions, handlers and store are the real
// ones.
#ifndef KAVERN_TESTS_FAKES_IN_PROCESS_DAEMON_H_
#define KAVERN_TESTS_FAKES_IN_PROCESS_DAEMON_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/mutex.h"
#include "client/client_impl.h"
#include "client/control_plane.h"
#include "service/request_handlers.h"
#include "service/session/session_table.h"
#include "tiers/tiered_store.h"

namespace kavern {

// Thread-safe, but for Start and Stop, which one thread calls.
class InProcessDaemon {
 public:
  explicit InProcessDaemon(std::uint64_t capacity_bytes = 4 << 20,
                           std::uint64_t region_bytes = 256 << 10,
                           std::uint64_t lease_bytes_max = UINT64_MAX,
                           std::function<void(tiers::TieredStoreOptions&)> change = {});
  ~InProcessDaemon();

  // A new incarnation on the same socket.
  void Start();
  // As if it were killed: sessions end, memory is gone. Calls in progress end first.
  void Stop();

  // A client of this daemon, whether it runs or not.
  std::unique_ptr<Client> Connect(ClientOptions options = {});

  // How often a method was called, on any client.
  std::uint64_t calls(const std::string& method) const;
  // The next call of the method answers this, and does nothing.
  void FailNext(const std::string& method, absl::Status status);
  // The next call of the method gets no answer, and so lasts until its deadline. `carried_out`:
  // the daemon did what was asked, and only the answer was lost.
  void LoseNextAnswer(const std::string& method, bool carried_out);

  tiers::TieredStore& store();
  std::uint64_t leased_bytes() { return store().GetStatus().leased_bytes; }

 private:
  friend class InProcessControlPlane;
  struct Node;

  // Runs `call` with the node and the caller's session; Unavailable while stopped.
  absl::Status Serve(
      const std::string& method, const client::CallContext& context,
      const std::function<absl::Status(service::RequestHandlers&,
                                       const std::shared_ptr<service::Session>&)>& call);

  const std::uint64_t capacity_bytes_;
  const std::uint64_t region_bytes_;
  const std::uint64_t lease_bytes_max_;                           // of each session
  const std::function<void(tiers::TieredStoreOptions&)> change_;  // empty: nothing
  std::string directory_;
  mutable Mutex mu_;
  CondVar calls_ended_;
  std::unique_ptr<Node> node_ KAVERN_GUARDED_BY(mu_);
  int calls_in_progress_ KAVERN_GUARDED_BY(mu_) = 0;
  bool serving_ KAVERN_GUARDED_BY(mu_) = false;
  std::map<std::string, std::uint64_t> calls_ KAVERN_GUARDED_BY(mu_);
  std::map<std::string, absl::Status> failures_ KAVERN_GUARDED_BY(mu_);
  std::map<std::string, bool> lost_answers_ KAVERN_GUARDED_BY(mu_);  // to: carried out
};

}  // namespace kavern

#endif  // KAVERN_TESTS_FAKES_IN_PROCESS_DAEMON_H_
