#include "service/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <sys/socket.h>

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kavern/v1/admin.grpc.pb.h"
#include "kavern/v1/kavern.grpc.pb.h"
#include "service/grpc_calls.h"
#include "service/socket_file.h"

namespace kavern::service {
namespace {

// A few more streams than calls, so that a connection at the limit is told so rather than left
// waiting.
constexpr int kStreamsBeyondCalls = 64;

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
  KAVERN_UNARY(ReportTimings)
  KAVERN_UNARY(BeginStore)
  KAVERN_UNARY(AbortStore)
  KAVERN_UNARY(Release)
  KAVERN_UNARY(UpdateConversation)
  KAVERN_UNARY(DescribeConversation)
  KAVERN_UNIMPLEMENTED(ForkConversation, "ForkConversation: forking a conversation")
  KAVERN_UNIMPLEMENTED(TruncateConversation, "TruncateConversation: shortening a conversation")
  KAVERN_UNIMPLEMENTED(DeleteConversation, "DeleteConversation: deleting a conversation")

  grpc::ServerUnaryReactor* CommitStore(grpc::CallbackServerContext* context,
                                        const v1::CommitStoreRequest* request,
                                        v1::CommitStoreResponse* response) override {
    return UnaryLater(backend_, "CommitStore", context, request, response,
                      &RequestHandlers::BeginCommit);
  }
  grpc::ServerWriteReactor<v1::FetchResponse>* Fetch(grpc::CallbackServerContext* context,
                                                     const v1::FetchRequest* request) override {
    return EventStream<v1::FetchResponse>::Serve(
        backend_, "Fetch", *context,
        [this, context, request](const std::shared_ptr<Session>& session,
                                 RequestHandlers::FetchDeliver deliver) {
          return backend_.handlers.BeginFetch(session, *request, DeadlineOf(*context),
                                              std::move(deliver));
        });
  }
  grpc::ServerWriteReactor<v1::PrefetchResponse>* Prefetch(
      grpc::CallbackServerContext* context, const v1::PrefetchRequest* request) override {
    return EventStream<v1::PrefetchResponse>::Serve(
        backend_, "Prefetch", *context,
        [this, request](const std::shared_ptr<Session>& session,
                        EventStream<v1::PrefetchResponse>::Deliver deliver) {
          return backend_.handlers.BeginPrefetch(session, *request, std::move(deliver));
        });
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
  KAVERN_UNARY(Demote)
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
  bool Listen(const std::string& address, const GrpcServerOptions& options,
              const grpc::ResourceQuota& quota) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port_);
    builder.SetMaxReceiveMessageSize(static_cast<int>(options.message_bytes_max));
    builder.SetResourceQuota(quota);
    builder.AddChannelArgument(
        GRPC_ARG_MAX_CONCURRENT_STREAMS,
        static_cast<int>(options.concurrent_calls_max) + kStreamsBeyondCalls);
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
    grpc::ResourceQuota quota("kavernd");
    quota.Resize(options.receive_bytes_max);
    auto unix_listener = std::make_unique<Listener>(handlers_, metrics_, sessions_, nullptr);
    {
      // The socket must never be reachable with wider rights than configured, not for an instant.
      const UmaskGuard nobody_else(0177);
      if (!unix_listener->Listen("unix:" + options.socket_path, options, quota)) {
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
    if (!tcp_listener->Listen(options.tcp_address, options, quota)) {
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
