// Fetches of blocks that are on disk, over devices whose reads end when the test says so. It does
// not look at what is on disk, nor at speed.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <span>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "tests/unit/tiers/fetch_fixture.h"

namespace kavern::tiers {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using FetchFromDiskTest = FetchFixture;

std::vector<std::uint32_t> IndicesOf(const ReadLease& lease) {
  std::vector<std::uint32_t> indices;
  for (const ReadLease::Part& part : lease.parts()) indices.push_back(part.index);
  return indices;
}

TEST_F(FetchFromDiskTest, WhatIsInRamComesBeforeAnyReadEnds) {
  StartHeld(2);
  const NamespaceRef ns = Prepare();
  std::vector<BlockKey> wanted = {keys_[60], keys_[0], keys_[61], KeyOf(999), keys_[1]};
  FetchEvents events;
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
  FetchEvents events;
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
  FetchEvents events;
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
  FetchEvents events;
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
  FetchEvents events;
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
  FetchEvents events;
  const auto ticket = store_->FetchAsync(
      ns, {.keys = std::span(keys_).first(4), .lease_bytes_max = 3ULL * 4096}, events.Sink());
  EXPECT_TRUE(absl::IsResourceExhausted(ticket.status()));
  EXPECT_EQ(events.count(), 0U);
  EXPECT_EQ(gate_.held(), 0U);
}

TEST_F(FetchFromDiskTest, FetchesOfOneBlockShareItsRead) {
  StartHeld();
  const NamespaceRef ns = Prepare();
  FetchEvents one;
  FetchEvents other;
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
  FetchEvents events;
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

TEST_F(FetchFromDiskTest, ADiskIsToldHowUrgentAReadIsAndUntilWhenItIsOfUse) {
  StartHeld();
  const NamespaceRef ns = Prepare();
  const auto prefetch = store_->Prefetch(ns, std::span(keys_).first(1), [](PrefetchProgress) {});
  ASSERT_TRUE(prefetch.ok());
  ASSERT_EQ(gate_.held(), 1U);
  EXPECT_EQ(gate_.last_priority(), IoPriority::kPrefetch);
  EXPECT_EQ(gate_.last_deadline(), SteadyTime::max());
  FetchEvents events;
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
  FetchEvents one;
  FetchEvents other;
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
  FetchEvents one;
  FetchEvents other;
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
  FetchEvents events;
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
  std::vector<FetchEvents> told(std::size_t{4} * 50);
  for (std::uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint32_t round = 0; round < 50; ++round) {
        const auto keys = std::span(keys_).subspan((t * 13 + round * 7) % 56, 8);
        FetchEvents& events = told[t * 50 + round];
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
