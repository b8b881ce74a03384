// Fetches and prefetches that wait for the disk: who is told what, when, and until when.

#include <algorithm>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "tiers/disk_jobs.h"
#include "tiers/namespace_store.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {
namespace {

// What a caller can act on; see FetchFailure.
absl::StatusCode FailureCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kDeadlineExceeded:
      return status.code();
    default:
      return absl::StatusCode::kUnavailable;
  }
}

}  // namespace

// ---- Beginning ----

absl::StatusOr<FetchTicket> TieredStore::FetchAsync(const NamespaceRef& ns,
                                                    const FetchRequest& request, FetchSink sink) {
  if (disk_store_ == nullptr) {
    KAVERN_ASSIGN_OR_RETURN(FetchResult fetched, Fetch(ns, request.keys, request.shard,
                                                       request.group, request.lease_bytes_max));
    FetchEvent event;
    event.lease = std::move(fetched.lease);
    for (const std::uint32_t index : fetched.missing) event.failed.push_back({index});
    event.last = true;
    sink(std::move(event));
    return FetchTicket();
  }
  KAVERN_RETURN_IF_ERROR(CheckFetch(ns, request.keys, request.shard, request.group));
  auto waiting = std::make_shared<Waiting>();
  waiting->ns = ns.ns_;
  waiting->part = ns.ns_->layout().PartIndex(request.shard, request.group);
  waiting->group = request.group;
  waiting->deadline =
      std::min(request.deadline, options_.clock->Now() + disk_options_.read_timeout);
  waiting->sink = [sink = std::move(sink)](FetchEvent event, std::uint32_t /*ready*/) {
    sink(std::move(event));
  };
  waiting->open.resize(request.keys.size());
  waiting->hits.resize(request.keys.size());
  const std::uint64_t parts_max =
      request.lease_bytes_max / ns.ns_->layout().SlotBytes(request.group);
  Outside outside;
  FetchTicket ticket;
  {
    MutexLock lock(mu_);
    std::vector<BlockId> blocks;
    blocks.reserve(request.keys.size());
    std::uint64_t there = 0;
    std::optional<std::uint32_t> last_on_disk;
    for (std::uint32_t i = 0; i < request.keys.size(); ++i) {
      blocks.push_back(ns.ns_->FindVisible(request.keys[i]));
      const bool on_disk = ns.ns_->IsOnDisk(request.keys[i]);
      if (on_disk) last_on_disk = i;
      there += blocks.back() != kNoBlock || on_disk ? 1 : 0;
    }
    if (there > parts_max) {
      return absl::ResourceExhaustedError(absl::StrCat("lease quota: ", there,
                                                       " blocks are there, the session may pin ",
                                                       parts_max, " more of this size"));
    }
    // What is in RAM is pinned before anything is evicted for the rest.
    FetchResult in_ram;
    PinLocked(ns.ns_, blocks, request.shard, request.group, &in_ram);
    for (std::size_t i = 0; i < in_ram.lease.parts_.size(); ++i) {
      const std::uint32_t index = in_ram.lease.parts_[i].index;
      waiting->hits[index] = in_ram.lease.pinned_[i].block;
      ++waiting->ready;
    }
    waiting->event.lease = std::move(in_ram.lease);
    for (const std::uint32_t index : in_ram.missing) {
      if (AwaitLocked(waiting, request.keys[index], index, UINT64_MAX)) continue;
      waiting->event.failed.push_back({index});
      ++waiting->misses;
    }
    if (waiting->pending > 0 && last_on_disk.has_value()) {
      ReadAheadLocked(ns.ns_, request.keys[*last_on_disk]);
    }
    ticket = BeginWaitLocked(waiting, &outside);
  }
  RunOutside(outside);
  return ticket;
}

absl::StatusOr<FetchEvent> TieredStore::FetchAll(const NamespaceRef& ns,
                                                 const FetchRequest& request) {
  FetchEvent all;
  std::promise<void> last;
  KAVERN_ASSIGN_OR_RETURN(const FetchTicket ticket, FetchAsync(ns, request, [&](FetchEvent event) {
                            all.lease.Append(std::move(event.lease));
                            all.failed.insert(all.failed.end(), event.failed.begin(),
                                              event.failed.end());
                            if (event.last) last.set_value();
                          }));
  last.get_future().wait();
  all.last = true;
  return all;
}

absl::StatusOr<FetchTicket> TieredStore::Prefetch(const NamespaceRef& ns,
                                                  std::span<const BlockKey> keys,
                                                  PrefetchSink sink) {
  KAVERN_RETURN_IF_ERROR(CheckFetch(ns, keys, 0, 0));
  auto waiting = std::make_shared<Waiting>();
  waiting->ns = ns.ns_;
  waiting->pins = false;
  waiting->sink = [sink = std::move(sink), sum = PrefetchProgress()](const FetchEvent& event,
                                                                     std::uint32_t ready) mutable {
    sum.ready += ready;
    sum.failed += static_cast<std::uint32_t>(event.failed.size());
    sum.last = event.last;
    sink(sum);
  };
  waiting->open.resize(keys.size());
  Outside outside;
  FetchTicket ticket;
  {
    MutexLock lock(mu_);
    const UseSequence now = shared_.last_use;
    for (std::uint32_t i = 0; i < keys.size(); ++i) {
      if (ns.ns_->FindVisible(keys[i]) != kNoBlock) {
        ++waiting->ready;
      } else if (!AwaitLocked(waiting, keys[i], i, now)) {
        waiting->event.failed.push_back({i});
      }
    }
    ticket = BeginWaitLocked(waiting, &outside);
  }
  RunOutside(outside);
  return ticket;
}

bool TieredStore::AwaitLocked(const std::shared_ptr<Waiting>& waiting, const BlockKey& key,
                              std::uint32_t index, UseSequence youngest_victim) {
  if (disk_store_ == nullptr) return false;
  const auto promotion = QueuePromotionLocked(waiting->ns, key, waiting->pins, youngest_victim);
  if (promotion == nullptr) return false;
  promotion->waiters.push_back({waiting, index});
  waiting->open[index] = true;
  ++waiting->pending;
  return true;
}

FetchTicket TieredStore::BeginWaitLocked(const std::shared_ptr<Waiting>& waiting,
                                         Outside* outside) {
  if (waiting->pending == 0) EndWaitLocked(waiting);
  // Before any read can end: the first event tells what is in RAM.
  outside->news.push_back(waiting);
  outside->first = TakeEventLocked(*waiting);
  outside->first_ready = std::exchange(waiting->ready, 0);
  waiting->delivering = true;
  if (waiting->ended) return {};
  if (waiting->deadline != SteadyTime::max()) {
    waiting_.insert({waiting->deadline, waiting});
    timer_changed_.NotifyAll();
  }
  BeginPromotionsLocked(outside);
  return FetchTicket([this, weak = std::weak_ptr<Waiting>(waiting)] {
    if (const auto held = weak.lock()) CancelWait(held);
  });
}

// ---- Telling ----

void TieredStore::RunOutside(Outside& outside) {
  outside.dropped.clear();
  for (const std::uint64_t token : outside.cancels) disk_store_->Cancel(token);
  for (const std::function<void()>& read : outside.reads) read();
  if (outside.first.has_value()) {
    outside.news.front()->sink(*std::move(outside.first), outside.first_ready);
  }
  for (const std::shared_ptr<Waiting>& waiting : outside.news) Deliver(waiting);
  outside = Outside();
}

void TieredStore::Deliver(const std::shared_ptr<Waiting>& waiting) {
  for (;;) {
    FetchEvent event;
    std::uint32_t ready = 0;
    bool over = false;
    {
      MutexLock lock(mu_);
      over = waiting->last_told;
      if (!over && !HasNewsLocked(*waiting)) {
        waiting->delivering = false;
        return;
      }
      if (!over) event = TakeEventLocked(*waiting);
      ready = std::exchange(waiting->ready, 0);
    }
    if (over) {
      waiting->sink = nullptr;  // reads that it waited for may go on for long
      return;
    }
    waiting->sink(std::move(event), ready);
  }
}

bool TieredStore::HasNewsLocked(const Waiting& waiting) {
  if (waiting.last_told) return false;
  return waiting.ended || waiting.ready > 0 || !waiting.event.failed.empty();
}

FetchEvent TieredStore::TakeEventLocked(Waiting& waiting) {
  FetchEvent event = std::exchange(waiting.event, {});
  event.last = waiting.last_told = waiting.ended;
  if (waiting.pins) {
    event.bytes_to_come = waiting.pending * waiting.ns->layout().SlotBytes(waiting.group);
  }
  return event;
}

void TieredStore::AddNewsLocked(const std::shared_ptr<Waiting>& waiting, Outside* outside) {
  if (waiting->delivering || !HasNewsLocked(*waiting)) return;
  waiting->delivering = true;
  outside->news.push_back(waiting);
}

// ---- Going on ----

void TieredStore::ResolveLocked(const std::shared_ptr<Waiting>& waiting, std::uint32_t index,
                                BlockId id, const absl::Status& status, Outside* outside) {
  if (waiting->ended || !waiting->open[index]) return;
  waiting->open[index] = false;
  --waiting->pending;
  NamespaceStore& ns = *waiting->ns;
  bool ready = id != kNoBlock;
  if (ready && waiting->pins) {
    const auto pin = ns.PinForRead(id, waiting->part);
    ready = pin.has_value();
    if (ready) {
      ReadLease one;
      one.store_ = this;
      one.ns_ = waiting->ns;
      one.group_ = waiting->group;
      one.slot_bytes_ = ns.layout().SlotBytes(waiting->group);
      one.parts_.push_back({index, ns.group(waiting->group).ExtentOf(pin->slot),
                            ns.ChecksumOf(id, waiting->part), true});
      one.pinned_.push_back({pin->block, pin->slot});
      waiting->event.lease.Append(std::move(one));
      waiting->hits[index] = pin->block;
      ++waiting->from_disk;
    }
  }
  if (ready) {
    ++waiting->ready;
  } else {
    const bool gone = id == kNoBlock && status.ok();
    waiting->event.failed.push_back(
        {index, gone ? absl::StatusCode::kNotFound : FailureCode(status)});
    ++waiting->misses;
  }
  if (waiting->pending == 0) EndWaitLocked(waiting);
  AddNewsLocked(waiting, outside);
}

void TieredStore::EndWaitLocked(const std::shared_ptr<Waiting>& waiting) {
  waiting->ended = true;
  waiting_.erase({waiting->deadline, waiting});
  if (!waiting->pins) return;
  std::erase_if(waiting->hits, [](const BlockRef& ref) { return ref.id == kNoBlock; });
  CountFetchLocked(*waiting->ns, waiting->group, waiting->hits, waiting->from_disk,
                   waiting->misses);
}

void TieredStore::CancelWait(const std::shared_ptr<Waiting>& waiting) {
  Outside outside;
  {
    MutexLock lock(mu_);
    if (waiting->last_told) return;
    waiting->last_told = true;
    if (!waiting->delivering) outside.news.push_back(waiting);  // lets go of the sink
    waiting->delivering = true;
    outside.dropped.push_back(std::move(waiting->event));
    if (!waiting->ended) EndWaitLocked(waiting);
    DropUnwantedLocked(&outside);
    BeginPromotionsLocked(&outside);
  }
  RunOutside(outside);
}

void TieredStore::ExpireWaitingLocked(SteadyTime now, Outside* outside) {
  bool any = false;
  while (!waiting_.empty() && waiting_.begin()->first <= now) {
    const std::shared_ptr<Waiting> late = waiting_.begin()->second;
    any = true;
    shared_.counters.promotion_failures += late->pending;
    for (std::uint32_t i = 0; i < late->open.size(); ++i) {
      ResolveLocked(late, i, kNoBlock, absl::DeadlineExceededError(""), outside);
    }
  }
  if (!any) return;
  DropUnwantedLocked(outside);
  BeginPromotionsLocked(outside);
}

void TieredStore::FetchTimerLoop() {
  for (;;) {
    Outside outside;
    {
      MutexLock lock(mu_);
      for (;;) {
        const SteadyTime now = options_.clock->Now();
        ExpireWaitingLocked(now, &outside);
        if (stop_ || !outside.empty()) break;
        if (waiting_.empty()) {
          timer_changed_.Wait(mu_);
        } else {
          // The clock may be a test's.
          const SteadyDuration left = waiting_.begin()->first - now;
          timer_changed_.WaitUntil(mu_, std::chrono::steady_clock::now() + left);
        }
      }
      if (stop_ && outside.empty()) return;
    }
    RunOutside(outside);
  }
}

}  // namespace kavern::tiers
