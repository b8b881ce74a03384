// Devices of the NVMe tier that fail while they are in use, or when the store starts: the others go
// on, and nothing wrong is served. Says nothing about power cuts, and nothing about bytes that
// change by themselves.

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "gmock/gmock.h"
#include "tests/fakes/fault_file_system.h"
#include "tests/fakes/temp_directory.h"
#include "tests/unit/tiers/store_fixture.h"
#include "tiers/nvme/disk_index.h"

namespace kavern::tiers {
namespace {

using testing::HasSubstr;

// What a device is told to do wrong, and what was asked of it.
struct Faults {
  std::atomic<bool> opens = false;
  std::atomic<bool> reads = false;
  // How many more reads and writes of the page at this offset fail, and how many did.
  std::atomic<std::uint64_t> bad_page = UINT64_MAX;
  std::atomic<int> bad_tries = 0;
  std::atomic<int> bad_failed = 0;
  std::atomic<bool> writes = false;
  std::atomic<bool> flushes = false;
  std::atomic<int> failed = 0;
  std::atomic<int> requests = 0;
  std::atomic<int> discards = 0;
  std::atomic<int> written = 0;  // also what failed
};

class FailingDevice final : public BlockDevice {
 public:
  FailingDevice(std::unique_ptr<BlockDevice> device, Faults& faults)
      : device_(std::move(device)), faults_(faults) {}

  void Submit(DiskIo io) override {
    ++faults_.requests;
    faults_.discards += io.op == DiskIo::Op::kDiscard ? 1 : 0;
    faults_.written += io.op == DiskIo::Op::kWrite ? 1 : 0;
    const bool bad = io.offset == faults_.bad_page && faults_.bad_tries > 0 &&
                     (io.op == DiskIo::Op::kRead || io.op == DiskIo::Op::kWrite);
    faults_.bad_tries -= bad ? 1 : 0;
    faults_.bad_failed += bad ? 1 : 0;
    const bool fails = bad || (io.op == DiskIo::Op::kRead && faults_.reads) ||
                       (io.op == DiskIo::Op::kWrite && faults_.writes) ||
                       (io.op == DiskIo::Op::kFlush && faults_.flushes);
    if (fails) {
      io.done = [this, done = std::move(io.done)](const absl::Status&) {
        ++faults_.failed;
        done(absl::InternalError("disk1: Input/output error"));
      };
    }
    device_->Submit(std::move(io));
  }
  std::uint64_t size_bytes() const override { return device_->size_bytes(); }
  std::string_view method() const override { return device_->method(); }

 private:
  const std::unique_ptr<BlockDevice> device_;
  Faults& faults_;
};

class DiskFailureTest : public StoreFixture {
 protected:
  static constexpr std::uint64_t kSegmentBytes = std::uint64_t{128} * 1024;  // 15 slots of 4 KiB
  static constexpr std::uint64_t kSegments = 8;                              // of each device

  // Before what it uses: the files and the faults.
  ~DiskFailureTest() override { store_.reset(); }

  void StartWithDisks(std::uint64_t segments = kSegments, std::uint64_t regions = 1) {
    Start(regions, [&](TieredStoreOptions& options) {
      TieredStoreOptions::Disk disk;
      for (const char* name : {"disk0", "disk1"}) {
        disk.store.devices.push_back(
            {directory_.path() / name, disk::kSegmentsOffset + segments * kSegmentBytes});
      }
      disk.store.catalog_path = directory_.path() / "catalog";
      disk.store.segment_bytes = kSegmentBytes;
      disk.store.queue_depth = 4;
      disk.store.discard = true;
      disk.store.catalog_env = files_.env();
      disk.store.open =
          [this](const BlockDeviceOptions& device) -> absl::StatusOr<std::unique_ptr<BlockDevice>> {
        Faults& faults = device.path.ends_with("disk0") ? faults_[0] : faults_[1];
        if (faults.opens) {
          ++faults.failed;
          return ErrnoStatus(EIO, device.path);
        }
        auto opened = OpenBlockDevice(device);
        if (!opened.ok()) return opened.status();
        return std::make_unique<FailingDevice>(*std::move(opened), faults);
      };
      options.disk = disk;
    });
  }
  // The faults of each device change between the two.
  void Restart(bool first_fails, bool second_fails) {
    store_.reset();
    faults_[0].opens = first_fails;
    faults_[1].opens = second_fails;
    StartWithDisks();
    store_->Quiesce();
  }
  // Nothing is written any more, RAM serves on, and no delete is acknowledged that a later start
  // would not know of.
  void ExpectOnlyRam(const std::string& why) {
    const DiskStatus disk = store_->GetStatus().disk;
    EXPECT_TRUE(disk.configured);
    EXPECT_THAT(disk.failure, HasSubstr(why));
    EXPECT_EQ(disk.capacity_bytes, 0U);
    for (const DeviceFacts& device : disk.devices) EXPECT_FALSE(device.healthy);
    const NamespaceRef ns = Open(SpecOf("ram"));
    EXPECT_EQ(StoreOne(ns, 9000), 1U);
    EXPECT_EQ(Verified(ns, KeysOf(9000, 1)), 1U);
    EXPECT_TRUE(absl::IsUnavailable(store_->Purge(ns.fingerprint()).status()));
    store_->Quiesce();
    ExpectSound();
  }
  // Single blocks, each of which reached the disks or was given up.
  std::vector<BlockKey> StoreBlocks(const NamespaceRef& ns, std::uint64_t first,
                                    std::uint64_t count) {
    for (std::uint64_t n = first; n < first + count; ++n) {
      EXPECT_EQ(StoreOne(ns, n), 1U);
      store_->Quiesce();
    }
    return KeysOf(first, count);
  }
  // How many come back; every one of them right.
  std::size_t Verified(const NamespaceRef& ns, std::span<const BlockKey> keys) {
    std::size_t right = 0;
    for (const BlockKey& key : keys) {
      const auto result = store_->FetchAll(ns, {.keys = {&key, 1}});
      EXPECT_TRUE(result.ok()) << result.status();
      EXPECT_TRUE(HoldsPayloads(result->lease, {&key, 1}));
      right += result->lease.parts().size();
    }
    return right;
  }
  void ExpectOut(std::uint64_t device) {
    const DiskStatus disk = store_->GetStatus().disk;
    ASSERT_EQ(disk.devices.size(), 2U);
    EXPECT_TRUE(disk.devices[1 - device].healthy);
    EXPECT_FALSE(disk.devices[device].healthy);
    EXPECT_THAT(disk.devices[device].last_error, HasSubstr("Input/output error"));
    EXPECT_EQ(disk.capacity_bytes, kSegments * kSegmentBytes);
    EXPECT_EQ(disk.failure, "");
    EXPECT_GT(faults_[device].failed, 0);
  }

  TempDirectory directory_;
  FaultFileSystem files_;
  Faults faults_[2];
};

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
  EXPECT_THAT(store_->GetStatus().disk.failure, HasSubstr("every device"));
  EXPECT_EQ(store_->GetStatus().disk.capacity_bytes, 0U);
  // RAM serves on, once the region that the purge gave up has come back.
  store_->Quiesce();
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

// ---- At the start ----

TEST_F(DiskFailureTest, ADeviceThatCannotBeOpenedIsOutAndTheOthersGoOn) {
  StartWithDisks();
  const std::vector<BlockKey> before = StoreBlocks(Open(SpecOf("m")), 1, 60);
  Restart(false, true);
  ExpectOut(1);
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::size_t left = Verified(ns, before);
  EXPECT_GT(left, 0U);
  EXPECT_LT(left, 60U);
  const std::vector<BlockKey> after = StoreBlocks(ns, 200, 40);
  EXPECT_EQ(Verified(ns, after), 40U);
  ExpectSound();
}

TEST_F(DiskFailureTest, WhatADeviceHeldIsBackWhenItIs) {
  StartWithDisks();
  const std::vector<BlockKey> before = StoreBlocks(Open(SpecOf("m")), 1, 60);
  Restart(false, true);
  ExpectOut(1);
  // Again on the other device, where it was out: the later write counts.
  StoreBlocks(Open(SpecOf("m")), 200, 20);
  for (const BlockKey& key : before) {
    const NamespaceRef ns = Open(SpecOf("m"));
    if (!IsCached(ns, key)) Store(ns, Root(ns), {&key, 1});
    store_->Quiesce();
  }
  Restart(false, false);
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_EQ(Verified(ns, before), 60U);
  EXPECT_EQ(Verified(ns, KeysOf(200, 20)), 20U);
  EXPECT_TRUE(store_->GetStatus().disk.devices[1].healthy);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskFailureTest, ADeviceWhoseSuperblockCannotBeReadIsOutAndNotWritten) {
  StartWithDisks();
  const std::vector<BlockKey> before = StoreBlocks(Open(SpecOf("m")), 1, 60);
  store_.reset();
  faults_[1].reads = true;
  const int written = faults_[1].written;
  StartWithDisks();
  store_->Quiesce();
  ExpectOut(1);
  StoreBlocks(Open(SpecOf("m")), 200, 20);
  EXPECT_EQ(faults_[1].written, written);
  faults_[1].reads = false;
  Restart(false, false);
  EXPECT_EQ(Verified(Open(SpecOf("m")), before), 60U);
}

TEST_F(DiskFailureTest, WhatWasDeletedWhileADeviceWasOutStaysDeleted) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 60);
  Restart(false, true);
  EXPECT_TRUE(store_->Purge(Open(SpecOf("m")).fingerprint()).ok());
  Restart(false, false);
  EXPECT_EQ(store_->GetStatus().disk.failure, "");
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 0U);
  // The device that was out has the list by now, and can be served alone.
  Restart(true, false);
  ExpectOut(0);
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 0U);
}

TEST_F(DiskFailureTest, ADeviceThatMissedADeleteIsNotServedAlone) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 60);
  Restart(false, true);
  EXPECT_TRUE(store_->Purge(Open(SpecOf("m")).fingerprint()).ok());
  const int written = faults_[1].written;
  Restart(true, false);
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 0U);
  ExpectOnlyRam("deleted");
  EXPECT_EQ(faults_[1].written, written);
  Restart(false, false);
  EXPECT_EQ(store_->GetStatus().disk.failure, "");
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 0U);
}

TEST_F(DiskFailureTest, WithoutTheCatalogADeviceIsNotServedAlone) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 60);
  store_.reset();
  std::filesystem::remove_all(directory_.path() / "catalog");
  Restart(true, false);
  ExpectOnlyRam("catalog");
  Restart(false, false);
  EXPECT_NE(store_->GetStatus().disk.recovered_from_headers, "");
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 60U);
}

TEST_F(DiskFailureTest, WhenEveryDeviceFailsAtTheStartRamServes) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 60);
  Restart(true, true);
  ExpectOnlyRam("Input/output error");
  Restart(false, false);
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 60U);
}

TEST_F(DiskFailureTest, AStoreIsNotMadeWhileADeviceFails) {
  faults_[1].opens = true;
  StartWithDisks();
  store_->Quiesce();
  ExpectOnlyRam("cannot be made");
  EXPECT_EQ(faults_[0].written, 0);
  Restart(false, false);
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_EQ(Verified(ns, StoreBlocks(ns, 1, 60)), 60U);
}

// ---- A segment's header ----

TEST_F(DiskFailureTest, ASegmentHeaderThatFailsToBeReadAtFirstCostsNothing) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 60);
  store_.reset();
  faults_[0].bad_page = disk::SegmentOffset(kSegmentBytes, 0);
  faults_[0].bad_tries = 2;
  StartWithDisks();
  store_->Quiesce();
  EXPECT_EQ(faults_[0].bad_failed, 2);
  EXPECT_EQ(store_->GetStatus().disk.unreadable_segments, 0U);
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 60U);
}

TEST_F(DiskFailureTest, ASegmentWhoseHeaderCannotBeReadIsSetAsideUntilItCan) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 60);
  store_.reset();
  faults_[0].bad_page = disk::SegmentOffset(kSegmentBytes, 0);
  faults_[0].bad_tries = 1000000;
  StartWithDisks();
  store_->Quiesce();
  EXPECT_EQ(store_->GetStatus().disk.unreadable_segments, 1U);
  EXPECT_TRUE(store_->GetStatus().disk.devices[0].healthy);
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 45U);
  // More than the rest of the disks holds: what is set aside is not taken for it.
  const int failed = faults_[0].bad_failed;
  StoreBlocks(Open(SpecOf("m")), 1000, 240);
  EXPECT_EQ(faults_[0].bad_failed, failed);
  EXPECT_EQ(store_->GetStatus().disk.blocks, (2 * kSegments - 1) * 15);
  ExpectSound();
  faults_[0].bad_tries = 0;
  Restart(false, false);
  EXPECT_EQ(store_->GetStatus().disk.unreadable_segments, 0U);
  EXPECT_EQ(store_->GetStatus().disk.blocks, 2 * kSegments * 15);
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
  StoreBlocks(ns, 200, 5);
  EXPECT_EQ(store_->GetStatus().disk.blocks, blocks);
  ns.Reset();
  Restart(false, false);
  EXPECT_EQ(store_->GetStatus().disk.catalog_failure, "");
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
