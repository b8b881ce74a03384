// When blocks are written back, how much of them, and in which order they come to the disk.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <vector>

#include "gmock/gmock.h"
#include "tests/unit/tiers/write_back_fixture.h"

namespace kavern::tiers {
namespace {

namespace fs = std::filesystem;

using WriteBackTest = WriteBackFixture;

TEST_F(WriteBackTest, TheWriteBudgetIsAHardLimitAlsoForStrictStores) {
  StartWithDisk([](auto& disk) {
    disk.write_budget = {.bytes_per_day = 86400, .burst_bytes = 10 * kBlockBytes};
  });
  const NamespaceRef ns = Open(SpecOf("m"));
  StoreChain(ns, KeysOf(1, 8)).get();
  store_->Quiesce();
  const TieredStore::Durable durable = StoreChain(ns, KeysOf(11, 4), DiskDurability::kStrict).get();
  EXPECT_EQ(durable.blocks, 2U);
  EXPECT_THAT(durable.reason, testing::HasSubstr("write budget"));
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 10U);
  EXPECT_TRUE(store_->GetStatus().disk.waits_for_budget);
  // A byte a second: a block in 4096.
  clock_.Advance(std::chrono::seconds(4097));
  store_->Housekeep();
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 11U);
}

TEST_F(WriteBackTest, ARestartDoesNotRefillTheWriteBudget) {
  const auto budget = [](auto& disk) {
    disk.write_budget = {.bytes_per_day = 86400, .burst_bytes = 10 * kBlockBytes};
  };
  StartWithDisk(budget);
  {
    const NamespaceRef ns = Open(SpecOf("m"));
    StoreChain(ns, KeysOf(1, 8)).get();
    store_->Quiesce();
  }
  store_.reset();
  StartWithDisk(budget);
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  EXPECT_EQ(store_->GetStatus().disk.write_budget_bytes, 2 * kBlockBytes);
  StoreChain(ns, KeysOf(11, 8)).get();
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 10U);
}

TEST_F(WriteBackTest, OnEvictionKeepsAQuarterOfRamCleanAndWritesNoMore) {
  StartWithDisk([](auto& disk) { disk.write_back = WriteBackMode::kOnEviction; });
  const NamespaceRef ns = Open(SpecOf("m"));
  std::uint64_t next = 1;
  for (; next <= 48; ++next) ASSERT_EQ(StoreOne(ns, next), 1U);
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 0U);
  for (; next <= 64; ++next) ASSERT_EQ(StoreOne(ns, next), 1U);
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 16U);
  // What RAM evicts from now on was demoted before, and comes back.
  for (; next <= 100; ++next) {
    ASSERT_EQ(StoreOne(ns, next), 1U);
    store_->Quiesce();
  }
  EXPECT_EQ(store_->GetCounters().disk_lost_blocks, 0U);
  EXPECT_EQ(store_->Match(ns, KeysOf(1, 1)), 1U);
  EXPECT_EQ(BlocksOnDisk(), 52U);
  // At a stop the rest follows.
  EXPECT_TRUE(store_->WriteBack(std::chrono::minutes(1)));
  EXPECT_EQ(BlocksOnDisk(), 100U);
}

TEST_F(WriteBackTest, IdleBlocksAreWrittenOnceTheirTimeHasPassed) {
  StartWithDisk([](auto& disk) {
    disk.write_back = WriteBackMode::kIdle;
    disk.write_back_idle = std::chrono::seconds(10);
  });
  const NamespaceRef ns = Open(SpecOf("m"));
  StoreChain(ns, KeysOf(1, 5)).get();
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 0U);
  clock_.Advance(std::chrono::seconds(11));
  store_->Housekeep();
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 5U);
}

// The catalog may lack what a daemon wrote just before a power cut. A purge by the next daemon
// voids that too, though it has never heard of it.
TEST_F(WriteBackTest, APurgeAlsoVoidsWhatTheCatalogHasForgotten) {
  const auto run = [&](const std::function<void(const NamespaceRef&)>& work) {
    StartWithDisk();
    {
      const NamespaceRef ns = Open(SpecOf("m"));
      store_->Quiesce();
      work(ns);
      store_->Quiesce();
    }
    store_.reset();
  };
  run([&](const NamespaceRef& ns) { StoreChain(ns, KeysOf(1, 3)).get(); });
  run([&](const NamespaceRef& ns) {
    fs::copy(directory_.path() / "catalog", directory_.path() / "older");
    StoreChain(ns, KeysOf(11, 9)).get();
  });
  fs::remove_all(directory_.path() / "catalog");
  fs::rename(directory_.path() / "older", directory_.path() / "catalog");
  run([&](const NamespaceRef& ns) { EXPECT_TRUE(store_->Purge(ns.fingerprint()).ok()); });
  fs::remove_all(directory_.path() / "catalog");
  run([&](const NamespaceRef& ns) {
    EXPECT_NE(store_->GetStatus().disk.recovered_from_headers, "");
    EXPECT_EQ(store_->Match(ns, KeysOf(1, 3)), 0U);
    EXPECT_EQ(store_->Match(ns, KeysOf(11, 9)), 0U);
    EXPECT_EQ(BlocksOnDisk(), 0U);
  });
}

// One write at a time below the gate, which keeps the parent's: its child's ends, and so does that
// of a later block, whose commit is answered after both.
TEST_F(WriteBackTest, AChildIsNotOnDiskBeforeItsParent) {
  StartWithDisk([](auto& disk) { disk.store.queue_depth = 1; });
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  gate_.HoldNextPayload();
  auto chain = StoreChain(ns, KeysOf(1, 2), DiskDurability::kStrict);
  EXPECT_EQ(StoreChain(ns, KeysOf(11, 1), DiskDurability::kStrict).get().blocks, 1U);
  EXPECT_FALSE(IsTold(chain));
  EXPECT_EQ(BlocksOnDisk(), 1U);
  device_->Submit(gate_.TakeHeldPayload());
  EXPECT_EQ(chain.get().blocks, 2U);
  EXPECT_EQ(BlocksOnDisk(), 3U);
}

TEST_F(WriteBackTest, SegmentsThatAPurgeEmptiedServeBlocksOfAnotherSize) {
  StartWithDisk();
  {
    const NamespaceRef small = Open(SpecOf("small"));
    for (std::uint64_t n = 1; n <= 240; ++n) {
      StoreOne(small, n);
      store_->Quiesce();
    }
    ASSERT_EQ(BlocksOnDisk(), 240U);
    ASSERT_TRUE(store_->Purge(small.fingerprint()).ok());
  }
  store_->Quiesce();
  const NamespaceRef large = Open(SpecOf("large", 1, 2));  // 4 KiB and 8 KiB
  for (std::uint64_t n = 1; n <= 40; ++n) {
    for (const std::uint32_t group : {0U, 1U}) {
      while (Store(large, Root(large), KeysOf(1000 + n, 1), 0, group) == 0) store_->Quiesce();
    }
    store_->Quiesce();
  }
  EXPECT_EQ(BlocksOnDisk(), 40U);
  EXPECT_EQ(store_->GetCounters().disk_evicted_blocks, 0U);
  EXPECT_EQ(store_->GetCounters().disk_declined_blocks, 0U);
  ExpectSound();
}

// The first block of a segment turns out to be damaged while the segment's header is held in the
// device; the segment is given up, and is the next that is used. One header at a time, or the first
// could land on the second, and all behind it would be void after a restart.
TEST_F(WriteBackTest, ASegmentPutToAnotherUseWaitsForItsLastHeader) {
  StartWithDisk([](auto& disk) {
    disk.store.queue_depth = 1;
    disk.write_back = WriteBackMode::kOnEviction;
  });
  const std::vector<BlockKey> keys = KeysOf(1, 2);
  {
    const NamespaceRef ns = Open(SpecOf("m"));
    store_->Quiesce();
    StoreGrant grant = Begin(ns, Root(ns), std::span(keys).first(1));
    EXPECT_EQ(FillAndCommit(grant), 1U);
    grant.lease.extent(0).bytes()[100] ^= std::byte{1};
    gate_.HoldNextHeader();
    EXPECT_TRUE(store_->WriteBack(std::chrono::minutes(1)));
    EXPECT_EQ(store_->GetCounters().disk_declined_blocks, 1U);
    auto second = StoreChain(ns, std::span(keys).last(1), DiskDurability::kStrict);
    gate_.WaitForPayloads(1);
    EXPECT_FALSE(IsTold(second));
    device_->Submit(gate_.TakeHeldHeader());
    EXPECT_EQ(second.get().blocks, 1U);
    store_->Quiesce();
  }
  store_.reset();
  StartWithDisk();
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_EQ(store_->Match(ns, std::span(keys).last(1)), 1U);
}

}  // namespace
}  // namespace kavern::tiers
