// Disks that hang: what they are asked for neither ends nor fails before the test says so. The
// clock stands still but for the test, and the store looks every few milliseconds whether a disk
// hangs. Says nothing about disks that are only slow.

#include <chrono>
#include <cstring>
#include <deque>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/copy_and_checksum.h"
#include "base/mutex.h"
#include "gmock/gmock.h"
#include "tests/unit/tiers/disk_fixture.h"
#include "tiers/nvme/disk_devices.h"
#include "tiers/nvme/disk_pages.h"

namespace kavern::tiers {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr std::chrono::milliseconds kHangTimeout(40);
constexpr std::chrono::seconds kLongAgo(31);

std::uint32_t SumOf(const DiskIo& io) {
  std::uint32_t sum = 0;
  for (const std::span<const std::byte> piece : io.pieces) sum = Crc32c(piece, sum);
  return sum;
}

// Of one disk: what is asked of it while it is frozen is kept.
class Freezer {
 public:
  explicit Freezer(const Clock& clock) : clock_(clock) {}

  void Freeze(std::optional<DiskIo::Op> only = std::nullopt) {
    MutexLock lock(mu_);
    frozen_ = true;
    only_ = only;
  }
  // All goes on. What was to be written is what it was when it was asked for.
  void Thaw() {
    std::deque<Held> held;
    {
      MutexLock lock(mu_);
      frozen_ = false;
      held.swap(held_);
    }
    for (Held& one : held) {
      EXPECT_TRUE(one.io.op != DiskIo::Op::kWrite || SumOf(one.io) == one.sum) << "overwritten";
      one.device->Submit(std::move(one.io));
    }
  }
  void WaitUntilHeld(std::size_t count) {
    MutexLock lock(mu_);
    while (held_.size() < count) changed_.Wait(mu_);
  }
  std::size_t held() const {
    MutexLock lock(mu_);
    return held_.size();
  }
  std::uint64_t asked() const {
    MutexLock lock(mu_);
    return asked_;
  }
  // True: it is kept.
  bool Hold(BlockDevice* device, DiskIo& io) {
    MutexLock lock(mu_);
    ++asked_;
    if (!frozen_ || (only_.has_value() && io.op != *only_)) return false;
    const std::uint32_t sum = SumOf(io);
    held_.push_back({device, std::move(io), clock_.Now(), sum});
    changed_.NotifyAll();
    return true;
  }
  SteadyTime first_begun() const {
    MutexLock lock(mu_);
    return held_.empty() ? SteadyTime::max() : held_.front().begun;
  }

 private:
  struct Held {
    BlockDevice* device = nullptr;
    DiskIo io;
    SteadyTime begun;
    std::uint32_t sum = 0;
  };
  const Clock& clock_;
  mutable Mutex mu_;
  CondVar changed_;
  bool frozen_ KAVERN_GUARDED_BY(mu_) = false;
  std::optional<DiskIo::Op> only_ KAVERN_GUARDED_BY(mu_);
  std::deque<Held> held_ KAVERN_GUARDED_BY(mu_);
  std::uint64_t asked_ KAVERN_GUARDED_BY(mu_) = 0;
};

class FrozenDevice final : public BlockDevice {
 public:
  FrozenDevice(std::unique_ptr<BlockDevice> device, Freezer& freezer)
      : device_(std::move(device)), freezer_(freezer) {}

  void Submit(DiskIo io) override {
    if (!freezer_.Hold(device_.get(), io)) device_->Submit(std::move(io));
  }
  std::uint64_t size_bytes() const override { return device_->size_bytes(); }
  std::string_view method() const override { return device_->method(); }
  BlockDeviceFacts facts() const override {
    BlockDeviceFacts facts;
    facts.in_flight = freezer_.held();
    facts.first_begun = freezer_.first_begun();
    return facts;
  }

 private:
  const std::unique_ptr<BlockDevice> device_;
  Freezer& freezer_;
};

class DiskHangTest : public DiskFixture {
 protected:
  void StartToFreeze(std::uint64_t regions = 1) {
    StartWithDisk(regions, 16, [&](TieredStoreOptions& options) {
      options.disk->store.hang_timeout = kHangTimeout;
      options.disk->write_back_bytes_max = std::uint64_t{4} * 4096;
      options.disk->promotion_bytes_max = std::uint64_t{2} * 4096;
      options.disk->store.open =
          [this](const BlockDeviceOptions& open) -> absl::StatusOr<std::unique_ptr<BlockDevice>> {
        auto device = OpenBlockDevice(open);
        if (!device.ok()) return device.status();
        return std::make_unique<FrozenDevice>(*std::move(device),
                                              freezers_[open.path.ends_with("disk0") ? 0 : 1]);
      };
    });
  }
  // The next blocks go to the second disk.
  NamespaceRef Prepare() {
    NamespaceRef ns = Open(SpecOf("m"));
    keys_ = StoreChains(ns, 1, 48);
    return ns;
  }
  // Something has been under way there for long, and from then on it hangs.
  void WaitUntilItHangs(std::size_t disk) {
    freezers_[disk].WaitUntilHeld(1);
    clock_.Advance(kLongAgo);
  }
  void ExpectOut(std::size_t disk) {
    const DiskStatus status = store_->GetStatus().disk;
    EXPECT_EQ(status.failure, "");
    EXPECT_TRUE(status.devices[1 - disk].healthy);
    EXPECT_FALSE(status.devices[disk].healthy);
    EXPECT_THAT(status.devices[disk].last_error,
                HasSubstr("it hangs: a request has been under way for 31s"));
  }
  void TearDown() override {
    for (Freezer& freezer : freezers_) freezer.Thaw();
    // What ends then is told in threads of the disks.
    while (store_ != nullptr && store_->GetStatus().leased_bytes > 0) std::this_thread::yield();
    DiskFixture::TearDown();
  }

  std::vector<BlockKey> keys_;
  Freezer freezers_[2] = {Freezer(clock_), Freezer(clock_)};
};

TEST_F(DiskHangTest, ADiskWhoseWritesHangKeepsNobodyElseFromBeingWritten) {
  StartToFreeze(2);
  const NamespaceRef ns = Prepare();
  freezers_[1].Freeze();
  // More than may be written at a time, on both disks.
  EXPECT_EQ(Store(ns, Root(ns), KeysOf(100, 16)), 16U);
  WaitUntilItHangs(1);
  store_->Quiesce();
  ExpectOut(1);
  EXPECT_GT(store_->GetStatus().leased_bytes, 0U);
  EXPECT_EQ(store_->GetStatus().disk.write_back_bytes, 0U);
  // The other goes on, and this one is not touched any more.
  const std::uint64_t asked = freezers_[1].asked();
  const std::uint64_t stored = store_->GetCounters().disk_stored_blocks;
  const std::vector<BlockKey> keys = StoreChains(ns, 200, 40);
  EXPECT_EQ(store_->GetCounters().disk_stored_blocks, stored + 40);
  EXPECT_EQ(Verified(ns, keys), 40U);
  EXPECT_EQ(freezers_[1].asked(), asked);
  ExpectSound();
}

TEST_F(DiskHangTest, MemoryUnderIoIsNobodysUntilItEnds) {
  StartToFreeze();
  NamespaceRef ns = Prepare();
  freezers_[1].Freeze(DiskIo::Op::kWrite);
  EXPECT_EQ(Store(ns, Root(ns), KeysOf(100, 8)), 8U);
  WaitUntilItHangs(1);
  store_->Quiesce();
  ExpectOut(1);
  // Neither eviction, nor a purge, nor the end of its namespace makes room of it: Thaw() looks.
  const std::uint64_t stuck = store_->GetStatus().leased_bytes;
  EXPECT_GT(stuck, 0U);
  EXPECT_TRUE(store_->Purge(ns.fingerprint()).ok());
  ns.Reset();
  const NamespaceRef other = Open(SpecOf("other"));
  for (std::uint64_t n = 300; n < 340; ++n) StoreOne(other, n);
  store_->Quiesce();
  EXPECT_EQ(store_->GetStatus().leased_bytes, stuck);
  ExpectSound();
}

TEST_F(DiskHangTest, AFetchFromADiskThatHangsFailsAndItsMemoryIsNotReused) {
  StartToFreeze();
  const NamespaceRef ns = Prepare();
  freezers_[1].Freeze(DiskIo::Op::kRead);
  // Five blocks of each disk: all that may be read at a time hangs in the end.
  const auto wanted = std::span(keys_).subspan(10, 10);
  std::promise<FetchEvent> ended;
  FetchEvent all;
  auto ticket = store_->FetchAsync(
      ns, {.keys = wanted, .deadline = clock_.Now() + std::chrono::hours(1)},
      [&](FetchEvent event) {
        all.lease.Append(std::move(event.lease));
        all.failed.insert(all.failed.end(), event.failed.begin(), event.failed.end());
        if (event.last) ended.set_value({});
      });
  ASSERT_TRUE(ticket.ok());
  freezers_[1].WaitUntilHeld(2);
  clock_.Advance(std::chrono::seconds(4));
  ended.get_future().wait();
  ASSERT_THAT(all.failed, testing::Not(IsEmpty()));
  std::size_t unavailable = 0;
  for (const FetchFailure& failure : all.failed) {
    unavailable += failure.code == absl::StatusCode::kUnavailable ? 1 : 0;
  }
  EXPECT_EQ(unavailable, 2U);
  EXPECT_EQ(all.lease.parts().size() + all.failed.size(), 10U);
  EXPECT_TRUE(HoldsPayloads(all.lease, wanted));
  all.lease.Reset();
  store_->Quiesce();
  EXPECT_EQ(store_->GetStatus().disk.promoting_bytes, 0U);
  EXPECT_EQ(store_->GetStatus().leased_bytes, 2 * 4096U);
  // What takes the rest of RAM is not what the disk writes to in the end. The five that were read
  // stay: one of those that hang continues their chain.
  const std::vector<BlockKey> fresh = KeysOf(500, 9);
  for (std::uint64_t n = 500; n < 509; ++n) EXPECT_EQ(StoreOne(ns, n), 1U);
  freezers_[1].Thaw();
  while (store_->GetStatus().leased_bytes > 0) std::this_thread::yield();
  const FetchResult result = Fetch(ns, fresh);
  EXPECT_THAT(result.missing, IsEmpty());
  EXPECT_TRUE(HoldsPayloads(result, fresh));
  ExpectSound();
}

TEST_F(DiskHangTest, AFlushThatHangsKeepsNobodyElseFromBeingDurable) {
  StartToFreeze(2);
  const NamespaceRef ns = Prepare();
  freezers_[1].Freeze(DiskIo::Op::kFlush);
  const std::vector<BlockKey> keys = KeysOf(100, 4);
  EXPECT_EQ(Store(ns, Root(ns), keys), 4U);
  WaitUntilItHangs(1);
  store_->Quiesce();
  ExpectOut(1);
  const std::uint64_t stored = store_->GetCounters().disk_stored_blocks;
  StoreChains(ns, 200, 8);
  EXPECT_EQ(store_->GetCounters().disk_stored_blocks, stored + 8);
  // It is in the catalog, too.
  EXPECT_EQ(store_->GetCounters().disk_declined_blocks + stored, 48 + 4U);
}

TEST_F(DiskHangTest, APurgeCountsWhenEveryDiskThatIsLeftHasIt) {
  StartToFreeze();
  const NamespaceRef ns = Prepare();
  freezers_[1].Freeze();
  auto purged =
      std::async(std::launch::async, [&] { return store_->Purge(ns.fingerprint()).status(); });
  WaitUntilItHangs(1);
  EXPECT_TRUE(purged.get().ok());
  ExpectOut(1);
  EXPECT_EQ(Verified(ns, keys_), 0U);
}

TEST_F(DiskHangTest, TheScrubberGoesOn) {
  StartToFreeze();
  const NamespaceRef ns = Prepare();
  freezers_[1].Freeze(DiskIo::Op::kRead);
  auto scrubbed = std::async(std::launch::async, [&] {
    while (store_->ScrubNext() > 0) {
    }
  });
  WaitUntilItHangs(1);
  scrubbed.get();
  ExpectOut(1);
  EXPECT_EQ(store_->GetCounters().scrub_passes, 1U);
}

TEST_F(DiskHangTest, AStoreOpensBesideADiskThatHangs) {
  StartToFreeze();
  Prepare().Reset();
  store_.reset();
  freezers_[1].Freeze();
  auto hangs = std::async(std::launch::async, [&] { WaitUntilItHangs(1); });
  StartToFreeze();
  hangs.get();
  ExpectOut(1);
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_GT(store_->GetStatus().disk.blocks, 0U);
  EXPECT_GT(Verified(ns, keys_), 0U);
}

TEST_F(DiskHangTest, TheEndOfTheProcessIsNotKeptWaiting) {
  StartToFreeze();
  const NamespaceRef ns = Prepare();
  EXPECT_EQ(store_->EndIo(std::chrono::seconds(60)), "");
  freezers_[1].Freeze();
  EXPECT_EQ(Store(ns, Root(ns), KeysOf(100, 8)), 8U);
  freezers_[1].WaitUntilHeld(1);
  EXPECT_FALSE(store_->WriteBack(std::chrono::milliseconds(0)));
  EXPECT_THAT(store_->EndIo(std::chrono::milliseconds(0)), HasSubstr("disk1: "));
  EXPECT_THAT(store_->GetStatus().disk.devices[1].last_error, HasSubstr("it hangs"));
  EXPECT_TRUE(store_->GetStatus().disk.devices[0].healthy);
  // What the other one has is committed.
  EXPECT_TRUE(store_->WriteBack(std::chrono::seconds(60)));
  EXPECT_THAT(store_->EndIo(std::chrono::seconds(60)), HasSubstr("not ended"));
  freezers_[1].Thaw();
  while (!store_->EndIo(std::chrono::seconds(60)).empty()) std::this_thread::yield();
}

// ---- The devices alone ----

class HeldOneDevice final : public BlockDevice {
 public:
  void Submit(DiskIo io) override { held.push_back(std::move(io)); }
  void GiveUp() override { ++given_up; }
  std::uint64_t size_bytes() const override { return 64 * kDiskPage; }
  std::string_view method() const override { return "threads"; }
  BlockDeviceFacts facts() const override {
    BlockDeviceFacts facts;
    facts.first_begun = first_begun;
    return facts;
  }
  std::vector<DiskIo> held;
  SteadyTime first_begun = SteadyTime::max();
  int given_up = 0;
};

class DiskDevicesTest : public testing::Test {
 protected:
  DiskDevicesTest() {
    auto device = std::make_unique<HeldOneDevice>();
    device_ = device.get();
    devices_.Add("disk", std::move(device));
    devices_.SetOnFailed([this](std::uint32_t) { ++failed_; });
  }
  void Look() { devices_.TakeOutWhatHangs(clock_.Now(), kHangTimeout); }

  HeldClock clock_;
  int failed_ = 0;
  HeldOneDevice* device_ = nullptr;
  DiskDevices devices_;
};

TEST_F(DiskDevicesTest, AfterAPauseOfTheProcessNothingHangs) {
  device_->first_begun = clock_.Now();
  clock_.Advance(kLongAgo);
  Look();
  // It ended at once, and another one was begun that is as old by now.
  device_->first_begun = clock_.Now();
  clock_.Advance(kLongAgo);
  Look();
  EXPECT_TRUE(devices_.healthy(0));
  device_->first_begun = SteadyTime::max();
  Look();
  EXPECT_TRUE(devices_.healthy(0));
  device_->first_begun = clock_.Now();
  clock_.Advance(kHangTimeout - std::chrono::milliseconds(1));
  Look();
  Look();
  EXPECT_TRUE(devices_.healthy(0));
  clock_.Advance(std::chrono::milliseconds(1));
  Look();
  EXPECT_TRUE(devices_.healthy(0));
  Look();
  EXPECT_FALSE(devices_.healthy(0));
  EXPECT_EQ(failed_, 1);
  EXPECT_EQ(device_->given_up, 1);
}

TEST_F(DiskDevicesTest, WhatIsGivenUpIsToldOnceAndKeepsItsMemoryUntilItEnds) {
  auto pages = std::make_shared<DiskPages>(1);
  const std::weak_ptr<DiskPages> memory = pages;
  int owned = 0;
  int done = 0;
  std::vector<absl::Status> given_up;
  devices_.SubmitOwned(0, {.op = DiskIo::Op::kWrite,
                           .pieces = {pages->all()},
                           .done = [&owned, pages](const absl::Status& status) {
                             EXPECT_TRUE(absl::IsUnavailable(status)) << status;
                             ++owned;
                           }});
  pages.reset();
  DiskIo flush;
  flush.op = DiskIo::Op::kFlush;
  flush.done = [&done](const absl::Status& status) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    ++done;
  };
  flush.given_up = [&](absl::Status why) { given_up.push_back(std::move(why)); };
  devices_.Submit(0, std::move(flush));
  // One that failed before hangs all the same.
  devices_.TakeOut(0, absl::InternalError("Input/output error"));
  device_->first_begun = clock_.Now();
  clock_.Advance(kLongAgo);
  Look();
  EXPECT_EQ(owned, 0);
  Look();
  Look();
  EXPECT_EQ(owned, 1);
  EXPECT_EQ(done, 0);
  ASSERT_THAT(given_up, SizeIs(1));
  EXPECT_EQ(failed_, 0);
  EXPECT_THAT(devices_.failure(0), HasSubstr("Input/output error"));
  EXPECT_THAT(devices_.EndIo(std::chrono::steady_clock::now()), SizeIs(1));
  EXPECT_FALSE(memory.expired());
  for (DiskIo& io : std::exchange(device_->held, {})) io.done(absl::OkStatus());
  EXPECT_EQ(owned, 1);
  EXPECT_EQ(done, 1);
  EXPECT_TRUE(memory.expired());
  EXPECT_THAT(devices_.EndIo(std::chrono::steady_clock::now()), IsEmpty());
}

}  // namespace
}  // namespace kavern::tiers
