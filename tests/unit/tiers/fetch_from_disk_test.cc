// Fetches and prefetches of blocks that are on disk, over devices whose reads end when the test
// says so. It does not look at what is on disk, nor at speed.

#include <chrono>
#include <deque>
#include <fstream>
#include <future>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "base/mutex.h"
#include "gmock/gmock.h"
#include "tests/unit/tiers/disk_fixture.h"

namespace kavern::tiers {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Reads that wait for the test, of all devices of a store.
class Gate {
 public:
  // From now on reads of slots are held. Others go on, and so do writes.
  void Close() {
    MutexLock lock(mu_);
    closed_ = true;
  }
  // All that is held goes on, and what comes.
  void Open() {
    MutexLock lock(mu_);
    closed_ = false;
    while (!held_.empty()) LetOneGo(std::nullopt);
  }
  // True: the gate keeps it.
  bool Hold(BlockDevice* device, DiskIo& io) {
    MutexLock lock(mu_);
    if (!closed_ || io.op != DiskIo::Op::kRead) return false;
    held_.emplace_back(device, std::move(io));
    changed_.NotifyAll();
    return true;
  }
  std::size_t held() const {
    MutexLock lock(mu_);
    return held_.size();
  }
  // What is asked of the last read that is held.
  IoPriority last_priority() const {
    MutexLock lock(mu_);
    return held_.back().second.priority;
  }
  SteadyTime last_deadline() const {
    MutexLock lock(mu_);
    return held_.back().second.deadline;
  }
  // From now on what is held is queued, and not the kernel's: it can be cancelled.
  void LetCancel() {
    MutexLock lock(mu_);
    cancels_ = true;
  }
  void Cancel(std::uint64_t token) {
    std::vector<DiskIo> ended;
    {
      MutexLock lock(mu_);
      if (!cancels_) return;
      std::erase_if(held_, [&](auto& held) {
        if (held.second.token != token) return false;
        ended.push_back(std::move(held.second));
        return true;
      });
    }
    for (DiskIo& io : ended) io.done(absl::CancelledError("cancelled"));
  }
  // The read that has waited longest, or its failure.
  void ReleaseOne(std::optional<absl::Status> failure = std::nullopt) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    MutexLock lock(mu_);
    // What one read has made room for is begun after it is counted.
    while (held_.empty() && changed_.WaitUntil(mu_, give_up)) {
    }
    ASSERT_FALSE(held_.empty());
    LetOneGo(std::move(failure));
  }

 private:
  void LetOneGo(std::optional<absl::Status> failure) KAVERN_REQUIRES(mu_) {
    auto [device, io] = std::move(held_.front());
    held_.pop_front();
    mu_.Unlock();
    if (failure.has_value()) {
      io.done(*std::move(failure));
    } else {
      // It stands for what the kernel has had all the time.
      io.deadline = SteadyTime::max();
      io.token = 0;
      device->Submit(std::move(io));
    }
    mu_.Lock();
  }

  mutable Mutex mu_;
  CondVar changed_;
  bool closed_ KAVERN_GUARDED_BY(mu_) = false;
  bool cancels_ KAVERN_GUARDED_BY(mu_) = false;
  std::deque<std::pair<BlockDevice*, DiskIo>> held_ KAVERN_GUARDED_BY(mu_);
};

class HeldDevice final : public BlockDevice {
 public:
  HeldDevice(std::unique_ptr<BlockDevice> device, Gate& gate)
      : device_(std::move(device)), gate_(gate) {}

  void Submit(DiskIo io) override {
    if (!gate_.Hold(device_.get(), io)) device_->Submit(std::move(io));
  }
  void Cancel(std::uint64_t token) override { gate_.Cancel(token); }
  std::uint64_t size_bytes() const override { return device_->size_bytes(); }
  std::string_view method() const override { return device_->method(); }

 private:
  const std::unique_ptr<BlockDevice> device_;
  Gate& gate_;
};

// The events of one fetch as they come.
class Events {
 public:
  FetchSink Sink() {
    return [this](FetchEvent event) {
      MutexLock lock(mu_);
      EXPECT_FALSE(inside_) << "events of one fetch overlap";
      inside_ = true;
      EXPECT_FALSE(over_) << "an event after the last";
      over_ = event.last;
      events_.push_back(std::move(event));
      inside_ = false;
      changed_.NotifyAll();
    };
  }
  // Waits until `count` keys were answered, and hands out what has come since the last call.
  FetchEvent Await(std::size_t count) {
    FetchEvent all;
    MutexLock lock(mu_);
    while (Answered() < count && changed_.WaitUntil(mu_, give_up_)) {
    }
    EXPECT_EQ(Answered(), count);
    answered_before_ = Answered();
    for (FetchEvent& event : events_) {
      all.lease.Append(std::move(event.lease));
      all.failed.insert(all.failed.end(), event.failed.begin(), event.failed.end());
      all.bytes_to_come = event.bytes_to_come;
      all.last = event.last;
    }
    events_.clear();
    return all;
  }
  std::size_t count() const {
    MutexLock lock(mu_);
    return events_.size();
  }

 private:
  std::size_t Answered() const KAVERN_REQUIRES(mu_) {
    std::size_t answered = answered_before_;
    for (const FetchEvent& event : events_) {
      answered += event.lease.parts().size() + event.failed.size();
    }
    return answered;
  }

  const SteadyTime give_up_ = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  mutable Mutex mu_;
  CondVar changed_;
  std::deque<FetchEvent> events_ KAVERN_GUARDED_BY(mu_);
  std::size_t answered_before_ KAVERN_GUARDED_BY(mu_) = 0;
  bool inside_ KAVERN_GUARDED_BY(mu_) = false;
  bool over_ KAVERN_GUARDED_BY(mu_) = false;
};

std::vector<std::uint32_t> IndicesOf(const ReadLease& lease) {
  std::vector<std::uint32_t> indices;
  for (const ReadLease::Part& part : lease.parts()) indices.push_back(part.index);
  return indices;
}

class FetchFromDiskTest : public DiskFixture {
 protected:
  void StartHeld(std::uint64_t regions = 1,
                 const std::function<void(TieredStoreOptions&)>& change = {}) {
    StartWithDisk(regions, 16, [&](TieredStoreOptions& options) {
      options.disk->store.io_uring = false;
      options.disk->store.open =
          [this](const BlockDeviceOptions& open) -> absl::StatusOr<std::unique_ptr<BlockDevice>> {
        auto device = OpenBlockDevice(open);
        if (!device.ok()) return device.status();
        return std::make_unique<HeldDevice>(*std::move(device), gate_);
      };
      if (change) change(options);
    });
  }
  // 64 blocks on disk in chains of 8 from the root, the last 16 of them in RAM too; reads wait.
  NamespaceRef Prepare() {
    NamespaceRef ns = Open(SpecOf("m"));
    keys_ = StoreChains(ns, 1, 64);
    gate_.Close();
    return ns;
  }
  FetchTicket Begin(const NamespaceRef& ns, std::span<const BlockKey> keys, Events& events,
                    SteadyTime deadline = SteadyTime::max()) {
    auto ticket = store_->FetchAsync(ns, {.keys = keys, .deadline = deadline}, events.Sink());
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    return *std::move(ticket);
  }
  void TearDown() override {
    gate_.Open();
    DiskFixture::TearDown();
  }

  Gate gate_;
  std::vector<BlockKey> keys_;
};

TEST_F(FetchFromDiskTest, WhatIsInRamComesBeforeAnyReadEnds) {
  StartHeld(2);
  const NamespaceRef ns = Prepare();
  std::vector<BlockKey> wanted = {keys_[60], keys_[0], keys_[61], KeyOf(999), keys_[1]};
  Events events;
  const FetchTicket ticket = Begin(ns, wanted, events);
  ASSERT_EQ(events.count(), 1U);
  const FetchEvent first = events.Await(3);
  EXPECT_THAT(IndicesOf(first.lease), ElementsAre(0, 2));
  ASSERT_EQ(first.failed.size(), 1U);
  EXPECT_EQ(first.failed[0].index, 3U);
  EXPECT_EQ(first.failed[0].code, absl::StatusCode::kNotFound);
  EXPECT_EQ(first.bytes_to_come, 2 * 4096U);
  EXPECT_FALSE(first.last);
  EXPECT_FALSE(first.lease.parts()[0].from_disk);

  // The first of two reads makes its block readable, while the other goes on.
  gate_.ReleaseOne();
  const FetchEvent second = events.Await(4);
  EXPECT_THAT(IndicesOf(second.lease), ElementsAre(1));
  EXPECT_TRUE(second.lease.parts()[0].from_disk);
  EXPECT_EQ(second.bytes_to_come, 4096U);
  EXPECT_FALSE(second.last);
  EXPECT_EQ(gate_.held(), 1U);
  gate_.ReleaseOne();
  const FetchEvent third = events.Await(5);
  EXPECT_TRUE(third.last);
  EXPECT_EQ(third.bytes_to_come, 0U);
  for (const FetchEvent* event : {&first, &second, &third}) {
    EXPECT_TRUE(HoldsPayloads(event->lease, wanted));
  }
  EXPECT_EQ(store_->GetCounters().fetch_disk_blocks, 2U);
}

TEST_F(FetchFromDiskTest, ACancelledFetchLeavesNoLeaseAndItsReadsBecomeContent) {
  StartHeld(1,
            [](TieredStoreOptions& options) { options.disk->promotion_bytes_max = 2ULL * 4096; });
  const NamespaceRef ns = Prepare();
  Events events;
  FetchTicket ticket = Begin(ns, std::span(keys_).first(8), events);
  EXPECT_EQ(gate_.held(), 2U);
  ticket.Cancel();
  const DiskStatus after = store_->GetStatus().disk;
  EXPECT_EQ(after.queued_promotions, 0U);
  EXPECT_EQ(after.promoting_bytes, 2 * 4096U);
  gate_.Open();
  store_->Quiesce();
  EXPECT_EQ(events.count(), 1U);  // the empty first one
  EXPECT_EQ(store_->GetStatus().leased_bytes, 0U);
  EXPECT_THAT(store_->MatchTiers(ns, std::span(keys_).first(3)),
              ElementsAre(Tier::kRam, Tier::kRam, Tier::kNvme));
}

TEST_F(FetchFromDiskTest, AFetchIsToldInTimeThatTheDiskIsTooSlow) {
  StartHeld(2, [](TieredStoreOptions& options) { options.clock = &Clock::System(); });
  const NamespaceRef ns = Prepare();
  const std::vector<BlockKey> wanted = {keys_[0], keys_[60], keys_[1]};
  Events events;
  const FetchTicket ticket =
      Begin(ns, wanted, events, Clock::System().Now() + std::chrono::milliseconds(20));
  const FetchEvent told = events.Await(3);
  EXPECT_TRUE(told.last);
  EXPECT_THAT(IndicesOf(told.lease), ElementsAre(1));
  ASSERT_EQ(told.failed.size(), 2U);
  for (const FetchFailure& failure : told.failed) {
    EXPECT_EQ(failure.code, absl::StatusCode::kDeadlineExceeded);
  }
  // The reads were not in vain.
  gate_.Open();
  store_->Quiesce();
  EXPECT_THAT(store_->MatchTiers(ns, std::span(keys_).first(2)),
              ElementsAre(Tier::kRam, Tier::kRam));
}

TEST_F(FetchFromDiskTest, TheDisksOwnTimeoutHoldsWhereTheCallHasNone) {
  StartHeld(2, [](TieredStoreOptions& options) {
    options.clock = &Clock::System();
    options.disk->read_timeout = std::chrono::milliseconds(20);
  });
  const NamespaceRef ns = Prepare();
  Events events;
  const FetchTicket ticket = Begin(ns, std::span(keys_).first(2), events);
  const FetchEvent told = events.Await(2);
  EXPECT_TRUE(told.last);
  EXPECT_EQ(told.failed.size(), 2U);
}

TEST_F(FetchFromDiskTest, EveryBlockHasItsOwnFailure) {
  StartHeld();
  const NamespaceRef ns = Prepare();
  std::fstream disk(directory_.path() / "disk0", std::ios::in | std::ios::out | std::ios::binary);
  for (std::uint32_t slot = 0; slot < 15; ++slot) {
    disk.seekp(
        static_cast<std::streamoff>(disk::SlotOffset(kSegmentBytes, 0, 4096, slot) + 4096 + 77));
    disk.put('\x5a');
  }
  disk.close();
  Events events;
  // Those of slots 8 to 14 are damaged.
  const auto wanted = std::span(keys_).subspan(8, 15);
  const FetchTicket ticket = Begin(ns, wanted, events);
  ASSERT_EQ(gate_.held(), 15U);
  gate_.ReleaseOne(absl::InternalError("the disk says no"));
  gate_.Open();
  const FetchEvent told = events.Await(15);
  std::size_t damaged = 0;
  std::size_t unreadable = 0;
  for (const FetchFailure& failure : told.failed) {
    damaged += failure.code == absl::StatusCode::kDataLoss ? 1 : 0;
    unreadable += failure.code == absl::StatusCode::kUnavailable ? 1 : 0;
  }
  EXPECT_EQ(unreadable, 1U);
  EXPECT_GT(damaged, 0U);
  EXPECT_EQ(damaged + unreadable, told.failed.size());
  EXPECT_GT(told.lease.parts().size(), 0U);
  EXPECT_TRUE(HoldsPayloads(told.lease, wanted));
  // What is damaged is gone, what could not be read may be readable the next time.
  EXPECT_EQ(store_->GetCounters().damaged_blocks, damaged);
  EXPECT_TRUE(IsCached(ns, wanted[0]));
}

TEST_F(FetchFromDiskTest, MoreThanRamHoldsIsRefusedBlockByBlock) {
  StartHeld();
  const NamespaceRef ns = Prepare();
  gate_.Open();
  const FetchEvent all = FetchThrough(ns, std::span(keys_).first(20));
  EXPECT_EQ(all.lease.parts().size(), 16U);
  ASSERT_EQ(all.failed.size(), 4U);
  for (const FetchFailure& failure : all.failed) {
    EXPECT_EQ(failure.code, absl::StatusCode::kResourceExhausted);
  }
}

TEST_F(FetchFromDiskTest, TheLeaseQuotaCountsWhatIsStillToBeRead) {
  StartHeld();
  const NamespaceRef ns = Prepare();
  Events events;
  const auto ticket = store_->FetchAsync(
      ns, {.keys = std::span(keys_).first(4), .lease_bytes_max = 3ULL * 4096}, events.Sink());
  EXPECT_TRUE(absl::IsResourceExhausted(ticket.status()));
  EXPECT_EQ(events.count(), 0U);
  EXPECT_EQ(gate_.held(), 0U);
}

TEST_F(FetchFromDiskTest, FetchesOfOneBlockShareItsRead) {
  StartHeld();
  const NamespaceRef ns = Prepare();
  Events one;
  Events other;
  const FetchTicket first = Begin(ns, std::span(keys_).first(1), one);
  const FetchTicket second = Begin(ns, std::span(keys_).first(1), other);
  EXPECT_EQ(gate_.held(), 1U);
  gate_.ReleaseOne();
  EXPECT_TRUE(HoldsPayloads(one.Await(1).lease, keys_));
  EXPECT_TRUE(HoldsPayloads(other.Await(1).lease, keys_));
}

TEST_F(FetchFromDiskTest, RamIsTakenAsItIsFilledAndFetchesGoBeforePrefetches) {
  StartHeld(1,
            [](TieredStoreOptions& options) { options.disk->promotion_bytes_max = 2ULL * 4096; });
  const NamespaceRef ns = Prepare();
  const auto prefetch = store_->Prefetch(ns, std::span(keys_).first(4), [](PrefetchProgress) {});
  ASSERT_TRUE(prefetch.ok());
  Events events;
  const FetchTicket ticket = Begin(ns, std::span(keys_).subspan(8, 2), events);
  EXPECT_EQ(gate_.held(), 2U);
  EXPECT_EQ(store_->GetStatus().disk.queued_promotions, 4U);
  // The two that had begun are the prefetch's; then both of the fetch, then the rest.
  for (int i = 0; i < 4; ++i) {
    EXPECT_LE(store_->GetStatus().disk.promoting_bytes, 2 * 4096U);
    const std::uint64_t promoted = store_->GetCounters().promoted_blocks;
    gate_.ReleaseOne();
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (store_->GetCounters().promoted_blocks == promoted &&
           std::chrono::steady_clock::now() < give_up) {
      std::this_thread::yield();
    }
  }
  EXPECT_TRUE(events.Await(2).last);
  EXPECT_EQ(store_->GetStatus().disk.queued_promotions, 0U);
}

TEST_F(FetchFromDiskTest, APrefetchBringsBlocksToRamAndPinsNothing) {
  StartHeld();
  const NamespaceRef ns = Prepare();
  gate_.Open();
  const std::vector<BlockKey> wanted = {keys_[0], keys_[1], keys_[63], KeyOf(999)};
  std::promise<PrefetchProgress> ended;
  PrefetchProgress before;
  const auto ticket = store_->Prefetch(ns, wanted, [&](PrefetchProgress now) {
    EXPECT_GE(now.ready, before.ready);
    before = now;
    if (now.last) ended.set_value(now);
  });
  ASSERT_TRUE(ticket.ok());
  const PrefetchProgress end = ended.get_future().get();
  EXPECT_EQ(end.ready, 3U);
  EXPECT_EQ(end.failed, 1U);
  EXPECT_THAT(store_->MatchTiers(ns, std::span(keys_).first(2)),
              ElementsAre(Tier::kRam, Tier::kRam));
  EXPECT_EQ(store_->GetStatus().leased_bytes, 0U);
}

TEST_F(FetchFromDiskTest, APrefetchLargerThanRamDoesNotEvictItsOwnBlocks) {
  StartHeld();
  const NamespaceRef ns = Prepare();
  gate_.Open();
  std::promise<PrefetchProgress> ended;
  const auto ticket = store_->Prefetch(ns, std::span(keys_).first(40), [&](PrefetchProgress now) {
    if (now.last) ended.set_value(now);
  });
  ASSERT_TRUE(ticket.ok());
  const PrefetchProgress end = ended.get_future().get();
  EXPECT_EQ(end.ready, 16U);
  EXPECT_EQ(end.failed, 24U);
  EXPECT_EQ(store_->GetCounters().promoted_blocks, 16U);
}

TEST_F(FetchFromDiskTest, ACancelledPrefetchStopsWhatHasNotBegun) {
  StartHeld(1, [](TieredStoreOptions& options) { options.disk->promotion_bytes_max = 4096; });
  const NamespaceRef ns = Prepare();
  auto ticket = store_->Prefetch(ns, std::span(keys_).first(8), [](PrefetchProgress) {});
  ASSERT_TRUE(ticket.ok());
  ticket->Cancel();
  gate_.Open();
  store_->Quiesce();
  EXPECT_EQ(store_->GetCounters().promoted_blocks, 1U);
}

TEST_F(FetchFromDiskTest, AChainIsReadAheadIntoFreeRamOnly) {
  StartHeld(2, [](TieredStoreOptions& options) { options.disk->read_ahead_blocks = 4; });
  const NamespaceRef ns = Prepare();
  gate_.Open();
  // RAM is full: nothing is evicted for what nobody asked for.
  EXPECT_EQ(FetchThrough(ns, std::span(keys_).first(2)).lease.parts().size(), 2U);
  store_->Quiesce();
  EXPECT_EQ(store_->GetCounters().read_ahead_blocks, 0U);
  EXPECT_EQ(store_->GetCounters().promotion_failures, 0U);
}

TEST_F(FetchFromDiskTest, WhatWasReadAheadIsCountedWhenItIsUsed) {
  StartHeld();
  {
    const NamespaceRef ns = Open(SpecOf("m"));
    keys_ = StoreChains(ns, 1, 8);
  }
  store_.reset();
  StartHeld(1, [](TieredStoreOptions& options) { options.disk->read_ahead_blocks = 4; });
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_EQ(FetchThrough(ns, std::span(keys_).first(2)).lease.parts().size(), 2U);
  store_->Quiesce();
  EXPECT_EQ(store_->GetCounters().read_ahead_blocks, 4U);
  EXPECT_EQ(store_->GetCounters().read_ahead_used_blocks, 0U);
  EXPECT_EQ(FetchThrough(ns, std::span(keys_).first(5)).lease.parts().size(), 5U);
  EXPECT_EQ(store_->GetCounters().read_ahead_used_blocks, 3U);
  EXPECT_EQ(store_->GetCounters().fetch_disk_blocks, 2U);
}

TEST_F(FetchFromDiskTest, ADiskIsToldHowUrgentAReadIsAndUntilWhenItIsOfUse) {
  StartHeld();
  const NamespaceRef ns = Prepare();
  const auto prefetch = store_->Prefetch(ns, std::span(keys_).first(1), [](PrefetchProgress) {});
  ASSERT_TRUE(prefetch.ok());
  ASSERT_EQ(gate_.held(), 1U);
  EXPECT_EQ(gate_.last_priority(), IoPriority::kPrefetch);
  EXPECT_EQ(gate_.last_deadline(), SteadyTime::max());
  Events events;
  const SteadyTime deadline = clock_.Now() + std::chrono::seconds(2);
  const FetchTicket ticket = Begin(ns, std::span(keys_).subspan(8, 1), events, deadline);
  ASSERT_EQ(gate_.held(), 2U);
  EXPECT_EQ(gate_.last_priority(), IoPriority::kFetch);
  EXPECT_EQ(gate_.last_deadline(), deadline);
  gate_.Open();
  events.Await(1);
}

TEST_F(FetchFromDiskTest, WhatNobodyWaitsForIsCancelledOnTheDisk) {
  StartHeld();
  const NamespaceRef ns = Prepare();
  gate_.LetCancel();
  Events one;
  Events other;
  FetchTicket first = Begin(ns, std::span(keys_).first(2), one);
  const FetchTicket second = Begin(ns, std::span(keys_).subspan(1, 1), other);
  ASSERT_EQ(gate_.held(), 2U);
  first.Cancel();
  // The other of the two has somebody who waits for it.
  EXPECT_EQ(gate_.held(), 1U);
  EXPECT_EQ(store_->GetStatus().disk.promoting_bytes, 4096U);
  gate_.Open();
  EXPECT_TRUE(HoldsPayloads(other.Await(1).lease, std::span(keys_).subspan(1, 1)));
  store_->Quiesce();
  EXPECT_EQ(store_->GetCounters().promoted_blocks, 1U);
  EXPECT_EQ(store_->GetCounters().promotion_failures, 0U);
}

TEST_F(FetchFromDiskTest, WhoComesWhileAReadIsBeingCancelledGetsItAnew) {
  StartHeld();
  const NamespaceRef ns = Prepare();
  Events one;
  Events other;
  FetchTicket first = Begin(ns, std::span(keys_).first(1), one);
  first.Cancel();
  const FetchTicket second = Begin(ns, std::span(keys_).first(1), other);
  ASSERT_EQ(gate_.held(), 1U);
  gate_.ReleaseOne(absl::CancelledError("cancelled"));
  EXPECT_EQ(gate_.held(), 1U);
  gate_.ReleaseOne(absl::DeadlineExceededError("not begun by its deadline"));
  EXPECT_EQ(gate_.held(), 1U);
  gate_.Open();
  const FetchEvent told = other.Await(1);
  EXPECT_TRUE(told.failed.empty());
  EXPECT_TRUE(HoldsPayloads(told.lease, std::span(keys_).first(1)));
}

TEST_F(FetchFromDiskTest, WhatIsPurgedWhileItIsReadIsAMiss) {
  StartHeld(1,
            [](TieredStoreOptions& options) { options.disk->promotion_bytes_max = 2ULL * 4096; });
  const NamespaceRef ns = Prepare();
  Events events;
  const FetchTicket ticket = Begin(ns, std::span(keys_).first(4), events);
  ASSERT_TRUE(store_->Purge(ns.fingerprint()).ok());
  gate_.Open();
  const FetchEvent told = events.Await(4);
  EXPECT_THAT(IndicesOf(told.lease), IsEmpty());
  for (const FetchFailure& failure : told.failed) {
    EXPECT_EQ(failure.code, absl::StatusCode::kNotFound);
  }
}

TEST_F(FetchFromDiskTest, FetchesOfManyThreadsComeBackRight) {
  StartHeld(3,
            [](TieredStoreOptions& options) { options.disk->promotion_bytes_max = 5ULL * 4096; });
  const NamespaceRef ns = Prepare();
  gate_.Open();
  std::vector<std::thread> threads;
  // What is being told while it is cancelled ends afterwards.
  std::vector<Events> told(std::size_t{4} * 50);
  for (std::uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint32_t round = 0; round < 50; ++round) {
        const auto keys = std::span(keys_).subspan((t * 13 + round * 7) % 56, 8);
        Events& events = told[t * 50 + round];
        FetchTicket ticket = Begin(ns, keys, events);
        if (round % 5 == 0) {
          ticket.Cancel();
          continue;
        }
        EXPECT_TRUE(HoldsPayloads(events.Await(8).lease, keys));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  store_->Quiesce();
  told.clear();
  EXPECT_EQ(store_->GetStatus().leased_bytes, 0U);
}

}  // namespace
}  // namespace kavern::tiers
