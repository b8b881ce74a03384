#include "client/grpc_control_plane.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <chrono>

#include "kavern/v1/admin.grpc.pb.h"
#include "kavern/v1/kavern.grpc.pb.h"

namespace kavern::client {
namespace {

constexpr char kSessionMetadata[] = "kavern-session-bin";
// After a restart of the daemon the next call should find it, not the end of a long backoff.
constexpr int kReconnectMinMs = 50;
constexpr int kReconnectMaxMs = 1000;
constexpr int kMessageBytesMax = 64 << 20;

absl::Status FromGrpc(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

void Prepare(const CallContext& call, grpc::ClientContext* context) {
  const auto left = call.deadline - std::chrono::steady_clock::now();
  context->set_deadline(std::chrono::system_clock::now() +
                        std::chrono::duration_cast<std::chrono::system_clock::duration>(left));
  if (!call.session_token.empty()) context->AddMetadata(kSessionMetadata, call.session_token);
}

class GrpcControlPlane final : public ControlPlane {
 public:
  explicit GrpcControlPlane(const std::shared_ptr<grpc::Channel>& channel)
      : kavern_(v1::Kavern::NewStub(channel)), admin_(v1::Admin::NewStub(channel)) {}

#define KAVERN_CALL(stub, Method)                                                  \
  absl::Status Method(const CallContext& call, const v1::Method##Request& request, \
                      v1::Method##Response* response) override {                   \
    grpc::ClientContext context;                                                   \
    Prepare(call, &context);                                                       \
    return FromGrpc((stub)->Method(&context, request, response));                  \
  }
  KAVERN_CALL(kavern_, OpenNamespace)
  KAVERN_CALL(kavern_, Match)
  KAVERN_CALL(kavern_, ReportTimings)
  KAVERN_CALL(kavern_, BeginStore)
  KAVERN_CALL(kavern_, CommitStore)
  KAVERN_CALL(kavern_, AbortStore)
  KAVERN_CALL(kavern_, Release)
  KAVERN_CALL(kavern_, UpdateConversation)
  KAVERN_CALL(kavern_, DescribeConversation)
  KAVERN_CALL(admin_, GetStatus)
  KAVERN_CALL(admin_, ListNamespaces)
  KAVERN_CALL(admin_, PurgeNamespace)
  KAVERN_CALL(admin_, Quiesce)
  KAVERN_CALL(admin_, Demote)
#undef KAVERN_CALL

  absl::Status Ping(const CallContext& call) override {
    grpc::ClientContext context;
    Prepare(call, &context);
    v1::PingResponse response;
    return FromGrpc(kavern_->Ping(&context, v1::PingRequest(), &response));
  }

  absl::Status Fetch(const CallContext& call, const v1::FetchRequest& request,
                     const std::function<void(const v1::FetchResponse&)>& on_message) override {
    grpc::ClientContext context;
    Prepare(call, &context);
    const auto stream = kavern_->Fetch(&context, request);
    v1::FetchResponse response;
    while (stream->Read(&response)) on_message(response);
    return FromGrpc(stream->Finish());
  }

  absl::Status Prefetch(
      const CallContext& call, const v1::PrefetchRequest& request,
      const std::function<bool(const v1::PrefetchResponse&)>& on_message) override {
    grpc::ClientContext context;
    Prepare(call, &context);
    const auto stream = kavern_->Prefetch(&context, request);
    v1::PrefetchResponse response;
    while (stream->Read(&response)) {
      if (!on_message(response)) context.TryCancel();
    }
    return FromGrpc(stream->Finish());
  }

  absl::Status PutBlocks(const CallContext& call,
                         const std::function<bool(v1::PutBlocksRequest*)>& next,
                         v1::PutBlocksResponse* response) override {
    grpc::ClientContext context;
    Prepare(call, &context);
    const auto stream = kavern_->PutBlocks(&context, response);
    v1::PutBlocksRequest request;
    while (next(&request)) {
      // False: the daemon has answered already; Finish says what.
      if (!stream->Write(request)) break;
      request.Clear();
    }
    stream->WritesDone();
    return FromGrpc(stream->Finish());
  }

  absl::Status GetBlocks(
      const CallContext& call, const v1::GetBlocksRequest& request,
      const std::function<void(const v1::GetBlocksResponse&)>& on_message) override {
    grpc::ClientContext context;
    Prepare(call, &context);
    const auto stream = kavern_->GetBlocks(&context, request);
    v1::GetBlocksResponse response;
    while (stream->Read(&response)) on_message(response);
    return FromGrpc(stream->Finish());
  }

 private:
  const std::unique_ptr<v1::Kavern::Stub> kavern_;
  const std::unique_ptr<v1::Admin::Stub> admin_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ControlPlane>> MakeGrpcControlPlane(const std::string& target) {
  static std::atomic<pid_t> grpc_process = 0;  // that gRPC began in
  pid_t first = 0;
  if (!grpc_process.compare_exchange_strong(first, getpid()) && first != getpid()) {
    return absl::FailedPreconditionError(
        "this process was forked from one that had a client, and gRPC does not survive that: spawn "
        "it, or fork it before the first client is made");
  }
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMinMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kReconnectMinMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMaxMs);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(kMessageBytesMax);
  return std::make_unique<GrpcControlPlane>(
      grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments));
}

}  // namespace kavern::client
