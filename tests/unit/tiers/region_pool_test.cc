#include "tiers/ram/region_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/units.h"

namespace kavern::tiers {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint64_t kRegionBytes = 64 * kKiB;

// A machine whose free memory the test decides.
class HeldMemory {
 public:
  void SetFree(std::uint64_t bytes) { free_ = bytes; }
  void SetBroken(bool broken) { broken_ = broken; }
  std::uint64_t reads() const { return reads_; }

  absl::StatusOr<MemoryFacts> Read() {
    ++reads_;
    if (broken_) return absl::InternalError("/proc/meminfo: cannot be read");
    MemoryFacts facts;
    facts.machine_total_bytes = kTiB;
    facts.machine_available_bytes = free_;
    return facts;
  }

 private:
  std::atomic<std::uint64_t> free_ = kTiB;
  std::atomic<bool> broken_ = false;
  std::atomic<std::uint64_t> reads_ = 0;
};

// Counts regions that became ready, and lets a test wait for a number of them.
class ReadyCounter {
 public:
  void Count() {
    MutexLock lock(mu_);
    ++count_;
    changed_.NotifyAll();
  }
  void WaitFor(int count) {
    MutexLock lock(mu_);
    while (count_ < count) changed_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  int count_ KAVERN_GUARDED_BY(mu_) = 0;
};

class RegionPoolTest : public ::testing::Test {
 protected:
  RegionPoolOptions Options(std::uint64_t regions) {
    RegionPoolOptions options;
    options.capacity_bytes = regions * kRegionBytes;
    options.region_bytes = kRegionBytes;
    options.huge_pages = HugePages::kOff;
    options.read_memory = [this] { return memory_.Read(); };
    return options;
  }

  void Start(RegionPoolOptions options) {
    auto pool = RegionPool::Create(std::move(options));
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    pool_->SetReadyCallback([this] { ready_.Count(); });
  }

  // Asks until the background thread has made one.
  std::shared_ptr<Region> TakeSoon() {
    for (;;) {
      if (std::shared_ptr<Region> region = pool_->Take()) return region;
      pool_->WaitUntilSettled();
    }
  }

  HeldMemory memory_;
  ReadyCounter ready_;
  std::unique_ptr<RegionPool> pool_;
};

TEST_F(RegionPoolTest, FillsUpToItsCapacityAndNoFurther) {
  Start(Options(3));
  pool_->WaitUntilSettled();
  RegionPool::Status status = pool_->GetStatus();
  EXPECT_EQ(status.capacity_bytes, 3 * kRegionBytes);
  EXPECT_EQ(status.existing_bytes, 3 * kRegionBytes);
  EXPECT_EQ(status.ready_bytes, 3 * kRegionBytes);
  EXPECT_EQ(status.region_bytes, kRegionBytes);
  EXPECT_THAT(status.waiting_for, IsEmpty());

  std::vector<std::shared_ptr<Region>> taken;
  std::set<std::uint64_t> ids;
  for (int i = 0; i < 3; ++i) {
    taken.push_back(pool_->Take());
    ASSERT_NE(taken.back(), nullptr);
    ids.insert(taken.back()->id());
  }
  EXPECT_EQ(ids.size(), 3U);
  EXPECT_EQ(pool_->Take(), nullptr);
  pool_->WaitUntilSettled();
  status = pool_->GetStatus();
  EXPECT_EQ(status.existing_bytes, 3 * kRegionBytes);
  EXPECT_EQ(status.ready_bytes, 0U);
}

// A client that is dead or slow holds a share of a region that the store has given up.
TEST_F(RegionPoolTest, ARegionThatSomebodyStillMapsCountsUntilItIsGone) {
  Start(Options(1));
  pool_->WaitUntilSettled();
  std::shared_ptr<Region> store = pool_->Take();
  std::shared_ptr<Region> session = store;
  ASSERT_NE(store, nullptr);
  const std::uint64_t id = store->id();
  store.reset();
  pool_->WaitUntilSettled();
  EXPECT_EQ(pool_->Take(), nullptr);
  EXPECT_EQ(pool_->GetStatus().existing_bytes, kRegionBytes);

  session.reset();
  const std::shared_ptr<Region> next = TakeSoon();
  EXPECT_NE(next->id(), id) << "an id is never used again";
  EXPECT_EQ(pool_->GetStatus().existing_bytes, kRegionBytes);
}

TEST_F(RegionPoolTest, ARegionIsNeverOneThatHeldBytesBefore) {
  Start(Options(1));
  for (int round = 0; round < 4; ++round) {
    const std::shared_ptr<Region> region = TakeSoon();
    const auto bytes = region->bytes();
    EXPECT_TRUE(
        std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; }));
    std::fill(bytes.begin(), bytes.end(), std::byte{0xa5});
  }
}

TEST_F(RegionPoolTest, WithoutPrepopulationARegionIsMadeWhenOneIsAskedFor) {
  RegionPoolOptions options = Options(4);
  options.prepopulate = false;
  Start(std::move(options));
  pool_->WaitUntilSettled();
  EXPECT_EQ(pool_->GetStatus().existing_bytes, 0U);
  EXPECT_EQ(pool_->Take(), nullptr);
  ready_.WaitFor(1);
  pool_->WaitUntilSettled();
  EXPECT_EQ(pool_->GetStatus().existing_bytes, kRegionBytes);
  EXPECT_NE(pool_->Take(), nullptr);
}

// All but one byte of what the second region needs is free: it waits, says for what, and goes on by
// itself.
TEST_F(RegionPoolTest, WaitsForMemoryAndSaysSoThenGoesOn) {
  RegionPoolOptions options = Options(2);
  options.reserve_bytes = kMiB;
  memory_.SetFree(kMiB + kRegionBytes - 1);
  Start(std::move(options));
  pool_->WaitUntilSettled();
  EXPECT_EQ(pool_->GetStatus().existing_bytes, 0U);
  EXPECT_THAT(pool_->GetStatus().waiting_for, HasSubstr("a region needs 64 KiB"));
  EXPECT_THAT(pool_->GetStatus().waiting_for, HasSubstr("reserve of 1 MiB"));
  EXPECT_EQ(pool_->Take(), nullptr);

  memory_.SetFree(kMiB + kRegionBytes);
  ready_.WaitFor(2);
  pool_->WaitUntilSettled();
  EXPECT_EQ(pool_->GetStatus().ready_bytes, 2 * kRegionBytes);
  EXPECT_THAT(pool_->GetStatus().waiting_for, IsEmpty());
}

TEST_F(RegionPoolTest, MemoryThatCannotBeReadIsWaitedForAndNotGuessed) {
  memory_.SetBroken(true);
  Start(Options(1));
  pool_->WaitUntilSettled();
  EXPECT_EQ(pool_->GetStatus().existing_bytes, 0U);
  EXPECT_THAT(pool_->GetStatus().waiting_for, HasSubstr("/proc/meminfo"));
  memory_.SetBroken(false);
  ready_.WaitFor(1);
}

// 64 KiB is no multiple of a reserved huge page: creating a region fails, again and again.
TEST_F(RegionPoolTest, ARegionThatTheKernelRefusesIsNotCounted) {
  RegionPoolOptions options = Options(2);
  options.huge_pages = HugePages::kHugetlb;
  Start(std::move(options));
  pool_->WaitUntilSettled();
  EXPECT_EQ(pool_->GetStatus().existing_bytes, 0U);
  EXPECT_EQ(pool_->GetStatus().huge_page_bytes, 0U);
  EXPECT_FALSE(pool_->GetStatus().waiting_for.empty());
  EXPECT_EQ(pool_->Take(), nullptr);
}

TEST_F(RegionPoolTest, HugePagesAreCountedForAsLongAsTheirRegionExists) {
  RegionPoolOptions options = Options(1);
  options.region_bytes = 2 * kMiB;
  options.capacity_bytes = 2 * kMiB;
  options.huge_pages = HugePages::kAuto;
  Start(std::move(options));
  pool_->WaitUntilSettled();
  if (pool_->GetStatus().huge_page_bytes == 0) GTEST_SKIP() << "the kernel gives no huge pages";
  EXPECT_EQ(pool_->GetStatus().huge_page_bytes, 2 * kMiB);
  for (int round = 0; round < 3; ++round) {
    TakeSoon().reset();
    EXPECT_LE(pool_->GetStatus().huge_page_bytes, 2 * kMiB);
  }
}

TEST_F(RegionPoolTest, RegionsOutliveThePool) {
  Start(Options(2));
  std::shared_ptr<Region> region = TakeSoon();
  pool_.reset();
  region->bytes()[0] = std::byte{1};
  region.reset();
}

// The machine has no memory to give while the pool is asked to end: it may not wait for it.
TEST_F(RegionPoolTest, EndsWhileItWaitsForMemory) {
  memory_.SetFree(0);
  Start(Options(2));
  pool_->WaitUntilSettled();
  pool_.reset();
  EXPECT_GT(memory_.reads(), 0U);
}

TEST_F(RegionPoolTest, OptionsThatContradictEachOtherAreRefusedWithTheNumbers) {
  const auto refusal = [this](std::uint64_t capacity, std::uint64_t region) {
    RegionPoolOptions options = Options(1);
    options.capacity_bytes = capacity;
    options.region_bytes = region;
    const auto pool = RegionPool::Create(std::move(options));
    EXPECT_EQ(pool.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(pool.status().message());
  };
  EXPECT_THAT(refusal(kMiB, 0), HasSubstr("ram.region: got 0 bytes"));
  EXPECT_THAT(refusal(kMiB, 4095), HasSubstr("ram.region: got 4095 bytes"));
  EXPECT_THAT(refusal(0, 4096), HasSubstr("ram.capacity: got 0 bytes"));
  EXPECT_THAT(refusal(4096, 8192), HasSubstr("ram.capacity: got 4096 bytes"));
  EXPECT_THAT(refusal(12288, 8192), HasSubstr("expected a multiple of ram.region, 8192 bytes"));
}

}  // namespace
}  // namespace kavern::tiers
