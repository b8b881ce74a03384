#include "service/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <sys/socket.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kavern/v1/admin.grpc.pb.h"
#include "kavern/v1/kavern.grpc.pb.h"
#include "service/socket_file.h"

namespace kavern::service {
namespace {

constexpr char kSessionMetadata[] = "kavern-session-bin";

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

absl::Status TooManyCalls() {
  return absl::ResourceExhaustedError("limits.concurrent_calls_max: too many calls in progress");
}

// Who calls: by the session token in the metadata, or the one session of the listener.
class Authenticator {
 public:
  Authenticator(SessionTable& sessions, std::shared_ptr<Session> fixed)
      : sessions_(sessions), fixed_(std::move(fixed)) {}

  absl::StatusOr<std::shared_ptr<Session>> Authenticate(
      const grpc::CallbackServerContext& context) const {
    if (fixed_ != nullptr) return fixed_;
    const auto& metadata = context.client_metadata();
    const auto it = metadata.find(kSessionMetadata);
    if (it == metadata.end()) {
      return absl::UnauthenticatedError(
          absl::StrCat("metadata ", kSessionMetadata, ": missing; attach first"));
    }
    return sessions_.Authenticate(std::string_view(it->second.data(), it->second.size()));
  }

 private:
  SessionTable& sessions_;
  const std::shared_ptr<Session> fixed_;
};

// What both services need for a call.
struct Backend {
  RequestHandlers& handlers;
  CallMetrics& metrics;
  Authenticator authenticator;
};

template <typename Request, typename Response>
using Handler = absl::Status (RequestHandlers::*)(Session&, const Request&, Response*);

// One unary call, start to end, on the thread that delivers it: handlers do not wait for other
// clients.
template <typename Request, typename Response>
grpc::ServerUnaryReactor* Unary(Backend& backend, const char* method,
                                grpc::CallbackServerContext* context, const Request* request,
                                Response* response, Handler<Request, Response> handler) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status;
  {
    CallMetrics::Call call(backend.metrics, method);
    if (!call.admitted()) {
      status = TooManyCalls();
    } else if (auto session = backend.authenticator.Authenticate(*context); !session.ok()) {
      status = session.status();
    } else {
      status = (backend.handlers.*handler)(**session, *request, response);
    }
    call.Finish(status.code());
  }
  reactor->Finish(ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* Unimplemented(grpc::CallbackServerContext* context, const char* feature) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish({grpc::StatusCode::UNIMPLEMENTED,
                   absl::StrCat(feature, " is not implemented by this version")});
  return reactor;
}

// A stream that ends at once with `status`.
template <typename Response>
class FailedStream final : public grpc::ServerWriteReactor<Response> {
 public:
  explicit FailedStream(const absl::Status& status) { this->Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

// Fetch: with all blocks in RAM, the whole answer is one message.
class FetchStream final : public grpc::ServerWriteReactor<v1::FetchResponse> {
 public:
  FetchStream(Backend& backend, const grpc::CallbackServerContext& context,
              const v1::FetchRequest& request)
      : call_(backend.metrics, "Fetch") {
    absl::Status status;
    if (!call_.admitted()) {
      status = TooManyCalls();
    } else if (auto session = backend.authenticator.Authenticate(context); !session.ok()) {
      status = session.status();
    } else {
      status = backend.handlers.Fetch(**session, request, &response_);
    }
    call_.Finish(status.code());
    if (status.ok()) {
      StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
    } else {
      Finish(ToGrpc(status));
    }
  }
  void OnDone() override { delete this; }

 private:
  CallMetrics::Call call_;
  v1::FetchResponse response_;
};

class GetStream final : public grpc::ServerWriteReactor<v1::GetBlocksResponse> {
 public:
  GetStream(Backend& backend, const grpc::CallbackServerContext& context,
            const v1::GetBlocksRequest& request)
      : call_(backend.metrics, "GetBlocks") {
    absl::Status status;
    if (!call_.admitted()) {
      status = TooManyCalls();
    } else if (auto session = backend.authenticator.Authenticate(context); !session.ok()) {
      status = session.status();
    } else if (auto get = backend.handlers.BeginGet(*std::move(session), request); !get.ok()) {
      status = get.status();
    } else {
      get_ = *std::move(get);
    }
    if (status.ok()) {
      WriteNext();
    } else {
      End(status);
    }
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      WriteNext();
    } else {
      End(absl::CancelledError("the client went away"));
    }
  }
  void OnDone() override { delete this; }

 private:
  void WriteNext() {
    response_.Clear();
    if (get_->Next(&response_)) {
      StartWrite(&response_);
    } else {
      End(absl::OkStatus());
    }
  }

  void End(const absl::Status& status) {
    get_.reset();
    call_.Finish(status.code());
    Finish(ToGrpc(status));
  }

  CallMetrics::Call call_;
  std::unique_ptr<RequestHandlers::Get> get_;
  v1::GetBlocksResponse response_;
};

class PutStream final : public grpc::ServerReadReactor<v1::PutBlocksRequest> {
 public:
  PutStream(Backend& backend, const grpc::CallbackServerContext& context,
            v1::PutBlocksResponse* response)
      : backend_(backend), call_(backend.metrics, "PutBlocks"), response_(response) {
    auto session = backend.authenticator.Authenticate(context);
    if (!call_.admitted()) {
      End(TooManyCalls());
    } else if (!session.ok()) {
      End(session.status());
    } else {
      session_ = *std::move(session);
      StartRead(&request_);
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      End(put_ == nullptr ? absl::InvalidArgumentError("header: expected in the first message")
                          : put_->Finish(response_));
      return;
    }
    if (absl::Status status = Consume(); !status.ok()) {
      End(status);
    } else {
      StartRead(&request_);
    }
  }

  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { delete this; }

 private:
  absl::Status Consume() {
    if (put_ == nullptr) {
      if (!request_.has_header()) {
        return absl::InvalidArgumentError("header: expected in the first message");
      }
      KAVERN_ASSIGN_OR_RETURN(put_, backend_.handlers.BeginPut(session_, request_.header()));
    } else if (request_.has_header()) {
      return absl::InvalidArgumentError("header: expected in the first message only");
    }
    return request_.data().empty() ? absl::OkStatus() : put_->Append(request_.data());
  }

  void End(absl::Status status) {
    if (cancelled_) status = absl::CancelledError("the client went away");
    put_.reset();
    call_.Finish(status.code());
    Finish(ToGrpc(status));
  }

  Backend& backend_;
  CallMetrics::Call call_;
  v1::PutBlocksResponse* const response_;
  std::shared_ptr<Session> session_;
  std::unique_ptr<RequestHandlers::Put> put_;
  v1::PutBlocksRequest request_;
  std::atomic<bool> cancelled_ = false;
};

#define KAVERN_UNARY(Method)                                                               \
  grpc::ServerUnaryReactor* Method(grpc::CallbackServerContext* context,                   \
                                   const v1::Method##Request* request,                     \
                                   v1::Method##Response* response) override {              \
    return Unary(backend_, #Method, context, request, response, &RequestHandlers::Method); \
  }
#define KAVERN_UNIMPLEMENTED(Method, feature)                                     \
  grpc::ServerUnaryReactor* Method(grpc::CallbackServerContext* context,          \
                                   const v1::Method##Request* /*request*/,        \
                                   v1::Method##Response* /*response*/) override { \
    return Unimplemented(context, feature);                                       \
  }

class KavernService final : public v1::Kavern::CallbackService {
 public:
  explicit KavernService(Backend& backend) : backend_(backend) {}

  KAVERN_UNARY(Ping)
  KAVERN_UNARY(OpenNamespace)
  KAVERN_UNARY(Match)
  KAVERN_UNARY(BeginStore)
  KAVERN_UNARY(CommitStore)
  KAVERN_UNARY(AbortStore)
  KAVERN_UNARY(Release)
  KAVERN_UNIMPLEMENTED(PlanTurn, "PlanTurn: the recompute-versus-store cost model")
  KAVERN_UNIMPLEMENTED(ReportPrefill, "ReportPrefill: the recompute-versus-store cost model")
  KAVERN_UNIMPLEMENTED(UpdateConversation, "UpdateConversation: conversations")
  KAVERN_UNIMPLEMENTED(DescribeConversation, "DescribeConversation: conversations")
  KAVERN_UNIMPLEMENTED(ForkConversation, "ForkConversation: conversations")
  KAVERN_UNIMPLEMENTED(TruncateConversation, "TruncateConversation: conversations")
  KAVERN_UNIMPLEMENTED(DeleteConversation, "DeleteConversation: conversations")

  grpc::ServerWriteReactor<v1::FetchResponse>* Fetch(grpc::CallbackServerContext* context,
                                                     const v1::FetchRequest* request) override {
    return new FetchStream(backend_, *context, *request);
  }
  grpc::ServerWriteReactor<v1::PrefetchResponse>* Prefetch(
      grpc::CallbackServerContext* /*context*/, const v1::PrefetchRequest* /*request*/) override {
    return new FailedStream<v1::PrefetchResponse>(
        absl::UnimplementedError("Prefetch: the nvme tier is not implemented by this version"));
  }
  grpc::ServerReadReactor<v1::PutBlocksRequest>* PutBlocks(
      grpc::CallbackServerContext* context, v1::PutBlocksResponse* response) override {
    return new PutStream(backend_, *context, response);
  }
  grpc::ServerWriteReactor<v1::GetBlocksResponse>* GetBlocks(
      grpc::CallbackServerContext* context, const v1::GetBlocksRequest* request) override {
    return new GetStream(backend_, *context, *request);
  }

 private:
  Backend& backend_;
};

class AdminService final : public v1::Admin::CallbackService {
 public:
  explicit AdminService(Backend& backend) : backend_(backend) {}

  KAVERN_UNARY(GetStatus)
  KAVERN_UNARY(ListNamespaces)
  KAVERN_UNARY(PurgeNamespace)
  KAVERN_UNARY(Quiesce)
  KAVERN_UNIMPLEMENTED(Explain, "Explain: reasons of hits and misses")

 private:
  Backend& backend_;
};

// One listener: its services, who its callers are, and gRPC's server over them.
class Listener {
 public:
  Listener(RequestHandlers& handlers, CallMetrics& metrics, SessionTable& sessions,
           std::shared_ptr<Session> fixed)
      : backend_{handlers, metrics, Authenticator(sessions, std::move(fixed))},
        kavern_(backend_),
        admin_(backend_) {}

  // False when the address cannot be bound.
  bool Listen(const std::string& address, const GrpcServerOptions& options) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port_);
    builder.SetMaxReceiveMessageSize(static_cast<int>(options.message_bytes_max));
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.RegisterService(&kavern_);
    builder.RegisterService(&admin_);
    server_ = builder.BuildAndStart();
    return server_ != nullptr;
  }

  grpc::Server& server() { return *server_; }
  int port() const { return port_; }

 private:
  Backend backend_;
  KavernService kavern_;
  AdminService admin_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

class GrpcServerImpl final : public GrpcServer {
 public:
  GrpcServerImpl(RequestHandlers& handlers, CallMetrics& metrics, SessionTable& sessions)
      : handlers_(handlers), metrics_(metrics), sessions_(sessions) {}

  ~GrpcServerImpl() override { Shutdown(std::chrono::milliseconds(0)); }

  absl::Status Start(const GrpcServerOptions& options) {
    static const bool plugins = [] {
      grpc::EnableDefaultHealthCheckService(true);
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
      return true;
    }();
    (void)plugins;
    KAVERN_RETURN_IF_ERROR(RemoveStaleSocket(options.socket_path, SOCK_STREAM));
    auto unix_listener = std::make_unique<Listener>(handlers_, metrics_, sessions_, nullptr);
    {
      // The socket must never be reachable with wider rights than configured, not for an instant.
      const UmaskGuard nobody_else(0177);
      if (!unix_listener->Listen("unix:" + options.socket_path, options)) {
        return absl::UnavailableError(
            absl::StrCat("listen.socket: gRPC cannot listen on ", options.socket_path));
      }
    }
    listeners_.push_back(std::move(unix_listener));
    KAVERN_RETURN_IF_ERROR(
        SetSocketAccess(options.socket_path, options.socket_mode, options.socket_group));
    if (options.tcp_address.empty()) return absl::OkStatus();
    auto tcp_listener =
        std::make_unique<Listener>(handlers_, metrics_, sessions_, options.tcp_session);
    if (!tcp_listener->Listen(options.tcp_address, options)) {
      return absl::UnavailableError(
          absl::StrCat("listen.tcp.address: gRPC cannot listen on ", options.tcp_address));
    }
    tcp_port_ = tcp_listener->port();
    listeners_.push_back(std::move(tcp_listener));
    return absl::OkStatus();
  }

  void SetServing(bool serving) override {
    for (const auto& listener : listeners_) {
      if (auto* health = listener->server().GetHealthCheckService()) {
        health->SetServingStatus(serving);
        health->SetServingStatus("kavern.v1.Kavern", serving);
        health->SetServingStatus("kavern.v1.Admin", serving);
      }
    }
  }

  int tcp_port() const override { return tcp_port_; }

  void Shutdown(std::chrono::milliseconds timeout) override {
    const auto deadline = std::chrono::system_clock::now() + timeout;
    for (const auto& listener : listeners_) listener->server().Shutdown(deadline);
    listeners_.clear();
  }

 private:
  RequestHandlers& handlers_;
  CallMetrics& metrics_;
  SessionTable& sessions_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  int tcp_port_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Create(const GrpcServerOptions& options,
                                                               RequestHandlers& handlers,
                                                               SessionTable& sessions,
                                                               CallMetrics& metrics) {
  auto server = std::make_unique<GrpcServerImpl>(handlers, metrics, sessions);
  KAVERN_RETURN_IF_ERROR(server->Start(options));
  return server;
}

}  // namespace kavern::service
