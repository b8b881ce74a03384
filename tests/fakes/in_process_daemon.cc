#include "tests/fakes/in_process_daemon.h"

#include <unistd.h>

#include <cstdlib>
#include <deque>
#include <filesystem>
#include <utility>

#include "gtest/gtest.h"
#include "service/session/attach_server.h"
#include "service/session/tenant_map.h"

namespace kavern {

using service::RequestHandlers;
using service::Session;

struct InProcessDaemon::Node {
  Node(const std::string& socket_path, std::uint64_t capacity_bytes, std::uint64_t region_bytes,
       std::uint64_t lease_bytes_max, const std::function<void(tiers::TieredStoreOptions&)>& change)
      : tenants(*service::TenantMap::Create({}, {}, ::geteuid())), sessions(64) {
    service::AttachServerOptions attach_options;
    attach_options.socket_path = socket_path;
    attach_options.socket_mode = 0600;
    attach_options.session_limits.lease_bytes_max = lease_bytes_max;
    attach = *service::AttachServer::Create(attach_options, tenants, sessions);
    tiers::TieredStoreOptions store_options;
    store_options.ram.capacity_bytes = capacity_bytes;
    store_options.ram.region_bytes = region_bytes;
    store_options.ram.huge_pages = tiers::HugePages::kOff;
    if (change) change(store_options);
    store = *tiers::TieredStore::Create(store_options, *attach);
    store->Quiesce();
    handlers = std::make_unique<RequestHandlers>(
        *store, sessions, service::RequestLimits{},
        RequestHandlers::Node{.version = "test",
                              .incarnation = std::string(16, 'i'),
                              .started = Clock::System().Now(),
                              .ready = [] { return true; },
                              .degraded = [] { return std::vector<service::Degradation>(); }});
    attach->Start();
  }

  ~Node() {
    store->LeaveMemory();
    attach->Stop();
    const absl::Status audit = store->Audit();
    EXPECT_TRUE(audit.ok()) << audit;
    handlers.reset();
    store.reset();
  }

  service::TenantMap tenants;
  service::SessionTable sessions;
  std::unique_ptr<service::AttachServer> attach;
  std::unique_ptr<tiers::TieredStore> store;
  std::unique_ptr<RequestHandlers> handlers;
};

class InProcessControlPlane final : public client::ControlPlane {
 public:
  using Context = client::CallContext;
  explicit InProcessControlPlane(InProcessDaemon& daemon) : daemon_(daemon) {}

  absl::Status Ping(const Context& context) override {
    v1::PingResponse response;
    return Unary("Ping", context, v1::PingRequest(), &response, &RequestHandlers::Ping);
  }
  absl::Status OpenNamespace(const Context& context, const v1::OpenNamespaceRequest& request,
                             v1::OpenNamespaceResponse* response) override {
    return Unary("OpenNamespace", context, request, response, &RequestHandlers::OpenNamespace);
  }
  absl::Status Match(const Context& context, const v1::MatchRequest& request,
                     v1::MatchResponse* response) override {
    return Unary("Match", context, request, response, &RequestHandlers::Match);
  }
  absl::Status ReportTimings(const Context& context, const v1::ReportTimingsRequest& request,
                             v1::ReportTimingsResponse* response) override {
    return Unary("ReportTimings", context, request, response, &RequestHandlers::ReportTimings);
  }
  absl::Status BeginStore(const Context& context, const v1::BeginStoreRequest& request,
                          v1::BeginStoreResponse* response) override {
    return Unary("BeginStore", context, request, response, &RequestHandlers::BeginStore);
  }
  absl::Status CommitStore(const Context& context, const v1::CommitStoreRequest& request,
                           v1::CommitStoreResponse* response) override {
    return Unary("CommitStore", context, request, response, &RequestHandlers::CommitStore);
  }
  absl::Status AbortStore(const Context& context, const v1::AbortStoreRequest& request,
                          v1::AbortStoreResponse* response) override {
    return Unary("AbortStore", context, request, response, &RequestHandlers::AbortStore);
  }
  absl::Status UpdateConversation(const Context& context,
                                  const v1::UpdateConversationRequest& request,
                                  v1::UpdateConversationResponse* response) override {
    return Unary("UpdateConversation", context, request, response,
                 &RequestHandlers::UpdateConversation);
  }
  absl::Status DescribeConversation(const Context& context,
                                    const v1::DescribeConversationRequest& request,
                                    v1::DescribeConversationResponse* response) override {
    return Unary("DescribeConversation", context, request, response,
                 &RequestHandlers::DescribeConversation);
  }
  absl::Status Fetch(const Context& context, const v1::FetchRequest& request,
                     const std::function<void(const v1::FetchResponse&)>& on_message) override {
    return Stream<v1::FetchResponse>(
        "Fetch", context,
        [&](RequestHandlers& handlers, const std::shared_ptr<Session>& session,
            RequestHandlers::FetchDeliver deliver) {
          return handlers.BeginFetch(session, request, context.deadline, std::move(deliver));
        },
        [&](const v1::FetchResponse& response) {
          on_message(response);
          return true;
        });
  }
  absl::Status Prefetch(
      const Context& context, const v1::PrefetchRequest& request,
      const std::function<bool(const v1::PrefetchResponse&)>& on_message) override {
    return Stream<v1::PrefetchResponse>(
        "Prefetch", context,
        [&](RequestHandlers& handlers, const std::shared_ptr<Session>& session,
            std::function<void(absl::StatusOr<v1::PrefetchResponse>, bool)> deliver) {
          return handlers.BeginPrefetch(session, request, std::move(deliver));
        },
        on_message);
  }
  absl::Status Release(const Context& context, const v1::ReleaseRequest& request,
                       v1::ReleaseResponse* response) override {
    return Unary("Release", context, request, response, &RequestHandlers::Release);
  }
  absl::Status PutBlocks(const Context& context,
                         const std::function<bool(v1::PutBlocksRequest*)>& next,
                         v1::PutBlocksResponse* response) override {
    return daemon_.Serve(
        "PutBlocks", context,
        [&](RequestHandlers& handlers, const std::shared_ptr<Session>& session) -> absl::Status {
          v1::PutBlocksRequest message;
          if (!next(&message)) return absl::InvalidArgumentError("header");
          auto put = handlers.BeginPut(session, message.header());
          if (!put.ok()) return put.status();
          for (message.Clear(); next(&message); message.Clear()) {
            if (absl::Status status = (*put)->Append(message.data()); !status.ok()) return status;
          }
          return (*put)->Finish(response);
        });
  }
  absl::Status GetBlocks(
      const Context& context, const v1::GetBlocksRequest& request,
      const std::function<void(const v1::GetBlocksResponse&)>& on_message) override {
    return daemon_.Serve(
        "GetBlocks", context,
        [&](RequestHandlers& handlers, const std::shared_ptr<Session>& session) -> absl::Status {
          auto get = handlers.BeginGet(session, request);
          if (!get.ok()) return get.status();
          for (v1::GetBlocksResponse message; (*get)->Next(&message); message.Clear()) {
            on_message(message);
          }
          return absl::OkStatus();
        });
  }
  absl::Status GetStatus(const Context& context, const v1::GetStatusRequest& request,
                         v1::GetStatusResponse* response) override {
    return Unary("GetStatus", context, request, response, &RequestHandlers::GetStatus);
  }
  absl::Status ListNamespaces(const Context& context, const v1::ListNamespacesRequest& request,
                              v1::ListNamespacesResponse* response) override {
    return Unary("ListNamespaces", context, request, response, &RequestHandlers::ListNamespaces);
  }
  absl::Status PurgeNamespace(const Context& context, const v1::PurgeNamespaceRequest& request,
                              v1::PurgeNamespaceResponse* response) override {
    return Unary("PurgeNamespace", context, request, response, &RequestHandlers::PurgeNamespace);
  }
  absl::Status Quiesce(const Context& context, const v1::QuiesceRequest& request,
                       v1::QuiesceResponse* response) override {
    return Unary("Quiesce", context, request, response, &RequestHandlers::Quiesce);
  }
  absl::Status Demote(const Context& context, const v1::DemoteRequest& request,
                      v1::DemoteResponse* response) override {
    return Unary("Demote", context, request, response, &RequestHandlers::Demote);
  }

 private:
  // Messages of a stream on their way to the calling thread; shared with whoever still delivers.
  template <typename Message>
  struct Queue {
    Mutex mu;
    CondVar changed;
    std::deque<Message> messages KAVERN_GUARDED_BY(mu);
    absl::Status status KAVERN_GUARDED_BY(mu);
    bool over KAVERN_GUARDED_BY(mu) = false;
  };

  // `begin` as RequestHandlers::BeginFetch. `on_message` as ControlPlane::Prefetch.
  template <typename Message, typename Begin>
  absl::Status Stream(const std::string& method, const Context& context, const Begin& begin,
                      const std::function<bool(const Message&)>& on_message) {
    return daemon_.Serve(
        method, context,
        [&](RequestHandlers& handlers, const std::shared_ptr<Session>& session) -> absl::Status {
          auto queue = std::make_shared<Queue<Message>>();
          auto stream =
              begin(handlers, session, [queue](absl::StatusOr<Message> message, bool last) {
                MutexLock lock(queue->mu);
                if (message.ok()) {
                  queue->messages.push_back(*std::move(message));
                } else {
                  queue->status = message.status();
                }
                queue->over = last;
                queue->changed.NotifyAll();
              });
          if (!stream.ok()) return stream.status();
          bool told = false;
          for (;;) {
            Message message;
            {
              MutexLock lock(queue->mu);
              while (queue->messages.empty() && !queue->over &&
                     queue->changed.WaitUntil(queue->mu, context.deadline)) {
              }
              if (queue->messages.empty()) {
                if (queue->over) return queue->status;
                break;
              }
              message = std::move(queue->messages.front());
              queue->messages.pop_front();
            }
            told = true;
            if (on_message(message)) continue;
            (*stream)->Cancel(told);
            return absl::CancelledError("by the caller");
          }
          (*stream)->Cancel(told);
          return absl::DeadlineExceededError("no answer");
        });
  }

  template <typename Request, typename Response>
  absl::Status Unary(const std::string& method, const Context& context, const Request& request,
                     Response* response,
                     absl::Status (RequestHandlers::*handler)(Session&, const Request&,
                                                              Response*)) {
    return daemon_.Serve(method, context,
                         [&](RequestHandlers& handlers, const std::shared_ptr<Session>& session) {
                           return (handlers.*handler)(*session, request, response);
                         });
  }

  InProcessDaemon& daemon_;
};

InProcessDaemon::InProcessDaemon(std::uint64_t capacity_bytes, std::uint64_t region_bytes,
                                 std::uint64_t lease_bytes_max,
                                 std::function<void(tiers::TieredStoreOptions&)> change)
    : capacity_bytes_(capacity_bytes),
      region_bytes_(region_bytes),
      lease_bytes_max_(lease_bytes_max),
      change_(std::move(change)) {
  directory_ = std::filesystem::temp_directory_path() / "kavern-client-XXXXXX";
  if (mkdtemp(directory_.data()) == nullptr) std::abort();
  Start();
}

InProcessDaemon::~InProcessDaemon() {
  Stop();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

void InProcessDaemon::Start() {
  auto node = std::make_unique<Node>(directory_ + "/kavern.sock.attach", capacity_bytes_,
                                     region_bytes_, lease_bytes_max_, change_);
  MutexLock lock(mu_);
  node_ = std::move(node);
  serving_ = true;
}

void InProcessDaemon::Stop() {
  std::unique_ptr<Node> ended;
  MutexLock lock(mu_);
  serving_ = false;
  while (calls_in_progress_ > 0) calls_ended_.Wait(mu_);
  ended = std::move(node_);
}

std::unique_ptr<Client> InProcessDaemon::Connect(ClientOptions options) {
  client::Endpoint endpoint;
  endpoint.shared_memory = true;
  endpoint.attach_path = directory_ + "/kavern.sock.attach";
  return std::make_unique<ClientImpl>(std::move(options), endpoint,
                                      std::make_unique<InProcessControlPlane>(*this));
}

std::uint64_t InProcessDaemon::calls(const std::string& method) const {
  MutexLock lock(mu_);
  const auto it = calls_.find(method);
  return it == calls_.end() ? 0 : it->second;
}

void InProcessDaemon::FailNext(const std::string& method, absl::Status status) {
  MutexLock lock(mu_);
  failures_[method] = std::move(status);
}

void InProcessDaemon::LoseNextAnswer(const std::string& method, bool carried_out) {
  MutexLock lock(mu_);
  lost_answers_[method] = carried_out;
}

tiers::TieredStore& InProcessDaemon::store() {
  MutexLock lock(mu_);
  return *node_->store;
}

absl::Status InProcessDaemon::Serve(
    const std::string& method, const client::CallContext& context,
    const std::function<absl::Status(RequestHandlers&, const std::shared_ptr<Session>&)>& call) {
  Node* node = nullptr;
  bool carried_out = true;
  bool answered = true;
  {
    MutexLock lock(mu_);
    ++calls_[method];
    if (const auto it = failures_.find(method); it != failures_.end()) {
      absl::Status failure = it->second;
      failures_.erase(it);
      return failure;
    }
    if (!serving_) return absl::UnavailableError("no daemon");
    if (const auto it = lost_answers_.find(method); it != lost_answers_.end()) {
      answered = false;
      carried_out = it->second;
      lost_answers_.erase(it);
    }
    ++calls_in_progress_;
    node = node_.get();
  }
  absl::Status status;
  if (carried_out) {
    const auto session = node->sessions.Authenticate(context.session_token);
    status = session.ok() ? call(*node->handlers, *session) : session.status();
  }
  MutexLock lock(mu_);
  --calls_in_progress_;
  calls_ended_.NotifyAll();
  if (answered) return status;
  while (calls_ended_.WaitUntil(mu_, context.deadline)) {
  }
  return absl::DeadlineExceededError("no answer");
}

}  // namespace kavern
