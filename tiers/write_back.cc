// From RAM to disk: blocks that became visible are written back.
//
// The disk holds what RAM holds, and more: a block is written some time after it became visible
// (write_back_queue.h says when), and when RAM evicts it, it is still there.

#include <algorithm>
#include <future>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/copy_and_checksum.h"
#include "base/units.h"
#include "tiers/disk_jobs.h"
#include "tiers/namespace_store.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {
namespace {

constexpr char kNoneBefore[] = "a block before it is not on disk";

// The nearest block before an orphan that is not on disk; zero: there is none, for the keys on disk
// do not chain.
BlockKey MissingBefore(const DiskNamespace& on_disk, BlockId orphan) {
  absl::flat_hash_set<BlockId> met;
  for (BlockId id = orphan; met.insert(id).second;) {
    const BlockKey parent = on_disk.index.ParentKeyOf(id);
    id = on_disk.index.Find(parent);
    if (id == kNoBlock) return parent;
  }
  return {};
}

}  // namespace

WriteBackQueue::Options TieredStore::QueueOptions() const {
  WriteBackQueue::Options options;
  if (!options_.disk.has_value()) return options;
  options.mode = disk_options_.write_back;
  options.idle_time = disk_options_.write_back_idle;
  const std::uint64_t capacity = options_.ram.capacity_bytes;
  options.waiting_bytes_max =
      capacity - capacity * std::min(disk_options_.clean_percent, 100U) / 100;
  return options;
}

void TieredStore::QueueWriteLocked(const std::shared_ptr<NamespaceStore>& ns, const BlockKey& key,
                                   DiskDurability durability) {
  const BlockRef block = ns->index().RefOf(ns->index().Find(key));
  if (ns->UseToWrite(block).has_value()) PushWriteLocked(ns, key, durability);
}

void TieredStore::QueueStrictLocked(const std::shared_ptr<NamespaceStore>& ns,
                                    std::span<const BlockKey> keys) {
  const DiskNamespace* on_disk = ns->disk();
  absl::flat_hash_set<BlockKey> met;
  std::vector<BlockKey> chain;
  for (const BlockKey& key : keys) {
    chain.clear();
    for (BlockKey at = key; met.insert(at).second;) {
      const BlockId disk_id = DiskIndex::FindBlock(on_disk, at);
      // All that is before it is there, too.
      if (disk_id != kNoBlock && !on_disk->index.IsOrphan(disk_id)) break;
      const BlockId id = ns->FindVisible(at);
      if (id == kNoBlock && disk_id == kNoBlock) break;
      if (id != kNoBlock && ns->UseToWrite(ns->index().RefOf(id)).has_value()) chain.push_back(at);
      // One that is on its way may have overtaken what is before it.
      at = id != kNoBlock ? ns->index().ParentKeyOf(id) : on_disk->index.ParentKeyOf(disk_id);
    }
    for (auto above = chain.rbegin(); above != chain.rend(); ++above) {
      PushWriteLocked(ns, *above, DiskDurability::kStrict);
    }
  }
}

void TieredStore::PushWriteLocked(const std::shared_ptr<NamespaceStore>& ns, const BlockKey& key,
                                  DiskDurability durability) {
  const BlockRef block = ns->index().RefOf(ns->index().Find(key));
  std::uint64_t bytes = 0;
  for (const std::uint64_t slot_bytes : ns->SlotBytes()) bytes += slot_bytes;
  write_back_.Push({ns, block, key, bytes, durability, ns->LastUse(key), options_.clock->Now()});
  write_due_ = true;
  mover_changed_.NotifyAll();
}

// ---- Choosing ----

std::shared_ptr<TieredStore::WriteJob> TieredStore::NextWriteLocked(SteadyTime now, Calls* calls) {
  budget_waits_until_.reset();
  std::deque<WriteBackQueue::Entry> lost;
  std::shared_ptr<WriteJob> job;
  while (job == nullptr) {
    const WriteBackQueue::Entry* due = write_back_.Due(now, write_all_ > 0, &lost);
    if (due == nullptr) break;
    if (!budget_.Take(now, due->bytes)) {
      budget_waits_until_ = budget_.WhenEnough(now, due->bytes);
      if (*budget_waits_until_ == SteadyTime::max()) {
        const WriteBackQueue::Entry entry = write_back_.Pop();
        budget_waits_until_.reset();
        ++shared_.counters.disk_declined_blocks;
        SettleDurableLocked(entry.ns.get(), entry.key, "it is larger than nvme.write_burst", calls);
        continue;
      }
      if (due->durability != DiskDurability::kStrict) break;
      // Endurance is a hard limit: whoever waits is told, and the block waits like any other.
      WriteBackQueue::Entry entry = write_back_.Pop();
      SettleDurableLocked(entry.ns.get(), entry.key, "the write budget is used up", calls);
      entry.durability = DiskDurability::kBatch;
      write_back_.Push(std::move(entry));
      continue;
    }
    const WriteBackQueue::Entry entry = write_back_.Pop();
    job = BeginWriteLocked(entry, calls);
    if (job == nullptr) budget_.Return(entry.bytes);
  }
  CountLostLocked(lost, calls);
  write_due_ = job != nullptr;
  return job;
}

void TieredStore::CountLostLocked(const std::deque<WriteBackQueue::Entry>& lost, Calls* calls) {
  for (const WriteBackQueue::Entry& entry : lost) {
    // The others are on disk, or on their way there.
    if (entry.ns->index().IsAlive(entry.block)) continue;
    ++shared_.counters.disk_lost_blocks;
    SettleDurableLocked(entry.ns.get(), entry.key, "it left RAM before it could be written", calls);
  }
}

std::shared_ptr<TieredStore::WriteJob> TieredStore::BeginWriteLocked(
    const WriteBackQueue::Entry& entry, Calls* calls) {
  const std::shared_ptr<NamespaceStore>& ns = entry.ns;
  const BlockId id = entry.block.id;
  const BlockKey key = entry.key;
  DiskNamespace& on_disk = disk_index_->Open(ns->fingerprint(), ns->SlotBytes());
  auto job = std::make_shared<WriteJob>();
  job->ns = ns;
  job->on_disk = &on_disk;
  job->key = key;
  job->parent = ns->index().ParentKeyOf(id);
  job->durability = entry.durability;
  auto reservation = disk_index_->Reserve(on_disk, key, job->parent);
  if (!reservation.has_value()) {
    ++shared_.counters.disk_declined_blocks;
    disk_index_->Settle(ns->fingerprint());
    SettleDurableLocked(ns.get(), key, "there is no room on disk", calls);
    return nullptr;
  }
  job->reservation = *std::move(reservation);
  job->last_use = ns->LastUse(key);
  const std::vector<std::uint64_t> payload_bytes = ns->PayloadBytes();
  const auto part_count = ns->layout().PartCount();
  const std::uint64_t sequence = disk_store_->NextSequence();
  for (std::uint32_t part = 0; part < part_count; ++part) {
    const auto pin = ns->PinForRead(id, part);
    if (!pin.has_value()) break;
    job->pins.push_back(*pin);
    const Extent extent = ns->group(ns->GroupOf(part)).ExtentOf(pin->slot);
    const std::uint64_t slot_bytes = on_disk.slot_bytes[part];
    job->checksums.push_back(ns->ChecksumOf(id, part));
    job->parts.push_back({job->reservation.places[part],
                          {.fingerprint = ns->fingerprint(),
                           .key = key,
                           .parent = job->parent,
                           .part = part,
                           .part_count = part_count,
                           .payload_bytes = payload_bytes[part],
                           .checksum = job->checksums.back(),
                           .sequence = sequence},
                          extent.region->bytes().subspan(extent.offset, slot_bytes),
                          entry.durability});
    job->bytes += slot_bytes;
  }
  job->writes.resize(job->parts.size(), PartIo::kUnderWay);
  job->writes_left = job->parts.size();
  job->parts_left = job->parts.size();
  writing_bytes_ += job->bytes;
  write_jobs_[job->reservation.number] = job;
  return job;
}

// ---- Writing ----

absl::Status TieredStore::PrepareWrite(const WriteJob& job) {
  if (job.parts.size() != job.checksums.size() ||
      job.parts.size() != job.reservation.places.size()) {
    return absl::ResourceExhaustedError("its memory is pinned as often as can be counted");
  }
  for (const DiskIndex::NewSegment& segment : job.reservation.new_segments) {
    auto written = std::make_shared<std::promise<absl::Status>>();
    disk_store_->WriteSegment(segment, [this, segment, written](const absl::Status& status) {
      if (status.ok()) {
        MutexLock lock(mu_);
        disk_index_->SegmentWritten(segment);
      }
      written->set_value(status);
    });
    if (!disk_store_->Empties(segment)) continue;
    if (absl::Status status = written->get_future().get(); !status.ok()) return status;
  }
  // What a client has damaged in shared memory does not get any further.
  for (const DiskStore::PartWrite& part : job.parts) {
    const std::uint32_t seed = PartChecksumSeed(part.part.key, part.part.part);
    if (Crc32c(part.payload.first(part.part.payload_bytes), seed) != part.part.checksum) {
      return absl::DataLossError("it was damaged in RAM");
    }
  }
  return absl::OkStatus();
}

void TieredStore::RunWrite(const std::shared_ptr<WriteJob>& job) {
  const absl::Status ready = PrepareWrite(*job);
  if (ready.ok()) {
    for (std::size_t part = 0; part < job->parts.size(); ++part) {
      disk_store_->Write(
          job->parts[part],
          [this, job, part](const absl::Status& ended) { EndWritten(job, part, ended); },
          [this, job](const absl::Status& ended) { EndDurable(job, ended); },
          [this, job, part](const absl::Status& why) { GiveUpWrite(job, part, why); });
    }
    return;
  }
  Calls calls;
  {
    MutexLock lock(mu_);
    job->status = ready;
    for (std::uint32_t part = 0; part < job->pins.size(); ++part) {
      job->ns->UnpinRead(job->pins[part], job->ns->GroupOf(part));
    }
    if (absl::IsDataLoss(ready)) job->ns->DropDamaged(job->pins.front().block);
    budget_.Return(job->bytes);
    writing_bytes_ -= job->bytes;
    EndJobLocked(job, &calls);
  }
  Make(calls);
}

void TieredStore::EndWritten(const std::shared_ptr<WriteJob>& job, std::size_t part,
                             const absl::Status& status) {
  Calls calls;
  {
    MutexLock lock(mu_);
    const bool given_up = std::exchange(job->writes[part], PartIo::kEnded) == PartIo::kGivenUp;
    if (given_up) --job->given_up;
    if (--job->writes_left == 0) {
      for (std::uint32_t pin = 0; pin < job->pins.size(); ++pin) {
        job->ns->UnpinRead(job->pins[pin], job->ns->GroupOf(pin));
      }
      if (given_up) SettleLocked(job->ns);
    }
    UncountWriteLocked(*job);
    if (!given_up && !status.ok()) {
      job->status = status;
      if (--job->parts_left == 0) EndJobLocked(job, &calls);
    }
  }
  Make(calls);
}

void TieredStore::GiveUpWrite(const std::shared_ptr<WriteJob>& job, std::size_t part,
                              const absl::Status& status) {
  Calls calls;
  {
    MutexLock lock(mu_);
    if (job->writes[part] == PartIo::kEnded) return;
    job->writes[part] = PartIo::kGivenUp;
    ++job->given_up;
    UncountWriteLocked(*job);
    job->status = status;
    if (--job->parts_left == 0) EndJobLocked(job, &calls);
  }
  Make(calls);
}

void TieredStore::UncountWriteLocked(WriteJob& job) {
  if (job.writes_left > job.given_up) return;
  writing_bytes_ -= std::exchange(job.bytes, 0);
  mover_changed_.NotifyAll();
}

void TieredStore::EndDurable(const std::shared_ptr<WriteJob>& job, const absl::Status& status) {
  Calls calls;
  {
    MutexLock lock(mu_);
    if (!status.ok()) job->status = status;
    if (--job->parts_left == 0) EndJobLocked(job, &calls);
  }
  Make(calls);
}

void TieredStore::EndJobLocked(const std::shared_ptr<WriteJob>& job, Calls* calls) {
  // Parents are what clients say, and could name each other: only an earlier one is waited for.
  const auto parent = job->on_disk->writing.find(job->parent);
  if (parent != job->on_disk->writing.end() && parent->second < job->reservation.number) {
    const auto before = write_jobs_.find(parent->second);
    if (before != write_jobs_.end()) {
      before->second->followers.push_back(job);
      return;
    }
  }
  std::vector<std::shared_ptr<WriteJob>> done = {job};
  while (!done.empty()) {
    const std::shared_ptr<WriteJob> next = std::move(done.back());
    done.pop_back();
    write_jobs_.erase(next->reservation.number);
    done.insert(done.end(), next->followers.begin(), next->followers.end());
    FinishWriteLocked(*next, calls);
  }
}

void TieredStore::FinishWriteLocked(WriteJob& job, Calls* calls) {
  std::string failure;
  if (job.status.ok()) {
    const bool kept =
        disk_index_->Commit(*job.on_disk, job.key, job.parent, job.reservation, job.checksums,
                            std::max(job.last_use, job.ns->LastUse(job.key)));
    if (kept) {
      ++shared_.counters.disk_stored_blocks;
      job.ns->directory().Update(job.key, job.ns->indices());
    } else {
      failure = "it was deleted meanwhile";
    }
  } else {
    disk_index_->Abort(*job.on_disk, job.key, job.reservation);
    ++shared_.counters.disk_declined_blocks;
    failure = std::string(job.status.message());
    if (failure.empty()) failure = job.status.ToString();
  }
  TellFollowers(job, failure);
  if (!failure.empty() || !job.failure_before.empty()) {
    SettleDurableLocked(job.ns.get(), job.key, failure.empty() ? job.failure_before : failure,
                        calls);
  } else {
    SettleWrittenLocked(job.ns, job.key, !job.unsynced, calls);
  }
  disk_index_->Settle(job.ns->fingerprint());
  SettleLocked(job.ns);
  mover_changed_.NotifyAll();
  idle_changed_.NotifyAll();
}

void TieredStore::TellFollowers(WriteJob& job, const std::string& failure) {
  job.unsynced |= job.durability == DiskDurability::kNone;
  for (const std::shared_ptr<WriteJob>& follower : job.followers) {
    follower->unsynced = job.unsynced;
    follower->failure_before = !failure.empty()
                                   ? absl::StrCat("the block before it is not on disk: ", failure)
                                   : job.failure_before;
  }
}

// ---- Strict commits ----

void TieredStore::AwaitDurableLocked(const std::shared_ptr<NamespaceStore>& ns,
                                     std::span<const BlockKey> keys, DurableDone done,
                                     Calls* calls) {
  if (keys.empty()) {
    calls->push_back([done = std::move(done)] { done({}); });
    return;
  }
  auto wait = std::make_shared<DurableWait>();
  wait->left = keys.size();
  wait->deadline = options_.clock->Now() + disk_options_.write_timeout;
  wait->done = std::move(done);
  commits_waiting_.push_back(wait);
  const absl::Status refusal = WriteRefusalLocked();
  for (const BlockKey& key : keys) {
    if (!refusal.ok()) {
      SettleOne(wait, std::string(refusal.message()), calls);
      continue;
    }
    durable_waits_[{ns.get(), key}].push_back(wait);
    // Somebody else's block, of whatever class.
    if (ns->IsOnDisk(key)) {
      SettleWrittenLocked(ns, key, /*synced=*/false, calls);
    } else if (ns->FindVisible(key) == kNoBlock) {
      SettleDurableLocked(ns.get(), key, "it left the cache before it was durable", calls);
    }
  }
  mover_changed_.NotifyAll();
}

void TieredStore::SettleWrittenLocked(const std::shared_ptr<NamespaceStore>& ns,
                                      const BlockKey& key, bool synced, Calls* calls) {
  const auto found = durable_waits_.find({ns.get(), key});
  if (found == durable_waits_.end()) return;
  const DiskNamespace& on_disk = *ns->disk();
  const BlockId id = DiskIndex::FindBlock(&on_disk, key);
  if (!on_disk.index.IsOrphan(id)) {
    if (synced) {
      SettleDurableLocked(ns.get(), key, "", calls);
    } else {
      SettleAfterSyncLocked(ns, key);
    }
    return;
  }
  const BlockKey missing = MissingBefore(on_disk, id);
  if (ns->FindVisible(missing) == kNoBlock) {
    SettleDurableLocked(ns.get(), key, kNoneBefore, calls);
    return;
  }
  // Whoever waits for this block waits for that one from now on: its sync comes after this write.
  QueueStrictLocked(ns, {&missing, 1});
  const auto waits = std::move(found->second);
  durable_waits_.erase(found);
  auto& joined = durable_waits_[{ns.get(), missing}];
  joined.insert(joined.end(), waits.begin(), waits.end());
}

void TieredStore::SettleAllDurableLocked(std::string_view reason, Calls* calls) {
  for (const auto& [where, waits] : std::exchange(durable_waits_, {})) {
    for (const auto& wait : waits) SettleOne(wait, reason, calls);
  }
}

void TieredStore::SettleAfterSyncLocked(const std::shared_ptr<NamespaceStore>& ns,
                                        const BlockKey& key) {
  // What is in the catalog becomes durable by a sync, of whatever class it is.
  disk_store_->Sync([this, ns, key](const absl::Status& status) {
    Calls calls;
    {
      MutexLock lock(mu_);
      std::string reason(status.message());
      if (status.ok()) {
        // Its device may have failed in between, and then it is dropped by now.
        const BlockId id = DiskIndex::FindBlock(ns->disk(), key);
        if (id == kNoBlock) {
          reason = "it left the disk meanwhile";
        } else if (ns->disk()->index.IsOrphan(id)) {
          reason = kNoneBefore;
        }
      }
      SettleDurableLocked(ns.get(), key, reason, &calls);
    }
    Make(calls);
  });
}

void TieredStore::SettleDurableLocked(const NamespaceStore* ns, const BlockKey& key,
                                      std::string_view reason, Calls* calls) {
  const auto found = durable_waits_.find({ns, key});
  if (found == durable_waits_.end()) return;
  const auto waits = std::move(found->second);
  durable_waits_.erase(found);
  for (const std::shared_ptr<DurableWait>& wait : waits) SettleOne(wait, reason, calls);
}

void TieredStore::SettleOne(const std::shared_ptr<DurableWait>& wait, std::string_view reason,
                            Calls* calls) {
  if (wait->ended) return;
  if (reason.empty()) {
    ++wait->result.blocks;
  } else if (wait->result.reason.empty()) {
    wait->result.reason = reason;
  }
  if (--wait->left > 0) return;
  wait->ended = true;
  calls->push_back([wait] { wait->done(std::move(wait->result)); });
}

void TieredStore::ExpireCommitsLocked(SteadyTime now, Calls* calls) {
  while (!commits_waiting_.empty() &&
         (commits_waiting_.front()->ended || commits_waiting_.front()->deadline <= now || stop_)) {
    const std::shared_ptr<DurableWait> late = std::move(commits_waiting_.front());
    commits_waiting_.pop_front();
    if (late->ended) continue;
    late->left = 1;
    SettleOne(late, stop_ ? "the daemon stops" : "the disk took longer than nvme.write_timeout",
              calls);
  }
  if (commits_waiting_.empty()) durable_waits_.clear();
}

void TieredStore::Make(const Calls& calls) {
  for (const std::function<void()>& call : calls) call();
}

}  // namespace kavern::tiers
