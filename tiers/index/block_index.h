// The blocks of one namespace: who is whose parent, which parts are there, who holds them.
//
// A pure state machine: no I/O, no thread, no clock, no memory but its own. The store that owns it
// serializes calls. Slots are opaque numbers here (tiers/ram/slot_allocator.h gives them meaning).
#ifndef KAVERN_TIERS_INDEX_BLOCK_INDEX_H_
#define KAVERN_TIERS_INDEX_BLOCK_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/hash/hash.h"
#include "base/block_key.h"
#include "tiers/policy/eviction_policy.h"

namespace kavern::tiers {

using SlotId = std::uint32_t;
inline constexpr SlotId kNoSlot = 0xffffffff;

// One committed part of a block.
struct BlockPart {
  SlotId slot = kNoSlot;       // kNoSlot: not committed
  std::uint32_t checksum = 0;  // CRC32C of the payload, seeded by key and part
};

// A block that was seen before: its id may mean another block by now, the generation tells.
struct BlockRef {
  BlockId id = kNoBlock;
  std::uint32_t generation = 0;
};

// A block is `pending` from the first writer's reservation, `visible` once all its parts are
// committed. An orphan is a block with an ancestor that is not in the index (any more): unreachable
// by prefix, evicted first, and itself again when that ancestor comes back.
//
// Keys and parents are what clients say. Keys that do not chain cannot make two blocks each other's
// ancestors: a block that waits for one of its own descendants goes on waiting.
//
// The eviction policy is told what may be evicted: visible blocks without children, leases and
// writers.
class BlockIndex {
 public:
  // `root` is the namespace's root key, parent of every first block. `policy` must outlive the
  // index.
  BlockIndex(const BlockKey& root, std::uint32_t part_count, EvictionPolicy& policy);
  BlockIndex(const BlockIndex&) = delete;
  BlockIndex& operator=(const BlockIndex&) = delete;

  // kNoBlock when absent. Pending blocks are found too.
  BlockId Find(const BlockKey& key) const;

  BlockRef RefOf(BlockId id) const;
  // Whether the block that `ref` was taken of is still in the index.
  bool IsAlive(BlockRef ref) const;

  // ---- Facts; the id must be of a block in the index ----
  bool IsVisible(BlockId id) const;
  bool IsOrphan(BlockId id) const;
  bool HasChildren(BlockId id) const;
  bool HasWriters(BlockId id) const;
  // Visible, without children, leases and writers.
  bool IsEvictable(BlockId id) const { return IsCandidate(node(id)); }
  // kNoBlock: it has none, or several.
  BlockId OnlyChildOf(BlockId id) const;
  const BlockKey& KeyOf(BlockId id) const;
  // Parent's key, also where the parent is missing; the root key for a first block.
  BlockKey ParentKeyOf(BlockId id) const;
  // One element per part, by part index.
  std::span<const BlockPart> PartsOf(BlockId id) const;

  // ---- Changes ----
  // Adds a pending block, which must be absent. `parent` is the root key or, for anything but an
  // orphan, a block of the index. Orphans that wait for `key` become its children, in time linear
  // in how many blocks stop being orphans.
  BlockId InsertPending(const BlockKey& key, const BlockKey& parent);

  // Writers and leases keep a block from eviction. Each Add is matched by one Drop, while the block
  // lives.
  void AddWriter(BlockId id);
  // True: it was the last writer of a block without any committed part, and the block was removed.
  bool DropWriter(BlockId id);
  void AddLease(BlockId id);
  void DropLease(BlockId id);

  // Commits a part. False, and no change, when it is committed already.
  bool CommitPart(BlockId id, std::uint32_t part, BlockPart committed);

  // Points a committed part at another slot with the same bytes.
  void MovePart(BlockId id, std::uint32_t part, SlotId slot);

  // A use of the block. Callers touch leaf to root, so that a root is the most recent of its chain.
  void Touch(BlockId id, UseSequence sequence);

  // The policy's class of the block; of an orphan, which is evicted before all others whatever it
  // is, the one that it has once it is none any more.
  void SetClass(BlockId id, EvictionClass eviction_class);
  EvictionClass ClassOf(BlockId id) const;

  // Removes the block, whatever its state; refs to it are dead from now on. Its children become
  // orphans, in time linear in how many blocks become orphans: nothing for a leaf.
  void Remove(BlockId id);

  // ---- The whole ----
  // Every block, in no particular order.
  std::vector<BlockId> AllBlocks() const;
  std::vector<BlockKey> AllKeys() const;
  // The visible block with the smallest id that is not less than `from`; kNoBlock: there is none.
  BlockId NextVisible(BlockId from) const;

  std::uint64_t size() const { return by_key_.size(); }
  std::uint64_t visible_count() const { return visible_; }
  // Blocks that have some committed part but not all.
  std::uint64_t incomplete_count() const { return incomplete_; }
  std::uint64_t orphan_count() const { return orphans_.size(); }
  // Memory that the index itself takes, policy excluded, bytes.
  std::uint64_t MemoryBytes() const;

  // Checks links, counts and candidates from scratch; empty when all is well, else what is wrong.
  std::string Audit() const;

 private:
  struct Node {
    BlockKey key;
    BlockId parent = kNoBlock;  // kNoBlock: a first block, or the parent is missing
    BlockId first_child = kNoBlock;
    // Among the parent's children or, where the parent is missing, among those that wait for it.
    BlockId next_sibling = kNoBlock;
    BlockId previous_sibling = kNoBlock;
    std::uint32_t generation = 0;
    std::uint32_t leases = 0;
    std::uint32_t writers = 0;
    std::uint8_t committed_parts = 0;
    bool present = false;
  };

  // Nodes and parts lie in chunks: no reallocation of millions of them, no slack of half.
  static constexpr std::size_t kChunkNodes = 1024;
  struct Chunk {
    std::vector<Node> nodes;
    std::vector<BlockPart> parts;
  };

  // All of the key: a client chooses keys, and could make many that are alike in the half that
  // their own hash takes.
  struct WholeKeyHash {
    std::size_t operator()(const BlockKey& key) const { return absl::HashOf(key.bytes); }
  };
  // The table of keys holds ids only; the keys are in the nodes.
  struct KeyHash {
    using is_transparent = void;
    const BlockIndex* index;
    std::size_t operator()(const BlockKey& key) const { return WholeKeyHash{}(key); }
    std::size_t operator()(BlockId id) const { return (*this)(index->node(id).key); }
  };
  struct KeyEqual {
    using is_transparent = void;
    const BlockIndex* index;
    bool operator()(BlockId a, BlockId b) const { return a == b; }
    bool operator()(BlockId id, const BlockKey& key) const { return index->node(id).key == key; }
    bool operator()(const BlockKey& key, BlockId id) const { return index->node(id).key == key; }
  };

  // Given back to the policy when the ancestor returns.
  struct Orphan {
    UseSequence last_use : 56;
    UseSequence eviction_class : 8;
  };

  Node& node(BlockId id) { return chunks_[id / kChunkNodes].nodes[id % kChunkNodes]; }
  const Node& node(BlockId id) const { return chunks_[id / kChunkNodes].nodes[id % kChunkNodes]; }
  BlockPart* parts(BlockId id) {
    return chunks_[id / kChunkNodes].parts.data() + (id % kChunkNodes) * part_count_;
  }
  const BlockPart* parts(BlockId id) const {
    return chunks_[id / kChunkNodes].parts.data() + (id % kChunkNodes) * part_count_;
  }

  BlockId NewNode();
  void Link(BlockId child, BlockId parent);
  void Unlink(BlockId child);
  // Puts a block in front of a list of siblings, or takes it out of one; `first` is the list's
  // head.
  void PushSibling(BlockId& first, BlockId id);
  void EraseSibling(BlockId& first, BlockId id);
  // Makes the orphans that wait for the block its children.
  void AdoptWaiting(BlockId id);
  // The block itself, or its farthest ancestor in the index.
  BlockId TopOf(BlockId id) const;
  // Notes that `child`, which has no parent node, waits for the block `parent`.
  void AwaitParent(BlockId child, const BlockKey& parent);
  void StopAwaiting(BlockId child);
  // Makes a block and all its descendants orphans, or ends that.
  void SetOrphaned(BlockId top, bool orphaned);
  void UpdateCandidate(BlockId id);
  bool IsCandidate(const Node& node) const;
  std::string AuditBlock(BlockId id) const;

  const BlockKey root_;
  const std::uint32_t part_count_;
  EvictionPolicy& policy_;
  std::vector<Chunk> chunks_;
  std::vector<BlockId> free_ids_;
  absl::flat_hash_set<BlockId, KeyHash, KeyEqual> by_key_;
  absl::flat_hash_map<BlockId, Orphan> orphans_;                  // every unreachable block
  absl::flat_hash_map<BlockId, BlockKey> missing_parent_;         // of the topmost of them
  absl::flat_hash_map<BlockKey, BlockId, WholeKeyHash> waiting_;  // missing key -> first that waits
  std::uint64_t visible_ = 0;
  std::uint64_t incomplete_ = 0;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_INDEX_BLOCK_INDEX_H_
