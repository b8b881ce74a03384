// The client behind the public interface.
#ifndef KAVERN_CLIENT_CLIENT_IMPL_H_
#define KAVERN_CLIENT_CLIENT_IMPL_H_

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "client/attachment.h"
#include "client/control_plane.h"
#include "client/copy_pool.h"
#include "client/kavern/client.h"
#include "client/session_link.h"
#include "client/turn_timings.h"

namespace kavern {

class NamespaceImpl;

namespace client {

// Where a daemon is, from ClientOptions::address.
struct Endpoint {
  bool shared_memory = false;  // a Unix socket: attach there
  std::string grpc_target;     // "unix:/path" or "host:port"
  std::string attach_path;     // of the attach socket
};
// InvalidArgument says what an address looks like.
absl::StatusOr<Endpoint> ParseAddress(const std::string& address);

// A lease to end, and blocks of it that failed their checksum.
struct PendingRelease {
  std::shared_ptr<Attachment> attachment;
  std::uint64_t lease_id = 0;
  bool is_store = false;  // a write lease: aborted
  std::vector<v1::ReleaseRequest::Suspect> suspects;
};

// What leases and namespaces need of the client. Shared by them, so that a lease that outlives its
// client is safe: it then only lets go of its memory, and the daemon ends the lease with the
// session.
// The end of a lease may not have reached the daemon, which then still holds it: one that is too
// slow, or takes no more calls, or whose connection broke while the session lives.
bool IsNotDelivered(const absl::Status& status);

class ClientCore {
 public:
  ClientCore(ClientOptions options, std::unique_ptr<ControlPlane> control);
  ~ClientCore();

  const ClientOptions& options() const { return options_; }
  ControlPlane& control() { return *control_; }
  CopyPool& copy_pool() { return copy_pool_; }
  TimingReporter& timing_reporter() { return timing_reporter_; }

  // FailedPrecondition in a forked child: neither threads nor mappings came along.
  absl::Status CheckProcess() const;
  // When a call with this deadline ends; 0: ClientOptions::deadline.
  SteadyTime Until(std::chrono::milliseconds deadline) const;
  CallContext Context(const Attachment* attachment, std::chrono::milliseconds deadline) const;

  // Ends the lease in the background, with others in one call.
  void ReleaseLater(PendingRelease release);
  // Ends a read lease now. DeadlineExceeded: the daemon did not answer by `until`, and is told in
  // the background.
  absl::Status ReleaseNow(const PendingRelease& release, SteadyTime until);
  // Leases that ended here and that the daemon has yet to hear of: a ticket to wait with, or 0.
  std::uint64_t OwedReleases() const;
  // Until the daemon has heard of all that were owed when the ticket was given, or `until`.
  void WaitForReleases(std::uint64_t ticket, SteadyTime until) const;
  // No more background releases and reports: what is queued is sent until `until`, the threads
  // joined. Idempotent.
  void Stop(SteadyTime until);

 private:
  void ReleaseLoop();
  // Leases of one session and one kind; one alone where it is a write lease. False: not delivered,
  // though the session lives.
  bool SendReleases(const std::vector<PendingRelease>& releases, SteadyTime until);
  absl::Status SendAbort(const PendingRelease& release, SteadyTime until);
  absl::StatusOr<v1::TurnCosts> SendTimings(const TurnTimings::Report& report, SteadyTime until);

  const ClientOptions options_;
  const std::unique_ptr<ControlPlane> control_;
  const pid_t pid_;
  CopyPool copy_pool_;

  mutable Mutex mu_;
  mutable CondVar changed_;
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  SteadyTime stop_until_ KAVERN_GUARDED_BY(mu_);  // once stop_ is true
  std::deque<PendingRelease> releases_ KAVERN_GUARDED_BY(mu_);
  std::uint64_t releases_begun_ KAVERN_GUARDED_BY(mu_) = 0;
  std::uint64_t releases_done_ KAVERN_GUARDED_BY(mu_) = 0;
  std::thread releaser_;
  TimingReporter timing_reporter_;  // last: its thread uses what is above
};

// What is left until then as a deadline of a further call, at least 1 ms: 0 would mean the default.
std::chrono::milliseconds Left(SteadyTime until);

}  // namespace client

class ClientImpl final : public Client {
 public:
  ClientImpl(ClientOptions options, const client::Endpoint& endpoint,
             std::unique_ptr<client::ControlPlane> control);
  ~ClientImpl() override;

  void Close(std::chrono::milliseconds deadline) override;
  absl::Status WaitUntilAttached(std::chrono::milliseconds deadline) override;
  absl::StatusOr<std::shared_ptr<Namespace>> OpenNamespace(
      const NamespaceSpec& spec, std::chrono::milliseconds deadline) override;
  absl::Status Ping(std::chrono::milliseconds deadline) override;
  ConnectionInfo connection() const override;

  // For namespaces: the attachment to call with; nullptr on TCP. Unavailable when the daemon is
  // away.
  absl::StatusOr<std::shared_ptr<client::Attachment>> Attached() const;
  // What a failed call says of the session: Unauthenticated means that the daemon does not know it
  // any more; the client attaches anew and the caller gets Unavailable.
  absl::Status Judge(const std::shared_ptr<client::Attachment>& attachment,
                     const absl::Status& status) const;

  const std::shared_ptr<client::ClientCore>& core() const { return core_; }

 private:
  // FailedPrecondition in a forked child, and once it was closed.
  absl::Status CheckUsable() const;
  absl::Status ReopenNamespaces(const std::shared_ptr<client::Attachment>& attachment);

  const std::shared_ptr<client::ClientCore> core_;
  const bool shared_memory_;
  const std::shared_ptr<std::atomic<std::uint64_t>> mapped_bytes_;
  std::atomic<bool> closed_ = false;

  mutable Mutex mu_;
  std::vector<std::weak_ptr<NamespaceImpl>> namespaces_ KAVERN_GUARDED_BY(mu_);
  std::unique_ptr<client::SessionLink>
      link_;  // nullptr on TCP and once closed; last, so that its thread ends first
};

}  // namespace kavern

#endif  // KAVERN_CLIENT_CLIENT_IMPL_H_
