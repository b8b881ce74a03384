// One call over gRPC, from its arrival to its end: who calls, whether one more is admitted, how
// messages of a stream are read and written. The handlers behind know no gRPC.
//
// For grpc_server.cc alone: gRPC's headers are slow to compile.
#ifndef KAVERN_SERVICE_GRPC_CALLS_H_
#define KAVERN_SERVICE_GRPC_CALLS_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "kavern/v1/kavern.pb.h"
#include "service/call_metrics.h"
#include "service/request_handlers.h"
#include "service/session/session_table.h"

namespace kavern::service {

inline constexpr char kSessionMetadata[] = "kavern-session-bin";

inline grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

inline absl::Status TooManyCalls() {
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

inline grpc::ServerUnaryReactor* Unimplemented(grpc::CallbackServerContext* context,
                                               const char* feature) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish({grpc::StatusCode::UNIMPLEMENTED,
                   absl::StrCat(feature, " is not implemented by this version")});
  return reactor;
}

inline SteadyTime DeadlineOf(const grpc::CallbackServerContext& context) {
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

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_GRPC_CALLS_H_
