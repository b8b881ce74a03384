#include "service/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <sys/socket.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "kavern/v1/admin.grpc.pb.h"
#include "kavern/v1/kavern.grpc.pb.h"
#include "service/socket_file.h"

namespace kavern::service {
namespace {

constexpr char kSessionMetadata[] = "kavern-session-bin";
constexpr int kStreamsBeyondCalls = 64;

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

template <typename Request, typename Response>
using LaterHandler = void (RequestHandlers::*)(Session&, const Request&, Response*,
                                               RequestHandlers::Done);

// One whose handler answers when it can, perhaps in another thread.
template <typename Request, typename Response>
grpc::ServerUnaryReactor* UnaryLater(Backend& backend, const char* method,
                                     grpc::CallbackServerContext* context, const Request* request,
                                     Response* response, LaterHandler<Request, Response> handler) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto call = std::make_shared<CallMetrics::Call>(backend.metrics, method);
  const auto end = [reactor, call](const absl::Status& status) {
    call->Finish(status.code());
    reactor->Finish(ToGrpc(status));
  };
  if (!call->admitted()) {
    end(TooManyCalls());
  } else if (auto session = backend.authenticator.Authenticate(*context); !session.ok()) {
    end(session.status());
  } else {
    // The session lives until the answer.
    (backend.handlers.*handler)(
        **session, *request, response,
        [end, held = *session](const absl::Status& status) { end(status); });
  }
  return reactor;
}

grpc::ServerUnaryReactor* Unimplemented(grpc::CallbackServerContext* context, const char* feature) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish({grpc::StatusCode::UNIMPLEMENTED,
                   absl::StrCat(feature, " is not implemented by this version")});
  return reactor;
}

SteadyTime DeadlineOf(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return SteadyTime::max();
  return Clock::System().Now() + (deadline - std::chrono::system_clock::now());
}

// A stream whose messages come when they come: one is being written at a time, and what comes
// meanwhile is merged into the next. Its source may still deliver when the call is over, so both
// share it.
template <typename Message>
class EventStream final : public grpc::ServerWriteReactor<Message> {
 public:
  using Deliver = std::function<void(absl::StatusOr<Message> message, bool last)>;
  using Source = std::shared_ptr<RequestHandlers::Stream>;
  using Begin = std::function<absl::StatusOr<Source>(const std::shared_ptr<Session>&, Deliver)>;

  static grpc::ServerWriteReactor<Message>* Serve(Backend& backend, const char* method,
                                                  const grpc::CallbackServerContext& context,
                                                  const Begin& begin) {
    auto stream = std::make_shared<EventStream>(backend, method);
    stream->self_ = stream;
    if (absl::Status status = stream->Run(backend, context, begin); !status.ok()) {
      stream->Add(std::move(status), true);
    }
    return stream.get();
  }

  EventStream(Backend& backend, const char* method) : call_(backend.metrics, method) {}

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(mu_);
      writing_ = false;
      told_ |= ok;
    }
    if (ok) {
      Next();
    } else {
      OnCancel();
    }
  }

  void OnCancel() override {
    Source source;
    bool told = false;
    {
      MutexLock lock(mu_);
      source = source_;
      told = told_;
      over_ = true;
      has_next_ = false;
      status_ = absl::CancelledError("the client went away");
    }
    if (source != nullptr) source->Cancel(told);
    Next();
  }

  void OnDone() override {
    Source ended;
    {
      MutexLock lock(mu_);
      ended = std::move(source_);
    }
    // Often the last share.
    const auto self = std::move(self_);
  }

 private:
  absl::Status Run(Backend& backend, const grpc::CallbackServerContext& context,
                   const Begin& begin) {
    if (!call_.admitted()) return TooManyCalls();
    KAVERN_ASSIGN_OR_RETURN(const std::shared_ptr<Session> session,
                            backend.authenticator.Authenticate(context));
    KAVERN_ASSIGN_OR_RETURN(
        Source source, begin(session, [self = self_](absl::StatusOr<Message> message, bool last) {
          self->Add(std::move(message), last);
        }));
    MutexLock lock(mu_);
    source_ = std::move(source);
    return absl::OkStatus();
  }

  void Add(absl::StatusOr<Message> message, bool last) {
    {
      MutexLock lock(mu_);
      if (over_) return;
      over_ = last;
      if (message.ok()) {
        next_.MergeFrom(*message);
      } else {
        status_ = message.status();
      }
      has_next_ = status_.ok();
    }
    Next();
  }

  // The next step, if none is under way. The reactor's operations are begun without the lock.
  void Next() {
    bool write = false;
    bool finish = false;
    absl::Status status;
    {
      MutexLock lock(mu_);
      if (writing_ || finished_) return;
      write = writing_ = has_next_;
      if (write) {
        current_.Clear();
        current_.Swap(&next_);
        has_next_ = false;
      }
      finish = finished_ = over_;
      status = status_;
      told_ |= write && finish;
    }
    if (finish) call_.Finish(status.code());
    if (write && finish) {
      this->StartWriteAndFinish(&current_, grpc::WriteOptions(), grpc::Status::OK);
    } else if (write) {
      this->StartWrite(&current_);
    } else if (finish) {
      this->Finish(ToGrpc(status));
    }
  }

  CallMetrics::Call call_;
  std::shared_ptr<EventStream> self_;  // until the call is done
  Message current_;                    // being written

  Mutex mu_;
  Source source_ KAVERN_GUARDED_BY(mu_);
  Message next_ KAVERN_GUARDED_BY(mu_);
  absl::Status status_ KAVERN_GUARDED_BY(mu_);
  bool has_next_ KAVERN_GUARDED_BY(mu_) = false;
  bool writing_ KAVERN_GUARDED_BY(mu_) = false;
  bool told_ KAVERN_GUARDED_BY(mu_) = false;  // a message is on its way to the client
  bool over_ KAVERN_GUARDED_BY(mu_) = false;  // nothing is added any more
  bool finished_ KAVERN_GUARDED_BY(mu_) = false;
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
  KAVERN_UNARY(AbortStore)
  KAVERN_UNARY(Release)
  KAVERN_UNIMPLEMENTED(PlanTurn, "PlanTurn: the recompute-versus-store cost model")
  KAVERN_UNIMPLEMENTED(ReportPrefill, "ReportPrefill: the recompute-versus-store cost model")
  KAVERN_UNIMPLEMENTED(UpdateConversation, "UpdateConversation: conversations")
  KAVERN_UNIMPLEMENTED(DescribeConversation, "DescribeConversation: conversations")
  KAVERN_UNIMPLEMENTED(ForkConversation, "ForkConversation: conversations")
  KAVERN_UNIMPLEMENTED(TruncateConversation, "TruncateConversation: conversations")
  KAVERN_UNIMPLEMENTED(DeleteConversation, "DeleteConversation: conversations")

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
    // A few more, so that a connection at the limit is told so rather than left waiting.
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
