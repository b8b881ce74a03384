#include <set>

#include "gmock/gmock.h"
#include "tests/unit/tiers/store_fixture.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {
namespace {

using ::testing::HasSubstr;

class RebalancerTest : public StoreFixture {
 protected:
  std::uint64_t RegionsOf(const NamespaceRef& ns) {
    for (const NamespaceStatus& status : store_->ListNamespaces()) {
      if (status.fingerprint == ns.fingerprint()) return status.regions;
    }
    return 0;
  }
  // Blocks `first`, ... of one block each, oldest first.
  void Fill(const NamespaceRef& ns, std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t n = first; n < first + count; ++n) ASSERT_EQ(StoreOne(ns, n), 1U);
  }
  std::uint64_t CountCached(const NamespaceRef& ns, std::uint64_t first, std::uint64_t count) {
    std::uint64_t cached = 0;
    for (std::uint64_t n = first; n < first + count; ++n) cached += IsCached(ns, KeyOf(n)) ? 1 : 0;
    return cached;
  }
};

TEST_F(RebalancerTest, RegionReachesAnotherNamespaceFreshAndZeroed) {
  // A fills all four regions. B asks, is declined, and asks again.
  Start(4);
  NamespaceRef a = Open(SpecOf("a"));
  NamespaceRef b = Open(SpecOf("b"));
  Fill(a, 0, 64);
  std::set<std::uint64_t> seen_by_a;
  const std::vector<BlockKey> keys = KeysOf(0, 64);
  {
    const FetchResult all = Fetch(a, keys);
    for (const auto& part : all.lease.parts()) seen_by_a.insert(part.extent.region->id());
  }
  EXPECT_EQ(seen_by_a.size(), 4U);

  const std::vector<BlockKey> wanted = KeysOf(1000, 16);
  StoreGrant grant = Begin(b, Root(b), wanted);
  EXPECT_TRUE(grant.lease.empty());
  EXPECT_THAT(grant.decline_reason, HasSubstr("waiting for memory"));
  store_->Quiesce();
  grant = Begin(b, Root(b), wanted);
  ASSERT_EQ(grant.lease.size(), 16U);
  for (std::size_t i = 0; i < grant.lease.size(); ++i) {
    EXPECT_TRUE(IsZeroed(grant.lease.extent(i)));
    EXPECT_FALSE(seen_by_a.contains(grant.lease.extent(i).region->id()));
  }
  EXPECT_EQ(store_->GetCounters().regions_rebalanced, 1U);
  EXPECT_EQ(events_.RetiredRegions().size(), 1U);
}

TEST_F(RebalancerTest, DonorLosesItsOldestBlocksAndNoByteOfTheOthers) {
  // A's older half is used again, so that what goes is spread over all regions, and the rest has to
  // move.
  Start(4);
  NamespaceRef a = Open(SpecOf("a"));
  NamespaceRef b = Open(SpecOf("b"));
  Fill(a, 0, 64);
  std::set<std::uint64_t> oldest;
  for (std::uint64_t n = 0; n < 64; ++n) {
    const BlockKey key = KeyOf(n);
    if (n % 4 == 3) {
      oldest.insert(n);
    } else {
      Fetch(a, {&key, 1});
    }
  }
  StoreOne(b, 1000);
  store_->Quiesce();
  EXPECT_EQ(RegionsOf(a), 3U);
  for (std::uint64_t n = 0; n < 64; ++n) {
    EXPECT_EQ(IsCached(a, KeyOf(n)), !oldest.contains(n)) << n;
  }
  const std::vector<BlockKey> keys = KeysOf(0, 64);
  FetchResult rest = Fetch(a, keys);
  EXPECT_EQ(rest.lease.parts().size(), 48U);
  EXPECT_TRUE(HoldsPayloads(rest, keys));
}

TEST_F(RebalancerTest, LeasedSlotsNeitherMoveNorLoseTheirBytes) {
  // A reader holds one block in each of A's two regions: nothing can be emptied until it lets go.
  Start(2);
  NamespaceRef a = Open(SpecOf("a"));
  NamespaceRef b = Open(SpecOf("b"));
  Fill(a, 0, 32);
  const std::vector<BlockKey> keys = KeysOf(0, 32);
  FetchResult all = Fetch(a, keys);
  StoreGrant grant = Begin(b, Root(b), KeysOf(1000, 1));
  EXPECT_TRUE(grant.lease.empty());
  store_->Quiesce();
  EXPECT_EQ(RegionsOf(b), 0U);
  EXPECT_TRUE(HoldsPayloads(all, keys));
  EXPECT_EQ(CountCached(a, 0, 32), 32U);
  all.lease.Reset();
  store_->Quiesce();
  EXPECT_EQ(RegionsOf(b), 1U);
  EXPECT_EQ(StoreOne(b, 1000), 1U);
}

TEST_F(RebalancerTest, RegionThatAClientStillMapsIsNotReusedAndNoOtherIsWastedOnIt) {
  // A session maps A's regions and does not unmap what is retired. After a while another one is
  // emptied.
  Start(3);
  NamespaceRef a = Open(SpecOf("a"));
  NamespaceRef b = Open(SpecOf("b"));
  Fill(a, 0, 48);
  std::map<std::uint64_t, std::shared_ptr<Region>> mapped;
  const std::vector<BlockKey> keys = KeysOf(0, 48);
  {
    const FetchResult all = Fetch(a, keys);
    for (const auto& part : all.lease.parts()) {
      mapped[part.extent.region->id()] = part.extent.region->shared_from_this();
    }
  }
  ASSERT_EQ(mapped.size(), 3U);
  StoreOne(b, 1000);
  for (int i = 0; i < 5; ++i) {
    store_->Quiesce();
    store_->Housekeep();
    EXPECT_EQ(StoreOne(b, 1000), 0U);
  }
  store_->Quiesce();
  ASSERT_EQ(events_.RetiredRegions().size(), 1U);
  EXPECT_EQ(RegionsOf(a), 2U);

  clock_.Advance(std::chrono::seconds(2));
  store_->Housekeep();
  store_->Quiesce();
  const std::set<std::uint64_t> retired = events_.RetiredRegions();
  ASSERT_EQ(retired.size(), 2U);
  mapped.erase(*retired.begin());  // the session unmaps one of them at last
  store_->Quiesce();
  EXPECT_EQ(StoreOne(b, 1000), 1U);
  EXPECT_EQ(store_->GetStatus().pool.existing_bytes, 3 * kRegionBytes);
}

TEST_F(RebalancerTest, GroupWithoutARegionGetsOneFromItsOwnNamespace) {
  // Group 0's writer comes first and takes both regions; group 1 has none, and no block is
  // complete.
  Start(2);
  NamespaceRef ns = Open(SpecOf("m", 1, 2));
  const std::vector<BlockKey> keys = KeysOf(0, 17);
  EXPECT_EQ(Store(ns, Root(ns), keys, 0, 0), 17U);
  EXPECT_EQ(RegionsOf(ns), 2U);
  EXPECT_EQ(Store(ns, Root(ns), keys, 0, 1), 0U);
  // 17 incomplete blocks fit no single region: they have to expire.
  clock_.Advance(std::chrono::seconds(61));
  store_->Housekeep();
  store_->Quiesce();
  EXPECT_EQ(Store(ns, Root(ns), {keys.data(), 8}, 0, 0), 8U);
  EXPECT_EQ(Store(ns, Root(ns), {keys.data(), 8}, 0, 1), 8U);
  EXPECT_EQ(store_->Match(ns, keys), 8U);
}

TEST_F(RebalancerTest, BusyNamespaceGrowsAtTheCostOfAColdOne) {
  // B's blocks are older than anything that A cycles through.
  Start(4);
  NamespaceRef a = Open(SpecOf("a"));
  NamespaceRef b = Open(SpecOf("b"));
  Fill(b, 1000, 48);
  Fill(a, 0, 16);
  for (std::uint64_t n = 16; n < 200; ++n) {
    StoreOne(a, n);
    store_->Quiesce();
  }
  EXPECT_EQ(RegionsOf(a), 4U);
  EXPECT_EQ(RegionsOf(b), 0U);
  EXPECT_EQ(CountCached(a, 0, 200), 64U);
}

TEST_F(RebalancerTest, NamespaceThatIsHotterThanTheOtherKeepsItsRegions) {
  // B's blocks are used after every store of A's: A has to make do with its own.
  Start(4);
  NamespaceRef a = Open(SpecOf("a"));
  NamespaceRef b = Open(SpecOf("b"));
  Fill(b, 1000, 48);
  const std::vector<BlockKey> hot = KeysOf(1000, 48);
  Fill(a, 0, 16);
  for (std::uint64_t n = 16; n < 116; ++n) {
    Fetch(b, hot);
    StoreOne(a, n);
    store_->Quiesce();
  }
  EXPECT_EQ(RegionsOf(a), 1U);
  EXPECT_EQ(CountCached(b, 1000, 48), 48U);
  EXPECT_EQ(store_->GetCounters().regions_rebalanced, 0U);
}

TEST_F(RebalancerTest, MoreNamespacesThanRegionsAllGetTheirTurn) {
  // Twelve namespaces store by turns into three regions.
  Start(3);
  std::vector<NamespaceRef> all;
  all.reserve(12);
  for (int i = 0; i < 12; ++i) all.push_back(Open(SpecOf("m" + std::to_string(i))));
  std::vector<int> stored(all.size());
  for (std::uint64_t round = 0; round < 60; ++round) {
    for (std::size_t i = 0; i < all.size(); ++i) {
      stored[i] += static_cast<int>(StoreOne(all[i], round));
      store_->Quiesce();
    }
  }
  for (const int count : stored) EXPECT_GE(count, 5);
  ExpectSound();
}

TEST_F(RebalancerTest, PurgedNamespaceFeedsTheOneThatWaits) {
  Start(1);
  NamespaceRef a = Open(SpecOf("a"));
  NamespaceRef b = Open(SpecOf("b"));
  Fill(a, 0, 4);
  const std::vector<BlockKey> keys = KeysOf(0, 4);
  FetchResult held = Fetch(a, keys);
  EXPECT_EQ(StoreOne(b, 1000), 0U);
  EXPECT_TRUE(store_->Purge(a.fingerprint()).ok());
  store_->Quiesce();
  EXPECT_EQ(StoreOne(b, 1000), 0U);
  held.lease.Reset();
  store_->Quiesce();
  EXPECT_EQ(StoreOne(b, 1000), 1U);
}

TEST_F(RebalancerTest, MemoryThatIsMissingIsNamedInTheDecline) {
  // The machine has nothing free for even one region.
  Start(2, [](TieredStoreOptions& options) {
    options.ram.read_memory = [] {
      MemoryFacts facts;
      facts.machine_total_bytes = std::uint64_t{1} << 40;
      facts.machine_available_bytes = 4096;
      return absl::StatusOr<MemoryFacts>(facts);
    };
  });
  NamespaceRef ns = Open(SpecOf("m"));
  StoreGrant grant = Begin(ns, Root(ns), KeysOf(0, 1));
  EXPECT_TRUE(grant.lease.empty());
  EXPECT_THAT(grant.decline_reason, HasSubstr("waiting for memory: "));
  EXPECT_THAT(grant.decline_reason, HasSubstr("4 KiB"));
}

}  // namespace
}  // namespace kavern::tiers
