// The control plane over gRPC: the only code of the client that knows it.
#ifndef KAVERN_CLIENT_GRPC_CONTROL_PLANE_H_
#define KAVERN_CLIENT_GRPC_CONTROL_PLANE_H_

#include <memory>
#include <string>

#include "client/control_plane.h"

namespace kavern::client {

// `target` in gRPC's form: "unix:/path" or "host:port". Connects when first used.
std::unique_ptr<ControlPlane> MakeGrpcControlPlane(const std::string& target);

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_GRPC_CONTROL_PLANE_H_
