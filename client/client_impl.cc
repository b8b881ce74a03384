#include "client/client_impl.h"

#include <algorithm>
#include <cstddef>
#include <new>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "client/namespace_impl.h"

namespace kavern {

using client::Attachment;
using client::ClientCore;

namespace {

// A daemon answers a hello in microseconds. One that hangs is asked again, and must not hold up the
// end of the client, which waits for an attempt under way.
constexpr std::chrono::milliseconds kAttachPatience(1000);

}  // namespace

ClientImpl::ClientImpl(ClientOptions options, const client::Endpoint& endpoint,
                       std::unique_ptr<client::ControlPlane> control)
    : core_(std::make_shared<ClientCore>(std::move(options), std::move(control))),
      shared_memory_(endpoint.shared_memory),
      mapped_bytes_(std::make_shared<std::atomic<std::uint64_t>>(0)) {
  if (!shared_memory_) return;
  Attachment::Options attach;
  attach.socket_path = endpoint.attach_path;
  attach.tenant = core_->options().tenant;
  attach.client_name = core_->options().client_name;
  attach.deadline = std::min(core_->options().deadline, kAttachPatience);
  attach.mapped_bytes = mapped_bytes_;
  link_ = std::make_unique<client::SessionLink>(
      std::move(attach), [this](const std::shared_ptr<Attachment>& attachment) {
        return ReopenNamespaces(attachment);
      });
}

ClientImpl::~ClientImpl() {
  if (!core_->CheckProcess().ok()) {
    // A forked child has the object but none of its threads: there is nothing to join, and nothing
    // to free.
    [[maybe_unused]] auto* leaked = link_.release();
    // A share that is never given back.
    alignas(std::shared_ptr<ClientCore>) std::byte kept[sizeof(std::shared_ptr<ClientCore>)];
    new (kept) std::shared_ptr<ClientCore>(core_);
    return;
  }
  Close(std::chrono::milliseconds(0));
}

void ClientImpl::Close(std::chrono::milliseconds deadline) {
  if (!core_->CheckProcess().ok()) return;  // the parent's, and none of its threads are here
  if (closed_.exchange(true)) return;
  core_->Stop(core_->Until(deadline));
  link_.reset();
}

absl::Status ClientImpl::CheckUsable() const {
  KAVERN_RETURN_IF_ERROR(core_->CheckProcess());
  return closed_ ? absl::FailedPreconditionError("the client was closed") : absl::OkStatus();
}

absl::Status ClientImpl::WaitUntilAttached(std::chrono::milliseconds deadline) {
  KAVERN_RETURN_IF_ERROR(CheckUsable());
  if (shared_memory_) return link_->WaitUntilAttached(deadline);
  return Ping(std::max(deadline, std::chrono::milliseconds(1)));  // 0 would mean the default
}

absl::StatusOr<std::shared_ptr<Attachment>> ClientImpl::Attached() const {
  KAVERN_RETURN_IF_ERROR(CheckUsable());
  if (!shared_memory_) return std::shared_ptr<Attachment>();
  absl::StatusOr<std::shared_ptr<Attachment>> attachment = link_->Current();
  if (absl::IsUnavailable(attachment.status()) && link_->attach_count() == 0) {
    return absl::UnavailableError(absl::StrCat(
        "never attached to ", core_->options().address, " (", attachment.status().message(),
        "): WaitUntilAttached, in Python wait_until_attached, is to be called first"));
  }
  return attachment;
}

absl::Status ClientImpl::Judge(const std::shared_ptr<Attachment>& attachment,
                               const absl::Status& status) const {
  if (attachment == nullptr || !absl::IsUnauthenticated(status)) return status;
  link_->Reattach(attachment);
  return absl::UnavailableError(
      absl::StrCat("the daemon does not know this session: ", status.message()));
}

absl::Status ClientImpl::ReopenNamespaces(const std::shared_ptr<Attachment>& attachment) {
  std::vector<std::shared_ptr<NamespaceImpl>> open;
  {
    MutexLock lock(mu_);
    std::erase_if(namespaces_, [](const auto& ns) { return ns.expired(); });
    for (const auto& ns : namespaces_) {
      if (auto locked = ns.lock()) open.push_back(std::move(locked));
    }
  }
  for (const auto& ns : open) {
    // A namespace that the daemon will not have any more must not keep the others from being used.
    absl::Status status = ns->OpenOn(attachment, std::chrono::milliseconds(0));
    if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Namespace>> ClientImpl::OpenNamespace(
    const NamespaceSpec& spec, std::chrono::milliseconds deadline) {
  KAVERN_RETURN_IF_ERROR(spec.Validate());
  KAVERN_ASSIGN_OR_RETURN(const std::shared_ptr<Attachment> attachment, Attached());
  auto ns = std::make_shared<NamespaceImpl>(*this, spec);
  // Listed first: an attach that happens meanwhile opens it, too.
  {
    MutexLock lock(mu_);
    namespaces_.push_back(ns);
  }
  KAVERN_RETURN_IF_ERROR(Judge(attachment, ns->OpenOn(attachment, deadline)));
  return std::shared_ptr<Namespace>(std::move(ns));
}

absl::Status ClientImpl::Ping(std::chrono::milliseconds deadline) {
  KAVERN_ASSIGN_OR_RETURN(const std::shared_ptr<Attachment> attachment, Attached());
  return Judge(attachment, core_->control().Ping(core_->Context(attachment.get(), deadline)));
}

ConnectionInfo ClientImpl::connection() const {
  ConnectionInfo info;
  if (link_ == nullptr || !core_->CheckProcess().ok()) return info;
  info.attach_count = link_->attach_count();
  info.mapped_bytes = mapped_bytes_->load();
  if (const auto attachment = link_->Current(); attachment.ok()) {
    info.attached = true;
    info.tenant = (*attachment)->tenant();
    info.incarnation_hex = absl::BytesToHexString((*attachment)->incarnation());
  }
  return info;
}

}  // namespace kavern
