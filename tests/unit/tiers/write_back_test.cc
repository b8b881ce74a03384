// When blocks are written back, and what a caller is told of it. A RAM tier of 64 blocks of 4 KiB,
// one disk of 240 slots, and a device that can hold flushes back and refuse writes.
#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <future>

#include "gmock/gmock.h"
#include "tests/fakes/temp_directory.h"
#include "tests/unit/tiers/store_fixture.h"

namespace kavern::tiers {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kBlockBytes = 4096;
constexpr std::uint64_t kSegmentBytes = std::uint64_t{128} * 1024;  // 15 slots

// What the test asks of the device, and what it saw.
struct Gate {
  Mutex mu;
  CondVar changed;
  bool hold_flushes KAVERN_GUARDED_BY(mu) = false;
  bool refuse_writes KAVERN_GUARDED_BY(mu) = false;
  bool hold_next_payload KAVERN_GUARDED_BY(mu) = false;
  std::optional<DiskIo> held_payload KAVERN_GUARDED_BY(mu);
  bool hold_next_header KAVERN_GUARDED_BY(mu) = false;
  std::optional<DiskIo> held_header KAVERN_GUARDED_BY(mu);
  std::uint64_t payloads KAVERN_GUARDED_BY(mu) = 0;  // written, or on their way
  std::uint64_t held KAVERN_GUARDED_BY(mu) = 0;
  std::uint64_t flushes KAVERN_GUARDED_BY(mu) = 0;

  void HoldFlushes(bool hold) {
    MutexLock lock(mu);
    hold_flushes = hold;
    changed.NotifyAll();
  }
  void RefuseWrites() {
    MutexLock lock(mu);
    refuse_writes = true;
  }
  void HoldNextPayload() {
    MutexLock lock(mu);
    hold_next_payload = true;
  }
  // Of a segment.
  void HoldNextHeader() {
    MutexLock lock(mu);
    hold_next_header = true;
  }
  DiskIo TakeHeldHeader() {
    MutexLock lock(mu);
    return *std::exchange(held_header, std::nullopt);
  }
  void WaitForPayloads(std::uint64_t count) {
    MutexLock lock(mu);
    while (payloads < count) changed.Wait(mu);
  }
  // A slot's header and payload are two pieces.
  bool Holds(DiskIo& io) {
    MutexLock lock(mu);
    if (hold_next_header && IsSegmentHeader(io)) {
      hold_next_header = false;
      held_header = std::move(io);
      return true;
    }
    payloads += io.op == DiskIo::Op::kWrite && io.pieces.size() == 2 ? 1 : 0;
    changed.NotifyAll();
    if (!hold_next_payload || io.op != DiskIo::Op::kWrite || io.pieces.size() != 2) return false;
    hold_next_payload = false;
    held_payload = std::move(io);
    changed.NotifyAll();
    return true;
  }
  static bool IsSegmentHeader(const DiskIo& io) {
    return io.op == DiskIo::Op::kWrite && io.offset >= disk::kSegmentsOffset &&
           (io.offset - disk::kSegmentsOffset) % kSegmentBytes == 0;
  }
  void WaitForHeldPayload() {
    MutexLock lock(mu);
    while (!held_payload.has_value()) changed.Wait(mu);
  }
  DiskIo TakeHeldPayload() {
    MutexLock lock(mu);
    return *std::exchange(held_payload, std::nullopt);
  }
  void WaitUntilHeld() {
    MutexLock lock(mu);
    while (held == 0) changed.Wait(mu);
  }
  std::uint64_t Flushes() {
    MutexLock lock(mu);
    return flushes;
  }
  bool Refuses(const DiskIo& io) {
    MutexLock lock(mu);
    return refuse_writes && io.op == DiskIo::Op::kWrite;
  }
  void PassFlush() {
    MutexLock lock(mu);
    ++flushes;
    ++held;
    changed.NotifyAll();
    while (hold_flushes) changed.Wait(mu);
    --held;
  }
};

class GatedDevice final : public BlockDevice {
 public:
  GatedDevice(std::unique_ptr<BlockDevice> below, Gate& gate)
      : below_(std::move(below)), gate_(gate) {}
  void Submit(DiskIo io) override {
    if (gate_.Refuses(io)) {
      io.done(absl::InternalError("refused"));
      return;
    }
    if (gate_.Holds(io)) return;
    // Only the committer flushes once the store is open, and it waits for the flush anyway.
    if (io.op == DiskIo::Op::kFlush) gate_.PassFlush();
    below_->Submit(std::move(io));
  }
  std::uint64_t size_bytes() const override { return below_->size_bytes(); }
  std::string_view method() const override { return below_->method(); }

 private:
  const std::unique_ptr<BlockDevice> below_;
  Gate& gate_;
};

class WriteBackTest : public StoreFixture {
 protected:
  void StartWithDisk(const std::function<void(TieredStoreOptions::Disk&)>& change = {}) {
    Start(4, [&](TieredStoreOptions& options) {
      TieredStoreOptions::Disk disk;
      disk.store.devices = {
          {directory_.path() / "disk", disk::kSegmentsOffset + 16 * kSegmentBytes}};
      disk.store.catalog_path = directory_.path() / "catalog";
      disk.store.segment_bytes = kSegmentBytes;
      disk.store.open =
          [this](const BlockDeviceOptions& device) -> absl::StatusOr<std::unique_ptr<BlockDevice>> {
        auto below = OpenBlockDevice(device);
        if (!below.ok()) return below.status();
        auto gated = std::make_unique<GatedDevice>(*std::move(below), gate_);
        device_ = gated.get();
        return gated;
      };
      if (change) change(disk);
      options.disk = disk;
    });
  }
  // Stores a chain; the future has what the commit says of durability.
  std::future<TieredStore::Durable> StoreChain(const NamespaceRef& ns,
                                               std::span<const BlockKey> keys,
                                               std::optional<DiskDurability> durability = {}) {
    return StoreAbove(ns, Root(ns), keys, durability);
  }
  std::future<TieredStore::Durable> StoreAbove(
      const NamespaceRef& ns, const BlockKey& parent, std::span<const BlockKey> keys,
      std::optional<DiskDurability> durability = DiskDurability::kStrict) {
    StoreRequest request{.parent = parent, .keys = keys};
    request.durability = durability;
    auto grant = store_->BeginStore(ns, request);
    EXPECT_TRUE(grant.ok()) << grant.status();
    std::vector<std::uint32_t> sums;
    for (std::size_t i = 0; i < grant->lease.size(); ++i) {
      FillPayload(grant->lease.extent(i), grant->lease.key(i), grant->lease.part());
      sums.push_back(ChecksumOf(grant->lease.extent(i), grant->lease.key(i), grant->lease.part()));
    }
    auto told = std::make_shared<std::promise<TieredStore::Durable>>();
    const auto published = store_->CommitStore(
        grant->lease, 0, sums,
        [told](TieredStore::Durable durable) { told->set_value(std::move(durable)); });
    EXPECT_TRUE(published.ok()) << published.status();
    EXPECT_EQ(*published, sums.size());
    return told->get_future();
  }
  static bool IsTold(const std::future<TieredStore::Durable>& told) {
    return told.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }
  std::uint64_t BlocksOnDisk() { return store_->GetStatus().disk.blocks; }

  TempDirectory directory_;
  Gate gate_;
  GatedDevice* device_ = nullptr;
};

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

TEST_F(WriteBackTest, TheScrubberFindsDamageBeforeAnybodyAsksForIt) {
  StartWithDisk();
  const NamespaceRef ns = Open(SpecOf("m"));
  StoreChain(ns, KeysOf(1, 10)).get();
  store_->Quiesce();
  const auto pass = [&] {
    std::uint64_t bytes = 0;
    while (const std::uint64_t read = store_->ScrubNext()) bytes += read;
    return bytes;
  };
  EXPECT_EQ(pass(), 10 * kBlockBytes);
  EXPECT_EQ(store_->GetCounters().scrub_passes, 1U);
  EXPECT_EQ(store_->GetCounters().scrub_damaged_blocks, 0U);
  // The payload of the third slot.
  const int file = open((directory_.path() / "disk").c_str(), O_WRONLY | O_CLOEXEC);
  const auto at = disk::SlotOffset(kSegmentBytes, 0, kBlockBytes, 2) + kDiskPage + 1234;
  EXPECT_EQ(pwrite(file, "!", 1, static_cast<off_t>(at)), 1);
  close(file);
  pass();
  EXPECT_EQ(store_->GetCounters().scrub_damaged_blocks, 1U);
  // RAM still had it: it is written once more, elsewhere or there.
  store_->Quiesce();
  EXPECT_EQ(BlocksOnDisk(), 10U);
  pass();
  EXPECT_EQ(store_->GetCounters().scrub_damaged_blocks, 1U);
  ExpectSound();
}

TEST_F(WriteBackTest, TheScrubberVerifiesWhatNobodyHasOpenedSinceTheStart) {
  StartWithDisk();
  {
    const NamespaceRef a = Open(SpecOf("a"));
    const NamespaceRef b = Open(SpecOf("b"));
    StoreChain(a, KeysOf(1, 3)).get();
    StoreChain(b, KeysOf(11, 4)).get();
    store_->Quiesce();
  }
  store_.reset();
  StartWithDisk();
  store_->Quiesce();
  std::uint64_t bytes = 0;
  while (const std::uint64_t read = store_->ScrubNext()) bytes += read;
  EXPECT_EQ(bytes, 7 * kBlockBytes);
  EXPECT_EQ(store_->GetCounters().scrub_damaged_blocks, 0U);
}

}  // namespace
}  // namespace kavern::tiers
