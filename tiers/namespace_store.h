// Everything about one namespace: its blocks, the slots that hold their parts, its directory.
//
// Not thread-safe: the store's lock guards it, but for what is fixed after construction. Does no
// I/O and copies no payload.
#ifndef KAVERN_TIERS_NAMESPACE_STORE_H_
#define KAVERN_TIERS_NAMESPACE_STORE_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "base/clock.h"
#include "base/namespace_spec.h"
#include "tiers/conversations.h"
#include "tiers/group_slots.h"
#include "tiers/index/block_index.h"
#include "tiers/namespace_directory.h"
#include "tiers/policy/eviction_policy.h"
#include "tiers/store_shared.h"
#include "tiers/turn_timings.h"

namespace kavern::tiers {

class NamespaceStore {
 public:
  // `spec` is valid and every slot fits a region. `shared` must outlive the namespace.
  NamespaceStore(std::string tenant, NamespaceSpec spec, const NamespaceFingerprint& fingerprint,
                 std::unique_ptr<EvictionPolicy> policy, std::uint64_t region_bytes,
                 StoreShared& shared);
  NamespaceStore(const NamespaceStore&) = delete;
  NamespaceStore& operator=(const NamespaceStore&) = delete;

  // ---- Fixed after construction ----
  const NamespaceFingerprint& fingerprint() const { return fingerprint_; }
  const std::string& tenant() const { return tenant_; }
  const NamespaceSpec& spec() const { return spec_; }
  const KvLayout& layout() const { return spec_.layout; }
  std::uint32_t GroupOf(std::uint32_t part) const {
    return part % static_cast<std::uint32_t>(spec_.layout.groups.size());
  }

  // ---- Reading ----
  // Length of the longest visible prefix.
  std::uint32_t MatchPrefix(std::span<const BlockKey> keys) const;
  // In RAM; kNoBlock: absent or not visible.
  BlockId FindVisible(const BlockKey& key) const;
  // All of the block is on disk.
  bool IsOnDisk(const BlockKey& key) const { return DiskIndex::FindBlock(disk(), key) != kNoBlock; }
  // What of this namespace is on disk; nullptr: nothing.
  DiskNamespace* disk() const {
    return shared_.disk == nullptr ? nullptr : shared_.disk->Find(fingerprint_);
  }
  // By part.
  std::vector<std::uint64_t> PayloadBytes() const;
  std::vector<std::uint64_t> SlotBytes() const;

  // A pinned part. The block is alive as long as its ref is; the slot keeps its bytes until it is
  // unpinned.
  struct Pin {
    BlockRef block;
    SlotId slot = kNoSlot;
  };
  // `id` is visible. nullopt: pinned as often as can be counted.
  std::optional<Pin> PinForRead(BlockId id, std::uint32_t part);
  void UnpinRead(const Pin& pin, std::uint32_t group);
  std::uint32_t ChecksumOf(BlockId id, std::uint32_t part) const {
    return index_.PartsOf(id)[part].checksum;
  }
  // A use, in every tier that has the block.
  void Touch(BlockRef block);
  // 0: it is not in RAM.
  UseSequence LastUse(const BlockKey& key) const;
  // Its last use, while it is in RAM and neither on disk nor on its way there.
  std::optional<UseSequence> UseToWrite(BlockRef block) const;

  // ---- Storing ----
  // A store's chain in the index: parent and keys, kNoBlock where absent.
  struct Chain {
    BlockId parent = kNoBlock;
    std::vector<BlockId> blocks;
  };
  // InvalidArgument: the parent is neither root nor in RAM nor on disk; a key that is known has
  // another parent than the one before it.
  absl::StatusOr<Chain> LookUp(const BlockKey& parent, std::span<const BlockKey> keys) const;
  // While a chain is protected none of its blocks is evicted. Each Protect is matched by one
  // Unprotect.
  void Protect(const Chain& chain);
  void Unprotect(const Chain& chain);
  bool HasPart(BlockId id, std::uint32_t part) const;
  // Whether one more block may be pending: those of several parts may stay so for long.
  bool CanAddPending(std::uint64_t pending_max) const {
    return layout().PartCount() == 1 || PendingCount() < pending_max;
  }

  // Adds a writer of a slot that Reserve() gave; `id` is kNoBlock for a block that is absent yet.
  BlockRef AddWriter(const BlockKey& key, const BlockKey& parent, BlockId id);

  enum class CommitOutcome : std::uint8_t {
    kCommitted,
    kRaced,  // another writer had committed the part: the slot was freed
    kGone,   // the block was dropped meanwhile: the slot was freed, nothing published
  };
  // Ends a write. The last part makes the block visible: to the index, then to the directory.
  CommitOutcome CommitWrite(const Pin& write, std::uint32_t part, std::uint32_t checksum,
                            SteadyTime now);
  void AbortWrite(const Pin& write, std::uint32_t part);

  // ---- Dropping ----
  // The oldest use of what could be evicted now, whatever its class.
  std::optional<UseSequence> OldestUse() const;
  // For room of the namespace's own: evicts the block whose turn it is, if it was not used after
  // `youngest_victim`. False: nothing was evicted.
  bool EvictNext(UseSequence youngest_victim);
  // For somebody else: evicts the block whose last use is the longest ago, whatever its class. A
  // priority neither keeps memory from other namespaces nor costs them any.
  bool EvictOldest();
  // From the directory first, then from the index; slots that no lease pins are free then.
  void DropBlock(BlockId id);
  // Drops all that is in RAM, pending ones too; returns how many were visible there and not on
  // disk.
  std::uint64_t DropAll();
  // Drops from RAM `block` where it is on disk too, has no child in RAM and nobody uses it; then
  // its parent likewise, and so on. Returns how many.
  std::uint64_t Demote(BlockRef block);
  // False: it was dropped before.
  bool DropDamaged(BlockRef block);
  // Drops blocks that have some part since `before` but still not all.
  void DropOldIncomplete(SteadyTime before);

  // ---- Conversations (namespace_conversations.cc) ----
  // The conversation's leaf is `leaf`, which is visible or on disk; its `told` lacks what the
  // namespace knows by itself.
  const Conversation& TellConversation(std::string_view name, ConversationTable::Told told,
                                       std::vector<ConversationTable::Left>* left);
  // A conversation is not at the block any more.
  void LeaveAnchor(const ConversationTable::Left& left);

  // ---- Memory ----
  // A slot of the group, by eviction where need be; pinned once by the caller. Nothing used after
  // `youngest_victim` is evicted for it; 0: nothing at all.
  std::optional<SlotId> Reserve(std::uint32_t group, UseSequence youngest_victim = UINT64_MAX);
  GroupSlots& group(std::uint32_t group) { return groups_[group]; }
  const GroupSlots& group(std::uint32_t group) const { return groups_[group]; }
  void AddRegion(std::uint32_t group, std::shared_ptr<Region> region, SteadyTime now);
  std::uint32_t region_count() const;
  // No block in any tier, and no slot in use.
  bool IsEmpty() const { return HasEmptyMemory() && disk() == nullptr; }
  // No block in RAM, and no slot in use.
  bool HasEmptyMemory() const;
  // A namespace without blocks in RAM keeps no regions, one without any keeps no directory.
  void RetireIfEmpty();

  // A region that could be given up, and how recently it was of use. No slot of it is pinned. One
  // that no block was in yet stays with its namespace if it came after `granted_before`: or it
  // might never get to use it.
  struct Surplus {
    RegionOrdinal ordinal;
    UseSequence last_use;
  };
  std::optional<Surplus> FindSurplus(std::uint32_t group, SteadyTime granted_before) const;

  // A part on its way to another slot; both slots are pinned.
  struct Move {
    Pin from;
    SlotId to;
    std::uint32_t part;
    std::span<const std::byte> source;
    std::span<std::byte> destination;
  };
  enum class DrainState : std::uint8_t {
    kDrained,  // no slot is in use
    kMoving,   // copy what was planned (perhaps nothing), FinishMoves(), then plan again
    kBlocked,  // leases, or nothing to evict
  };
  // Plans a few steps of emptying a region: evicts until the rest fits elsewhere, then moves.
  DrainState PlanDrain(std::uint32_t group, RegionOrdinal ordinal, std::vector<Move>* moves);
  // The bytes are copied. Parts that were dropped or leased meanwhile stay where they are.
  void FinishMoves(std::uint32_t group, std::span<const Move> moves);
  void RetireRegion(std::uint32_t group, RegionOrdinal ordinal);

  // ---- The store's own notes ----
  // Since it last asked for a region the group has evicted as much as one holds: perhaps it should
  // get one.
  bool EvictedARegionsWorth(std::uint32_t group) const {
    return notes_[group].evictions_since_asked >= groups_[group].slots_per_region();
  }
  struct GroupNotes {
    bool wants_region = false;  // is in the rebalancer's queue
    std::uint64_t evictions_since_asked = 0;
  };
  GroupNotes& notes(std::uint32_t group) { return notes_[group]; }
  // Blocks in RAM that were read ahead, and that nobody has fetched yet.
  void NoteReadAhead(const BlockKey& key) { read_ahead_.insert(key); }
  // True: it was one of them, and is none any more.
  bool TakeReadAhead(const BlockKey& key) {
    return !read_ahead_.empty() && read_ahead_.erase(key) > 0;
  }
  // Guards itself: for any thread, with the store's lock or without.
  TurnTimings& timings() { return timings_; }
  const TurnTimings& timings() const { return timings_; }
  std::uint64_t refs = 0;  // open NamespaceRefs
  std::uint64_t fetch_hit_blocks = 0;
  std::uint64_t fetch_miss_blocks = 0;

  TierIndices indices() const {
    const DiskNamespace* on_disk = disk();
    return {index_, on_disk == nullptr ? nullptr : &on_disk->index};
  }
  NamespaceDirectory& directory() { return directory_; }
  const NamespaceDirectory& directory() const { return directory_; }
  const BlockIndex& index() const { return index_; }

  NamespaceStatus Status() const;
  std::uint64_t UsedBytes() const;
  std::uint64_t LeasedBytes() const;
  std::uint64_t MemoryBytes() const;

  // Recounts everything (namespace_audit.cc). Internal says what differs.
  absl::Status Audit() const;

 private:
  struct Incomplete {
    BlockRef block;
    SteadyTime since;
  };

  std::uint64_t PendingCount() const { return index_.size() - index_.visible_count(); }
  bool IsIncomplete(BlockRef ref) const;
  void NoteIncomplete(BlockRef ref, SteadyTime now);
  void Forget(BlockId id);
  bool Evict(const std::optional<EvictionPolicy::Choice>& victim);
  // What eviction knows of a block goes on to its parent, once the block is gone.
  struct Legacy {
    BlockId parent = kNoBlock;
    EvictionClass eviction_class = kPlainClass;
    UseSequence last_use = 0;
  };
  Legacy TakeLegacy(BlockId id);
  void PassOn(const Legacy& legacy);
  // Gives a block the class that its conversations call for; kPlainClass where there is none.
  void Reclass(BlockId id);
  // Evicts a few blocks where the group's other regions lack room for what the region holds. False:
  // nothing left to evict.
  bool MakeRoomOutside(std::uint32_t group, RegionOrdinal ordinal);
  std::string AuditParts(std::uint32_t part_count, std::uint64_t* owned) const;
  std::string AuditClasses() const;

  const std::string tenant_;
  const NamespaceSpec spec_;
  const NamespaceFingerprint fingerprint_;
  StoreShared& shared_;

  const std::unique_ptr<EvictionPolicy> policy_;
  BlockIndex index_;
  NamespaceDirectory directory_;
  TurnTimings timings_;
  std::vector<GroupSlots> groups_;
  std::vector<GroupNotes> notes_;
  // By age. Blocks that are complete or gone by now are skipped, and swept out when they are the
  // most.
  std::deque<Incomplete> incomplete_;
  absl::flat_hash_set<BlockKey> read_ahead_;
  std::uint64_t read_pins_ = 0;   // held by read leases
  std::uint64_t write_pins_ = 0;  // held by write leases
  std::uint64_t move_pins_ = 0;   // held by moves
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NAMESPACE_STORE_H_
