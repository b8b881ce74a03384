// Threads over one small store. What this does not check: other processes, and the order of any two
// calls.
#include <atomic>
#include <functional>
#include <random>
#include <thread>

#include "tests/unit/tiers/store_fixture.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {
namespace {

class TieredStoreThreadsTest : public StoreFixture {
 protected:
  // Chain `c` is made of keys c * 100, c * 100 + 1, ...
  static std::vector<BlockKey> Chain(std::uint64_t chain, std::uint64_t length) {
    return KeysOf(chain * 100, length);
  }

  void StoreChains(const NamespaceRef& ns, unsigned seed, int rounds) {
    std::mt19937_64 random(seed);
    for (int round = 0; round < rounds; ++round) {
      const std::vector<BlockKey> keys = Chain(random() % 12, 1 + random() % 8);
      StoreGrant grant = Begin(ns, Root(ns), keys);
      if (random() % 8 != 0) FillAndCommit(grant);
    }
  }

  void FetchChains(const NamespaceRef& ns, unsigned seed, int rounds) {
    std::mt19937_64 random(seed);
    for (int round = 0; round < rounds; ++round) {
      const std::vector<BlockKey> keys = Chain(random() % 12, 8);
      FetchResult result = Fetch(ns, keys);
      std::this_thread::yield();
      if (!HoldsPayloads(result, keys)) ++wrong_;
      verified_ += result.lease.parts().size();
    }
  }

  // How far threads get in one pass is the machine's affair: repeats passes, of other seeds, until
  // what the test is about has happened.
  static void RepeatUntil(const std::function<bool()>& happened,
                          const std::function<void(unsigned)>& pass) {
    constexpr unsigned kPassesMax = 200;
    for (unsigned i = 0; i < kPassesMax && (i == 0 || !happened()); ++i) pass(1000 * i);
  }

  std::atomic<std::uint64_t> verified_ = 0;
  std::atomic<std::uint64_t> wrong_ = 0;
};

TEST_F(TieredStoreThreadsTest, FetchRacingEvictionReadsTheRightBytesOrMisses) {
  // 12 chains of up to 8 blocks compete for 32 slots: two writers, two readers.
  Start(2);
  NamespaceRef ns = Open(SpecOf("m"));
  const auto happened = [&] { return verified_ > 0 && store_->GetCounters().evicted_blocks > 0; };
  RepeatUntil(happened, [&](unsigned seed) {
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 2; ++i) {
      threads.emplace_back([&, i] { StoreChains(ns, seed + i, 400); });
      threads.emplace_back([&, i] { FetchChains(ns, seed + 100 + i, 400); });
    }
    for (std::thread& thread : threads) thread.join();
  });
  EXPECT_EQ(wrong_, 0U);
  EXPECT_GT(verified_, 0U);
  EXPECT_GT(store_->GetCounters().evicted_blocks, 0U);
}

TEST_F(TieredStoreThreadsTest, FetchRacingPurgeDamageAndRebalancingReadsTheRightBytesOrMisses) {
  // Three namespaces compete for four regions while one thread purges, checks and keeps house.
  Start(4);
  std::vector<NamespaceRef> all;
  all.reserve(3);
  for (int i = 0; i < 3; ++i) all.push_back(Open(SpecOf("m" + std::to_string(i))));
  std::atomic<bool> done = false;
  std::thread keeper([&] {
    for (std::uint64_t i = 0; !done; ++i) {
      const NamespaceRef& ns = all[i % all.size()];
      if (i % 16 == 0) {
        EXPECT_TRUE(store_->Purge(ns.fingerprint()).ok());
      }
      const auto damaged = store_->CheckSuspect(ns, Chain(i % 12, 1)[0], 0, 0);
      EXPECT_TRUE(damaged.ok() && !*damaged);
      clock_.Advance(std::chrono::milliseconds(100));
      store_->Housekeep();
      store_->GetStatus();
      ExpectSound();
      std::this_thread::yield();
    }
  });
  const auto happened = [&] {
    return verified_ > 0 && store_->GetCounters().regions_rebalanced > 0;
  };
  RepeatUntil(happened, [&](unsigned seed) {
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 3; ++i) {
      threads.emplace_back([&, i] { StoreChains(all[i], seed + i, 300); });
      threads.emplace_back([&, i] { FetchChains(all[i], seed + 100 + i, 300); });
    }
    for (std::thread& thread : threads) thread.join();
  });
  done = true;
  keeper.join();
  EXPECT_EQ(wrong_, 0U);
  EXPECT_GT(verified_, 0U);
  EXPECT_GT(store_->GetCounters().regions_rebalanced, 0U);
  EXPECT_EQ(store_->GetStatus().leased_bytes, 0U);
}

TEST_F(TieredStoreThreadsTest, NamespacesOpenedAndClosedByManyThreadsAreForgotten) {
  Start(2);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int round = 0; round < 200; ++round) {
        NamespaceRef ns = Open(SpecOf("m" + std::to_string(random() % 4)));
        StoreOne(ns, random() % 8);
        if (random() % 2 == 0) {
          EXPECT_TRUE(store_->Purge(ns.fingerprint()).ok());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const NamespaceStatus& status : store_->ListNamespaces()) {
    EXPECT_TRUE(store_->Purge(status.fingerprint).ok());
  }
  EXPECT_EQ(store_->GetStatus().namespaces, 0U);
}

}  // namespace
}  // namespace kavern::tiers
