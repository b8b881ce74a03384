// Disks that fail while the store runs: full, gone, read-only, slow, lying. What is asked of the
// store: it serves what it can, says what it cannot, never serves a wrong byte, and what it
// acknowledges is there after a restart on sound disks.
//
// Not checked: what other parts of a machine do when its disk is gone; how fast the store is then.

#include <chrono>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/crash/fault_rig.h"

namespace kavern::tiers {
namespace {

class DiskFaults : public testing::Test {
 protected:
  void SetUp() override {
    report_.harness =
        absl::StrCat("disk_fault.", testing::UnitTest::GetInstance()->current_test_info()->name());
    Open();
  }
  void TearDown() override {
    report_.AddFaults(rig_.counts());
    report_.Print();
    EXPECT_EQ(report_.Violations(), 0U) << report_.first_violation;
    EXPECT_FALSE(report_.faults.empty()) << "no fault struck";
  }

  void Open() {
    auto opened = rig_.Open();
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }
  // Chains of namespace 0; what is on disk afterwards is acknowledged.
  void Store(std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t n = first; n < first + count; ++n) {
      truth_.Begun({0, n}, ++version_);
      report_.operations += store_->Store({0, n}, version_) ? 1 : 0;
      store_->WaitDurable();
    }
  }
  std::set<BlockName> OnDisk() { return store_->OnDisk(truth_.versions()); }
  std::set<BlockName> Served() { return store_->ReadAll(truth_, report_); }
  // A store on sound disks has all that was acknowledged.
  void RestartExpecting(const std::set<BlockName>& acknowledged) {
    store_.reset();
    rig_.files().Set(FaultFileSystem::Mode::kSound);
    CheckRecovery(rig_.options(), truth_, acknowledged, "restart", report_);
  }

  // The disks are full for a while: what is stored then is declined, and nothing else suffers. They
  // are written to again as soon as there is room, or (unless `goes_on`) after a restart.
  void FullFor(bool goes_on, const std::function<void(bool)>& set_full) {
    Store(0, 8);
    const std::set<BlockName> before = OnDisk();
    ASSERT_EQ(before.size(), 8U);
    set_full(true);
    Store(100, 8);
    EXPECT_EQ(OnDisk(), before) << "nothing is acknowledged that was not written";
    // All of it is in RAM or on disk.
    EXPECT_EQ(Served().size(), 16U);
    store_->CheckSound(report_);
    set_full(false);
    if (!goes_on) {
      store_.reset();
      Open();
    }
    Store(200, 8);
    EXPECT_EQ(OnDisk().size(), 16U) << "there is room again";
    RestartExpecting(OnDisk());
  }

  FaultRig rig_{7};
  std::unique_ptr<CrashStore> store_;
  BlockTruth truth_;
  std::uint64_t version_ = 0;
  CrashReport report_;
};

TEST_F(DiskFaults, AFullDiskDeclinesAndServesOn) {
  FullFor(true, [this](bool full) { rig_.SetRate(DiskFault::kNoSpace, full ? 1 : 0); });
}

// RocksDB takes no writes after one has failed: a restart is needed.
TEST_F(DiskFaults, AFullDiskUnderTheCatalogDeclinesAndServesOnUntilARestart) {
  FullFor(false, [this](bool full) {
    rig_.files().Set(full ? FaultFileSystem::Mode::kNoSpace : FaultFileSystem::Mode::kSound);
  });
  report_.faults["catalog_no_space"] += rig_.files().faults(FaultFileSystem::Mode::kNoSpace);
}

TEST_F(DiskFaults, ADiskThatIsMountedReadOnlyServesOnAndAcknowledgesNothing) {
  Store(0, 8);
  const std::set<BlockName> before = OnDisk();
  rig_.SetRate(DiskFault::kReadOnly, 1);
  rig_.files().Set(FaultFileSystem::Mode::kReadOnly);
  Store(100, 8);
  // A device that fails is taken out, with what it has; RAM serves on.
  for (const BlockName& name : OnDisk()) EXPECT_TRUE(before.contains(name));
  EXPECT_EQ(Served().size(), 16U);
  EXPECT_FALSE(store_->Purge(1).ok()) << "what cannot be written down is not deleted for ever";
  RestartExpecting(before);
}

TEST_F(DiskFaults, ADeviceThatIsGoneTakesItsOwnBlocksOnly) {
  Store(0, 24);
  ASSERT_EQ(OnDisk().size(), 24U);
  // RAM forgets them: it has room for a few.
  store_.reset();
  rig_.options().ram_regions = 4;
  Open();
  rig_.device(0).SetRate(DiskFault::kReadError, 1);
  rig_.device(0).SetRate(DiskFault::kWriteError, 1);
  rig_.device(0).SetRate(DiskFault::kFlushError, 1);
  const std::set<BlockName> served = Served();
  EXPECT_GT(served.size(), 0U);
  EXPECT_LT(served.size(), 24U);
  Store(100, 4);
  store_->CheckSound(report_);
  // What could not be read is not thrown away: a restart with the device finds it.
  std::set<BlockName> old;
  for (std::uint64_t n = 0; n < 24; ++n) old.insert({0, n});
  RestartExpecting(old);
}

TEST_F(DiskFaults, ASlowDiskIsAMissByTheDeadlineAndServedLater) {
  Store(0, 4);
  store_.reset();
  rig_.options().read_timeout = std::chrono::milliseconds(30);
  Open();
  rig_.SetRate(DiskFault::kStall, 1);
  const auto began = std::chrono::steady_clock::now();
  EXPECT_FALSE(store_->Read({0, 0}, truth_, report_));
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(10));
  EXPECT_EQ(rig_.counts()[DiskFault::kStall], 1U);
  // Nobody waits for it any more: it was cancelled before the reader was told.
  EXPECT_EQ(rig_.device(0).stalled() + rig_.device(1).stalled(), 0U);
  rig_.SetRate(DiskFault::kStall, 0);
  rig_.device(0).Release();
  rig_.device(1).Release();
  store_->store().Quiesce();
  EXPECT_EQ(Served().size(), 4U);
  RestartExpecting(OnDisk());
}

TEST_F(DiskFaults, ReadsThatLieAreMisses) {
  rig_.options().ram_regions = 4;
  store_.reset();
  Open();
  rig_.SetRate(DiskFault::kStaleRead, 0.05);  // it remembers from now on
  std::uint64_t first = 0;
  for (int round = 0; round < 60; ++round) {
    rig_.SetRate(DiskFault::kMisdirectedRead, 0);
    Store(first, 16);
    first = (first + 16) % 128;
    for (const DiskFault fault :
         {DiskFault::kMisdirectedRead, DiskFault::kShortRead, DiskFault::kStaleRead}) {
      rig_.SetRate(fault, 0.2);
    }
    Served();
    Served();
  }
  store_->CheckSound(report_);
  for (const DiskFault fault :
       {DiskFault::kMisdirectedRead, DiskFault::kShortRead, DiskFault::kStaleRead}) {
    EXPECT_GT(rig_.counts()[fault], 0U) << NameOf(fault);
  }
  EXPECT_GT(store_->store().GetCounters().damaged_blocks, 0U);
}

}  // namespace
}  // namespace kavern::tiers
