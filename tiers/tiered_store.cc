#include "tiers/tiered_store.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/copy_and_checksum.h"
#include "base/status_macros.h"
#include "base/units.h"
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
  KAVERN_ASSIGN_OR_RETURN(auto pool, RegionPool::Create(options.ram));
  return std::unique_ptr<TieredStore>(new TieredStore(std::move(options), events, std::move(pool)));
}

TieredStore::TieredStore(TieredStoreOptions options, StoreEvents& events,
                         std::unique_ptr<RegionPool> pool)
    : options_(std::move(options)), shared_{.events = events}, pool_(std::move(pool)) {
  pool_->SetReadyCallback([this] {
    MutexLock lock(mu_);
    WakeLocked();
  });
  background_ = std::thread([this] { BackgroundLoop(); });
}

TieredStore::~TieredStore() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    WakeLocked();
  }
  background_.join();
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
  lease.slot_bytes_ = slot_bytes;
  lease.grants_.reserve(wanted);
  grant.outcomes.assign(blocks.size(), StoreOutcome::kDeclined);
  std::size_t i = 0;
  for (; i < blocks.size(); ++i) {
    if (ns->HasPart(blocks[i], part)) {
      grant.outcomes[i] = StoreOutcome::kExists;
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
    std::shared_ptr<Region> region = pool_->Take();
    if (region == nullptr) return;
    ns->AddRegion(group, std::move(region), options_.clock->Now());
  }
}

std::string TieredStore::DeclineReasonLocked(const NamespaceStore& ns, std::uint32_t group) const {
  if (ns.group(group).region_count() > 0) return "ram tier is full of leased blocks";
  const std::string waiting_for = pool_->GetStatus().waiting_for;
  if (!waiting_for.empty()) return absl::StrCat("waiting for memory: ", waiting_for);
  return "waiting for memory: every region is in use, one is being freed";
}

absl::StatusOr<std::uint32_t> TieredStore::CommitStore(WriteLease& lease, std::uint32_t first,
                                                       std::span<const std::uint32_t> checksums) {
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
  if (grants.empty()) return 0;
  const SteadyTime now = options_.clock->Now();
  MutexLock lock(mu_);
  NamespaceStore& ns = *lease.ns_;
  std::uint32_t published = 0;
  for (std::size_t i = 0; i < grants.size(); ++i) {
    WriteLease::Grant& grant = grants[i];
    grant.done = true;
    ++lease.done_;
    switch (ns.CommitWrite({grant.block, grant.slot}, lease.part_, checksums[i], now)) {
      case NamespaceStore::CommitOutcome::kGone:
        continue;
      case NamespaceStore::CommitOutcome::kRaced:
        ++shared_.counters.store_raced_blocks;
        break;
      case NamespaceStore::CommitOutcome::kCommitted:
        ++shared_.counters.store_blocks;
        shared_.counters.store_bytes += grant.extent.length;
        break;
    }
    ++published;
  }
  for (auto grant = grants.rbegin(); grant != grants.rend(); ++grant) ns.Touch(grant->block);
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
  KAVERN_RETURN_IF_ERROR(CheckPart(ns.ns_->layout(), shard, group));
  if (keys.empty()) return absl::InvalidArgumentError("keys: got none, expected at least one");
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
  const std::vector<ReadLease::Pinned>& pinned = result.lease.pinned_;
  for (auto pin = pinned.rbegin(); pin != pinned.rend(); ++pin) ns.ns_->Touch(pin->block);
  const std::uint64_t hits = pinned.size();
  ns.ns_->fetch_hit_blocks += hits;
  ns.ns_->fetch_miss_blocks += result.missing.size();
  shared_.counters.fetch_hit_blocks += hits;
  shared_.counters.fetch_miss_blocks += result.missing.size();
  shared_.counters.fetch_bytes += hits * ns.ns_->layout().PartBytes(group);
  return result;
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
  MutexLock lock(mu_);
  const auto found = namespaces_.find(fingerprint);
  if (found == namespaces_.end()) {
    return absl::NotFoundError(absl::StrCat("namespace ", fingerprint.ToHex(), " is not known"));
  }
  const std::shared_ptr<NamespaceStore> ns = found->second;
  const std::uint64_t visible = ns->DropAll();
  SettleLocked(ns);
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

void TieredStore::Housekeep() {
  const SteadyTime before = options_.clock->Now() - options_.incomplete_age_max;
  std::vector<std::shared_ptr<NamespaceStore>> all;
  {
    MutexLock lock(mu_);
    all.reserve(namespaces_.size());
    for (const auto& [fingerprint, ns] : namespaces_) all.push_back(ns);
  }
  for (const std::shared_ptr<NamespaceStore>& ns : all) {
    MutexLock lock(mu_);
    if (ns->IsEmpty()) continue;
    ns->DropOldIncomplete(before);
    ns->directory().Retry(ns->index());
    SettleLocked(ns);
  }
  MutexLock lock(mu_);
  if (!starving_.empty() || !growing_.empty()) WakeLocked();
}

// ---- Facts ----

StoreStatus TieredStore::GetStatus() const {
  StoreStatus status;
  status.pool = pool_->GetStatus();
  MutexLock lock(mu_);
  status.namespaces = namespaces_.size();
  for (const auto& [fingerprint, ns] : namespaces_) {
    status.assigned_bytes += ns->region_count() * options_.ram.region_bytes;
    status.used_bytes += ns->UsedBytes();
    status.leased_bytes += ns->LeasedBytes();
    status.index_bytes += ns->MemoryBytes();
    status.directory_bytes += ns->directory().size_bytes();
    status.namespaces_degraded += ns->directory().degraded() ? 1 : 0;
    status.blocks += ns->index().visible_count();
  }
  return status;
}

StoreCounters TieredStore::GetCounters() const {
  MutexLock lock(mu_);
  return shared_.counters;
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
