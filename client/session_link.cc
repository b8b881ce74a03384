#include "client/session_link.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/named_thread.h"

namespace kavern::client {
namespace {

constexpr std::chrono::milliseconds kBackOffMin(20);
constexpr std::chrono::milliseconds kBackOffMax(1000);

// What a caller does about a daemon that cannot be attached to is always the same: go on without
// the cache. But a refusal is worth telling apart from absence.
absl::Status AsCallStatus(const absl::Status& status) {
  if (absl::IsPermissionDenied(status) || absl::IsInvalidArgument(status) ||
      absl::IsResourceExhausted(status)) {
    return status;
  }
  return absl::UnavailableError(absl::StrCat("no daemon: ", status.message()));
}

}  // namespace

SessionLink::SessionLink(Attachment::Options options, OnAttached on_attached)
    : options_(std::move(options)), on_attached_(std::move(on_attached)) {
  thread_ = NamedThread("kavern-session", [this] { Run(); });
}

SessionLink::~SessionLink() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    if (current_ != nullptr) current_->Close();
    changed_.NotifyAll();
  }
  thread_.join();
}

void SessionLink::Run() {
  std::uint32_t failures = 0;
  for (;;) {
    auto attached = Attachment::Connect(options_);
    absl::Status status = attached.status();
    if (attached.ok()) status = on_attached_(*attached);
    if (!status.ok()) {
      {
        MutexLock lock(mu_);
        last_error_ = AsCallStatus(status);
        changed_.NotifyAll();
      }
      if (!BackOff(failures++)) return;
      continue;
    }
    failures = 0;
    attach_count_.fetch_add(1);
    {
      MutexLock lock(mu_);
      if (stop_) return;
      current_ = *attached;
      changed_.NotifyAll();
    }
    (*attached)->WaitUntilEnded();
    MutexLock lock(mu_);
    current_.reset();
    last_error_ = absl::UnavailableError("no daemon: it closed the connection");
    if (stop_) return;
  }
}

bool SessionLink::BackOff(std::uint32_t failures) {
  static thread_local std::minstd_rand random(std::random_device{}());
  const auto longest = std::min(kBackOffMax, kBackOffMin * (1 << std::min(failures, 10u)));
  // Between half and all of it: workers of one node do not come back in step.
  const auto wait = longest / 2 + std::chrono::milliseconds(random() % (longest.count() / 2 + 1));
  const auto deadline = std::chrono::steady_clock::now() + wait;
  MutexLock lock(mu_);
  while (!stop_ && changed_.WaitUntil(mu_, deadline)) {
  }
  return !stop_;
}

absl::StatusOr<std::shared_ptr<Attachment>> SessionLink::Current() const {
  MutexLock lock(mu_);
  // A status of the caller's own: one that threads share is counted in Abseil's code, where
  // ThreadSanitizer does not look.
  if (current_ == nullptr) return absl::Status(last_error_.code(), last_error_.message());
  return current_;
}

void SessionLink::Reattach(const std::shared_ptr<Attachment>& stale) {
  stale->Close();
}

absl::Status SessionLink::WaitUntilAttached(std::chrono::milliseconds deadline) const {
  const auto until = std::chrono::steady_clock::now() + deadline;
  MutexLock lock(mu_);
  while (current_ == nullptr) {
    if (!changed_.WaitUntil(mu_, until)) {
      const auto code = absl::IsUnavailable(last_error_) ? absl::StatusCode::kDeadlineExceeded
                                                         : last_error_.code();
      return {code, absl::StrCat("not attached in time: ", last_error_.message())};
    }
  }
  return absl::OkStatus();
}

}  // namespace kavern::client
