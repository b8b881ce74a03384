#include "service/session/attach_server.h"

#include <utility>

#include "base/status_macros.h"
#include "service/session/attach_loop.h"

namespace kavern::service {

absl::StatusOr<std::unique_ptr<AttachServer>> AttachServer::Create(AttachServerOptions options,
                                                                   const TenantMap& tenants,
                                                                   SessionTable& sessions) {
  KAVERN_ASSIGN_OR_RETURN(auto loop, AttachLoop::Create(std::move(options), tenants, sessions));
  return std::unique_ptr<AttachServer>(new AttachServer(std::move(loop)));
}

AttachServer::AttachServer(std::unique_ptr<AttachLoop> loop) : loop_(std::move(loop)) {}
AttachServer::~AttachServer() = default;

void AttachServer::Start() {
  loop_->Start();
}
void AttachServer::Drain() {
  loop_->Drain();
}
void AttachServer::Stop() {
  loop_->Stop();
}

const std::array<std::uint8_t, 16>& AttachServer::incarnation() const {
  return loop_->incarnation();
}

void AttachServer::OnRegionRetired(std::uint64_t region_id) {
  loop_->AddNews([&](StoreNews& news) { news.RegionRetired(region_id); });
}

void AttachServer::OnDirectory(const NamespaceFingerprint& fingerprint, std::uint64_t generation,
                               std::uint64_t size_bytes, UniqueFd fd) {
  loop_->AddNews(
      [&](StoreNews& news) { news.Directory(fingerprint, generation, size_bytes, std::move(fd)); });
}

void AttachServer::OnDirectoryGone(const NamespaceFingerprint& fingerprint,
                                   std::uint64_t generation) {
  loop_->AddNews([&](StoreNews& news) { news.DirectoryGone(fingerprint, generation); });
}

AttachServer::Counters AttachServer::GetCounters() const {
  return loop_->GetCounters();
}

}  // namespace kavern::service
