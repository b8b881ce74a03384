#include "tiers/index/block_index.h"

#include <algorithm>
#include <cassert>

#include "absl/strings/str_cat.h"

namespace kavern::tiers {

BlockIndex::BlockIndex(const BlockKey& root, std::uint32_t part_count, EvictionPolicy& policy)
    : root_(root),
      part_count_(part_count),
      policy_(policy),
      by_key_(0, KeyHash{this}, KeyEqual{this}) {}

BlockId BlockIndex::Find(const BlockKey& key) const {
  const auto it = by_key_.find(key);
  return it == by_key_.end() ? kNoBlock : *it;
}

BlockRef BlockIndex::RefOf(BlockId id) const {
  return {id, node(id).generation};
}

bool BlockIndex::IsAlive(BlockRef ref) const {
  if (ref.id / kChunkNodes >= chunks_.size()) return false;
  const Node& block = node(ref.id);
  return block.present && block.generation == ref.generation;
}

bool BlockIndex::IsVisible(BlockId id) const {
  return node(id).committed_parts == part_count_;
}
bool BlockIndex::IsOrphan(BlockId id) const {
  return orphans_.contains(id);
}
bool BlockIndex::HasChildren(BlockId id) const {
  return node(id).first_child != kNoBlock;
}
bool BlockIndex::HasWriters(BlockId id) const {
  return node(id).writers > 0;
}

BlockId BlockIndex::OnlyChildOf(BlockId id) const {
  const BlockId child = node(id).first_child;
  return child != kNoBlock && node(child).next_sibling == kNoBlock ? child : kNoBlock;
}
const BlockKey& BlockIndex::KeyOf(BlockId id) const {
  return node(id).key;
}

BlockKey BlockIndex::ParentKeyOf(BlockId id) const {
  const Node& block = node(id);
  if (block.parent != kNoBlock) return node(block.parent).key;
  const auto it = missing_parent_.find(id);
  return it == missing_parent_.end() ? root_ : it->second;
}

std::span<const BlockPart> BlockIndex::PartsOf(BlockId id) const {
  return {parts(id), part_count_};
}

BlockId BlockIndex::NewNode() {
  if (free_ids_.empty()) {
    const auto first = static_cast<BlockId>(chunks_.size() * kChunkNodes);
    chunks_.push_back(
        {std::vector<Node>(kChunkNodes), std::vector<BlockPart>(kChunkNodes * part_count_)});
    for (std::size_t i = kChunkNodes; i > 0; --i) {
      free_ids_.push_back(first + static_cast<BlockId>(i - 1));
    }
  }
  const BlockId id = free_ids_.back();
  free_ids_.pop_back();
  return id;
}

BlockId BlockIndex::InsertPending(const BlockKey& key, const BlockKey& parent) {
  assert(Find(key) == kNoBlock);
  // Looked up while the block itself cannot be found: a liar may name it as its own parent.
  const BlockId parent_id = parent == root_ ? kNoBlock : Find(parent);
  const BlockId id = NewNode();
  Node& block = node(id);
  const std::uint32_t generation = block.generation;
  block = Node{};
  block.key = key;
  block.generation = generation;
  block.present = true;
  std::fill_n(parts(id), part_count_, BlockPart{});
  by_key_.insert(id);
  policy_.Touch(id, 0);

  if (parent_id != kNoBlock) {
    Link(id, parent_id);
    if (IsOrphan(parent_id)) SetOrphaned(id, true);
  } else if (parent != root_) {
    AwaitParent(id, parent);
    SetOrphaned(id, true);
  }
  AdoptWaiting(id);
  return id;
}

void BlockIndex::AdoptWaiting(BlockId id) {
  const auto it = waiting_.find(node(id).key);
  if (it == waiting_.end()) return;
  // An orphan may be asked to adopt its own ancestor, which must wait on: a ring would never have a
  // leaf.
  const BlockId top = IsOrphan(id) ? TopOf(id) : kNoBlock;
  for (BlockId child = it->second; child != kNoBlock;) {
    const BlockId next = node(child).next_sibling;
    if (child != top) {
      EraseSibling(it->second, child);
      missing_parent_.erase(child);
      Link(child, id);
      if (!IsOrphan(id)) SetOrphaned(child, false);
    }
    child = next;
  }
  if (it->second == kNoBlock) waiting_.erase(it);
}

BlockId BlockIndex::TopOf(BlockId id) const {
  while (node(id).parent != kNoBlock) id = node(id).parent;
  return id;
}

void BlockIndex::AddWriter(BlockId id) {
  ++node(id).writers;
  UpdateCandidate(id);
}

bool BlockIndex::DropWriter(BlockId id) {
  Node& block = node(id);
  assert(block.writers > 0);
  --block.writers;
  if (block.writers == 0 && block.committed_parts == 0) {
    Remove(id);
    return true;
  }
  UpdateCandidate(id);
  return false;
}

void BlockIndex::AddLease(BlockId id) {
  ++node(id).leases;
  UpdateCandidate(id);
}

void BlockIndex::DropLease(BlockId id) {
  assert(node(id).leases > 0);
  --node(id).leases;
  UpdateCandidate(id);
}

bool BlockIndex::CommitPart(BlockId id, std::uint32_t part, BlockPart committed) {
  BlockPart& entry = parts(id)[part];
  if (entry.slot != kNoSlot) return false;
  entry = committed;
  Node& block = node(id);
  if (block.committed_parts == 0) ++incomplete_;
  ++block.committed_parts;
  if (block.committed_parts == part_count_) {
    --incomplete_;
    ++visible_;
    UpdateCandidate(id);
  }
  return true;
}

void BlockIndex::MovePart(BlockId id, std::uint32_t part, SlotId slot) {
  assert(parts(id)[part].slot != kNoSlot);
  parts(id)[part].slot = slot;
}

void BlockIndex::Touch(BlockId id, UseSequence sequence) {
  if (const auto it = orphans_.find(id); it != orphans_.end()) {
    Orphan& orphan = it->second;
    orphan.last_use = sequence;
    if (orphan.eviction_class == kEndedClass) orphan.eviction_class = kPlainClass;
  } else {
    policy_.Touch(id, sequence);
  }
}

void BlockIndex::SetClass(BlockId id, EvictionClass eviction_class) {
  if (const auto it = orphans_.find(id); it != orphans_.end()) {
    it->second.eviction_class = eviction_class;
  } else {
    policy_.SetClass(id, eviction_class);
  }
}

EvictionClass BlockIndex::ClassOf(BlockId id) const {
  const auto it = orphans_.find(id);
  return it == orphans_.end() ? policy_.ClassOf(id)
                              : static_cast<EvictionClass>(it->second.eviction_class);
}

void BlockIndex::Remove(BlockId id) {
  Node& block = node(id);
  assert(block.present);
  while (block.first_child != kNoBlock) {
    const BlockId child = block.first_child;
    Unlink(child);
    AwaitParent(child, block.key);
    SetOrphaned(child, true);
  }
  if (block.parent != kNoBlock) {
    const BlockId parent = block.parent;
    Unlink(id);
    UpdateCandidate(parent);
  } else {
    StopAwaiting(id);
  }
  orphans_.erase(id);
  policy_.Remove(id);
  by_key_.erase(id);
  if (block.committed_parts == part_count_) {
    --visible_;
  } else if (block.committed_parts > 0) {
    --incomplete_;
  }
  block.present = false;
  ++block.generation;
  free_ids_.push_back(id);
}

void BlockIndex::Link(BlockId child, BlockId parent) {
  node(child).parent = parent;
  PushSibling(node(parent).first_child, child);
  UpdateCandidate(parent);
}

void BlockIndex::Unlink(BlockId child) {
  Node& below = node(child);
  EraseSibling(node(below.parent).first_child, child);
  below.parent = kNoBlock;
}

void BlockIndex::PushSibling(BlockId& first, BlockId id) {
  Node& block = node(id);
  block.previous_sibling = kNoBlock;
  block.next_sibling = first;
  if (first != kNoBlock) node(first).previous_sibling = id;
  first = id;
}

void BlockIndex::EraseSibling(BlockId& first, BlockId id) {
  Node& block = node(id);
  if (block.previous_sibling == kNoBlock) {
    first = block.next_sibling;
  } else {
    node(block.previous_sibling).next_sibling = block.next_sibling;
  }
  if (block.next_sibling != kNoBlock) {
    node(block.next_sibling).previous_sibling = block.previous_sibling;
  }
  block.next_sibling = block.previous_sibling = kNoBlock;
}

void BlockIndex::AwaitParent(BlockId child, const BlockKey& parent) {
  missing_parent_[child] = parent;
  PushSibling(waiting_.try_emplace(parent, kNoBlock).first->second, child);
}

void BlockIndex::StopAwaiting(BlockId child) {
  const auto it = missing_parent_.find(child);
  if (it == missing_parent_.end()) return;
  const auto waiters = waiting_.find(it->second);
  EraseSibling(waiters->second, child);
  if (waiters->second == kNoBlock) waiting_.erase(waiters);
  missing_parent_.erase(it);
}

void BlockIndex::SetOrphaned(BlockId top, bool orphaned) {
  // Descendants share it, so there is nothing below to change either.
  if (IsOrphan(top) == orphaned) return;
  std::vector<BlockId> stack = {top};
  while (!stack.empty()) {
    const BlockId id = stack.back();
    stack.pop_back();
    if (orphaned) {
      orphans_.insert({id, Orphan{policy_.LastUse(id), policy_.ClassOf(id)}});
      policy_.Touch(id, 0);
      policy_.SetClass(id, kEndedClass);
    } else {
      const auto it = orphans_.find(id);
      policy_.Touch(id, it->second.last_use);
      policy_.SetClass(id, static_cast<EvictionClass>(it->second.eviction_class));
      orphans_.erase(it);
    }
    for (BlockId child = node(id).first_child; child != kNoBlock;
         child = node(child).next_sibling) {
      stack.push_back(child);
    }
  }
}

bool BlockIndex::IsCandidate(const Node& block) const {
  return block.committed_parts == part_count_ && block.first_child == kNoBlock &&
         block.leases == 0 && block.writers == 0;
}

void BlockIndex::UpdateCandidate(BlockId id) {
  policy_.SetCandidate(id, IsCandidate(node(id)));
}

std::vector<BlockId> BlockIndex::AllBlocks() const {
  return std::vector<BlockId>(by_key_.begin(), by_key_.end());
}

std::vector<BlockKey> BlockIndex::AllKeys() const {
  std::vector<BlockKey> keys;
  keys.reserve(by_key_.size());
  for (const BlockId id : by_key_) keys.push_back(KeyOf(id));
  return keys;
}

BlockId BlockIndex::NextVisible(BlockId from) const {
  const std::uint64_t end = chunks_.size() * kChunkNodes;
  for (std::uint64_t id = from; id < end; ++id) {
    const auto candidate = static_cast<BlockId>(id);
    if (node(candidate).present && IsVisible(candidate)) return candidate;
  }
  return kNoBlock;
}

std::uint64_t BlockIndex::MemoryBytes() const {
  const std::uint64_t per_chunk =
      sizeof(Chunk) + kChunkNodes * (sizeof(Node) + part_count_ * sizeof(BlockPart));
  // One control byte beside each place of a table.
  const auto table_bytes = [](const auto& table) {
    return table.capacity() * (sizeof(*table.begin()) + 1);
  };
  return chunks_.size() * per_chunk + free_ids_.capacity() * sizeof(BlockId) +
         table_bytes(by_key_) + table_bytes(orphans_) + table_bytes(missing_parent_) +
         table_bytes(waiting_);
}

std::string BlockIndex::AuditBlock(BlockId id) const {
  const Node& block = node(id);
  if (!block.present) return "is in the table but not present";
  if (block.committed_parts == 0 && block.writers == 0) return "has neither parts nor writers";
  const auto parts = PartsOf(id);
  const auto committed = std::count_if(parts.begin(), parts.end(),
                                       [](const BlockPart& part) { return part.slot != kNoSlot; });
  if (committed != block.committed_parts) return "parts are miscounted";
  const bool waits = missing_parent_.contains(id);
  if (waits && block.parent != kNoBlock) return "has a parent and waits for one";
  const bool unreachable = waits || (block.parent != kNoBlock && IsOrphan(block.parent));
  if (unreachable != IsOrphan(id)) return "orphanhood differs from its parent's";
  BlockId previous = kNoBlock;
  for (BlockId child = block.first_child; child != kNoBlock; child = node(child).next_sibling) {
    if (!node(child).present) return "has a child that left";
    if (node(child).parent != id) return "a child has another parent";
    if (node(child).previous_sibling != previous) return "bad sibling link";
    previous = child;
  }
  return "";
}

std::string BlockIndex::Audit() const {
  std::uint64_t visible = 0;
  std::uint64_t incomplete = 0;
  for (const BlockId id : by_key_) {
    const Node& block = node(id);
    if (const std::string wrong = AuditBlock(id); !wrong.empty()) {
      return absl::StrCat("block ", block.key.ToHex(), ": ", wrong);
    }
    visible += block.committed_parts == part_count_;
    incomplete += block.committed_parts > 0 && block.committed_parts < part_count_;
  }
  if (visible != visible_ || incomplete != incomplete_) return "block counts differ from a recount";
  std::uint64_t waiters = 0;
  for (const auto& [key, first] : waiting_) {
    for (BlockId id = first; id != kNoBlock; id = node(id).next_sibling) {
      const auto missing = missing_parent_.find(id);
      if (missing == missing_parent_.end() || missing->second != key) {
        return absl::StrCat("block ", node(id).key.ToHex(), " waits for another parent");
      }
      ++waiters;
    }
  }
  if (waiters != missing_parent_.size()) return "the waiting orphans differ from a recount";
  if (const auto victim = policy_.Victim(); victim.has_value() && !IsCandidate(node(victim->id))) {
    return absl::StrCat("the policy offers ", node(victim->id).key.ToHex(), ", which is in use");
  }
  return "";
}

}  // namespace kavern::tiers
