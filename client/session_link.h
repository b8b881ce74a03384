// Keeps a client attached: attaches, notices the end, attaches anew.
#ifndef KAVERN_CLIENT_SESSION_LINK_H_
#define KAVERN_CLIENT_SESSION_LINK_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "client/attachment.h"

namespace kavern::client {

// Thread-safe. One thread of its own.
class SessionLink {
 public:
  // `on_attached` runs on the link's thread after each attach, before anybody else gets the
  // attachment: it re-opens what was open. An error ends the attachment again.
  using OnAttached = std::function<absl::Status(const std::shared_ptr<Attachment>&)>;

  SessionLink(Attachment::Options options, OnAttached on_attached);
  // Ends the present attachment and joins the thread.
  ~SessionLink();

  // The present attachment. Unavailable, at once, when there is none; says what the last attempt
  // met.
  absl::StatusOr<std::shared_ptr<Attachment>> Current() const;

  // Somebody found that the daemon does not know the session (any more): attach anew.
  void Reattach(const std::shared_ptr<Attachment>& stale);

  absl::Status WaitUntilAttached(std::chrono::milliseconds deadline) const;

  std::uint64_t attach_count() const { return attach_count_.load(); }

 private:
  void Run();
  // Waits before the next attempt, a little longer each time. False: stop.
  bool BackOff(std::uint32_t failures);

  const Attachment::Options options_;
  const OnAttached on_attached_;
  std::atomic<std::uint64_t> attach_count_ = 0;

  mutable Mutex mu_;
  mutable CondVar changed_;
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  std::shared_ptr<Attachment> current_ KAVERN_GUARDED_BY(mu_);
  absl::Status last_error_ KAVERN_GUARDED_BY(mu_) = absl::UnavailableError("no answer yet");
  std::thread thread_;
};

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_SESSION_LINK_H_
