// The client's seam to the RPC library: messages in, statuses out. The real one speaks gRPC
// (grpc_control_plane.h); tests bind it to the daemon's handlers in the same process.
#ifndef KAVERN_CLIENT_CONTROL_PLANE_H_
#define KAVERN_CLIENT_CONTROL_PLANE_H_

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/clock.h"
#include "kavern/v1/admin.pb.h"
#include "kavern/v1/kavern.pb.h"

namespace kavern::client {

// What every call needs: who calls, and until when.
struct CallContext {
  std::string session_token;  // 16 raw bytes; empty on TCP
  SteadyTime deadline;
};

// Thread-safe. Every call ends by its deadline. Unavailable when there is no daemon: at once, not
// at the deadline.
class ControlPlane {
 public:
  virtual ~ControlPlane() = default;

  virtual absl::Status Ping(const CallContext& context) = 0;
  virtual absl::Status OpenNamespace(const CallContext& context,
                                     const v1::OpenNamespaceRequest& request,
                                     v1::OpenNamespaceResponse* response) = 0;
  virtual absl::Status Match(const CallContext& context, const v1::MatchRequest& request,
                             v1::MatchResponse* response) = 0;
  virtual absl::Status ReportTimings(const CallContext& context,
                                     const v1::ReportTimingsRequest& request,
                                     v1::ReportTimingsResponse* response) = 0;
  virtual absl::Status BeginStore(const CallContext& context, const v1::BeginStoreRequest& request,
                                  v1::BeginStoreResponse* response) = 0;
  virtual absl::Status CommitStore(const CallContext& context,
                                   const v1::CommitStoreRequest& request,
                                   v1::CommitStoreResponse* response) = 0;
  virtual absl::Status AbortStore(const CallContext& context, const v1::AbortStoreRequest& request,
                                  v1::AbortStoreResponse* response) = 0;
  // `on_message` is called for every message of the stream as it comes, on the calling thread,
  // before Fetch returns.
  virtual absl::Status Fetch(const CallContext& context, const v1::FetchRequest& request,
                             const std::function<void(const v1::FetchResponse&)>& on_message) = 0;
  // The same; `on_message` returns false to cancel the call, which is then Cancelled.
  virtual absl::Status Prefetch(
      const CallContext& context, const v1::PrefetchRequest& request,
      const std::function<bool(const v1::PrefetchResponse&)>& on_message) = 0;
  virtual absl::Status Release(const CallContext& context, const v1::ReleaseRequest& request,
                               v1::ReleaseResponse* response) = 0;

  virtual absl::Status UpdateConversation(const CallContext& context,
                                          const v1::UpdateConversationRequest& request,
                                          v1::UpdateConversationResponse* response) = 0;
  virtual absl::Status DescribeConversation(const CallContext& context,
                                            const v1::DescribeConversationRequest& request,
                                            v1::DescribeConversationResponse* response) = 0;

  // `next` fills one message of the stream at a time, and returns false after the last.
  virtual absl::Status PutBlocks(const CallContext& context,
                                 const std::function<bool(v1::PutBlocksRequest*)>& next,
                                 v1::PutBlocksResponse* response) = 0;
  virtual absl::Status GetBlocks(
      const CallContext& context, const v1::GetBlocksRequest& request,
      const std::function<void(const v1::GetBlocksResponse&)>& on_message) = 0;

  virtual absl::Status GetStatus(const CallContext& context, const v1::GetStatusRequest& request,
                                 v1::GetStatusResponse* response) = 0;
  virtual absl::Status ListNamespaces(const CallContext& context,
                                      const v1::ListNamespacesRequest& request,
                                      v1::ListNamespacesResponse* response) = 0;
  virtual absl::Status PurgeNamespace(const CallContext& context,
                                      const v1::PurgeNamespaceRequest& request,
                                      v1::PurgeNamespaceResponse* response) = 0;
  virtual absl::Status Quiesce(const CallContext& context, const v1::QuiesceRequest& request,
                               v1::QuiesceResponse* response) = 0;
  virtual absl::Status Demote(const CallContext& context, const v1::DemoteRequest& request,
                              v1::DemoteResponse* response) = 0;
};

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_CONTROL_PLANE_H_
