#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/named_thread.h"
#include "client/client_impl.h"
#include "proto/kavern/v1/shm_layout.h"

namespace kavern::client {
namespace {

constexpr std::size_t kReleasesPerCallMax = 256;
constexpr std::chrono::milliseconds kReleaseRetryInterval(50);
// One that hangs is asked again, and must not hold up the end of the client.
constexpr std::chrono::milliseconds kReleasePatience(1000);

}  // namespace

absl::StatusOr<Endpoint> ParseAddress(const std::string& address) {
  absl::string_view rest = address;
  Endpoint endpoint;
  if (absl::ConsumePrefix(&rest, "unix://") && absl::StartsWith(rest, "/")) {
    endpoint.shared_memory = true;
    endpoint.grpc_target = absl::StrCat("unix:", rest);
    endpoint.attach_path = absl::StrCat(rest, shm::kAttachSuffix);
    if (endpoint.attach_path.size() >= sizeof(sockaddr_un::sun_path)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "address: got a path of ", rest.size(), " bytes, expected at most ",
          sizeof(sockaddr_un::sun_path) - sizeof(shm::kAttachSuffix), ", what a socket can have"));
    }
    return endpoint;
  }
  rest = address;
  if (absl::ConsumePrefix(&rest, "tcp://") && absl::StrContains(rest, ":")) {
    endpoint.grpc_target = std::string(rest);
    return endpoint;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "address: got \"", address, "\", expected unix:///path/to/socket or tcp://host:port"));
}

ClientCore::ClientCore(ClientOptions options, std::unique_ptr<ControlPlane> control)
    : options_(std::move(options)),
      control_(std::move(control)),
      pid_(getpid()),
      copy_pool_(options_.copy_threads),
      timing_reporter_([this](const TurnTimings::Report& report, SteadyTime until) {
        return SendTimings(report, until);
      }) {
  releaser_ = NamedThread("kavern-release", [this] { ReleaseLoop(); });
}

ClientCore::~ClientCore() {
  Stop(Until(std::chrono::milliseconds(0)));
}

void ClientCore::Stop(SteadyTime until) {
  {
    MutexLock lock(mu_);
    stop_ = true;
    stop_until_ = until;
    changed_.NotifyAll();
  }
  timing_reporter_.Stop(until);
  if (releaser_.joinable()) releaser_.join();
}

bool IsNotDelivered(const absl::Status& status) {
  return absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status) ||
         absl::IsResourceExhausted(status);
}

absl::Status ClientCore::CheckProcess() const {
  if (getpid() == pid_) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "this client belongs to the process that this one was forked from");
}

SteadyTime ClientCore::Until(std::chrono::milliseconds deadline) const {
  constexpr std::chrono::milliseconds kMax = std::chrono::hours(24 * 365);  // no overflow below
  return std::chrono::steady_clock::now() +
         std::min(deadline.count() > 0 ? deadline : options_.deadline, kMax);
}

std::chrono::milliseconds Left(SteadyTime until) {
  const auto left = until - std::chrono::steady_clock::now();
  return std::max(std::chrono::milliseconds(1), std::chrono::ceil<std::chrono::milliseconds>(left));
}

CallContext ClientCore::Context(const Attachment* attachment,
                                std::chrono::milliseconds deadline) const {
  CallContext context;
  if (attachment != nullptr) context.session_token = attachment->session_token();
  context.deadline = Until(deadline);
  return context;
}

void ClientCore::ReleaseLater(PendingRelease release) {
  MutexLock lock(mu_);
  if (stop_) return;  // the session ends, and the lease with it
  releases_.push_back(std::move(release));
  ++releases_begun_;
  changed_.NotifyAll();
}

std::uint64_t ClientCore::OwedReleases() const {
  MutexLock lock(mu_);
  return releases_begun_ == releases_done_ ? 0 : releases_begun_;
}

void ClientCore::WaitForReleases(std::uint64_t ticket, SteadyTime until) const {
  MutexLock lock(mu_);
  while (!stop_ && releases_done_ < ticket && changed_.WaitUntil(mu_, until)) {
  }
}

absl::Status ClientCore::ReleaseNow(const PendingRelease& release, SteadyTime until) {
  v1::ReleaseRequest request;
  request.add_lease_ids(release.lease_id);
  request.mutable_suspects()->Assign(release.suspects.begin(), release.suspects.end());
  v1::ReleaseResponse response;
  absl::Status status =
      control_->Release(Context(release.attachment.get(), Left(until)), request, &response);
  if (IsNotDelivered(status)) ReleaseLater(release);
  return status;
}

void ClientCore::ReleaseLoop() {
  for (;;) {
    std::vector<PendingRelease> batch;
    SteadyTime until;
    {
      MutexLock lock(mu_);
      while (!stop_ && releases_.empty()) changed_.Wait(mu_);
      if (releases_.empty()) return;
      const SteadyTime now = std::chrono::steady_clock::now();
      if (stop_ && now >= stop_until_) return;
      until = now + std::min(options_.deadline, kReleasePatience);
      if (stop_) until = std::min(until, stop_until_);
      // One call per session: leases of a former one are gone with it.
      const Attachment* const session = releases_.front().attachment.get();
      const std::size_t count_max = releases_.front().is_store ? 1 : kReleasesPerCallMax;
      while (!releases_.empty() && releases_.front().attachment.get() == session &&
             (batch.empty() || !releases_.front().is_store) && batch.size() < count_max) {
        batch.push_back(std::move(releases_.front()));
        releases_.pop_front();
      }
    }
    const bool sent = SendReleases(batch, until);
    // The daemon is slow, but the session lives, and with it the leases: try again in a while.
    const auto deadline = std::chrono::steady_clock::now() + kReleaseRetryInterval;
    MutexLock lock(mu_);
    if (sent) {
      releases_done_ += batch.size();
      changed_.NotifyAll();
      continue;
    }
    if (stop_) return;
    releases_.insert(releases_.begin(), std::make_move_iterator(batch.begin()),
                     std::make_move_iterator(batch.end()));
    while (!stop_ && changed_.WaitUntil(mu_, deadline)) {
    }
  }
}

bool ClientCore::SendReleases(const std::vector<PendingRelease>& releases, SteadyTime until) {
  const std::shared_ptr<Attachment>& attachment = releases.front().attachment;
  if (attachment != nullptr && attachment->ended()) return true;
  v1::ReleaseRequest request;
  for (const PendingRelease& release : releases) {
    request.add_lease_ids(release.lease_id);
    for (const auto& suspect : release.suspects) *request.add_suspects() = suspect;
  }
  v1::ReleaseResponse response;
  const absl::Status status =
      releases.front().is_store
          ? SendAbort(releases.front(), until)
          : control_->Release(Context(attachment.get(), Left(until)), request, &response);
  return !IsNotDelivered(status);
}

absl::StatusOr<v1::TurnCosts> ClientCore::SendTimings(const TurnTimings::Report& report,
                                                      SteadyTime until) {
  v1::ReportTimingsResponse response;
  const CallContext context = Context(report.attachment.get(), Left(until));
  absl::Status status = control_->ReportTimings(context, report.request, &response);
  if (!status.ok()) return status;
  return std::move(*response.mutable_costs());
}

absl::Status ClientCore::SendAbort(const PendingRelease& release, SteadyTime until) {
  v1::AbortStoreRequest request;
  request.set_lease_id(release.lease_id);
  v1::AbortStoreResponse response;
  return control_->AbortStore(Context(release.attachment.get(), Left(until)), request, &response);
}

}  // namespace kavern::client
