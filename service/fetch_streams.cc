// Fetch and Prefetch: answers that come in pieces, as blocks arrive from disk.

#include <algorithm>
#include <future>
#include <utility>

#include "base/mutex.h"
#include "base/status_macros.h"
#include "service/region_sharer.h"
#include "service/request_handlers.h"

namespace kavern::service {
namespace {

// The answer itself takes time: whoever waits is told this much before the call's own deadline, or
// a tenth of what it has.
constexpr std::chrono::milliseconds kAnswerMarginMax(50);

SteadyTime AnswerBy(SteadyTime deadline) {
  if (deadline == SteadyTime::max()) return deadline;
  const SteadyDuration left = deadline - Clock::System().Now();
  return deadline - std::clamp<SteadyDuration>(left / 10, SteadyDuration(0), kAnswerMarginMax);
}

class FetchStream final : public RequestHandlers::Stream,
                          public std::enable_shared_from_this<FetchStream> {
 public:
  // `lease_id`: what the client calls it; 0: the session is to name it.
  FetchStream(std::shared_ptr<Session> session, std::uint64_t lease_id,
              RequestHandlers::FetchDeliver deliver)
      : session_(std::move(session)), chosen_id_(lease_id), deliver_(std::move(deliver)) {}

  absl::Status Begin(tiers::TieredStore& store, const tiers::NamespaceRef& ns,
                     const tiers::FetchRequest& request) {
    KAVERN_ASSIGN_OR_RETURN(
        tiers::FetchTicket ticket,
        store.FetchAsync(ns, request, [self = shared_from_this()](tiers::FetchEvent event) {
          self->OnEvent(std::move(event));
        }));
    MutexLock lock(mu_);
    // Where it has ended already, the ticket ends with this call.
    if (!ended_) ticket_ = std::move(ticket);
    return absl::OkStatus();
  }

  void Cancel(bool told) override { End(told && chosen_id_ != 0); }

 private:
  void OnEvent(tiers::FetchEvent event) {
    const bool last = event.last;
    absl::StatusOr<v1::FetchResponse> message;
    {
      MutexLock lock(mu_);
      if (ended_) return;  // the event's lease ends with it
      message = TakeLocked(event);
    }
    const bool ok = message.ok();
    if (!ok) End(/*keep_lease=*/false);
    deliver_(std::move(message), last || !ok);
  }

  absl::StatusOr<v1::FetchResponse> TakeLocked(tiers::FetchEvent& event) KAVERN_REQUIRES(mu_) {
    v1::FetchResponse message;
    for (const tiers::FetchFailure& failure : event.failed) {
      v1::FetchResponse::Failed* failed = message.add_failed();
      failed->set_index(failure.index);
      failed->set_code(static_cast<std::int32_t>(failure.code));
    }
    RegionSharer sharer(*session_);
    message.mutable_ready()->Reserve(static_cast<int>(event.lease.parts().size()));
    for (const tiers::ReadLease::Part& part : event.lease.parts()) {
      KAVERN_RETURN_IF_ERROR(sharer.Share(part.extent));
      v1::FetchResponse::Ready* ready = message.add_ready();
      ready->set_index(part.index);
      ToProto(part.extent, ready->mutable_extent());
      ready->set_checksum(part.checksum);
      ready->set_tier(part.from_disk ? v1::TIER_NVME : v1::TIER_RAM);
    }
    if (lease_id_ != 0) {
      if (!session_->ExtendLease(lease_id_, std::move(event.lease), event.bytes_to_come)) {
        return absl::CancelledError("the lease was released before the fetch had ended");
      }
    } else if (!event.lease.empty() || event.bytes_to_come > 0) {
      KAVERN_ASSIGN_OR_RETURN(
          lease_id_, session_->AddLease(std::move(event.lease), event.bytes_to_come, chosen_id_));
    }
    message.set_lease_id(lease_id_);
    return message;
  }

  // No event is taken any more.
  void End(bool keep_lease) {
    tiers::FetchTicket ticket;
    std::uint64_t lease_id = 0;
    {
      MutexLock lock(mu_);
      ended_ = true;
      ticket = std::move(ticket_);
      lease_id = std::exchange(lease_id_, 0);
    }
    ticket.Cancel();
    if (lease_id != 0 && !keep_lease) session_->ReleaseRead(lease_id);
  }

  const std::shared_ptr<Session> session_;
  const std::uint64_t chosen_id_;
  const RequestHandlers::FetchDeliver deliver_;
  // Before the session's and the store's locks.
  Mutex mu_;
  tiers::FetchTicket ticket_ KAVERN_GUARDED_BY(mu_);
  std::uint64_t lease_id_ KAVERN_GUARDED_BY(mu_) = 0;
  bool ended_ KAVERN_GUARDED_BY(mu_) = false;
};

class PrefetchStream final : public RequestHandlers::Stream {
 public:
  explicit PrefetchStream(tiers::FetchTicket ticket) : ticket_(std::move(ticket)) {}

  void Cancel(bool /*told*/) override {
    tiers::FetchTicket ticket;
    MutexLock lock(mu_);
    ticket = std::move(ticket_);
  }

 private:
  Mutex mu_;
  tiers::FetchTicket ticket_ KAVERN_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<std::shared_ptr<RequestHandlers::Stream>> RequestHandlers::BeginFetch(
    const std::shared_ptr<Session>& session, const v1::FetchRequest& request, SteadyTime deadline,
    FetchDeliver deliver) {
  KAVERN_RETURN_IF_ERROR(CheckNotDraining());
  KAVERN_RETURN_IF_ERROR(CheckSharesMemory(*session));
  KAVERN_ASSIGN_OR_RETURN(const auto fingerprint, ParseFingerprint(request.fingerprint()));
  KAVERN_ASSIGN_OR_RETURN(const auto ns, session->FindNamespace(fingerprint));
  KAVERN_ASSIGN_OR_RETURN(const std::vector<BlockKey> keys,
                          ParseKeys(request.keys(), limits_.keys_per_request_max));
  auto stream = std::make_shared<FetchStream>(session, request.lease_id(), std::move(deliver));
  KAVERN_RETURN_IF_ERROR(stream->Begin(store_, *ns,
                                       {.keys = keys,
                                        .shard = request.shard(),
                                        .group = request.group(),
                                        .lease_bytes_max = session->LeaseBytesLeft(),
                                        .deadline = AnswerBy(deadline)}));
  return stream;
}

absl::Status RequestHandlers::Fetch(const std::shared_ptr<Session>& session,
                                    const v1::FetchRequest& request, v1::FetchResponse* response) {
  std::promise<absl::Status> ended;
  KAVERN_RETURN_IF_ERROR(
      BeginFetch(session, request, SteadyTime::max(),
                 [&](const absl::StatusOr<v1::FetchResponse>& message, bool last) {
                   if (message.ok()) response->MergeFrom(*message);
                   if (last) ended.set_value(message.status());
                 })
          .status());
  return ended.get_future().get();
}

absl::StatusOr<std::shared_ptr<RequestHandlers::Stream>> RequestHandlers::BeginPrefetch(
    const std::shared_ptr<Session>& session, const v1::PrefetchRequest& request,
    PrefetchDeliver deliver) {
  KAVERN_RETURN_IF_ERROR(CheckNotDraining());
  if (request.target() != v1::TIER_UNSPECIFIED && request.target() != v1::TIER_RAM) {
    return absl::UnimplementedError(absl::StrCat("target: got ", v1::Tier_Name(request.target()),
                                                 ", this version knows TIER_RAM"));
  }
  KAVERN_ASSIGN_OR_RETURN(const auto fingerprint, ParseFingerprint(request.fingerprint()));
  KAVERN_ASSIGN_OR_RETURN(const auto ns, session->FindNamespace(fingerprint));
  KAVERN_ASSIGN_OR_RETURN(const std::vector<BlockKey> keys,
                          ParseKeys(request.keys(), limits_.keys_per_request_max));
  const auto total = static_cast<std::uint32_t>(keys.size());
  KAVERN_ASSIGN_OR_RETURN(
      tiers::FetchTicket ticket,
      store_.Prefetch(*ns, keys, [deliver = std::move(deliver), total](tiers::PrefetchProgress at) {
        v1::PrefetchResponse message;
        message.set_done(at.ready);
        message.set_failed(at.failed);
        message.set_total(total);
        deliver(std::move(message), at.last);
      }));
  return std::make_shared<PrefetchStream>(std::move(ticket));
}

}  // namespace kavern::service
