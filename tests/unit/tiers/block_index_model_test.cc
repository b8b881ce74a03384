// Random operations on the index, everything that it says compared with a naive model after each.
//
// The model knows nothing of links: a block is an orphan when walking up by keys does not reach the
// root, a candidate when a search finds no reason against it. It does not cover keys that name each
// other as parents.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>

#include "tests/unit/tiers/test_keys.h"
#include "tiers/index/block_index.h"
#include "tiers/policy/leaf_first_lru.h"

namespace kavern::tiers {
namespace {

const BlockKey kRoot = TestKey(1'000'000);
constexpr std::uint64_t kKeys = 24;
constexpr std::uint32_t kParts = 2;

// Sees all that the index tells its policy.
class WatchedLru final : public EvictionPolicy {
 public:
  void Touch(BlockId id, UseSequence sequence) override { lru_.Touch(id, sequence); }
  void Remove(BlockId id) override {
    candidates.erase(id);
    lru_.Remove(id);
  }
  void SetCandidate(BlockId id, bool candidate) override {
    candidate ? (void)candidates.insert(id) : (void)candidates.erase(id);
    lru_.SetCandidate(id, candidate);
  }
  void SetClass(BlockId id, EvictionClass eviction_class) override {
    lru_.SetClass(id, eviction_class);
  }
  EvictionClass ClassOf(BlockId id) const override { return lru_.ClassOf(id); }
  std::optional<Choice> Victim() const override { return lru_.Victim(); }
  std::optional<Choice> Oldest() const override { return lru_.Oldest(); }
  UseSequence LastUse(BlockId id) const override { return lru_.LastUse(id); }
  std::uint64_t MemoryBytes() const override { return lru_.MemoryBytes(); }
  std::string_view name() const override { return "watched"; }

  std::set<BlockId> candidates;

 private:
  LeafFirstLru lru_;
};

struct ModelBlock {
  UseSequence last_use = 0;
  std::array<SlotId, kParts> slots{kNoSlot, kNoSlot};
  int writers = 0;
  int leases = 0;

  int committed() const {
    return static_cast<int>(kParts - std::count(slots.begin(), slots.end(), kNoSlot));
  }
};

// Keys 0 and 1 are first blocks; the parent of any other key n is n / 2.
std::optional<std::uint64_t> ParentOf(std::uint64_t key) {
  return key < 2 ? std::nullopt : std::optional(key / 2);
}
BlockKey ParentKeyOf(std::uint64_t key) {
  const auto parent = ParentOf(key);
  return parent ? TestKey(*parent) : kRoot;
}

class BlockIndexModel : public ::testing::Test {
 protected:
  bool IsOrphan(std::uint64_t key) const {
    for (auto parent = ParentOf(key); parent; parent = ParentOf(*parent)) {
      if (!model_.contains(*parent)) return true;
    }
    return false;
  }
  bool HasChildren(std::uint64_t key) const {
    return std::any_of(model_.begin(), model_.end(),
                       [&](const auto& entry) { return ParentOf(entry.first) == key; });
  }
  bool IsCandidate(std::uint64_t key) const {
    const ModelBlock& block = model_.at(key);
    return block.committed() == kParts && block.writers == 0 && block.leases == 0 &&
           !HasChildren(key);
  }

  void Insert(std::uint64_t key) {
    const BlockId id = index_.InsertPending(TestKey(key), ParentKeyOf(key));
    index_.AddWriter(id);
    model_[key].writers = 1;
  }

  // One random operation on `key`, which is in the index.
  void Change(std::uint64_t key) {
    ModelBlock& block = model_[key];
    const BlockId id = index_.Find(TestKey(key));
    ASSERT_NE(id, kNoBlock);
    const std::uint32_t part = random_() % kParts;
    switch (random_() % 10) {
      case 0:  // rarer than their ends, or nothing would ever be evicted
        if (random_() % 3 != 0) break;
        index_.AddWriter(id);
        ++block.writers;
        break;
      case 1:
      case 2:
        if (block.writers > 0) DropWriter(key, id);
        break;
      case 3:
        if (random_() % 3 != 0) break;
        index_.AddLease(id);
        ++block.leases;
        break;
      case 4:
        if (block.leases == 0) break;
        index_.DropLease(id);
        --block.leases;
        break;
      case 5:
      case 6: {
        if (block.writers == 0) break;
        const SlotId slot = random_() % 1000;
        ASSERT_EQ(index_.CommitPart(id, part, {slot, slot + 1}), block.slots[part] == kNoSlot);
        if (block.slots[part] == kNoSlot) block.slots[part] = slot;
        break;
      }
      case 7:
        if (block.slots[part] == kNoSlot) break;
        block.slots[part] = random_() % 1000;
        index_.MovePart(id, part, block.slots[part]);
        break;
      case 8:
        if (random_() % 3 != 0) break;
        index_.Remove(id);
        model_.erase(key);
        break;
      default:
        block.last_use = ++clock_;
        index_.Touch(id, block.last_use);
    }
  }

  void DropWriter(std::uint64_t key, BlockId id) {
    ModelBlock& block = model_[key];
    --block.writers;
    const bool removed = block.writers == 0 && block.committed() == 0;
    ASSERT_EQ(index_.DropWriter(id), removed);
    if (removed) model_.erase(key);
  }

  void Evict() {
    const auto victim = index_policy_.Victim();
    if (!victim) return;
    const auto it = std::find_if(model_.begin(), model_.end(), [&](const auto& entry) {
      return TestKey(entry.first) == index_.KeyOf(victim->id);
    });
    ASSERT_NE(it, model_.end());
    index_.Remove(victim->id);
    model_.erase(it);
    ++evictions_;
  }

  void CheckBlock(std::uint64_t key) {
    const ModelBlock& block = model_.at(key);
    const BlockId id = index_.Find(TestKey(key));
    ASSERT_NE(id, kNoBlock);
    ASSERT_EQ(index_.KeyOf(id), TestKey(key));
    ASSERT_EQ(index_.ParentKeyOf(id), ParentKeyOf(key));
    ASSERT_EQ(index_.IsOrphan(id), IsOrphan(key));
    ASSERT_EQ(index_.HasChildren(id), HasChildren(key));
    ASSERT_EQ(index_.HasWriters(id), block.writers > 0);
    ASSERT_EQ(index_.IsVisible(id), block.committed() == kParts);
    for (std::uint32_t part = 0; part < kParts; ++part) {
      ASSERT_EQ(index_.PartsOf(id)[part].slot, block.slots[part]);
    }
    ASSERT_EQ(index_policy_.candidates.contains(id), IsCandidate(key));
    ASSERT_EQ(index_policy_.LastUse(id), IsOrphan(key) ? 0 : block.last_use);
  }

  void CheckAll() {
    std::uint64_t visible = 0;
    std::uint64_t incomplete = 0;
    std::uint64_t orphans = 0;
    std::optional<UseSequence> oldest;
    for (const auto& [key, block] : model_) {
      SCOPED_TRACE(key);
      CheckBlock(key);
      if (HasFatalFailure()) return;
      visible += block.committed() == kParts;
      incomplete += block.committed() > 0 && block.committed() < static_cast<int>(kParts);
      orphans += IsOrphan(key);
      if (IsCandidate(key)) {
        const UseSequence use = IsOrphan(key) ? 0 : block.last_use;
        oldest = std::min(oldest.value_or(use), use);
      }
    }
    ASSERT_EQ(index_.size(), model_.size());
    ASSERT_EQ(index_.AllBlocks().size(), model_.size());
    ASSERT_EQ(index_.visible_count(), visible);
    ASSERT_EQ(index_.incomplete_count(), incomplete);
    ASSERT_EQ(index_.orphan_count(), orphans);
    const auto victim = index_policy_.Victim();
    ASSERT_EQ(victim.has_value(), oldest.has_value());
    if (victim) {
      ASSERT_EQ(victim->last_use, *oldest);
    }
    ASSERT_EQ(index_.Audit(), "");
    orphans_seen_ += orphans;
  }

  std::mt19937 random_;
  WatchedLru index_policy_;
  BlockIndex index_{kRoot, kParts, index_policy_};
  std::map<std::uint64_t, ModelBlock> model_;
  UseSequence clock_ = 0;
  std::uint64_t evictions_ = 0;
  std::uint64_t orphans_seen_ = 0;
};

TEST_F(BlockIndexModel, RandomOperationsAgreeWithTheModelAfterEveryStep) {
  // A tree of 24 keys; blocks come, go in the middle of their chain, and are evicted.
  constexpr unsigned kSeed = 20263;
  SCOPED_TRACE(kSeed);
  random_.seed(kSeed);
  for (int step = 0; step < 20'000; ++step) {
    SCOPED_TRACE(step);
    const std::uint64_t key = random_() % kKeys;
    if (random_() % 10 == 0) {
      Evict();
    } else if (!model_.contains(key)) {
      Insert(key);
    } else {
      Change(key);
    }
    if (HasFatalFailure()) return;
    CheckAll();
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(evictions_, 100u);
  EXPECT_GT(orphans_seen_, 10'000u);
}

TEST_F(BlockIndexModel, KeysWithRandomParentsNeverMakeARing) {
  // A liar: every block is inserted below any other, present or not, itself included. However they
  // end up linked, eviction alone must be able to empty the index.
  constexpr unsigned kSeed = 20264;
  SCOPED_TRACE(kSeed);
  random_.seed(kSeed);
  std::uint64_t adopted = 0;
  for (int round = 0; round < 2'000; ++round) {
    SCOPED_TRACE(round);
    for (int i = 0; i < 40; ++i) {
      const BlockKey key = TestKey(random_() % kKeys);
      if (const BlockId id = index_.Find(key); id != kNoBlock) {
        if (random_() % 3 == 0) index_.Remove(id);
        continue;
      }
      const BlockId id =
          index_.InsertPending(key, random_() % 6 == 0 ? kRoot : TestKey(random_() % kKeys));
      adopted += index_.HasChildren(id);
      index_.AddWriter(id);
      for (std::uint32_t part = 0; part < kParts; ++part) index_.CommitPart(id, part, {1, 1});
      ASSERT_FALSE(index_.DropWriter(id));
      index_.Touch(id, ++clock_);
    }
    ASSERT_EQ(index_.Audit(), "");
    while (const auto victim = index_policy_.Victim()) index_.Remove(victim->id);
    ASSERT_EQ(index_.size(), 0u) << "blocks that nothing can evict";
    ASSERT_EQ(index_.orphan_count(), 0u);
  }
  EXPECT_GT(adopted, 1'000u);
}

}  // namespace
}  // namespace kavern::tiers
