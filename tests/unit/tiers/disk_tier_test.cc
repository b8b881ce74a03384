// The NVMe tier from the store's side: what comes back after eviction, restarts and damage.

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "tests/unit/tiers/disk_fixture.h"

namespace kavern::tiers {
namespace {

namespace fs = std::filesystem;

class DiskTierTest : public DiskFixture {
 protected:
  std::vector<BlockKey> StoreAndStop() {
    StartWithDisk();
    std::vector<BlockKey> keys;
    {
      const NamespaceRef ns = Open(SpecOf("m"));
      keys = StoreChains(ns, 1, 40);
    }
    store_.reset();
    return keys;
  }
  void ExpectAllFromHeaders(std::span<const BlockKey> keys) {
    StartWithDisk();
    const NamespaceRef ns = Open(SpecOf("m"));
    EXPECT_NE(store_->GetStatus().disk.recovered_from_headers, "");
    EXPECT_EQ(store_->Match(ns, keys), keys.size());
    EXPECT_EQ(Verified(ns, keys), keys.size());
    store_->Quiesce();
    ExpectSound();
  }
};

TEST_F(DiskTierTest, WhatRamEvictedComesBackFromDisk) {
  StartWithDisk();
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = StoreChains(ns, 1, 64);
  EXPECT_EQ(store_->Match(ns, keys), 64U);
  EXPECT_EQ(store_->GetStatus().disk.blocks, 64U);
  EXPECT_EQ(Verified(ns, keys), 64U);
  EXPECT_GE(store_->GetCounters().promoted_blocks, 48U);
  EXPECT_EQ(store_->GetCounters().damaged_blocks, 0U);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskTierTest, OneFetchOfBothTiersFindsAllThatIsThere) {
  StartWithDisk(2);
  const NamespaceRef ns = Open(SpecOf("m"));
  std::vector<BlockKey> keys = StoreChains(ns, 1, 40);
  keys.resize(30);
  keys[7] = KeyOf(999);  // absent
  const FetchEvent result = FetchThrough(ns, keys);
  ASSERT_EQ(result.failed.size(), 1U);
  EXPECT_EQ(result.failed[0].index, 7U);
  EXPECT_EQ(result.failed[0].code, absl::StatusCode::kNotFound);
  ASSERT_EQ(result.lease.parts().size(), 29U);
  EXPECT_TRUE(HoldsPayloads(result.lease, keys));
}

// Leaves first, so that no block is an orphan meanwhile; what somebody reads stays.
TEST_F(DiskTierTest, DemotionEmptiesRamOfWhatIsOnDiskAndNobodyHasLeased) {
  StartWithDisk(4);
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = StoreChains(ns, 1, 40);
  {
    // Of the first chain: its leaf is leased, so none of it can leave.
    const FetchResult leased = Fetch(ns, {&keys[7], 1});
    EXPECT_EQ(store_->Demote(), 32U);
    EXPECT_EQ(store_->GetStatus().blocks, 8U);
    EXPECT_TRUE(HoldsPayloads(leased, {&keys[7], 1}));
  }
  EXPECT_EQ(store_->Demote(), 8U);
  EXPECT_EQ(store_->Demote(), 0U);
  EXPECT_EQ(store_->GetStatus().used_bytes, 0U);
  EXPECT_EQ(store_->GetCounters().orphaned_blocks, 0U);
  EXPECT_EQ(store_->GetCounters().evicted_blocks, 0U);
  EXPECT_EQ(store_->Match(ns, keys), 40U);
  EXPECT_EQ(Verified(ns, keys), 40U);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskTierTest, DemotionKeepsWhatIsNowhereElse) {
  Start(2);
  const NamespaceRef ns = Open(SpecOf("m"));
  ASSERT_EQ(Store(ns, Root(ns), KeysOf(1, 8)), 8U);
  EXPECT_EQ(store_->Demote(), 0U);
  EXPECT_EQ(store_->Match(ns, KeysOf(1, 8)), 8U);
}

TEST_F(DiskTierTest, ARestartFindsEverything) {
  StartWithDisk();
  std::vector<BlockKey> keys;
  {
    const NamespaceRef ns = Open(SpecOf("m"));
    keys = StoreChains(ns, 1, 64);
  }
  Restart();
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  EXPECT_EQ(store_->GetStatus().disk.recovered_blocks, 64U);
  EXPECT_EQ(store_->GetStatus().disk.recovered_from_headers, "");
  EXPECT_EQ(store_->Match(ns, keys), 64U);
  EXPECT_TRUE(events_.HasDirectory(ns.fingerprint()));
  EXPECT_EQ(Verified(ns, keys), 64U);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskTierTest, ALostCatalogIsMadeAnewFromTheHeaders) {
  const std::vector<BlockKey> keys = StoreAndStop();
  fs::remove_all(directory_.path() / "catalog");
  ExpectAllFromHeaders(keys);
}

TEST_F(DiskTierTest, ADamagedCatalogIsMadeAnewFromTheHeaders) {
  const std::vector<BlockKey> keys = StoreAndStop();
  int damaged = 0;
  for (const auto& file : fs::directory_iterator(directory_.path() / "catalog")) {
    if (file.path().extension() != ".log" || fs::file_size(file) < 200) continue;
    std::fstream bytes(file.path(), std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekp(100);
    bytes.put('x');
    ++damaged;
  }
  ASSERT_GT(damaged, 0);
  ExpectAllFromHeaders(keys);
}

TEST_F(DiskTierTest, WhatWasPurgedStaysGoneAlsoWithoutTheCatalog) {
  StartWithDisk(2);
  std::vector<BlockKey> keys;
  std::vector<BlockKey> kept;
  {
    const NamespaceRef ns = Open(SpecOf("m"));
    const NamespaceRef other = Open(SpecOf("other"));
    kept = StoreChains(other, 100, 8);
    keys = StoreChains(ns, 1, 40);
    ASSERT_EQ(*store_->Purge(ns.fingerprint()), 40U);
    EXPECT_EQ(store_->Match(ns, keys), 0U);
    // The memory that the purge freed is made anew first.
    store_->Quiesce();
    // Stored again after the purge: that stays.
    EXPECT_EQ(Store(ns, Root(ns), std::span(keys).first(2)), 2U);
    store_->Quiesce();
    ExpectSound();
  }
  store_.reset();
  fs::remove_all(directory_.path() / "catalog");
  StartWithDisk();
  const NamespaceRef ns = Open(SpecOf("m"));
  const NamespaceRef other = Open(SpecOf("other"));
  store_->Quiesce();
  EXPECT_EQ(store_->Match(ns, keys), 2U);
  for (const BlockKey& key : std::span(keys).subspan(2)) EXPECT_FALSE(IsCached(ns, key));
  EXPECT_EQ(Verified(other, kept), 8U);
}

TEST_F(DiskTierTest, ABlockDamagedOnDiskIsAMissAndIsDropped) {
  StartWithDisk();
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = StoreChains(ns, 1, 48);
  store_->Quiesce();
  // Every payload page whose first byte is not a structure's.
  for (const char* name : {"disk0", "disk1"}) {
    std::fstream bytes(directory_.path() / name, std::ios::in | std::ios::out | std::ios::binary);
    for (std::uint64_t slot = 0; slot < 15; ++slot) {
      bytes.seekp(static_cast<std::streamoff>(
          disk::SlotOffset(kSegmentBytes, 0, 4096, static_cast<std::uint32_t>(slot)) + 4096 + 77));
      bytes.put('\x5a');
    }
  }
  const std::size_t right = Verified(ns, std::span(keys).first(32));
  EXPECT_LT(right, 32U);
  EXPECT_GT(right, 0U);
  EXPECT_EQ(store_->GetCounters().damaged_blocks, 32 - right);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskTierTest, TheDiskNeverGrowsPastItsCapacity) {
  StartWithDisk(1, 4);  // 4 segments of 15 slots
  NamespaceRef ns = Open(SpecOf("m"));
  for (std::uint64_t n = 1; n <= 200; ++n) {
    ASSERT_EQ(StoreOne(ns, n), 1U);
    store_->Quiesce();
  }
  EXPECT_EQ(store_->GetStatus().disk.blocks, 60U);
  EXPECT_EQ(store_->GetCounters().disk_evicted_blocks, 140U);
  // The last that were used are there.
  EXPECT_EQ(Verified(ns, KeysOf(141, 60)), 60U);
  EXPECT_EQ(Verified(ns, KeysOf(1, 140)), 0U);
  EXPECT_EQ(fs::file_size(directory_.path() / "disk0"), disk_capacity(2));
  ns.Reset();
  Restart(1, 4);
  const NamespaceRef again = Open(SpecOf("m"));
  store_->Quiesce();
  EXPECT_EQ(Verified(again, KeysOf(141, 60)), 60U);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskTierTest, BlocksOfAnotherSizeTakeWholeSegments) {
  StartWithDisk(4, 4);
  NamespaceRef small = Open(SpecOf("small"));
  for (std::uint64_t n = 1; n <= 60; ++n) {
    ASSERT_EQ(StoreOne(small, n), 1U);
    store_->Quiesce();
  }
  NamespaceRef large = Open(SpecOf("large", 2, 2));
  for (std::uint64_t n = 1; n <= 12; ++n) {
    for (std::uint32_t shard = 0; shard < 2; ++shard) {
      for (std::uint32_t group = 0; group < 2; ++group) {
        const std::vector<BlockKey> key = KeysOf(1000 + n, 1);
        // The first of a group may have to wait for a region of the other namespace.
        if (Store(large, Root(large), key, shard, group) == 1) continue;
        store_->Quiesce();
        ASSERT_EQ(Store(large, Root(large), key, shard, group), 1U);
      }
    }
    store_->Quiesce();
  }
  EXPECT_GT(store_->GetCounters().disk_evicted_blocks, 0U);
  small.Reset();
  large.Reset();
  Restart(4, 4);
  const NamespaceRef again = Open(SpecOf("large", 2, 2));
  store_->Quiesce();
  std::size_t whole = 0;
  for (std::uint64_t n = 1; n <= 12; ++n) {
    const std::vector<BlockKey> key = KeysOf(1000 + n, 1);
    std::size_t parts = 0;
    for (std::uint32_t shard = 0; shard < 2; ++shard) {
      for (std::uint32_t group = 0; group < 2; ++group) {
        const FetchEvent result = FetchThrough(again, key, shard, group);
        EXPECT_TRUE(HoldsPayloads(result.lease, key, again.spec().layout.PartIndex(shard, group)));
        parts += result.lease.parts().size();
      }
    }
    EXPECT_TRUE(parts == 0 || parts == 4) << parts;
    whole += parts == 4 ? 1 : 0;
  }
  EXPECT_GT(whole, 0U);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskTierTest, ThreadsTakeOverWhereIoUringIsRefused) {
  io_uring_ = false;
  StartWithDisk();
  EXPECT_EQ(store_->GetStatus().disk.method, "threads");
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = StoreChains(ns, 1, 40);
  EXPECT_EQ(Verified(ns, keys), 40U);
}

TEST_F(DiskTierTest, RegionsAreRegisteredWhileANamespaceOwnsThem) {
  StartWithDisk(3);
  const NamespaceRef small = Open(SpecOf("small"));
  const auto registered = [this] { return store_->GetStatus().disk.RegisteredBytes(); };
  StoreChains(small, 1, 48);
  if (store_->GetStatus().disk.method != "io_uring") GTEST_SKIP() << "the kernel refuses io_uring";
  // Every device was flushed after the last region came, and looked at that first.
  EXPECT_EQ(registered(), store_->GetStatus().assigned_bytes);
  EXPECT_EQ(registered(), 3 * kRegionBytes);
  const std::vector<BlockKey> key = KeysOf(1000, 1);
  const NamespaceRef large = Open(SpecOf("large", 1, 2));
  for (std::uint32_t group = 0; group < 2; ++group) {
    if (Store(large, Root(large), key, 0, group) == 1) continue;
    store_->Quiesce();
    ASSERT_EQ(Store(large, Root(large), key, 0, group), 1U);
  }
  store_->Quiesce();
  EXPECT_GT(store_->GetCounters().regions_rebalanced, 0U);
  EXPECT_EQ(registered(), store_->GetStatus().assigned_bytes);
}

TEST_F(DiskTierTest, ASecondStoreOfTheSameFilesIsRefused) {
  StartWithDisk();
  DiskStoreOptions second;
  second.devices = {{directory_.path() / "disk0", disk_capacity(8)}};
  second.catalog_path = directory_.path() / "catalog2";
  second.segment_bytes = kSegmentBytes;
  second.lock_patience = std::chrono::milliseconds(0);
  const auto refused = DiskStore::Open(second);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused.status())) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), testing::HasSubstr("another process"));
}

TEST_F(DiskTierTest, AWrongCapacityIsRefusedAndTheRightOneStillServes) {
  const std::vector<BlockKey> keys = StoreAndStop();
  for (const std::uint64_t segments : {4U, 7U, 9U, 64U}) {
    DiskStoreOptions options;
    for (const char* name : {"disk0", "disk1"}) {
      options.devices.push_back({directory_.path() / name, disk_capacity(segments)});
    }
    options.catalog_path = directory_.path() / "catalog";
    options.segment_bytes = kSegmentBytes;
    const absl::Status refused = DiskStore::Open(options).status();
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
    EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("the configured capacity"));
    EXPECT_EQ(fs::file_size(directory_.path() / "disk0"), disk_capacity(8));
  }
  StartWithDisk();
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  EXPECT_EQ(store_->GetStatus().disk.recovered_from_headers, "");
  EXPECT_EQ(Verified(ns, keys), keys.size());
}

TEST_F(DiskTierTest, SomebodyElsesBytesAreNotOverwritten) {
  const fs::path path = directory_.path() / "precious";
  DiskStoreOptions options;
  options.devices = {{path, disk_capacity(8)}};
  options.catalog_path = directory_.path() / "catalog";
  options.segment_bytes = kSegmentBytes;
  // Everywhere in front of the segments, also where nothing of ours comes to lie.
  for (const std::size_t offset : {std::size_t{0}, std::size_t{9000}, std::size_t{300000},
                                   std::size_t{disk::kSegmentsOffset - 1}}) {
    std::string bytes(disk_capacity(8), '\0');
    bytes[offset] = 'p';
    bytes[disk_capacity(4)] = 'p';
    std::ofstream(path, std::ios::binary) << bytes;
    const auto refused = DiskStore::Open(options);
    EXPECT_TRUE(absl::IsFailedPrecondition(refused.status())) << refused.status();
    EXPECT_THAT(std::string(refused.status().message()),
                testing::AllOf(testing::HasSubstr(path.string()),
                               testing::HasSubstr("at offset " + std::to_string(offset) + " "),
                               testing::HasSubstr("overwrite its first MiB with zeros")));
    std::ostringstream after;
    after << std::ifstream(path, std::ios::binary).rdbuf();
    EXPECT_TRUE(after.str() == bytes) << "something was changed";
  }
}

}  // namespace
}  // namespace kavern::tiers
