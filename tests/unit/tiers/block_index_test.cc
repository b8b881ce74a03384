#include "tiers/index/block_index.h"

#include <gtest/gtest.h>

#include "tests/unit/tiers/test_keys.h"
#include "tiers/policy/leaf_first_lru.h"

namespace kavern::tiers {
namespace {

const BlockKey kRoot = TestKey(1'000'000);

class BlockIndexTest : public ::testing::Test {
 protected:
  // A visible block, used at `sequence`.
  BlockId Store(std::uint64_t key, const BlockKey& parent, UseSequence sequence) {
    const BlockId id = index_.InsertPending(TestKey(key), parent);
    index_.AddWriter(id);
    EXPECT_TRUE(index_.CommitPart(id, 0, {static_cast<SlotId>(key), 0}));
    EXPECT_FALSE(index_.DropWriter(id));
    index_.Touch(id, sequence);
    return id;
  }
  BlockId Victim() const {
    const auto victim = lru_.Victim();
    return victim ? victim->id : kNoBlock;
  }
  void TearDown() override { EXPECT_EQ(index_.Audit(), ""); }

  LeafFirstLru lru_;
  BlockIndex index_{kRoot, 1, lru_};
};

TEST_F(BlockIndexTest, ABlockIsVisibleOnlyOnceAllItsPartsAreCommitted) {
  // Three parts, committed in any order, one of them twice.
  LeafFirstLru lru;
  BlockIndex index(kRoot, 3, lru);
  const BlockId id = index.InsertPending(TestKey(1), kRoot);
  index.AddWriter(id);
  EXPECT_TRUE(index.CommitPart(id, 2, {12, 0xc}));
  EXPECT_EQ(index.incomplete_count(), 1u);
  EXPECT_TRUE(index.CommitPart(id, 0, {10, 0xa}));
  EXPECT_FALSE(index.CommitPart(id, 0, {99, 0x9})) << "the first commit wins";
  EXPECT_FALSE(index.IsVisible(id));
  EXPECT_TRUE(index.CommitPart(id, 1, {11, 0xb}));
  EXPECT_TRUE(index.IsVisible(id));
  EXPECT_EQ(index.incomplete_count(), 0u);
  EXPECT_EQ(index.visible_count(), 1u);
  EXPECT_EQ(index.PartsOf(id)[0].slot, 10u);
  EXPECT_EQ(index.PartsOf(id)[0].checksum, 0xau);
  index.MovePart(id, 2, 77);
  EXPECT_EQ(index.PartsOf(id)[2].slot, 77u);
  EXPECT_EQ(index.PartsOf(id)[2].checksum, 0xcu);
  EXPECT_FALSE(lru.Victim().has_value()) << "it still has a writer";
  EXPECT_FALSE(index.DropWriter(id));
  EXPECT_TRUE(lru.Victim().has_value());
  EXPECT_EQ(index.Audit(), "");
}

TEST_F(BlockIndexTest, TheLastWriterToGiveUpLeavesNothingBehind) {
  // Two writers reserved the same block; both abort.
  const BlockId id = index_.InsertPending(TestKey(1), kRoot);
  index_.AddWriter(id);
  index_.AddWriter(id);
  EXPECT_FALSE(index_.DropWriter(id));
  EXPECT_TRUE(index_.DropWriter(id));
  EXPECT_EQ(index_.Find(TestKey(1)), kNoBlock);
  EXPECT_EQ(index_.size(), 0u);
}

TEST_F(BlockIndexTest, MoreWritersThanSixteenBitsStillProtectTheBlock) {
  // One client reserves the same key over and over.
  const BlockId id = index_.InsertPending(TestKey(1), kRoot);
  for (int i = 0; i < 65'536; ++i) index_.AddWriter(id);
  EXPECT_TRUE(index_.HasWriters(id));
  index_.CommitPart(id, 0, {1, 0});
  EXPECT_EQ(Victim(), kNoBlock);
  for (int i = 0; i < 65'536; ++i) EXPECT_FALSE(index_.DropWriter(id));
  EXPECT_EQ(Victim(), id);
}

TEST_F(BlockIndexTest, AncestorsAreNeverEvictedBeforeTheirDescendants) {
  // A chain of three whose root was used longest ago, and a pending child below its leaf.
  const BlockId a = Store(1, kRoot, 1);
  const BlockId b = Store(2, TestKey(1), 2);
  const BlockId c = Store(3, TestKey(2), 3);
  EXPECT_EQ(Victim(), c);
  const BlockId d = index_.InsertPending(TestKey(4), TestKey(3));
  index_.AddWriter(d);
  EXPECT_EQ(Victim(), kNoBlock) << "a pending child counts as a child";
  EXPECT_TRUE(index_.DropWriter(d));
  for (const BlockId expected : {c, b, a}) {
    ASSERT_EQ(Victim(), expected);
    index_.Remove(expected);
  }
  EXPECT_EQ(Victim(), kNoBlock);
}

TEST_F(BlockIndexTest, ALeaseKeepsABlockUntilItsLastHolderLetsGo) {
  const BlockId id = Store(1, kRoot, 1);
  index_.AddLease(id);
  index_.AddLease(id);
  index_.DropLease(id);
  EXPECT_EQ(Victim(), kNoBlock);
  index_.DropLease(id);
  EXPECT_EQ(Victim(), id);
}

TEST_F(BlockIndexTest, AnIdUsedAgainIsNotTheBlockThatARefWasTakenOf) {
  const BlockId id = Store(1, kRoot, 1);
  const BlockRef ref = index_.RefOf(id);
  EXPECT_TRUE(index_.IsAlive(ref));
  index_.Remove(id);
  EXPECT_FALSE(index_.IsAlive(ref));
  ASSERT_EQ(Store(2, kRoot, 2), id) << "the test wants the same id again";
  EXPECT_FALSE(index_.IsAlive(ref));
  EXPECT_TRUE(index_.IsAlive(index_.RefOf(id)));
  EXPECT_FALSE(index_.IsAlive(BlockRef{})) << "of no block";
}

TEST_F(BlockIndexTest, OrphansGoFirstAndAreThemselvesAgainWhenTheirAncestorReturns) {
  // A chain 1-2-3 that was used last, and an older single block 9; then block 1 is lost.
  const BlockId other = Store(9, kRoot, 5);
  Store(1, kRoot, 12);
  const BlockId b = Store(2, TestKey(1), 11);
  const BlockId c = Store(3, TestKey(2), 10);
  EXPECT_EQ(Victim(), other);

  index_.Remove(index_.Find(TestKey(1)));
  EXPECT_EQ(index_.orphan_count(), 2u);
  EXPECT_EQ(index_.ParentKeyOf(b), TestKey(1)) << "the parent's key is known while it is missing";
  EXPECT_EQ(Victim(), c);
  index_.Touch(c, 20);
  EXPECT_EQ(Victim(), c) << "a use does not make an orphan reachable";
  EXPECT_EQ(lru_.Victim()->last_use, 0u);

  Store(1, kRoot, 21);
  EXPECT_EQ(index_.orphan_count(), 0u);
  EXPECT_EQ(Victim(), other);
  EXPECT_EQ(lru_.LastUse(b), 11u);
  EXPECT_EQ(lru_.LastUse(c), 20u) << "the use while it was an orphan counts now";
}

TEST_F(BlockIndexTest, AnAncestorThatComesBackUnderAMissingParentBringsNobodyBack) {
  // Chain 1-2-3 loses 1 and 2. Block 2 returns first (an orphan itself), then block 1.
  Store(1, kRoot, 1);
  Store(2, TestKey(1), 2);
  const BlockId c = Store(3, TestKey(2), 3);
  index_.Remove(index_.Find(TestKey(2)));
  index_.Remove(index_.Find(TestKey(1)));
  const BlockId b = Store(2, TestKey(1), 4);
  EXPECT_TRUE(index_.IsOrphan(b));
  EXPECT_TRUE(index_.IsOrphan(c));
  EXPECT_TRUE(index_.HasChildren(b));
  Store(1, kRoot, 5);
  EXPECT_FALSE(index_.IsOrphan(b));
  EXPECT_FALSE(index_.IsOrphan(c));
}

TEST_F(BlockIndexTest, KeysThatNameEachOtherAsParentCanStillBeEvicted) {
  // Block 2 is stored below block 1, which is lost; then a client claims that block 1 comes after
  // block 2.
  Store(1, kRoot, 1);
  const BlockId below = Store(2, TestKey(1), 2);
  index_.Remove(index_.Find(TestKey(1)));
  const BlockId liar = Store(1, TestKey(2), 3);
  EXPECT_EQ(index_.Audit(), "");
  EXPECT_EQ(Victim(), liar) << "a ring would have no leaf";
  index_.Remove(liar);
  EXPECT_EQ(Victim(), below);

  Store(1, kRoot, 4);
  EXPECT_EQ(index_.orphan_count(), 0u) << "the honest parent is still awaited";
}

TEST_F(BlockIndexTest, ABlockThatNamesItselfAsParentCanStillBeEvicted) {
  const BlockId id = Store(1, TestKey(1), 1);
  EXPECT_TRUE(index_.IsOrphan(id));
  EXPECT_EQ(Victim(), id);
  index_.Remove(id);
  EXPECT_EQ(index_.size(), 0u);
  EXPECT_EQ(index_.orphan_count(), 0u);
}

TEST_F(BlockIndexTest, AChainOfManyBlocksLosesItsRootWithoutDeepRecursion) {
  // 200,000 blocks below one root: a document far longer than any stack.
  BlockKey parent = kRoot;
  for (std::uint64_t i = 0; i < 200'000; ++i) {
    Store(i, parent, 1);
    parent = TestKey(i);
  }
  index_.Remove(index_.Find(TestKey(0)));
  EXPECT_EQ(index_.orphan_count(), 199'999u);
  Store(0, kRoot, 2);
  EXPECT_EQ(index_.orphan_count(), 0u);
}

}  // namespace
}  // namespace kavern::tiers
