// From disk into RAM: blocks that are only on disk are read when somebody fetches them, asks for
// them ahead of a fetch, or is likely to.
//
// A promoted block is evicted from RAM like any other. Uses count in both tiers, so each is LRU
// over all of them. What is asked for waits in queues, so that RAM is taken as it is filled and not
// as it is asked for.

#include <algorithm>
#include <utility>

#include "tiers/disk_jobs.h"
#include "tiers/namespace_store.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {

// ---- Queues ----

std::shared_ptr<TieredStore::Promotion> TieredStore::QueuePromotionLocked(
    const std::shared_ptr<NamespaceStore>& ns, const BlockKey& key, bool for_fetch,
    UseSequence youngest_victim) {
  const auto under_way = promotions_.find({ns.get(), key});
  if (under_way != promotions_.end()) {
    Promotion& promotion = *under_way->second;
    promotion.youngest_victim = std::max(promotion.youngest_victim, youngest_victim);
    if (for_fetch && !promotion.for_fetch && promotion.state == Promotion::State::kQueued) {
      promotion_queues_[0].push_back(under_way->second);
    }
    // What the disk has been asked for keeps its priority: the seam cannot raise it.
    promotion.for_fetch |= for_fetch;
    return under_way->second;
  }
  DiskNamespace* on_disk = ns->disk();
  const BlockId disk_id = DiskIndex::FindBlock(on_disk, key);
  if (disk_id == kNoBlock || stop_) return nullptr;
  auto promotion = std::make_shared<Promotion>();
  promotion->ns = ns;
  promotion->on_disk = on_disk;
  promotion->key = key;
  promotion->for_fetch = for_fetch;
  promotion->youngest_victim = youngest_victim;
  // From here on it does not leave the disk before it was read.
  promotion->disk = disk_index_->Pin(*on_disk, disk_id, ns->PayloadBytes());
  promotions_[{ns.get(), key}] = promotion;
  promotion_queues_[for_fetch ? 0 : 1].push_back(promotion);
  ++queued_promotions_;
  return promotion;
}

void TieredStore::ReadAheadLocked(const std::shared_ptr<NamespaceStore>& ns, const BlockKey& last) {
  const DiskNamespace* on_disk = ns->disk();
  BlockId id = DiskIndex::FindBlock(on_disk, last);
  for (std::uint64_t n = 0; n < disk_options_.read_ahead_blocks && id != kNoBlock; ++n) {
    // Where a chain forks nobody knows which way it is followed.
    id = on_disk->index.OnlyChildOf(id);
    if (id == kNoBlock || !on_disk->index.IsVisible(id)) return;
    const BlockKey key = on_disk->index.KeyOf(id);
    if (ns->FindVisible(key) != kNoBlock || promotions_.contains({ns.get(), key})) continue;
    const auto promotion = QueuePromotionLocked(ns, key, false, 0);
    if (promotion != nullptr) promotion->read_ahead = true;
  }
}

void TieredStore::BeginPromotionsLocked(Outside* outside) {
  for (std::size_t i = 0; i < promotion_queues_.size(); ++i) {
    auto& queue = promotion_queues_[i];
    while (!queue.empty()) {
      const std::shared_ptr<Promotion> next = queue.front();
      if (next->state == Promotion::State::kQueued && next->for_fetch == (i == 0)) {
        std::uint64_t bytes = 0;
        for (const std::uint64_t slot_bytes : next->on_disk->slot_bytes) bytes += slot_bytes;
        if (promoting_bytes_ > 0 && promoting_bytes_ + bytes > disk_options_.promotion_bytes_max) {
          return;
        }
        BeginPromotionLocked(next, outside);
      }
      outside->ended.push_back(next);
      queue.pop_front();
    }
  }
}

bool TieredStore::IsWantedLocked(const Promotion& promotion) {
  return promotion.read_ahead ||
         std::any_of(promotion.waiters.begin(), promotion.waiters.end(),
                     [](const Promotion::Waiter& waiter) { return !waiter.waiting->ended; });
}

SteadyTime TieredStore::DeadlineOfLocked(const Promotion& promotion) {
  if (promotion.read_ahead) return SteadyTime::max();
  SteadyTime deadline = SteadyTime::min();
  for (const Promotion::Waiter& waiter : promotion.waiters) {
    if (!waiter.waiting->ended) deadline = std::max(deadline, waiter.waiting->deadline);
  }
  return deadline;
}

bool TieredStore::IsToBeReadAnewLocked(const Promotion& promotion) const {
  const bool not_read =
      absl::IsCancelled(promotion.status) || absl::IsDeadlineExceeded(promotion.status);
  return not_read && !stop_ && IsWantedLocked(promotion) &&
         DeadlineOfLocked(promotion) > options_.clock->Now();
}

void TieredStore::QueueAnewLocked(const std::shared_ptr<Promotion>& promotion) {
  for (const Promotion::Slot& slot : promotion->slots) {
    promotion->ns->AbortWrite(slot.pin, slot.part);
  }
  promotion->slots.clear();
  promoting_bytes_ -= std::exchange(promotion->bytes, 0);
  promotion->cancelled = false;
  promotion->status = absl::OkStatus();
  promotion->state = Promotion::State::kQueued;
  ++queued_promotions_;
  promotion_queues_[promotion->for_fetch ? 0 : 1].push_back(promotion);
}

void TieredStore::DropUnwantedLocked(Outside* outside) {
  for (const auto& [key, promotion] : promotions_) {
    if (promotion->state != Promotion::State::kReading || promotion->cancelled) continue;
    if (IsWantedLocked(*promotion)) continue;
    promotion->cancelled = true;
    outside->cancels.push_back(promotion->token);
  }
  for (auto& queue : promotion_queues_) {
    for (const std::shared_ptr<Promotion>& promotion : queue) {
      if (promotion->state != Promotion::State::kQueued || IsWantedLocked(*promotion)) continue;
      promotion->status = absl::CancelledError("nobody waits for it any more");
      EndPromotionLocked(*promotion, outside);
    }
    // What has ended is let go of outside the lock, with whatever its waiters hold.
    const auto live = std::stable_partition(queue.begin(), queue.end(),
                                            [](const std::shared_ptr<Promotion>& promotion) {
                                              return promotion->state == Promotion::State::kQueued;
                                            });
    outside->ended.insert(outside->ended.end(), live, queue.end());
    queue.erase(live, queue.end());
  }
}

void TieredStore::FailQueuedLocked(const absl::Status& status, Outside* outside) {
  for (auto& queue : promotion_queues_) {
    for (const std::shared_ptr<Promotion>& promotion : queue) {
      outside->ended.push_back(promotion);
      if (promotion->state != Promotion::State::kQueued) continue;
      promotion->status = status;
      EndPromotionLocked(*promotion, outside);
    }
    queue.clear();
  }
}

// ---- One block ----

void TieredStore::BeginPromotionLocked(const std::shared_ptr<Promotion>& promotion,
                                       Outside* outside) {
  const bool in_ram = promotion->ns->FindVisible(promotion->key) != kNoBlock;
  if (!in_ram) promotion->status = ReserveSlotsLocked(*promotion);
  if (in_ram || !promotion->status.ok()) {
    EndPromotionLocked(*promotion, outside);
    return;
  }
  promotion->state = Promotion::State::kReading;
  --queued_promotions_;
  promotion->parts_left = promotion->slots.size();
  promotion->token = disk_store_->NewToken();
  const IoPriority priority = promotion->for_fetch ? IoPriority::kFetch : IoPriority::kPrefetch;
  const SteadyTime deadline = DeadlineOfLocked(*promotion);
  for (std::size_t i = 0; i < promotion->slots.size(); ++i) {
    const Promotion::Slot& slot = promotion->slots[i];
    const std::uint64_t slot_bytes = promotion->on_disk->slot_bytes[slot.part];
    promotion->bytes += slot_bytes;
    NamespaceStore& ns = *promotion->ns;
    const Extent extent = ns.group(ns.GroupOf(slot.part)).ExtentOf(slot.pin.slot);
    const std::span<std::byte> memory = extent.region->bytes().subspan(extent.offset, slot_bytes);
    // The one place where the tier is read for clients.
    outside->reads.push_back([this, promotion, i, part = slot.part, memory, priority, deadline,
                              token = promotion->token] {
      DiskReadOptions options{.priority = priority, .deadline = deadline, .token = token};
      options.given_up = [this, promotion, i](absl::Status status) {
        GiveUpRead(promotion, i, std::move(status));
      };
      disk_store_->Read(
          promotion->disk.places[part], promotion->disk.parts[part], memory,
          [this, promotion, i](absl::Status status) { EndRead(promotion, i, std::move(status)); },
          options);
    });
  }
  promoting_bytes_ += promotion->bytes;
}

absl::Status TieredStore::ReserveSlotsLocked(Promotion& promotion) {
  const std::shared_ptr<NamespaceStore>& ns = promotion.ns;
  if (!promotion.on_disk->index.IsAlive(promotion.disk.block)) {
    return absl::NotFoundError("deleted while it waited to be read");
  }
  const BlockKey parent = promotion.on_disk->index.ParentKeyOf(promotion.disk.block.id);
  const auto chain = ns->LookUp(parent, {&promotion.key, 1});
  // Somebody has begun to store it as another's child: keys that lie about their chain.
  if (!chain.ok() && ns->FindVisible(parent) != kNoBlock) return absl::NotFoundError("no chain");
  // The ancestors of what is promoted are not to make room for it.
  NamespaceStore::Chain guarded;
  if (chain.ok()) guarded = *chain;
  ns->Protect(guarded);
  BlockId id = guarded.blocks.empty() ? kNoBlock : guarded.blocks[0];
  absl::Status status;
  for (std::uint32_t part = 0; status.ok() && part < ns->layout().PartCount(); ++part) {
    if (ns->HasPart(id, part)) continue;
    const std::uint32_t group = ns->GroupOf(part);
    TakeRegionsLocked(ns, group, 1);
    const std::optional<SlotId> slot = ns->Reserve(group, promotion.youngest_victim);
    if (!slot.has_value()) {
      if (promotion.youngest_victim > 0) RequestRegionLocked(ns, group);
      status = absl::ResourceExhaustedError("no room in RAM");
      break;
    }
    const BlockRef block = ns->AddWriter(promotion.key, parent, id);
    id = block.id;
    promotion.slots.push_back({{block, *slot}, part});
  }
  ns->Unprotect(guarded);
  return status;
}

void TieredStore::EndRead(const std::shared_ptr<Promotion>& promotion, std::size_t slot,
                          absl::Status status) {
  Outside outside;
  {
    MutexLock lock(mu_);
    Promotion::Slot& read = promotion->slots[slot];
    if (std::exchange(read.io, PartIo::kEnded) == PartIo::kUnderWay) {
      NoteReadLocked(promotion, std::move(status), &outside);
    } else if (promotion->state == Promotion::State::kEnded) {
      promotion->ns->AbortWrite(read.pin, read.part);
      SettleLocked(promotion->ns);
    }
  }
  RunOutside(outside);
}

void TieredStore::GiveUpRead(const std::shared_ptr<Promotion>& promotion, std::size_t slot,
                             absl::Status status) {
  Outside outside;
  {
    MutexLock lock(mu_);
    PartIo& io = promotion->slots[slot].io;
    if (io == PartIo::kEnded) return;
    io = PartIo::kGivenUp;
    NoteReadLocked(promotion, std::move(status), &outside);
  }
  RunOutside(outside);
}

void TieredStore::NoteReadLocked(const std::shared_ptr<Promotion>& promotion, absl::Status status,
                                 Outside* outside) {
  // A part that was given up is the promotion's end, whatever became of the others.
  const bool counts = promotion->status.ok() || absl::IsUnavailable(status);
  if (!status.ok() && counts) promotion->status = std::move(status);
  if (--promotion->parts_left > 0) return;
  if (IsToBeReadAnewLocked(*promotion)) {
    QueueAnewLocked(promotion);
  } else {
    EndPromotionLocked(*promotion, outside);
  }
  BeginPromotionsLocked(outside);
}

void TieredStore::EndPromotionLocked(Promotion& promotion, Outside* outside) {
  const std::shared_ptr<NamespaceStore> ns = promotion.ns;
  const SteadyTime now = options_.clock->Now();
  if (promotion.state == Promotion::State::kQueued) --queued_promotions_;
  promotion.state = Promotion::State::kEnded;
  promoting_bytes_ -= promotion.bytes;
  for (const Promotion::Slot& slot : promotion.slots) {
    if (slot.io == PartIo::kGivenUp) continue;  // EndRead() lets go of it
    if (promotion.status.ok()) {
      ns->CommitWrite(slot.pin, slot.part, promotion.disk.parts[slot.part].checksum, now);
    } else {
      ns->AbortWrite(slot.pin, slot.part);
    }
  }
  promotions_.erase({ns.get(), promotion.key});
  disk_index_->Unpin(*promotion.on_disk, promotion.disk);
  if (promotion.status.ok()) {
    NotePromotedLocked(promotion);
  } else if (!absl::IsCancelled(promotion.status) &&
             (!absl::IsDeadlineExceeded(promotion.status) || IsWantedLocked(promotion))) {
    NoteFailedLocked(promotion);
  }
  disk_index_->Settle(ns->fingerprint());
  const BlockId id = promotion.status.ok() ? ns->FindVisible(promotion.key) : kNoBlock;
  for (const Promotion::Waiter& waiter : promotion.waiters) {
    ResolveLocked(waiter.waiting, waiter.index, id, promotion.status, outside);
  }
  SettleLocked(ns);
  idle_changed_.NotifyAll();
}

void TieredStore::NotePromotedLocked(const Promotion& promotion) {
  NamespaceStore& ns = *promotion.ns;
  const BlockId id = ns.FindVisible(promotion.key);
  if (!promotion.slots.empty()) {
    ++shared_.counters.promoted_blocks;
    if (promotion.read_ahead) {
      ++shared_.counters.read_ahead_blocks;
      if (promotion.for_fetch) {
        ++shared_.counters.read_ahead_used_blocks;
      } else if (id != kNoBlock) {
        ns.NoteReadAhead(promotion.key);
      }
    }
  }
  if (id != kNoBlock) ns.Touch(ns.index().RefOf(id));
}

void TieredStore::NoteFailedLocked(const Promotion& promotion) {
  // What was read ahead and found no room failed nobody.
  if (promotion.waiters.empty() && absl::IsResourceExhausted(promotion.status)) return;
  ++shared_.counters.promotion_failures;
  const bool damaged = absl::IsDataLoss(promotion.status);
  if (damaged) ++shared_.counters.damaged_blocks;
  // What cannot be read now may be readable later; what is wrong stays wrong.
  const bool gone = damaged || (absl::IsNotFound(promotion.status) && !promotion.slots.empty());
  if (gone && promotion.on_disk->index.IsAlive(promotion.disk.block)) {
    DropFromDiskLocked(*promotion.ns, *promotion.on_disk, promotion.disk.block.id);
  }
}

void TieredStore::DropFromDiskLocked(NamespaceStore& ns, DiskNamespace& on_disk, BlockId id) {
  const BlockKey key = on_disk.index.KeyOf(id);
  const DiskIndex::PinnedBlock last = disk_index_->Pin(on_disk, id, ns.PayloadBytes());
  disk_index_->Drop(on_disk, id);
  disk_store_->Forget(last.places);
  disk_index_->Unpin(on_disk, last);
  ns.directory().Update(key, ns.indices());
}

void TieredStore::OnDiskEvicted(const DiskNamespace& on_disk, const BlockKey& key) {
  const auto found = namespaces_.find(on_disk.fingerprint);
  ++shared_.counters.disk_evicted_blocks;
  if (found != namespaces_.end()) {
    found->second->directory().Update(key, {found->second->index(), &on_disk.index});
  }
}

}  // namespace kavern::tiers
