// Blocks that are read from disk before anybody fetches them: prefetches, and what is read ahead.
// They pin nothing, and evict nothing that they brought themselves.

#include <future>
#include <span>
#include <vector>

#include "gmock/gmock.h"
#include "tests/unit/tiers/fetch_fixture.h"

namespace kavern::tiers {
namespace {

using ::testing::ElementsAre;

using PrefetchTest = FetchFixture;

TEST_F(PrefetchTest, APrefetchBringsBlocksToRamAndPinsNothing) {
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

TEST_F(PrefetchTest, APrefetchLargerThanRamDoesNotEvictItsOwnBlocks) {
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

TEST_F(PrefetchTest, ACancelledPrefetchStopsWhatHasNotBegun) {
  StartHeld(1, [](TieredStoreOptions& options) { options.disk->promotion_bytes_max = 4096; });
  const NamespaceRef ns = Prepare();
  auto ticket = store_->Prefetch(ns, std::span(keys_).first(8), [](PrefetchProgress) {});
  ASSERT_TRUE(ticket.ok());
  ticket->Cancel();
  gate_.Open();
  store_->Quiesce();
  EXPECT_EQ(store_->GetCounters().promoted_blocks, 1U);
}

TEST_F(PrefetchTest, AChainIsReadAheadIntoFreeRamOnly) {
  StartHeld(2, [](TieredStoreOptions& options) { options.disk->read_ahead_blocks = 4; });
  const NamespaceRef ns = Prepare();
  gate_.Open();
  // RAM is full: nothing is evicted for what nobody asked for.
  EXPECT_EQ(FetchThrough(ns, std::span(keys_).first(2)).lease.parts().size(), 2U);
  store_->Quiesce();
  EXPECT_EQ(store_->GetCounters().read_ahead_blocks, 0U);
  EXPECT_EQ(store_->GetCounters().promotion_failures, 0U);
}

TEST_F(PrefetchTest, WhatWasReadAheadIsCountedWhenItIsUsed) {
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

}  // namespace
}  // namespace kavern::tiers
