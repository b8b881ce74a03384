#include "client/admin_client.h"

#include <atomic>
#include <utility>

#include "base/status_macros.h"
#include "client/client_impl.h"
#include "client/grpc_control_plane.h"
#include "client/wire_convert.h"

namespace kavern::client {
namespace {

class AdminClientImpl final : public AdminClient {
 public:
  AdminClientImpl(std::shared_ptr<Attachment> attachment, std::unique_ptr<ControlPlane> control,
                  std::chrono::milliseconds deadline)
      : attachment_(std::move(attachment)), control_(std::move(control)), deadline_(deadline) {}

  absl::StatusOr<v1::GetStatusResponse> GetStatus() override {
    v1::GetStatusResponse response;
    KAVERN_RETURN_IF_ERROR(control_->GetStatus(Context(), v1::GetStatusRequest(), &response));
    return response;
  }

  absl::StatusOr<v1::ListNamespacesResponse> ListNamespaces() override {
    v1::ListNamespacesResponse response;
    KAVERN_RETURN_IF_ERROR(
        control_->ListNamespaces(Context(), v1::ListNamespacesRequest(), &response));
    return response;
  }

  absl::StatusOr<v1::PurgeNamespaceResponse> PurgeNamespace(
      const NamespaceFingerprint& fingerprint) override {
    v1::PurgeNamespaceRequest request;
    request.set_fingerprint(PackFingerprint(fingerprint));
    v1::PurgeNamespaceResponse response;
    KAVERN_RETURN_IF_ERROR(control_->PurgeNamespace(Context(), request, &response));
    return response;
  }

  absl::Status Quiesce() override {
    v1::QuiesceResponse response;
    return control_->Quiesce(Context(), v1::QuiesceRequest(), &response);
  }

  absl::StatusOr<std::uint64_t> Demote() override {
    v1::DemoteResponse response;
    KAVERN_RETURN_IF_ERROR(control_->Demote(Context(), v1::DemoteRequest(), &response));
    return response.blocks();
  }

 private:
  CallContext Context() const {
    CallContext context;
    if (attachment_ != nullptr) context.session_token = attachment_->session_token();
    context.deadline = std::chrono::steady_clock::now() + deadline_;
    return context;
  }

  const std::shared_ptr<Attachment> attachment_;
  const std::unique_ptr<ControlPlane> control_;
  const std::chrono::milliseconds deadline_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AdminClient>> AdminClient::Connect(
    const std::string& address, const std::string& tenant, std::chrono::milliseconds deadline) {
  KAVERN_ASSIGN_OR_RETURN(const Endpoint endpoint, ParseAddress(address));
  KAVERN_ASSIGN_OR_RETURN(auto control, MakeGrpcControlPlane(endpoint.grpc_target));
  std::shared_ptr<Attachment> attachment;
  if (endpoint.shared_memory) {
    Attachment::Options options;
    options.socket_path = endpoint.attach_path;
    options.tenant = tenant;
    options.client_name = "kavern admin";
    options.deadline = deadline;
    options.mapped_bytes = std::make_shared<std::atomic<std::uint64_t>>(0);
    KAVERN_ASSIGN_OR_RETURN(attachment, Attachment::Connect(options));
  }
  return std::make_unique<AdminClientImpl>(std::move(attachment), std::move(control), deadline);
}

}  // namespace kavern::client
