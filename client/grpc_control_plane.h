// The control plane over gRPC: the only code of the client that knows it.
#ifndef KAVERN_CLIENT_GRPC_CONTROL_PLANE_H_
#define KAVERN_CLIENT_GRPC_CONTROL_PLANE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/control_plane.h"

namespace kavern::client {

// `target` in gRPC's form: "unix:/path" or "host:port". Connects when first used.
// FailedPrecondition in a child forked from a process that made one: gRPC's threads, which see to
// deadlines among other things, did not come along, so that calls could hang for ever.
absl::StatusOr<std::unique_ptr<ControlPlane>> MakeGrpcControlPlane(const std::string& target);

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_GRPC_CONTROL_PLANE_H_
