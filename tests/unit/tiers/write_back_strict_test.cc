// What a caller who asks for durability is told, and when: after the sync that covers its blocks
// and their ancestors, or why not.

#include <chrono>
#include <cstdint>
#include <future>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "tests/unit/tiers/write_back_fixture.h"

namespace kavern::tiers {
namespace {

using WriteBackTest = WriteBackFixture;

TEST_F(WriteBackTest, AStrictCommitIsAnsweredAfterItsFlushAndNotBefore) {
  StartWithDisk();
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  gate_.HoldFlushes(true);
  auto told = StoreChain(ns, KeysOf(1, 5), DiskDurability::kStrict);
  gate_.WaitUntilHeld();
  EXPECT_FALSE(IsTold(told));
  EXPECT_EQ(BlocksOnDisk(), 0U);
  gate_.HoldFlushes(false);
  const TieredStore::Durable durable = told.get();
  EXPECT_EQ(durable.blocks, 5U);
  EXPECT_EQ(durable.reason, "");
  EXPECT_EQ(BlocksOnDisk(), 5U);
}

TEST_F(WriteBackTest, OthersAreAnsweredAtOnce) {
  StartWithDisk();
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  gate_.HoldFlushes(true);
  EXPECT_TRUE(IsTold(StoreChain(ns, KeysOf(1, 5), DiskDurability::kBatch)));
  EXPECT_TRUE(IsTold(StoreChain(ns, KeysOf(10, 5), DiskDurability::kNone)));
  EXPECT_TRUE(IsTold(StoreChain(ns, KeysOf(20, 5))));
  gate_.HoldFlushes(false);
}

TEST_F(WriteBackTest, NothingIsFlushedForNoneAndAStrictStoreOfItsBlocksMakesUpForIt) {
  StartWithDisk([](auto& disk) { disk.durability = DiskDurability::kNone; });
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  const std::uint64_t flushes = gate_.Flushes();
  StoreChain(ns, KeysOf(1, 1)).get();
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 1U);
  EXPECT_EQ(gate_.Flushes(), flushes);
  EXPECT_EQ(StoreChain(ns, KeysOf(2, 1), DiskDurability::kStrict).get().blocks, 1U);
  EXPECT_GT(gate_.Flushes(), flushes);
}

TEST_F(WriteBackTest, AStrictCommitThatLostTheRaceWaitsForTheWinnersBlock) {
  StartWithDisk([](auto& disk) { disk.durability = DiskDurability::kNone; });
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  StoreRequest request{.parent = Root(ns), .keys = {}};
  const std::vector<BlockKey> keys = KeysOf(1, 1);
  request.keys = keys;
  request.durability = DiskDurability::kStrict;
  StoreGrant late = *store_->BeginStore(ns, request);
  StoreChain(ns, keys).get();
  store_->Quiesce();
  const std::uint64_t flushes = gate_.Flushes();
  FillPayload(late.lease.extent(0), keys[0], 0);
  const std::vector<std::uint32_t> sums = {ChecksumOf(late.lease.extent(0), keys[0], 0)};
  std::promise<TieredStore::Durable> told;
  ASSERT_TRUE(store_
                  ->CommitStore(late.lease, 0, sums,
                                [&](TieredStore::Durable durable) { told.set_value(durable); })
                  .ok());
  EXPECT_EQ(told.get_future().get().blocks, 1U);
  EXPECT_GT(gate_.Flushes(), flushes);
}

TEST_F(WriteBackTest, AStrictCommitOnASlowDiskIsToldInTime) {
  StartWithDisk([](auto& disk) { disk.write_timeout = std::chrono::seconds(10); });
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  gate_.HoldFlushes(true);
  auto told = StoreChain(ns, KeysOf(1, 3), DiskDurability::kStrict);
  gate_.WaitUntilHeld();
  clock_.Advance(std::chrono::seconds(11));
  store_->Housekeep();
  const TieredStore::Durable durable = told.get();
  EXPECT_EQ(durable.blocks, 0U);
  EXPECT_THAT(durable.reason, testing::HasSubstr("nvme.write_timeout"));
  gate_.HoldFlushes(false);
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 3U);  // late, but there
}

TEST_F(WriteBackTest, AStrictCommitToAFailingDiskSaysWhy) {
  StartWithDisk();
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  gate_.RefuseWrites();
  const TieredStore::Durable durable = StoreChain(ns, KeysOf(1, 2), DiskDurability::kStrict).get();
  EXPECT_EQ(durable.blocks, 0U);
  EXPECT_NE(durable.reason, "");
  EXPECT_EQ(store_->Match(ns, KeysOf(1, 2)), 2U);  // in RAM all the same
  store_->Quiesce();
  ExpectSound();
}

TEST_F(WriteBackTest, AStrictStoreBringsItsAncestorsAlong) {
  StartWithDisk([](auto& disk) { disk.write_back = WriteBackMode::kOnEviction; });
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(1, 6);
  StoreChain(ns, std::span(keys).first(5)).get();
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 0U);
  EXPECT_EQ(StoreAbove(ns, keys[4], std::span(keys).last(1)).get().blocks, 1U);
  EXPECT_EQ(BlocksOnDisk(), 6U);
}

// The parent's write is held in the device, and its class asks for no sync: that of its child comes
// too early for it. A later block tells when that one was over.
TEST_F(WriteBackTest, AStrictBlockIsNotDurableBeforeASyncThatCoversItsParent) {
  StartWithDisk([](auto& disk) { disk.store.queue_depth = 1; });
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  const std::vector<BlockKey> keys = KeysOf(1, 3);
  gate_.HoldNextPayload();
  StoreChain(ns, std::span(keys).first(1), DiskDurability::kNone).get();
  gate_.WaitForHeldPayload();
  auto children = StoreAbove(ns, keys[0], std::span(keys).last(2));
  EXPECT_EQ(StoreChain(ns, KeysOf(11, 1), DiskDurability::kStrict).get().blocks, 1U);
  EXPECT_FALSE(IsTold(children));
  const std::uint64_t flushes = gate_.Flushes();
  gate_.HoldFlushes(true);
  device_->Submit(gate_.TakeHeldPayload());
  gate_.WaitUntilHeld();
  EXPECT_EQ(BlocksOnDisk(), 4U);
  EXPECT_FALSE(IsTold(children));
  gate_.HoldFlushes(false);
  EXPECT_EQ(children.get().blocks, 2U);
  EXPECT_GT(gate_.Flushes(), flushes);
}

// The parent has the last slot of a segment, its child the first of the other disk's.
TEST_F(WriteBackTest, AStrictBlockIsNotDurableWhereItsParentsWriteFails) {
  StartWithDisk([this](auto& disk) {
    disk.store.queue_depth = 1;
    disk.store.devices.push_back(
        {directory_.path() / "disk1", disk::kSegmentsOffset + 16 * kSegmentBytes});
  });
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(1, 2);
  StoreChain(ns, KeysOf(11, 14)).get();
  store_->Quiesce();
  gate_.HoldNextPayload();
  StoreChain(ns, std::span(keys).first(1)).get();
  gate_.WaitForHeldPayload();
  auto child = StoreAbove(ns, keys[0], std::span(keys).last(1));
  EXPECT_EQ(StoreChain(ns, KeysOf(31, 1), DiskDurability::kStrict).get().blocks, 1U);
  EXPECT_FALSE(IsTold(child));
  const DiskIo parent = gate_.TakeHeldPayload();
  parent.done(absl::InternalError("worn out"));
  const TieredStore::Durable durable = child.get();
  EXPECT_EQ(durable.blocks, 0U);
  EXPECT_THAT(durable.reason, testing::HasSubstr("before it is not on disk: worn out"));
  store_->Quiesce();
  ExpectSound();
}

TEST_F(WriteBackTest, AStrictBlockIsNotDurableWhereAnAncestorWasDamagedInRam) {
  StartWithDisk([](auto& disk) { disk.write_back = WriteBackMode::kOnEviction; });
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(1, 2);
  StoreGrant grant = Begin(ns, Root(ns), std::span(keys).first(1));
  EXPECT_EQ(FillAndCommit(grant), 1U);
  grant.lease.extent(0).bytes()[100] ^= std::byte{1};
  const TieredStore::Durable durable = StoreAbove(ns, keys[0], std::span(keys).last(1)).get();
  EXPECT_EQ(durable.blocks, 0U);
  EXPECT_THAT(durable.reason, testing::HasSubstr("before it is not on disk"));
}

TEST_F(WriteBackTest, AStrictStoreOfBlocksThatExistWritesThem) {
  StartWithDisk([](auto& disk) { disk.write_back = WriteBackMode::kOnEviction; });
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(1, 8);
  StoreChain(ns, std::span(keys).first(5)).get();
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 0U);
  const TieredStore::Durable exist =
      StoreChain(ns, std::span(keys).first(5), DiskDurability::kStrict).get();
  EXPECT_EQ(exist.blocks, 5U);
  EXPECT_EQ(exist.reason, "");
  EXPECT_EQ(BlocksOnDisk(), 5U);
  // Some exist, some are new.
  EXPECT_EQ(StoreChain(ns, keys, DiskDurability::kStrict).get().blocks, 8U);
  EXPECT_EQ(BlocksOnDisk(), 8U);
}

TEST_F(WriteBackTest, AStrictStoreOfBlocksThatAreOnDiskUnsyncedSyncsThem) {
  StartWithDisk([](auto& disk) { disk.durability = DiskDurability::kNone; });
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  StoreChain(ns, KeysOf(1, 5)).get();
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 5U);
  const std::uint64_t flushes = gate_.Flushes();
  EXPECT_EQ(StoreChain(ns, KeysOf(1, 5), DiskDurability::kStrict).get().blocks, 5U);
  EXPECT_GT(gate_.Flushes(), flushes);
}

TEST_F(WriteBackTest, AStrictStoreOfBlocksThatExistSaysWhyTheyAreNotDurable) {
  StartWithDisk([](auto& disk) { disk.write_back = WriteBackMode::kOnEviction; });
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(1, 2);
  StoreChain(ns, keys).get();
  StoreRequest request{.parent = Root(ns), .keys = keys};
  request.durability = DiskDurability::kStrict;
  StoreGrant late = *store_->BeginStore(ns, request);
  EXPECT_TRUE(late.lease.empty());
  EXPECT_TRUE(store_->Purge(ns.fingerprint()).ok());
  std::promise<TieredStore::Durable> told;
  ASSERT_TRUE(store_
                  ->CommitStore(late.lease, 0, {},
                                [&](TieredStore::Durable durable) { told.set_value(durable); })
                  .ok());
  const TieredStore::Durable gone = told.get_future().get();
  EXPECT_EQ(gone.blocks, 0U);
  EXPECT_THAT(gone.reason, testing::HasSubstr("left the cache"));
  store_->Quiesce();
  StoreChain(ns, keys).get();
  gate_.RefuseWrites();
  const TieredStore::Durable refused = StoreChain(ns, keys, DiskDurability::kStrict).get();
  EXPECT_EQ(refused.blocks, 0U);
  EXPECT_NE(refused.reason, "");
}

// The parent was used once more before both were written, and so waits longer than its child.
TEST_F(WriteBackTest, AStrictStoreAboveABlockThatOvertookItsParentBringsThatAlong) {
  StartWithDisk([](auto& disk) {
    disk.write_back = WriteBackMode::kIdle;
    disk.write_back_idle = std::chrono::seconds(10);
  });
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(1, 3);
  StoreChain(ns, std::span(keys).first(2)).get();
  Fetch(ns, std::span(keys).first(1));
  clock_.Advance(std::chrono::seconds(11));
  store_->Housekeep();
  store_->Quiesce();
  ASSERT_EQ(BlocksOnDisk(), 1U);
  EXPECT_EQ(StoreAbove(ns, keys[1], std::span(keys).last(1)).get().blocks, 1U);
  EXPECT_EQ(BlocksOnDisk(), 3U);
}

}  // namespace
}  // namespace kavern::tiers
