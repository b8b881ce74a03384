// Devices of the NVMe tier that fail while they are in use: the others go on, and nothing wrong is
// served. Says nothing about power cuts, and nothing about bytes that change by themselves.

#include <filesystem>
#include <fstream>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "tests/unit/tiers/disk_failure_fixture.h"
#include "tiers/nvme/disk_index.h"

namespace kavern::tiers {
namespace {

using testing::HasSubstr;

using DiskFailureTest = DiskFailureFixture;

TEST_F(DiskFailureTest, AfterAFailedWriteTheOtherDeviceGoesOn) {
  StartWithDisks();
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> before = StoreBlocks(ns, 1, 60);
  EXPECT_EQ(Verified(ns, before), 60U);
  faults_[1].writes = true;
  StoreBlocks(ns, 100, 60);
  ExpectOut(1);
  const int requests = faults_[1].requests;
  const StoreCounters counters = store_->GetCounters();
  EXPECT_GT(counters.disk_failed_blocks, 0U);
  EXPECT_EQ(counters.disk_evicted_blocks, 0U);
  // What lay on the other is there.
  const std::size_t left = Verified(ns, before);
  EXPECT_LT(left, 60U);
  EXPECT_GE(left, 60U - counters.disk_failed_blocks);
  const std::vector<BlockKey> after = StoreBlocks(ns, 200, 60);
  EXPECT_EQ(Verified(ns, after), 60U);
  EXPECT_EQ(faults_[1].requests, requests) << "a device that is out was touched";
  EXPECT_EQ(store_->GetStatus().disk.blocks, store_->GetStatus().disk.used_bytes / 4096);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskFailureTest, EightFailedReadsInARowTakeADeviceOut) {
  StartWithDisks();
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = StoreBlocks(ns, 1, 60);
  faults_[0].reads = true;
  Verified(ns, keys);
  ExpectOut(0);
  EXPECT_EQ(faults_[0].failed, kFailedReadsMax);
  EXPECT_GT(store_->GetCounters().disk_failed_blocks, 0U);
  // The dead are dropped: what the directory still promises is there.
  const std::size_t left = store_->GetStatus().disk.blocks;
  EXPECT_GE(Verified(ns, keys), left);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskFailureTest, SomeFailedReadsAreForgiven) {
  StartWithDisks();
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = StoreBlocks(ns, 1, 60);
  for (int round = 0; round < 3; ++round) {
    faults_[0].reads = true;
    const int failed = faults_[0].failed;
    for (const BlockKey& key : keys) {
      if (faults_[0].failed - failed >= kFailedReadsMax - 1) break;
      Verified(ns, {&key, 1});
    }
    faults_[0].reads = false;
    EXPECT_EQ(Verified(ns, keys), 60U);  // nothing was dropped
  }
  EXPECT_GT(faults_[0].failed, kFailedReadsMax);
  EXPECT_TRUE(store_->GetStatus().disk.devices[0].healthy);
}

TEST_F(DiskFailureTest, AFailedFlushTakesOnlyItsOwnDeviceOut) {
  StartWithDisks();
  const NamespaceRef ns = Open(SpecOf("m"));
  StoreBlocks(ns, 1, 60);
  faults_[1].flushes = true;
  StoreBlocks(ns, 100, 1);
  ExpectOut(1);
  const std::vector<BlockKey> after = StoreBlocks(ns, 200, 60);
  EXPECT_EQ(Verified(ns, after), 60U);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskFailureTest, APurgeCountsWhenEveryDeviceThatIsLeftHasIt) {
  StartWithDisks();
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = StoreBlocks(ns, 1, 40);
  faults_[1].writes = true;
  EXPECT_TRUE(store_->Purge(ns.fingerprint()).ok());
  ExpectOut(1);
  EXPECT_EQ(Verified(ns, keys), 0U);
  // With nobody left to remember it, it is not acknowledged.
  faults_[0].writes = true;
  StoreOne(ns, 100);
  const absl::Status refused = store_->Purge(ns.fingerprint()).status();
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  // The block's own write may be what failed, and be told after the purge was refused.
  store_->Quiesce();
  EXPECT_THAT(store_->GetStatus().disk.failure, HasSubstr("every device"));
  EXPECT_EQ(store_->GetStatus().disk.capacity_bytes, 0U);
  // RAM serves on, with the region that the purge gave up.
  EXPECT_EQ(StoreOne(ns, 101), 1U);
  EXPECT_EQ(Verified(ns, KeysOf(101, 1)), 1U);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskFailureTest, ASegmentPutToAnotherUseIsDiscardedFirst) {
  StartWithDisks(1, 4);
  const NamespaceRef small = Open(SpecOf("small"));
  StoreBlocks(small, 1, 40);
  EXPECT_EQ(faults_[0].discards + faults_[1].discards, 0);
  // Slots of 8 KiB: a segment changes hands.
  const NamespaceRef large = Open(SpecOf("large", 1, 2));
  const std::vector<BlockKey> key = KeysOf(1000, 1);
  for (std::uint32_t group = 0; group < 2; ++group) {
    // The first of a group may have to wait for a region of the other namespace.
    if (Store(large, Root(large), key, 0, group) == 1) continue;
    store_->Quiesce();
    ASSERT_EQ(Store(large, Root(large), key, 0, group), 1U);
  }
  store_->Quiesce();
  EXPECT_GT(faults_[0].discards + faults_[1].discards, 0);
  EXPECT_EQ(store_->GetStatus().disk.failure, "");
  ExpectSound();
}

// ---- The catalog ----

TEST_F(DiskFailureTest, ACatalogThatTakesNothingAnyMoreIsSeen) {
  StartWithDisks();
  NamespaceRef ns = Open(SpecOf("m"));
  StoreBlocks(ns, 1, 20);
  EXPECT_EQ(store_->GetStatus().disk.catalog_failure, "");
  files_.Set(FaultFileSystem::Mode::kError);
  StoreBlocks(ns, 100, 1);
  files_.Set(FaultFileSystem::Mode::kSound);
  EXPECT_GT(files_.faults(FaultFileSystem::Mode::kError), 0U);
  EXPECT_THAT(store_->GetStatus().disk.catalog_failure, HasSubstr("catalog: "));
  const std::uint64_t blocks = store_->GetStatus().disk.blocks;
  // Nothing is written that nobody would find.
  const int written = faults_[0].written + faults_[1].written;
  StoreBlocks(ns, 200, 5);
  EXPECT_EQ(store_->GetStatus().disk.blocks, blocks);
  EXPECT_EQ(faults_[0].written + faults_[1].written, written);
  EXPECT_EQ(Verified(ns, KeysOf(200, 5)), 5U);  // out of RAM
  EXPECT_TRUE(store_->WriteBack(std::chrono::milliseconds(0)));
  ns.Reset();
  Restart(false, false);
  EXPECT_EQ(store_->GetStatus().disk.catalog_failure, "");
}

// ---- While what is on disk is read ----

// Of 40 blocks 15 lie on the second disk, whose segments come after all of the first's.
TEST_F(DiskFailureTest, ADeviceThatFailsAmidTheHeadersTakesNoSegmentOfAnotherAlong) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 40);
  store_.reset();
  std::filesystem::remove_all(directory_.path() / "catalog");
  // All that was told by then is the first segment's, and leaves.
  faults_[0].bad_segment = 1;
  StartWithDisks();
  ExpectOut(0);
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_NE(store_->GetStatus().disk.recovered_from_headers, "");
  EXPECT_EQ(store_->GetStatus().disk.blocks, 15U);
  EXPECT_EQ(Verified(ns, keys), 15U);
  ExpectSound();
  const std::vector<BlockKey> after = StoreBlocks(ns, 200, 40);
  EXPECT_EQ(Verified(ns, after), 40U);
}

TEST_F(DiskFailureTest, ADamagedBlockThatIsFetchedAmidTheHeadersTakesNoSegmentAlong) {
  StartWithDisks(kSegments, 2);
  const std::vector<BlockKey> damaged = StoreBlocks(Open(SpecOf("damaged")), 1, 1);
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 11, 40);
  store_.reset();
  std::filesystem::remove_all(directory_.path() / "catalog");
  {
    std::fstream bytes(directory_.path() / "disk0", std::ios::in | std::ios::out);
    bytes.seekp(static_cast<std::streamoff>(disk::SlotOffset(kSegmentBytes, 0, 4096, 0) + 5000));
    bytes.put('!');
  }
  faults_[0].held_segment = 1;
  CreateWithDisks(kSegments, 2);
  faults_[0].WaitUntilHeld();  // all of the first segment was told
  while (store_->GetStatus().pool.ready_bytes == 0) std::this_thread::yield();
  {
    const NamespaceRef ns = Open(SpecOf("damaged"));
    EXPECT_EQ(store_->Match(ns, damaged), 1U);
    EXPECT_EQ(Verified(ns, damaged), 0U);
    EXPECT_EQ(store_->GetCounters().damaged_blocks, 1U);
  }
  faults_[0].Release();
  store_->Quiesce();
  EXPECT_EQ(store_->GetStatus().disk.blocks, 40U);
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_EQ(Verified(ns, keys), 40U);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskFailureTest, AStrictStoreIsToldThatTheCatalogTakesNothing) {
  StartWithDisks();
  const NamespaceRef ns = Open(SpecOf("m"));
  StoreBlocks(ns, 1, 20);
  files_.Set(FaultFileSystem::Mode::kError);
  // The first is written and then refused, the second is not written any more.
  for (std::uint64_t n = 100; n < 102; ++n) {
    const int written = faults_[0].written + faults_[1].written;
    const BlockKey key = KeyOf(n);
    StoreRequest request{.parent = Root(ns), .keys = {&key, 1}};
    request.durability = DiskDurability::kStrict;
    auto grant = store_->BeginStore(ns, request);
    ASSERT_TRUE(grant.ok());
    const Extent extent = grant->lease.extent(0);
    FillPayload(extent, key, 0);
    const std::uint32_t checksum = ChecksumOf(extent, key, 0);
    std::promise<TieredStore::Durable> told;
    ASSERT_TRUE(
        store_
            ->CommitStore(grant->lease, 0, {&checksum, 1},
                          [&](TieredStore::Durable durable) { told.set_value(std::move(durable)); })
            .ok());
    const TieredStore::Durable durable = told.get_future().get();
    EXPECT_EQ(durable.blocks, 0U);
    EXPECT_THAT(durable.reason, HasSubstr("catalog: "));
    EXPECT_EQ(faults_[0].written + faults_[1].written > written, n == 100);
  }
  files_.Set(FaultFileSystem::Mode::kSound);
}

// ---- The index alone ----

TEST(DiskRetirementTest, WhatIsUnderWayKeepsItsSegmentUntilItEnds) {
  std::vector<BlockKey> evicted;
  std::uint64_t epoch = 0;
  DiskIndex::Options options;
  options.segments = {2, 2};
  options.segment_bytes = std::uint64_t{128} * 1024;
  options.on_evicted = [&](const DiskNamespace&, const BlockKey& key) { evicted.push_back(key); };
  options.new_epoch = [&] { return ++epoch; };
  DiskIndex index(options);
  const NamespaceFingerprint fingerprint = Fingerprint("tenant", SpecOf("m"));
  DiskNamespace& ns = index.Open(fingerprint, {4096});
  const std::vector<BlockKey> keys = KeysOf(1, 40);
  std::vector<std::uint32_t> device_of;
  for (const BlockKey& key : keys) {
    const auto room = index.Reserve(ns, key, fingerprint.RootKey());
    ASSERT_TRUE(room.has_value());
    device_of.push_back(room->places[0].segment.device);
    ASSERT_TRUE(
        index.Commit(ns, key, fingerprint.RootKey(), *room, std::vector<std::uint32_t>{0}, 1));
  }
  const auto lost = static_cast<std::size_t>(std::count(device_of.begin(), device_of.end(), 1U));
  ASSERT_GT(lost, 0U);
  ASSERT_LT(lost, keys.size());
  const auto on_lost = static_cast<std::size_t>(std::find(device_of.begin(), device_of.end(), 1U) -
                                                device_of.begin());
  const std::uint64_t payload_bytes = 4096;
  const auto pinned = index.Pin(ns, DiskIndex::FindBlock(&ns, keys[on_lost]), {&payload_bytes, 1});
  // A block on its way there does not arrive.
  std::optional<DiskIndex::Reservation> late;
  std::vector<DiskIndex::Reservation> others;
  std::vector<BlockKey> other_keys;
  for (std::uint64_t n = 100; !late.has_value(); ++n) {
    auto room = index.Reserve(ns, KeyOf(n), fingerprint.RootKey());
    ASSERT_TRUE(room.has_value());
    if (room->places[0].segment.device == 1) {
      late = *std::move(room);
      other_keys.push_back(KeyOf(n));
    } else {
      index.Abort(ns, KeyOf(n), *room);
      others.push_back(*index.Reserve(ns, KeyOf(n), fingerprint.RootKey()));
      other_keys.push_back(KeyOf(n));
    }
  }

  EXPECT_EQ(index.RetireDevice(1), lost);
  EXPECT_EQ(index.RetireDevice(1), 0U);
  EXPECT_EQ(evicted.size(), lost);
  EXPECT_EQ(index.block_count(), keys.size() - lost);
  EXPECT_EQ(index.Audit(), "");
  EXPECT_GT(index.segment_count(), 2U);  // those under way
  EXPECT_FALSE(index.Commit(ns, other_keys.back(), fingerprint.RootKey(), *late,
                            std::vector<std::uint32_t>{0}, 2));
  index.Unpin(ns, pinned);
  for (std::size_t i = 0; i < others.size(); ++i) index.Abort(ns, other_keys[i], others[i]);
  EXPECT_EQ(index.segment_count(), 2U);
  EXPECT_EQ(index.Audit(), "");
  EXPECT_FALSE(index.all_retired());
  // New blocks evict on what is left, and never go to the lost device.
  for (const BlockKey& key : KeysOf(500, 60)) {
    const auto room = index.Reserve(ns, key, fingerprint.RootKey());
    ASSERT_TRUE(room.has_value());
    EXPECT_EQ(room->places[0].segment.device, 0U);
    EXPECT_TRUE(
        index.Commit(ns, key, fingerprint.RootKey(), *room, std::vector<std::uint32_t>{0}, 3));
  }
  EXPECT_EQ(index.block_count(), 30U);
  EXPECT_FALSE(index.AdoptSegment({{1, 0}, 4096, 77}));
  EXPECT_EQ(index.Audit(), "");
  index.RetireDevice(0);
  EXPECT_TRUE(index.all_retired());
  EXPECT_EQ(index.segment_count(), 0U);
}

}  // namespace
}  // namespace kavern::tiers
