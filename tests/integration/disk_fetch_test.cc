// A daemon with little RAM and a file for a disk: what RAM cannot hold comes back from there.
//
// It does not look at speed, nor at what a crash leaves (the crash harness does).

#include <algorithm>

#include "tests/integration/node_test.h"

namespace kavern {
namespace {

class DiskFetchTest : public NodeTest {
 protected:
  // 8 MiB of RAM are 128 blocks.
  static constexpr std::size_t kChains = 6;
  static constexpr std::size_t kBlocksPerChain = 64;

  void SetUp() override {
    StartDaemon({"ram.capacity=8MiB", "ram.region=1MiB", "limits.lease_bytes_per_session_max=8MiB",
                 "nvme.catalog=" + directory() + "/catalog",
                 "nvme.devices=[{path: " + directory() + "/disk, capacity: 64MiB}]",
                 "nvme.segment=1MiB"});
    client_ = Connect();
    auto ns = client_->OpenNamespace(TestSpec());
    ASSERT_TRUE(ns.ok()) << ns.status();
    ns_ = *std::move(ns);
    for (std::uint32_t chain = 0; chain < kChains; ++chain) {
      chains_.push_back(TestKeys(ns_->fingerprint(), chain, kBlocksPerChain));
      const auto stored = StorePattern(*ns_, chains_.back());
      ASSERT_TRUE(stored.ok()) << stored.status();
      ASSERT_EQ(stored->outcomes.back(), StoreOutcome::kStored) << stored->decline_reason;
      ASSERT_TRUE(Admin()->Quiesce().ok());
    }
  }

  std::unique_ptr<Client> client_;
  std::shared_ptr<Namespace> ns_;
  std::vector<std::vector<BlockKey>> chains_;
};

std::size_t CountOf(const std::vector<Tier>& tiers, Tier tier) {
  return static_cast<std::size_t>(std::count(tiers.begin(), tiers.end(), tier));
}

TEST_F(DiskFetchTest, MoreThanRamHoldsComesBackWholeAndSaysFromWhere) {
  std::size_t from_disk = 0;
  for (const std::vector<BlockKey>& keys : chains_) {
    const std::vector<Tier> before = ns_->MatchTiers(keys);
    ASSERT_EQ(before.size(), kBlocksPerChain);
    std::vector<std::byte> memory(keys.size() * kBlockBytes);
    std::vector<MutableBuffer> buffers;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      buffers.push_back(std::span(memory).subspan(i * kBlockBytes, kBlockBytes));
    }
    const auto fetched = ns_->FetchInto({.keys = keys}, buffers);
    ASSERT_TRUE(fetched.ok()) << fetched.status();
    EXPECT_TRUE(fetched->all_ok());
    EXPECT_EQ(CountOf(fetched->tiers, Tier::kNvme), CountOf(before, Tier::kNvme));
    EXPECT_EQ(CountOf(fetched->tiers, Tier::kRam), CountOf(before, Tier::kRam));
    from_disk += CountOf(fetched->tiers, Tier::kNvme);
    const Fetched again = FetchPattern(*ns_, keys);
    EXPECT_EQ(again.ok, kBlocksPerChain);
    EXPECT_EQ(again.wrong_bytes, 0U);
  }
  // RAM holds a third of it.
  EXPECT_GE(from_disk, (kChains - 2) * kBlocksPerChain);
  EXPECT_EQ(Status().counters().fetch_disk_blocks(), from_disk);
  EXPECT_TRUE(Eventually([&] { return NothingIsLeased(); }));
}

TEST_F(DiskFetchTest, WhatWasPrefetchedMatchesInRam) {
  const std::vector<BlockKey>& keys = chains_.front();
  ASSERT_EQ(CountOf(ns_->MatchTiers(keys), Tier::kNvme), kBlocksPerChain);
  PrefetchProgress last;
  const auto ended = ns_->Prefetch({.keys = keys, .on_progress = [&](const PrefetchProgress& now) {
                                      EXPECT_GE(now.ready, last.ready);
                                      last = now;
                                      return true;
                                    }});
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_EQ(ended->ready, kBlocksPerChain);
  EXPECT_EQ(ended->failed, 0U);
  EXPECT_EQ(ended->total, kBlocksPerChain);
  EXPECT_EQ(CountOf(ns_->MatchTiers(keys), Tier::kRam), kBlocksPerChain);
  EXPECT_TRUE(NothingIsLeased());
  EXPECT_EQ(FetchPattern(*ns_, keys).wrong_bytes, 0U);
}

}  // namespace
}  // namespace kavern
