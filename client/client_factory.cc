// Client::Create: the public interface over gRPC.
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "client/client_impl.h"
#include "client/grpc_control_plane.h"
#include "client/wide_affinity.h"

namespace kavern {
namespace {

constexpr int kCopyThreadsMax = 64;

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Create(ClientOptions options) {
  if (options.copy_threads < 1 || options.copy_threads > kCopyThreadsMax) {
    return absl::InvalidArgumentError(absl::StrCat("copy_threads: got ", options.copy_threads,
                                                   ", expected 1 to ", kCopyThreadsMax));
  }
  if (options.deadline <= std::chrono::milliseconds(0)) {
    return absl::InvalidArgumentError("deadline: expected more than 0 ms");
  }
  KAVERN_ASSIGN_OR_RETURN(const client::Endpoint endpoint, client::ParseAddress(options.address));
  std::optional<client::WideAffinity> wide;
  if (options.any_processor) wide.emplace();
  KAVERN_ASSIGN_OR_RETURN(auto control, client::MakeGrpcControlPlane(endpoint.grpc_target));
  return std::make_unique<ClientImpl>(std::move(options), endpoint, std::move(control));
}

}  // namespace kavern
