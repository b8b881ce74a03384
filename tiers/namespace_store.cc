#include "tiers/namespace_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kavern::tiers {

NamespaceStore::NamespaceStore(std::string tenant, NamespaceSpec spec,
                               const NamespaceFingerprint& fingerprint,
                               std::unique_ptr<EvictionPolicy> policy, std::uint64_t region_bytes,
                               StoreShared& shared)
    : tenant_(std::move(tenant)),
      spec_(std::move(spec)),
      fingerprint_(fingerprint),
      shared_(shared),
      policy_(std::move(policy)),
      index_(fingerprint.RootKey(), spec_.layout.PartCount(), *policy_),
      directory_(fingerprint, shared) {
  const auto group_count = static_cast<std::uint32_t>(layout().groups.size());
  groups_.reserve(group_count);
  for (std::uint32_t group = 0; group < group_count; ++group) {
    groups_.emplace_back(layout().PartBytes(group), layout().SlotBytes(group), region_bytes);
  }
  notes_.resize(group_count);
}

// ---- Reading ----

std::uint32_t NamespaceStore::MatchPrefix(std::span<const BlockKey> keys) const {
  std::uint32_t length = 0;
  while (length < keys.size() &&
         (FindVisible(keys[length]) != kNoBlock || IsOnDisk(keys[length]))) {
    ++length;
  }
  return length;
}

BlockId NamespaceStore::FindVisible(const BlockKey& key) const {
  const BlockId id = index_.Find(key);
  return id != kNoBlock && index_.IsVisible(id) ? id : kNoBlock;
}

std::vector<std::uint64_t> NamespaceStore::PayloadBytes() const {
  std::vector<std::uint64_t> bytes;
  for (std::uint32_t part = 0; part < layout().PartCount(); ++part) {
    bytes.push_back(layout().PartBytes(GroupOf(part)));
  }
  return bytes;
}

std::vector<std::uint64_t> NamespaceStore::SlotBytes() const {
  std::vector<std::uint64_t> bytes;
  for (std::uint32_t part = 0; part < layout().PartCount(); ++part) {
    bytes.push_back(layout().SlotBytes(GroupOf(part)));
  }
  return bytes;
}

std::optional<NamespaceStore::Pin> NamespaceStore::PinForRead(BlockId id, std::uint32_t part) {
  const SlotId slot = index_.PartsOf(id)[part].slot;
  if (!groups_[GroupOf(part)].Pin(slot)) return std::nullopt;
  ++read_pins_;
  index_.AddLease(id);
  return Pin{index_.RefOf(id), slot};
}

void NamespaceStore::UnpinRead(const Pin& pin, std::uint32_t group) {
  if (index_.IsAlive(pin.block)) index_.DropLease(pin.block.id);
  groups_[group].Unpin(pin.slot);
  --read_pins_;
}

void NamespaceStore::Touch(BlockRef block) {
  if (!index_.IsAlive(block)) return;
  index_.Touch(block.id, ++shared_.last_use);
  if (DiskNamespace* on_disk = disk(); on_disk != nullptr) {
    const BlockId id = on_disk->index.Find(index_.KeyOf(block.id));
    if (id != kNoBlock) on_disk->index.Touch(id, shared_.last_use);
  }
}

UseSequence NamespaceStore::LastUse(const BlockKey& key) const {
  const BlockId id = FindVisible(key);
  return id == kNoBlock ? 0 : policy_->LastUse(id);
}

std::optional<UseSequence> NamespaceStore::UseToWrite(BlockRef block) const {
  if (!index_.IsAlive(block) || !index_.IsVisible(block.id)) return std::nullopt;
  const BlockKey& key = index_.KeyOf(block.id);
  const DiskNamespace* on_disk = disk();
  if (on_disk != nullptr &&
      (on_disk->index.Find(key) != kNoBlock || on_disk->writing.contains(key))) {
    return std::nullopt;
  }
  return policy_->LastUse(block.id);
}

// ---- Storing ----

absl::StatusOr<NamespaceStore::Chain> NamespaceStore::LookUp(const BlockKey& parent,
                                                             std::span<const BlockKey> keys) const {
  Chain chain;
  if (parent != fingerprint_.RootKey()) {
    chain.parent = index_.Find(parent);
    if (chain.parent == kNoBlock && !IsOnDisk(parent)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "parent: ", parent.ToHex(), " is not cached (any more); store from an earlier block"));
    }
  }
  chain.blocks.reserve(keys.size());
  const BlockKey* previous = &parent;
  for (std::size_t i = 0; i < keys.size(); previous = &keys[i++]) {
    const BlockId id = index_.Find(keys[i]);
    if (id != kNoBlock && index_.ParentKeyOf(id) != *previous) {
      return absl::InvalidArgumentError(
          absl::StrCat("keys[", i, "]: ", keys[i].ToHex(), " is known as a child of ",
                       index_.ParentKeyOf(id).ToHex(), ", expected ", previous->ToHex()));
    }
    chain.blocks.push_back(id);
  }
  return chain;
}

void NamespaceStore::Protect(const Chain& chain) {
  if (chain.parent != kNoBlock) index_.AddLease(chain.parent);
  for (const BlockId id : chain.blocks) {
    if (id != kNoBlock) index_.AddLease(id);
  }
}

void NamespaceStore::Unprotect(const Chain& chain) {
  if (chain.parent != kNoBlock) index_.DropLease(chain.parent);
  for (const BlockId id : chain.blocks) {
    if (id != kNoBlock) index_.DropLease(id);
  }
}

bool NamespaceStore::HasPart(BlockId id, std::uint32_t part) const {
  return id != kNoBlock && index_.PartsOf(id)[part].slot != kNoSlot;
}

BlockRef NamespaceStore::AddWriter(const BlockKey& key, const BlockKey& parent, BlockId id) {
  if (id == kNoBlock) id = index_.InsertPending(key, parent);
  index_.AddWriter(id);
  ++write_pins_;
  return index_.RefOf(id);
}

NamespaceStore::CommitOutcome NamespaceStore::CommitWrite(const Pin& write, std::uint32_t part,
                                                          std::uint32_t checksum, SteadyTime now) {
  GroupSlots& slots = groups_[GroupOf(part)];
  --write_pins_;
  if (!index_.IsAlive(write.block)) {
    slots.Unpin(write.slot);
    return CommitOutcome::kGone;
  }
  const BlockId id = write.block.id;
  const bool committed = index_.CommitPart(id, part, {write.slot, checksum});
  if (committed) slots.SetOwner(write.slot, {id, part});
  slots.Unpin(write.slot);
  index_.DropWriter(id);
  if (!committed) return CommitOutcome::kRaced;
  if (index_.IsVisible(id)) {
    directory_.Update(index_.KeyOf(id), indices());
  } else {
    NoteIncomplete(write.block, now);
  }
  return CommitOutcome::kCommitted;
}

void NamespaceStore::AbortWrite(const Pin& write, std::uint32_t part) {
  --write_pins_;
  groups_[GroupOf(part)].Unpin(write.slot);
  if (!index_.IsAlive(write.block)) return;
  const std::uint64_t orphans = index_.orphan_count();
  if (index_.DropWriter(write.block.id) && index_.orphan_count() > orphans) {
    shared_.counters.orphaned_blocks += index_.orphan_count() - orphans;
  }
}

bool NamespaceStore::IsIncomplete(BlockRef ref) const {
  return index_.IsAlive(ref) && !index_.IsVisible(ref.id);
}

void NamespaceStore::NoteIncomplete(BlockRef ref, SteadyTime now) {
  const auto parts = index_.PartsOf(ref.id);
  const auto committed = std::count_if(parts.begin(), parts.end(),
                                       [](const BlockPart& part) { return part.slot != kNoSlot; });
  if (committed > 1) return;
  constexpr std::uint64_t kSweepMin = 1024;
  if (incomplete_.size() > kSweepMin + 2 * index_.incomplete_count()) {
    std::erase_if(incomplete_, [this](const Incomplete& old) { return !IsIncomplete(old.block); });
  }
  incomplete_.push_back({ref, now});
}

// ---- Dropping ----

std::optional<UseSequence> NamespaceStore::OldestUse() const {
  const auto oldest = policy_->Oldest();
  if (!oldest.has_value()) return std::nullopt;
  return oldest->last_use;
}

bool NamespaceStore::EvictNext(UseSequence youngest_victim) {
  const auto victim = policy_->Victim();
  return victim.has_value() && victim->last_use <= youngest_victim && Evict(victim);
}

bool NamespaceStore::EvictOldest() {
  return Evict(policy_->Oldest());
}

bool NamespaceStore::Evict(const std::optional<EvictionPolicy::Choice>& victim) {
  if (!victim.has_value()) return false;
  DropBlock(victim->id);
  ++shared_.counters.evicted_blocks;
  for (GroupNotes& notes : notes_) ++notes.evictions_since_asked;
  return true;
}

void NamespaceStore::DropBlock(BlockId id) {
  if (index_.IsVisible(id)) directory_.LeaveRam(index_.KeyOf(id), indices());
  const std::uint64_t orphans = index_.orphan_count() - (index_.IsOrphan(id) ? 1 : 0);
  const Legacy legacy = TakeLegacy(id);
  Forget(id);
  PassOn(legacy);
  if (index_.orphan_count() > orphans) {
    shared_.counters.orphaned_blocks += index_.orphan_count() - orphans;
  }
}

void NamespaceStore::Forget(BlockId id) {
  const auto parts = index_.PartsOf(id);
  TakeReadAhead(index_.KeyOf(id));
  for (std::uint32_t part = 0; part < parts.size(); ++part) {
    if (parts[part].slot != kNoSlot) groups_[GroupOf(part)].Disown(parts[part].slot);
  }
  index_.Remove(id);
}

std::uint64_t NamespaceStore::DropAll() {
  std::uint64_t visible = 0;
  shared_.conversations.DropNamespace(fingerprint_);
  // Children of what is forgotten wait as orphans for a moment: they are not counted, none of them
  // stays.
  for (const BlockId id : index_.AllBlocks()) {
    if (index_.IsVisible(id)) {
      visible += IsOnDisk(index_.KeyOf(id)) ? 0 : 1;
      directory_.LeaveRam(index_.KeyOf(id), indices());
    }
    Forget(id);
  }
  incomplete_.clear();
  return visible;
}

std::uint64_t NamespaceStore::Demote(BlockRef block) {
  if (!index_.IsAlive(block)) return 0;
  std::uint64_t dropped = 0;
  for (BlockId id = block.id; id != kNoBlock && index_.IsEvictable(id);) {
    if (!IsOnDisk(index_.KeyOf(id))) break;
    const BlockId parent = index_.Find(index_.ParentKeyOf(id));
    DropBlock(id);
    ++dropped;
    id = parent;
  }
  return dropped;
}

bool NamespaceStore::DropDamaged(BlockRef block) {
  if (!index_.IsAlive(block)) return false;
  DropBlock(block.id);
  ++shared_.counters.damaged_blocks;
  return true;
}

void NamespaceStore::DropOldIncomplete(SteadyTime before) {
  while (!incomplete_.empty()) {
    const Incomplete oldest = incomplete_.front();
    if (IsIncomplete(oldest.block)) {
      if (oldest.since >= before) return;
      DropBlock(oldest.block.id);
      ++shared_.counters.expired_blocks;
    }
    incomplete_.pop_front();
  }
}

// ---- Facts ----

NamespaceStatus NamespaceStore::Status() const {
  NamespaceStatus status;
  status.fingerprint = fingerprint_;
  status.tenant = tenant_;
  status.spec = spec_;
  status.blocks = index_.visible_count();
  const DiskNamespace* on_disk = disk();
  status.disk_blocks = on_disk == nullptr ? 0 : on_disk->index.visible_count();
  status.incomplete_blocks = index_.incomplete_count();
  status.regions = region_count();
  for (const GroupSlots& slots : groups_) {
    status.slots += slots.slot_count();
    status.slots_used += slots.used_count();
  }
  status.refs = refs;
  status.conversations = shared_.conversations.CountIn(fingerprint_);
  status.fetch_hit_blocks = fetch_hit_blocks;
  status.fetch_miss_blocks = fetch_miss_blocks;
  status.directory_degraded = directory_.degraded();
  status.costs = timings_.Costs();
  return status;
}

std::uint64_t NamespaceStore::UsedBytes() const {
  std::uint64_t bytes = 0;
  for (const GroupSlots& slots : groups_) bytes += slots.used_count() * slots.slot_bytes();
  return bytes;
}

std::uint64_t NamespaceStore::LeasedBytes() const {
  std::uint64_t bytes = 0;
  for (const GroupSlots& slots : groups_) bytes += slots.pinned_count() * slots.slot_bytes();
  return bytes;
}

std::uint64_t NamespaceStore::MemoryBytes() const {
  std::uint64_t bytes = sizeof(*this) + index_.MemoryBytes() + policy_->MemoryBytes() +
                        incomplete_.size() * sizeof(Incomplete);
  for (const GroupSlots& slots : groups_) bytes += slots.MemoryBytes();
  return bytes;
}

}  // namespace kavern::tiers
