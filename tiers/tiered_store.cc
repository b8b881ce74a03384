#include "tiers/tiered_store.h"

#include <algorithm>
#include <future>
#include <random>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/copy_and_checksum.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "tiers/disk_jobs.h"
#include "tiers/namespace_store.h"

namespace kavern::tiers {
namespace {

absl::Status CheckPart(const KvLayout& layout, std::uint32_t shard, std::uint32_t group) {
  if (shard >= layout.shard_count) {
    return absl::InvalidArgumentError(
        absl::StrCat("shard: got ", shard, ", expected less than ", layout.shard_count));
  }
  if (group >= layout.groups.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("group: got ", group, ", expected less than ", layout.groups.size()));
  }
  return absl::OkStatus();
}

absl::Status CheckKeys(const BlockKey& root, const BlockKey& parent,
                       std::span<const BlockKey> keys) {
  if (keys.empty()) return absl::InvalidArgumentError("keys: got none, expected at least one");
  absl::flat_hash_set<BlockKey> seen;
  seen.reserve(keys.size() + 1);
  seen.insert(parent);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (keys[i].IsZero() || keys[i] == root) {
      return absl::InvalidArgumentError(
          absl::StrCat("keys[", i, "]: got ", keys[i].ToHex(), ", which is no block's key"));
    }
    if (!seen.insert(keys[i]).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("keys[", i, "]: ", keys[i].ToHex(), " is given twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<TieredStore>> TieredStore::Create(TieredStoreOptions options,
                                                                 StoreEvents& events) {
  if (MakeEvictionPolicy(options.eviction_policy) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("eviction policy: got \"", options.eviction_policy, "\", which is unknown"));
  }
  std::unique_ptr<DiskStore> disk;
  if (options.disk.has_value()) {
    options.disk->store.clock = options.clock;
    KAVERN_ASSIGN_OR_RETURN(disk, DiskStore::Open(options.disk->store));
  }
  KAVERN_ASSIGN_OR_RETURN(auto pool, RegionPool::Create(options.ram));
  return std::unique_ptr<TieredStore>(
      new TieredStore(std::move(options), events, std::move(pool), std::move(disk)));
}

TieredStore::TieredStore(TieredStoreOptions options, StoreEvents& events,
                         std::unique_ptr<RegionPool> pool, std::unique_ptr<DiskStore> disk)
    : options_(std::move(options)),
      disk_options_(options_.disk.value_or(TieredStoreOptions::Disk{})),
      shared_{.events = events, .conversations = ConversationTable(options_.conversations)},
      disk_store_(std::move(disk)),
      write_back_(
          QueueOptions(),
          [](const WriteBackQueue::Entry& entry) { return entry.ns->UseToWrite(entry.block); }),
      budget_(disk_options_.write_budget, options_.clock->Now(), UINT64_MAX),
      pool_(std::move(pool)) {
  if (disk_store_ != nullptr) {
    DiskIndex::Options index;
    index.segments = disk_store_->segment_counts();
    index.segment_bytes = disk_store_->segment_bytes();
    index.eviction_policy = options_.eviction_policy;
    index.on_evicted = [this](const DiskNamespace& on_disk, const BlockKey& key) {
      OnDiskEvicted(on_disk, key);
    };
    index.new_epoch = [random = std::make_shared<std::random_device>()] {
      return std::uint64_t{(*random)()} << 32 | (*random)();
    };
    disk_index_ = std::make_unique<DiskIndex>(std::move(index));
    disk_store_->SetOnDeviceFailed([this](std::uint32_t device) { OnDiskFailed(device); });
    disk_recovering_ = true;
    shared_.disk = disk_index_.get();
  }
  pool_->SetReadyCallback([this] {
    MutexLock lock(mu_);
    WakeLocked();
  });
  background_ = NamedThread("store", [this] { BackgroundLoop(); });
  if (disk_store_ == nullptr) return;
  mover_ = NamedThread("disk-mover", [this] { MoverLoop(); });
  fetch_timer_ = NamedThread("fetch-timer", [this] { FetchTimerLoop(); });
  if (disk_options_.scrub_bytes_per_second > 0) {
    scrubber_ = std::make_unique<Scrubber>(disk_options_.scrub_bytes_per_second,
                                           [this] { return ScrubNext(); });
  }
}

TieredStore::~TieredStore() {
  scrubber_.reset();
  Outside outside;
  {
    MutexLock lock(mu_);
    stop_ = true;
    WakeLocked();
    mover_changed_.NotifyAll();
    timer_changed_.NotifyAll();
    FailQueuedLocked(absl::UnavailableError("the store ends"), &outside);
  }
  RunOutside(outside);
  background_.join();
  if (mover_.joinable()) mover_.join();
  if (fetch_timer_.joinable()) fetch_timer_.join();
  // What it has under way calls back, and asks it for nothing new any more.
  if (disk_store_ != nullptr) disk_store_->Stop();
  disk_store_.reset();
  pool_.reset();  // its thread calls back
}

// ---- Namespaces ----

absl::StatusOr<NamespaceRef> TieredStore::OpenNamespace(const std::string& tenant,
                                                        const NamespaceSpec& spec) {
  KAVERN_RETURN_IF_ERROR(spec.Validate());
  const std::uint64_t region_bytes = options_.ram.region_bytes;
  for (std::uint32_t group = 0; group < spec.layout.groups.size(); ++group) {
    if (spec.layout.SlotBytes(group) > region_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "layout.groups[", group, "]: a part takes ", FormatBytes(spec.layout.SlotBytes(group)),
          ", expected at most a region, ", FormatBytes(region_bytes)));
    }
  }
  const NamespaceFingerprint fingerprint = Fingerprint(tenant, spec);
  MutexLock lock(mu_);
  auto found = namespaces_.find(fingerprint);
  if (found == namespaces_.end()) {
    if (namespaces_.size() >= options_.namespaces_max) {
      return absl::ResourceExhaustedError(
          absl::StrCat("namespaces: all ", options_.namespaces_max, " are open or hold blocks"));
    }
    auto ns = std::make_shared<NamespaceStore>(tenant, spec, fingerprint,
                                               MakeEvictionPolicy(options_.eviction_policy),
                                               region_bytes, shared_);
    // What a former daemon left on disk.
    if (ns->disk() != nullptr) ns->directory().Rebuild(ns->indices());
    found = namespaces_.emplace(fingerprint, std::move(ns)).first;
  }
  NamespaceRef ref;
  ref.store_ = this;
  ref.ns_ = found->second;
  ++ref.ns_->refs;
  return ref;
}

void TieredStore::CloseNamespace(NamespaceRef& ref) {
  MutexLock lock(mu_);
  --ref.ns_->refs;
  SettleLocked(ref.ns_);
}

void TieredStore::SettleLocked(const std::shared_ptr<NamespaceStore>& ns) {
  if (ns->IsEmpty()) {
    ns->RetireIfEmpty();
    // Another one of this name may be in the table by now.
    const auto found = namespaces_.find(ns->fingerprint());
    if (ns->refs == 0 && found != namespaces_.end() && found->second == ns) {
      shared_.conversations.DropNamespace(ns->fingerprint());
      namespaces_.erase(found);
    }
  }
  if (waits_for_leases_ || !shared_.retired_regions.empty() ||
      !shared_.retired_directories.empty()) {
    WakeLocked();
  }
}

// ---- Storing ----

absl::StatusOr<StoreGrant> TieredStore::BeginStore(const NamespaceRef& ns,
                                                   const StoreRequest& request) {
  const NamespaceStore& fixed = *ns.ns_;
  KAVERN_RETURN_IF_ERROR(CheckPart(fixed.layout(), request.shard, request.group));
  KAVERN_RETURN_IF_ERROR(CheckKeys(fixed.fingerprint().RootKey(), request.parent, request.keys));
  MutexLock lock(mu_);
  KAVERN_ASSIGN_OR_RETURN(const NamespaceStore::Chain chain,
                          ns.ns_->LookUp(request.parent, request.keys));
  ns.ns_->Protect(chain);
  StoreGrant grant = GrantLocked(ns.ns_, request, chain.blocks);
  ns.ns_->Unprotect(chain);
  SettleLocked(ns.ns_);
  return grant;
}

StoreGrant TieredStore::GrantLocked(const std::shared_ptr<NamespaceStore>& ns,
                                    const StoreRequest& request, std::span<const BlockId> blocks) {
  const std::uint32_t part = ns->layout().PartIndex(request.shard, request.group);
  const std::uint64_t slot_bytes = ns->layout().SlotBytes(request.group);
  const std::uint64_t grants_max = request.grant_bytes_max / slot_bytes;
  std::uint64_t wanted = 0;
  for (const BlockId block : blocks) wanted += ns->HasPart(block, part) ? 0 : 1;
  TakeRegionsLocked(ns, request.group, std::min(wanted, grants_max));

  StoreGrant grant;
  WriteLease& lease = grant.lease;
  lease.store_ = this;
  lease.ns_ = ns;
  lease.part_ = part;
  if (options_.disk.has_value()) {
    lease.durability_ = request.durability.value_or(disk_options_.durability);
  }
  const bool is_strict = options_.disk.has_value() && lease.durability_ == DiskDurability::kStrict;
  lease.slot_bytes_ = slot_bytes;
  lease.grants_.reserve(wanted);
  grant.outcomes.assign(blocks.size(), StoreOutcome::kDeclined);
  std::size_t i = 0;
  for (; i < blocks.size(); ++i) {
    if (ns->HasPart(blocks[i], part) || (blocks[i] == kNoBlock && ns->IsOnDisk(request.keys[i]))) {
      grant.outcomes[i] = StoreOutcome::kExists;
      if (is_strict) lease.existing_.push_back(request.keys[i]);
      ++shared_.counters.store_exists_blocks;
      continue;
    }
    if (lease.grants_.size() >= grants_max) {
      grant.decline_reason = "the session's lease quota is used up";
      break;
    }
    if (blocks[i] == kNoBlock && !ns->CanAddPending(options_.incomplete_blocks_max)) {
      grant.decline_reason = "too many incomplete blocks";
      break;
    }
    const std::optional<SlotId> slot = ns->Reserve(request.group);
    if (!slot.has_value()) {
      grant.decline_reason = DeclineReasonLocked(*ns, request.group);
      RequestRegionLocked(ns, request.group);
      break;
    }
    const BlockKey& parent = i == 0 ? request.parent : request.keys[i - 1];
    const BlockRef block = ns->AddWriter(request.keys[i], parent, blocks[i]);
    lease.grants_.push_back(
        {request.keys[i], block, *slot, ns->group(request.group).ExtentOf(*slot)});
    grant.outcomes[i] = StoreOutcome::kGranted;
  }
  shared_.counters.store_declined_blocks += blocks.size() - i;
  if (ns->EvictedARegionsWorth(request.group)) RequestRegionLocked(ns, request.group);
  return grant;
}

void TieredStore::TakeRegionsLocked(const std::shared_ptr<NamespaceStore>& ns, std::uint32_t group,
                                    std::uint64_t slots) {
  while (ns->group(group).free_count() < slots && !OthersStarveLocked(*ns, group)) {
    std::shared_ptr<Region> region = TakeRegion();
    if (region == nullptr) return;
    ns->AddRegion(group, std::move(region), options_.clock->Now());
  }
}

std::shared_ptr<Region> TieredStore::TakeRegion() {
  std::shared_ptr<Region> region = pool_->Take();
  if (region != nullptr && disk_store_ != nullptr) disk_store_->RegisterMemory(region->bytes());
  return region;
}

std::string TieredStore::DeclineReasonLocked(const NamespaceStore& ns, std::uint32_t group) const {
  if (ns.group(group).region_count() > 0) return "ram tier is full of leased blocks";
  const std::string waiting_for = pool_->GetStatus().waiting_for;
  if (!waiting_for.empty()) return absl::StrCat("waiting for memory: ", waiting_for);
  return "waiting for memory: every region is in use, one is being freed";
}

absl::StatusOr<std::uint32_t> TieredStore::CommitStore(WriteLease& lease, std::uint32_t first,
                                                       std::span<const std::uint32_t> checksums,
                                                       DurableDone done) {
  if (first > lease.size() || checksums.size() > lease.size() - first) {
    return absl::InvalidArgumentError(
        absl::StrCat("first, checksums: got blocks ", first, " to ", first + checksums.size(),
                     ", expected a range within the lease's ", lease.size()));
  }
  const auto grants = std::span(lease.grants_).subspan(first, checksums.size());
  for (const WriteLease::Grant& grant : grants) {
    if (grant.done) {
      return absl::InvalidArgumentError(
          absl::StrCat("first: ", grant.key.ToHex(), " was committed before"));
    }
  }
  Calls calls;
  const std::uint32_t published = [&] {
    MutexLock lock(mu_);
    return PublishLocked(lease, grants, checksums, std::move(done), &calls);
  }();
  Make(calls);
  return published;
}

std::uint32_t TieredStore::PublishLocked(WriteLease& lease, std::span<WriteLease::Grant> grants,
                                         std::span<const std::uint32_t> checksums, DurableDone done,
                                         Calls* calls) {
  const SteadyTime now = options_.clock->Now();
  std::uint32_t published = 0;
  std::vector<BlockKey> complete;
  for (std::size_t i = 0; i < grants.size(); ++i) {
    WriteLease::Grant& grant = grants[i];
    grant.done = true;
    ++lease.done_;
    const auto outcome =
        lease.ns_->CommitWrite({grant.block, grant.slot}, lease.part_, checksums[i], now);
    if (outcome == NamespaceStore::CommitOutcome::kGone) continue;
    ++published;
    const bool is_complete = lease.ns_->index().IsVisible(grant.block.id);
    if (is_complete) complete.push_back(grant.key);
    if (outcome == NamespaceStore::CommitOutcome::kRaced) {
      ++shared_.counters.store_raced_blocks;
    } else {
      ++shared_.counters.store_blocks;
      shared_.counters.store_bytes += grant.extent.length;
    }
  }
  for (auto grant = grants.rbegin(); grant != grants.rend(); ++grant) {
    lease.ns_->Touch(grant->block);
  }
  const bool waits = disk_store_ != nullptr && lease.durability_ == DiskDurability::kStrict;
  if (waits) {
    // Of those that exist, whoever commits the last part of one that is not complete is told.
    for (const BlockKey& key : std::exchange(lease.existing_, {})) {
      const BlockId id = lease.ns_->index().Find(key);
      const bool incomplete = id != kNoBlock && !lease.ns_->index().IsVisible(id);
      if (!incomplete || lease.ns_->IsOnDisk(key)) complete.push_back(key);
    }
    QueueStrictLocked(lease.ns_, complete);
  } else if (disk_store_ != nullptr) {
    for (const BlockKey& key : complete) QueueWriteLocked(lease.ns_, key, lease.durability_);
  }
  if (done != nullptr) {
    if (!waits) complete.clear();
    AwaitDurableLocked(lease.ns_, complete, std::move(done), calls);
  }
  SettleLocked(lease.ns_);
  return published;
}

void TieredStore::EndWrite(WriteLease& lease) {
  MutexLock lock(mu_);
  for (WriteLease::Grant& grant : lease.grants_) {
    if (!grant.done) lease.ns_->AbortWrite({grant.block, grant.slot}, lease.part_);
  }
  SettleLocked(lease.ns_);
}

// ---- Reading ----

absl::StatusOr<FetchResult> TieredStore::Fetch(const NamespaceRef& ns,
                                               std::span<const BlockKey> keys, std::uint32_t shard,
                                               std::uint32_t group, std::uint64_t lease_bytes_max) {
  KAVERN_RETURN_IF_ERROR(CheckFetch(ns, keys, shard, group));
  FetchResult result;  // before the lock: a lease that is given up takes it
  const std::uint64_t parts_max = lease_bytes_max / ns.ns_->layout().SlotBytes(group);
  std::vector<BlockId> blocks;
  blocks.reserve(keys.size());
  MutexLock lock(mu_);
  std::uint64_t visible = 0;
  for (const BlockKey& key : keys) {
    blocks.push_back(ns.ns_->FindVisible(key));
    visible += blocks.back() != kNoBlock ? 1 : 0;
  }
  if (visible > parts_max) {
    return absl::ResourceExhaustedError(absl::StrCat("lease quota: ", visible,
                                                     " blocks are there, the session may pin ",
                                                     parts_max, " more of this size"));
  }
  PinLocked(ns.ns_, blocks, shard, group, &result);
  std::vector<BlockRef> hits;
  hits.reserve(result.lease.pinned_.size());
  for (const ReadLease::Pinned& pin : result.lease.pinned_) hits.push_back(pin.block);
  CountFetchLocked(*ns.ns_, group, hits, 0, result.missing.size());
  return result;
}

absl::Status TieredStore::CheckFetch(const NamespaceRef& ns, std::span<const BlockKey> keys,
                                     std::uint32_t shard, std::uint32_t group) const {
  KAVERN_RETURN_IF_ERROR(CheckPart(ns.ns_->layout(), shard, group));
  if (keys.empty()) return absl::InvalidArgumentError("keys: got none, expected at least one");
  return absl::OkStatus();
}

void TieredStore::CountFetchLocked(NamespaceStore& ns, std::uint32_t group,
                                   std::span<const BlockRef> hits, std::uint64_t from_disk,
                                   std::uint64_t misses) {
  for (auto hit = hits.rbegin(); hit != hits.rend(); ++hit) ns.Touch(*hit);
  ns.fetch_hit_blocks += hits.size();
  ns.fetch_miss_blocks += misses;
  shared_.counters.fetch_hit_blocks += hits.size();
  shared_.counters.fetch_disk_blocks += from_disk;
  shared_.counters.fetch_disk_bytes += from_disk * ns.layout().PartBytes(group);
  shared_.counters.fetch_miss_blocks += misses;
  shared_.counters.fetch_bytes += hits.size() * ns.layout().PartBytes(group);
}

void TieredStore::PinLocked(const std::shared_ptr<NamespaceStore>& ns,
                            std::span<const BlockId> blocks, std::uint32_t shard,
                            std::uint32_t group, FetchResult* result) {
  const std::uint32_t part = ns->layout().PartIndex(shard, group);
  ReadLease& lease = result->lease;
  lease.store_ = this;
  lease.ns_ = ns;
  lease.group_ = group;
  lease.slot_bytes_ = ns->layout().SlotBytes(group);
  lease.parts_.reserve(blocks.size());
  lease.pinned_.reserve(blocks.size());
  for (std::uint32_t i = 0; i < blocks.size(); ++i) {
    const auto pin = blocks[i] == kNoBlock ? std::nullopt : ns->PinForRead(blocks[i], part);
    if (!pin.has_value()) {
      result->missing.push_back(i);
      continue;
    }
    lease.parts_.push_back(
        {i, ns->group(group).ExtentOf(pin->slot), ns->ChecksumOf(blocks[i], part)});
    lease.pinned_.push_back({pin->block, pin->slot});
    if (ns->TakeReadAhead(ns->index().KeyOf(blocks[i]))) ++shared_.counters.read_ahead_used_blocks;
  }
}

void TieredStore::EndRead(ReadLease& lease) {
  MutexLock lock(mu_);
  for (const ReadLease::Pinned& pin : lease.pinned_) {
    lease.ns_->UnpinRead({pin.block, pin.slot}, lease.group_);
  }
  SettleLocked(lease.ns_);
}

std::uint32_t TieredStore::Match(const NamespaceRef& ns, std::span<const BlockKey> keys) const {
  MutexLock lock(mu_);
  return ns.ns_->MatchPrefix(keys);
}

std::vector<Tier> TieredStore::MatchTiers(const NamespaceRef& ns,
                                          std::span<const BlockKey> keys) const {
  std::vector<Tier> tiers;
  MutexLock lock(mu_);
  for (const BlockKey& key : keys) {
    const bool in_ram = ns.ns_->FindVisible(key) != kNoBlock;
    if (!in_ram && !ns.ns_->IsOnDisk(key)) break;
    tiers.push_back(in_ram ? Tier::kRam : Tier::kNvme);
  }
  return tiers;
}

// ---- Dropping ----

absl::StatusOr<bool> TieredStore::CheckSuspect(const NamespaceRef& ns, const BlockKey& key,
                                               std::uint32_t shard, std::uint32_t group) {
  KAVERN_RETURN_IF_ERROR(CheckPart(ns.ns_->layout(), shard, group));
  FetchResult suspect;
  {
    MutexLock lock(mu_);
    const BlockId block = ns.ns_->FindVisible(key);
    PinLocked(ns.ns_, {&block, 1}, shard, group, &suspect);
  }
  if (suspect.lease.empty()) return false;
  const ReadLease::Part& part = suspect.lease.parts_[0];
  const std::uint32_t seed = PartChecksumSeed(key, ns.ns_->layout().PartIndex(shard, group));
  if (Crc32c(part.extent.bytes(), seed) == part.checksum) return false;
  MutexLock lock(mu_);
  return ns.ns_->DropDamaged(suspect.lease.pinned_[0].block);
}

absl::StatusOr<std::uint64_t> TieredStore::Purge(const NamespaceFingerprint& fingerprint) {
  std::uint64_t visible = 0;
  bool known = false;
  std::promise<absl::Status> purged;
  {
    MutexLock lock(mu_);
    const auto found = namespaces_.find(fingerprint);
    DiskNamespace* on_disk = disk_index_ == nullptr ? nullptr : disk_index_->Find(fingerprint);
    if (disk_recovering_) {
      return absl::UnavailableError("what is on disk is still being read: try again");
    }
    known = found != namespaces_.end() || on_disk != nullptr;
    const std::shared_ptr<NamespaceStore> ns = found == namespaces_.end() ? nullptr : found->second;
    if (ns != nullptr) visible = ns->DropAll();
    std::vector<DiskPlace> places;
    if (on_disk != nullptr) {
      const std::vector<BlockKey> keys = on_disk->index.AllKeys();
      visible += disk_index_->DropAll(*on_disk, &places);
      if (ns != nullptr) {
        for (const BlockKey& key : keys) ns->directory().Update(key, ns->indices());
      }
      disk_index_->Settle(fingerprint);
    }
    // Also where nothing is known of it by now: what was evicted left its headers there, and comes
    // back with a restart.
    if (disk_store_ == nullptr) {
      purged.set_value(absl::OkStatus());
    } else {
      disk_store_->Purge(fingerprint, places,
                         [&purged](absl::Status status) { purged.set_value(std::move(status)); });
    }
    if (ns != nullptr) SettleLocked(ns);
  }
  KAVERN_RETURN_IF_ERROR(purged.get_future().get());
  if (!known) {
    return absl::NotFoundError(absl::StrCat("namespace ", fingerprint.ToHex(), " is not known"));
  }
  return visible;
}

void TieredStore::AnnounceDirectory(const NamespaceRef& ns) {
  MutexLock lock(mu_);
  ns.ns_->directory().Announce();
}

std::uint64_t TieredStore::DirectoryGeneration(const NamespaceRef& ns) const {
  MutexLock lock(mu_);
  return ns.ns_->directory().generation();
}

std::uint64_t TieredStore::DirectoryGeneration(const WriteLease& lease) const {
  if (lease.ns_ == nullptr) return 0;
  MutexLock lock(mu_);
  return lease.ns_->directory().generation();
}

void TieredStore::LeaveMemory() {
  pool_->LeaveMemory();
}

std::string TieredStore::EndIo(std::chrono::milliseconds patience) {
  if (disk_store_ == nullptr) return "";
  return absl::StrJoin(disk_store_->EndIo(std::chrono::steady_clock::now() + patience), "; ");
}

void TieredStore::Housekeep() {
  EndConversations();
  const SteadyTime before = options_.clock->Now() - options_.incomplete_age_max;
  std::vector<std::shared_ptr<NamespaceStore>> all;
  {
    MutexLock lock(mu_);
    all.reserve(namespaces_.size());
    for (const auto& [fingerprint, ns] : namespaces_) all.push_back(ns);
  }
  for (const std::shared_ptr<NamespaceStore>& ns : all) {
    MutexLock lock(mu_);
    ns->DropOldIncomplete(before);
    ns->directory().Retry(ns->indices());
    SettleLocked(ns);
  }
  MutexLock lock(mu_);
  if (!starving_.empty() || !growing_.empty()) WakeLocked();
  if (disk_store_ != nullptr) {
    write_due_ = true;  // by the clock, perhaps
    mover_changed_.NotifyAll();
  }
}

// ---- Facts ----

StoreStatus TieredStore::GetStatus() const {
  StoreStatus status;
  status.pool = pool_->GetStatus();
  MutexLock lock(mu_);
  status.namespaces = namespaces_.size();
  status.conversations = shared_.conversations.size();
  status.index_bytes = shared_.conversations.MemoryBytes();
  for (const auto& [fingerprint, ns] : namespaces_) {
    status.assigned_bytes += ns->region_count() * options_.ram.region_bytes;
    status.used_bytes += ns->UsedBytes();
    status.leased_bytes += ns->LeasedBytes();
    status.index_bytes += ns->MemoryBytes();
    status.directory_bytes += ns->directory().size_bytes();
    status.namespaces_degraded += ns->directory().degraded() ? 1 : 0;
    status.blocks += ns->index().visible_count();
  }
  status.disk = DiskStatusLocked();
  return status;
}

StoreCounters TieredStore::GetCounters() const {
  MutexLock lock(mu_);
  StoreCounters counters = shared_.counters;
  counters.conversations_ended = shared_.conversations.ended();
  counters.conversations_displaced = shared_.conversations.displaced();
  return counters;
}

std::vector<NamespaceStatus> TieredStore::ListNamespaces() const {
  std::vector<NamespaceStatus> list;
  MutexLock lock(mu_);
  list.reserve(namespaces_.size());
  for (const auto& [fingerprint, ns] : namespaces_) list.push_back(ns->Status());
  return list;
}

absl::Status TieredStore::Audit() const {
  MutexLock lock(mu_);
  const RegionPool::Status pool = pool_->GetStatus();
  std::uint64_t regions = 0;
  if (disk_index_ != nullptr && !disk_recovering_) {
    if (const std::string wrong = disk_index_->Audit(); !wrong.empty()) {
      return absl::InternalError(wrong);
    }
  }
  if (const std::string wrong = shared_.conversations.Audit(); !wrong.empty()) {
    return absl::InternalError(wrong);
  }
  for (const auto& [fingerprint, ns] : namespaces_) {
    KAVERN_RETURN_IF_ERROR(ns->Audit());
    if (ns->IsEmpty() && ns->refs == 0) {
      return absl::InternalError(absl::StrCat("namespace ", fingerprint.ToHex(),
                                              " is empty and closed, but not forgotten"));
    }
    regions += ns->region_count();
  }
  if (regions != shared_.assigned_regions) {
    return absl::InternalError(absl::StrCat("namespaces own ", regions, " regions, ",
                                            shared_.assigned_regions, " were counted"));
  }
  if (regions * pool.region_bytes + pool.ready_bytes > pool.existing_bytes ||
      pool.existing_bytes > pool.capacity_bytes) {
    return absl::InternalError(
        absl::StrCat("regions: ", regions, " assigned and ", pool.ready_bytes, " bytes ready of ",
                     pool.existing_bytes, " existing, at most ", pool.capacity_bytes));
  }
  return absl::OkStatus();
}

}  // namespace kavern::tiers
