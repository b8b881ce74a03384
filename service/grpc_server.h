// The gRPC side of the daemon: authenticates, streams, translates statuses. The work is
// RequestHandlers'.
#ifndef KAVERN_SERVICE_GRPC_SERVER_H_
#define KAVERN_SERVICE_GRPC_SERVER_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "service/call_metrics.h"
#include "service/request_handlers.h"
#include "service/session/session_table.h"

namespace kavern::service {

struct GrpcServerOptions {
  std::string socket_path;
  std::uint32_t socket_mode = 0600;
  std::string socket_group;
  std::string tcp_address;               // empty: no TCP
  std::shared_ptr<Session> tcp_session;  // whom TCP callers act as; set when tcp_address is
  std::uint64_t message_bytes_max = 4u << 20;
  std::uint64_t concurrent_calls_max = 1024;
  // What gRPC buffers for all callers, of messages half received too: a caller is known, and its
  // call admitted, only once its message is whole.
  std::uint64_t receive_bytes_max = 128u << 20;
};

// Serves kavern.v1.Kavern, kavern.v1.Admin, grpc.health.v1.Health and reflection on the Unix
// socket, and the same on TCP with a fixed session. On the Unix socket only health and reflection
// answer without a session. Callbacks run on gRPC's own threads; no call blocks on another client.
class GrpcServer {
 public:
  // Binds and serves. AlreadyExists when somebody listens on the socket; a stale socket file is
  // replaced. `handlers`, `sessions` and `metrics` must outlive the server.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Create(const GrpcServerOptions& options,
                                                            RequestHandlers& handlers,
                                                            SessionTable& sessions,
                                                            CallMetrics& metrics);
  virtual ~GrpcServer() = default;

  // What the health service says of "" and of both services.
  virtual void SetServing(bool serving) = 0;

  // Port that TCP listens on; 0 without TCP.
  virtual int tcp_port() const = 0;

  // No new calls; those in progress have until `timeout` to end, then they are cancelled.
  virtual void Shutdown(std::chrono::milliseconds timeout) = 0;
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_GRPC_SERVER_H_
