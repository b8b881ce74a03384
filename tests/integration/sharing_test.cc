// Several clients over the same blocks and the same memory.
#include <atomic>
#include <thread>

#include "tests/integration/node_test.h"

namespace kavern {
namespace {

using SharingTest = NodeTest;

// Both hold extents for the same keys before either commits.
TEST_F(SharingTest, TwoClientsThatStoreTheSameBlocksBothSucceedAndLeaveOneCopy) {
  StartDaemon();
  const auto first_client = Connect();
  const auto second_client = Connect();
  const auto first = *first_client->OpenNamespace(TestSpec());
  const auto second = *second_client->OpenNamespace(TestSpec());
  const auto keys = TestKeys(first->fingerprint(), 1, 4);
  auto first_lease = first->BeginStore({.keys = keys});
  auto second_lease = second->BeginStore({.keys = keys});
  ASSERT_TRUE(first_lease.ok() && second_lease.ok());
  std::vector<std::byte> payload(kBlockBytes, std::byte{7});
  const ConstBuffer piece(payload);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    ASSERT_TRUE(first_lease->Fill(i, {&piece, 1}).ok());
    ASSERT_TRUE(second_lease->Fill(i, {&piece, 1}).ok());
  }
  EXPECT_TRUE(second_lease->Commit().ok());
  EXPECT_TRUE(first_lease->Commit().ok());
  EXPECT_EQ(first->Match(keys), keys.size());
  EXPECT_EQ(second->Match(keys), keys.size());
  const v1::GetStatusResponse status = Status();
  EXPECT_EQ(status.ram().used_bytes(), keys.size() * kBlockBytes);
  EXPECT_EQ(status.counters().store_raced_blocks(), keys.size());
}

// The tier holds a fraction of what four threads store and fetch, so every fetch races eviction.
TEST_F(SharingTest, AFetchThatRacesEvictionIsAMissOrRight) {
  StartDaemon();
  std::atomic<std::uint64_t> verified = 0;
  std::atomic<std::uint64_t> missed = 0;
  std::atomic<std::uint64_t> wrong = 0;
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const auto client = Connect();
      const auto ns = *client->OpenNamespace(TestSpec());
      for (std::uint32_t round = 0; round < 150; ++round) {
        const auto stored = TestKeys(ns->fingerprint(), (round * 7 + t * 13) % 64, 32);
        (void)StorePattern(*ns, stored);
        const auto keys = TestKeys(ns->fingerprint(), (round * 11 + t * 29) % 64, 32);
        const Fetched fetched = FetchPattern(*ns, keys);
        verified += fetched.ok;
        wrong += fetched.wrong_bytes;
        missed += keys.size() - fetched.ok;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_GT(verified, 0U);
  EXPECT_GT(missed, 0U);
  EXPECT_GT(Status().counters().evicted_blocks(), 0U);
  EXPECT_TRUE(Eventually([&] { return NothingIsLeased(); }));
}

TEST_F(SharingTest, AStoreIntoATierFullOfLeasesIsDeclinedWithTheReason) {
  StartDaemon({"limits.lease_bytes_per_session_max=64MiB"});
  ChildProcess holder = FaultClient("all-slots");
  ASSERT_EQ(holder.ReadLine(), "ready");
  const auto client = Connect();
  const auto ns = *client->OpenNamespace(TestSpec());
  const auto keys = TestKeys(ns->fingerprint(), 1, 2);
  const auto stored = StorePattern(*ns, keys);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->outcomes, std::vector<StoreOutcome>(2, StoreOutcome::kDeclined));
  EXPECT_NE(stored->decline_reason, "");
  EXPECT_GT(Status().counters().store_declined_blocks(), 0U);

  holder.Kill();
  EXPECT_TRUE(Eventually([&] {
    const auto again = StorePattern(*ns, keys);
    return again.ok() && again->outcomes.back() != StoreOutcome::kDeclined;
  }));
}

TEST_F(SharingTest, OneClientsQuotaOfLeasesLeavesRoomForTheOthers) {
  StartDaemon({"limits.lease_bytes_per_session_max=8MiB"});
  ChildProcess greedy = FaultClient("all-slots");
  ASSERT_EQ(greedy.ReadLine(), "ready");
  EXPECT_LE(Status().ram().leased_bytes(), 8U << 20);
  const auto client = Connect();
  const auto ns = *client->OpenNamespace(TestSpec());
  const auto stored = StorePattern(*ns, TestKeys(ns->fingerprint(), 1, 64));
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->outcomes.back(), StoreOutcome::kStored);
}

// Each fetch takes all that one session may lease, and its release is on its way in the background
// when the next one comes.
TEST_F(SharingTest, FetchesOfAWholeQuotaFollowEachOther) {
  StartDaemon({"limits.lease_bytes_per_session_max=4MiB"});
  const auto client = Connect();
  const auto ns = *client->OpenNamespace(TestSpec());
  const auto keys = TestKeys(ns->fingerprint(), 1, 64);
  ASSERT_TRUE(StorePattern(*ns, keys).ok());
  for (int round = 0; round < 200; ++round) {
    const Fetched fetched = FetchPattern(*ns, keys);
    ASSERT_EQ(fetched.ok, keys.size()) << fetched.status;
  }
}

// Bytes over gRPC and bytes in shared memory are the same blocks.
TEST_F(SharingTest, BothDataPlanesServeTheSameBlocks) {
  StartDaemon();
  const auto local_client = Connect();
  ClientOptions options;
  options.force_bytes_plane = true;
  const auto remote_client = Connect(options);
  const auto local = *local_client->OpenNamespace(TestSpec());
  const auto remote = *remote_client->OpenNamespace(TestSpec());
  const auto ours = TestKeys(local->fingerprint(), 1, 20);
  const auto theirs = TestKeys(local->fingerprint(), 2, 20);
  ASSERT_TRUE(StorePattern(*local, ours).ok());
  ASSERT_TRUE(StorePattern(*remote, theirs).ok());
  for (Namespace* ns : {local.get(), remote.get()}) {
    for (const auto& keys : {ours, theirs}) {
      const Fetched fetched = FetchPattern(*ns, keys);
      EXPECT_TRUE(fetched.status.ok()) << fetched.status;
      EXPECT_EQ(fetched.ok, keys.size());
      EXPECT_EQ(fetched.wrong_bytes, 0U);
    }
  }
}

}  // namespace
}  // namespace kavern
