// kavernd as an object: everything wired together, started, drained.
#ifndef KAVERN_SERVICE_DAEMON_H_
#define KAVERN_SERVICE_DAEMON_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "service/config.h"

namespace kavern::service {

// Start-up order: memory, attach socket, store, gRPC, HTTP; the RAM tier fills in the background.
// Ending goes the other way round. Not thread-safe, but for BeginDrain.
class Daemon {
 public:
  // Serving when it returns. Refuses what can never work (InvalidArgument with the numbers:
  // capacity, sockets, addresses), and what another process holds (AlreadyExists).
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const DaemonConfig& config);
  // Stops what still runs, without waiting for anybody.
  virtual ~Daemon() = default;

  // Says to clients, health checks and load balancers that the daemon is going: no new stores and
  // fetches, calls in progress and leases may end.
  virtual void BeginDrain() = 0;

  // Waits until no call is in progress and no lease is held, at most `timeout`. False: some still
  // were.
  virtual bool WaitUntilDrained(std::chrono::milliseconds timeout) = 0;

  // After that: what disks that hang have not ended. Empty: nothing. Else the kernel may use the
  // daemon's memory at any time: StopServing(), and end the process without destroying the daemon.
  virtual const std::string& io_left() const = 0;
  // No calls, sessions and pages any more.
  virtual void StopServing() = 0;

  virtual int http_port() const = 0;  // 0: off
  virtual int tcp_port() const = 0;   // 0: off
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_DAEMON_H_
