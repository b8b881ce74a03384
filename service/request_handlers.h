// What each call does, on messages but without gRPC: checks every field, then asks the store.
//
// The gRPC services (service/grpc_server.h) authenticate and stream; sanitizer tests and fuzzers
// call the same handlers directly.
#ifndef KAVERN_SERVICE_REQUEST_HANDLERS_H_
#define KAVERN_SERVICE_REQUEST_HANDLERS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kavern/v1/admin.pb.h"
#include "kavern/v1/kavern.pb.h"
#include "service/byte_budget.h"
#include "service/degraded.h"
#include "service/proto_conversions.h"
#include "service/session/session.h"
#include "service/session/session_table.h"
#include "tiers/tiered_store.h"

namespace kavern::service {

struct RequestLimits {
  std::uint64_t keys_per_request_max = 4096;
  // Payload bytes of Put and Get streams in flight in the daemon, all sessions.
  std::uint64_t inflight_bytes_max = 256ULL << 20;
};

// Thread-safe. `session` is live when the call begins; it may be fenced while the call runs.
class RequestHandlers {
 public:
  // What is not the store's to know: version, start time, what is degraded.
  struct Node {
    std::string version;
    std::string incarnation;  // 16 bytes
    SteadyTime started;
    std::function<bool()> ready;
    std::function<std::vector<Degradation>()> degraded;
  };

  RequestHandlers(tiers::TieredStore& store, SessionTable& sessions, RequestLimits limits,
                  Node node);

  // From now on BeginStore, Fetch, PutBlocks and GetBlocks answer Unavailable; what is held can be
  // committed and released.
  void Drain() { draining_ = true; }

  // That the session is alive is all that a caller learns.
  absl::Status Ping(Session& session, const v1::PingRequest& request, v1::PingResponse* response);
  // PermissionDenied for an operator's session without a tenant.
  absl::Status OpenNamespace(Session& session, const v1::OpenNamespaceRequest& request,
                             v1::OpenNamespaceResponse* response);
  absl::Status Match(Session& session, const v1::MatchRequest& request,
                     v1::MatchResponse* response);
  // On any session, one that cannot map memory too.
  absl::Status ReportTimings(Session& session, const v1::ReportTimingsRequest& request,
                             v1::ReportTimingsResponse* response);
  // BeginStore and Fetch: FailedPrecondition for a session that cannot map memory.
  absl::Status BeginStore(Session& session, const v1::BeginStoreRequest& request,
                          v1::BeginStoreResponse* response);
  // `done` is called once: in this call or, for a strict lease, once its blocks are durable, in a
  // thread of the store. Response and session must live until then.
  using Done = std::function<void(absl::Status)>;
  void BeginCommit(Session& session, const v1::CommitStoreRequest& request,
                   v1::CommitStoreResponse* response, Done done);
  // The same, waiting for it.
  absl::Status CommitStore(Session& session, const v1::CommitStoreRequest& request,
                           v1::CommitStoreResponse* response);
  absl::Status AbortStore(Session& session, const v1::AbortStoreRequest& request,
                          v1::AbortStoreResponse* response);
  // An answer that comes in pieces. Dropping it changes nothing.
  class Stream {
   public:
    virtual ~Stream() = default;
    // Nobody wants the rest: nothing more is read for it. What a fetch has leased is released,
    // unless the client was `told` of it and has named the lease, and so releases it itself. A
    // message that is being delivered may still come. Idempotent.
    virtual void Cancel(bool told) = 0;
  };
  // Called with one message at a time and in order, within the call that begins the stream or later
  // in threads of the store; must not wait. An error is the end of the call, as is `last`.
  using FetchDeliver = std::function<void(absl::StatusOr<v1::FetchResponse> message, bool last)>;
  using PrefetchDeliver = std::function<void(v1::PrefetchResponse message, bool last)>;

  // Everything that is in RAM comes within this call. All extents are under one lease of the
  // session, which is named from the first message on, and counts for what may still come. Blocks
  // that are not in RAM shortly before `deadline` are answered kDeadlineExceeded.
  absl::StatusOr<std::shared_ptr<Stream>> BeginFetch(const std::shared_ptr<Session>& session,
                                                     const v1::FetchRequest& request,
                                                     SteadyTime deadline, FetchDeliver deliver);
  // All messages in one, waiting for the last.
  absl::Status Fetch(const std::shared_ptr<Session>& session, const v1::FetchRequest& request,
                     v1::FetchResponse* response);
  // Unimplemented: any target but RAM.
  absl::StatusOr<std::shared_ptr<Stream>> BeginPrefetch(const std::shared_ptr<Session>& session,
                                                        const v1::PrefetchRequest& request,
                                                        PrefetchDeliver deliver);
  // Checks the request as a whole first, then ends the leases, then looks at the suspects: each
  // once, the first always, and no more than inflight_bytes_max of them (a call must end, however
  // much it names).
  absl::Status Release(Session& session, const v1::ReleaseRequest& request,
                       v1::ReleaseResponse* response);

  // On any session, one that cannot map memory too.
  absl::Status UpdateConversation(Session& session, const v1::UpdateConversationRequest& request,
                                  v1::UpdateConversationResponse* response);
  absl::Status DescribeConversation(Session& session,
                                    const v1::DescribeConversationRequest& request,
                                    v1::DescribeConversationResponse* response);

  // One PutBlocks stream: created by its header, fed with data, finished. Destroying it unfinished
  // aborts. Not thread-safe; must not outlive the handlers.
  class Put {
   public:
    virtual ~Put() = default;
    // InvalidArgument when there is more data than the keys need, or more than 1 MiB at once.
    virtual absl::Status Append(std::string_view data) = 0;
    // Checks every checksum (DataLoss names the first key that fails; nothing of the stream is
    // stored then). InvalidArgument when there was less data than the keys need.
    virtual absl::Status Finish(v1::PutBlocksResponse* response) = 0;
  };
  // ResourceExhausted: the payload does not fit into inflight_bytes_max beside the other streams'.
  absl::StatusOr<std::unique_ptr<Put>> BeginPut(std::shared_ptr<Session> session,
                                                const v1::PutBlocksRequest::Header& header);

  // One GetBlocks stream: Next() fills one message at a time until it returns false. Not
  // thread-safe; must not outlive the handlers. It holds one part at a time, in memory of its own,
  // and no lease while its reader is slow; so a block can be evicted before its turn comes, and is
  // then NOT_FOUND.
  class Get {
   public:
    virtual ~Get() = default;
    // Every block is verified before its first piece is handed out; a damaged one is dropped and
    // answered DATA_LOSS.
    virtual bool Next(v1::GetBlocksResponse* response) = 0;
  };
  absl::StatusOr<std::unique_ptr<Get>> BeginGet(const std::shared_ptr<Session>& session,
                                                const v1::GetBlocksRequest& request);

  // Operators see the node; everybody else sees what follows from their own tenant's namespaces and
  // sessions, and zeros where nothing does (P8).
  absl::Status GetStatus(Session& session, const v1::GetStatusRequest& request,
                         v1::GetStatusResponse* response);
  absl::Status ListNamespaces(Session& session, const v1::ListNamespacesRequest& request,
                              v1::ListNamespacesResponse* response);
  // NotFound for a namespace of another tenant too, unless the session is an operator's.
  absl::Status PurgeNamespace(Session& session, const v1::PurgeNamespaceRequest& request,
                              v1::PurgeNamespaceResponse* response);
  // Operators only.
  absl::Status Quiesce(Session& session, const v1::QuiesceRequest& request,
                       v1::QuiesceResponse* response);
  absl::Status Demote(Session& session, const v1::DemoteRequest& request,
                      v1::DemoteResponse* response);

  // Payload bytes of streams in flight at present.
  std::uint64_t inflight_bytes() const { return inflight_.used(); }

 private:
  absl::Status CheckNotDraining() const;
  static absl::Status CheckSharesMemory(const Session& session);
  void FillNodeStatus(v1::GetStatusResponse* response) const;
  void FillTenantStatus(const std::string& tenant, v1::GetStatusResponse* response) const;

  tiers::TieredStore& store_;
  SessionTable& sessions_;
  const RequestLimits limits_;
  const Node node_;
  ByteBudget inflight_;
  std::atomic<bool> draining_ = false;
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_REQUEST_HANDLERS_H_
