// What conversations do to the choice of victims in RAM.
#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "tests/unit/tiers/store_fixture.h"

namespace kavern::tiers {
namespace {

using std::chrono::hours;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// One region: 16 blocks, of 16 tokens each. Chains are "first key, blocks".
class ConversationEvictionTest : public StoreFixture {
 protected:
  void StartSmall(std::uint64_t regions = 1,
                  const std::function<void(TieredStoreOptions&)>& change = {}) {
    Start(regions, change);
    ns_ = Open(SpecOf("m"));
  }
  void StoreChain(std::uint64_t first, std::uint64_t count) {
    ASSERT_EQ(Store(ns_, Root(ns_), KeysOf(first, count)), count);
  }
  absl::StatusOr<ConversationFacts> Tell(const std::string& name, std::uint64_t leaf,
                                         std::optional<std::uint32_t> priority,
                                         std::chrono::milliseconds ttl = hours(1)) {
    return store_->UpdateConversation(ns_, {.name = name,
                                            .leaf = KeyOf(leaf),
                                            .token_count = ns_.spec().layout.tokens_per_block,
                                            .priority = priority,
                                            .ttl = ttl});
  }
  std::uint32_t Left(std::uint64_t first, std::uint64_t count) {
    return store_->Match(ns_, KeysOf(first, count));
  }
  void TearDown() override {
    ns_ = NamespaceRef();
    StoreFixture::TearDown();
  }

  NamespaceRef ns_;
};

TEST_F(ConversationEvictionTest, ALowerPriorityLeavesFirstWhateverItsUse) {
  // From the oldest to the newest: 90, none, 10. Each of four blocks; then ten blocks are stored.
  StartSmall();
  StoreChain(0, 4);
  StoreChain(100, 4);
  StoreChain(200, 4);
  ASSERT_TRUE(Tell("dear", 3, 90).ok());
  ASSERT_TRUE(Tell("cheap", 203, 10).ok());
  StoreChain(300, 8);
  EXPECT_EQ(Left(200, 4), 0U);
  EXPECT_EQ(Left(100, 4), 4U);
  EXPECT_EQ(Left(0, 4), 4U);
  StoreChain(400, 2);
  EXPECT_EQ(Left(100, 4), 2U) << "then the least recently used without a conversation";
  EXPECT_EQ(Left(0, 4), 4U);
}

TEST_F(ConversationEvictionTest, WithinAPriorityTheLeastRecentlyUsedLeavesFirst) {
  StartSmall();
  StoreChain(0, 4);
  StoreChain(100, 4);
  ASSERT_TRUE(Tell("a", 103, 70).ok());
  ASSERT_TRUE(Tell("b", 3, 70).ok());
  StoreChain(200, 8);
  ASSERT_TRUE(Tell("c", 207, 80).ok());
  Fetch(ns_, KeysOf(0, 4));
  StoreChain(300, 3);
  EXPECT_EQ(Left(100, 4), 1U);
  EXPECT_EQ(Left(0, 4), 4U);
  EXPECT_EQ(Left(200, 8), 8U);
}

// The whole chain counts, block by block, though only its end is marked.
TEST_F(ConversationEvictionTest, APriorityGoesUpTheChainAsItsEndLeaves) {
  StartSmall();
  StoreChain(0, 8);
  StoreChain(100, 8);
  ASSERT_TRUE(Tell("a", 7, 60).ok());
  ASSERT_TRUE(Tell("b", 107, 70).ok());
  Fetch(ns_, KeysOf(0, 8));
  StoreChain(200, 8);
  EXPECT_EQ(Left(0, 8), 0U) << "all of the lower one, though it was used last";
  EXPECT_EQ(Left(100, 8), 8U);
  // What is left of both, once they are at the same block.
  EXPECT_EQ(store_->DescribeConversation(ns_, "a")->leaf_tier, Tier::kNone);
}

TEST_F(ConversationEvictionTest, ABlockHasTheHighestPriorityThatAnyOfItsConversationsHas) {
  // Two conversations share blocks 0 and 1; the lower one goes on to 2, 3.
  StartSmall();
  StoreChain(0, 4);
  StoreChain(100, 12);
  ASSERT_TRUE(Tell("short", 1, 90).ok());
  ASSERT_TRUE(Tell("long", 3, 10).ok());
  StoreChain(200, 4);
  EXPECT_EQ(Left(0, 4), 2U);
  EXPECT_EQ(Left(100, 12), 10U) << "before the two that both share";
}

TEST_F(ConversationEvictionTest, APriorityCanBeLoweredAgain) {
  StartSmall();
  StoreChain(0, 4);
  StoreChain(100, 12);
  ASSERT_TRUE(Tell("c", 3, 90).ok());
  ASSERT_TRUE(Tell("c", 3, 10).ok());
  Fetch(ns_, KeysOf(0, 4));
  StoreChain(200, 4);
  EXPECT_EQ(Left(0, 4), 0U);
  EXPECT_EQ(Left(100, 12), 12U);
}

TEST_F(ConversationEvictionTest, ATurnThatGoesOnTakesThePriorityAlong) {
  StartSmall();
  StoreChain(0, 2);
  ASSERT_TRUE(Tell("c", 1, 90).ok());
  ASSERT_EQ(Store(ns_, Root(ns_), KeysOf(0, 4)), 2U);
  ASSERT_TRUE(Tell("c", 3, 90).ok());
  StoreChain(100, 12);
  StoreChain(200, 4);
  EXPECT_EQ(Left(0, 4), 4U);
  EXPECT_EQ(Left(100, 12), 8U);
}

TEST_F(ConversationEvictionTest, WhatEndedLeavesBeforeAllOthersOnceSwept) {
  StartSmall();
  StoreChain(0, 4);
  StoreChain(100, 12);
  ASSERT_TRUE(Tell("c", 111, 90, seconds(10)).ok());
  clock_.Advance(seconds(11));
  EXPECT_EQ(store_->DescribeConversation(ns_, "c").status().code(), absl::StatusCode::kNotFound);
  store_->Housekeep();
  StoreChain(200, 8);
  EXPECT_EQ(Left(0, 4), 4U) << "the oldest of all";
  EXPECT_EQ(Left(100, 12), 4U);
  EXPECT_EQ(store_->GetCounters().conversations_ended, 1U);
}

TEST_F(ConversationEvictionTest, WhatEndedAndIsUsedByOthersIsAsIfItHadNone) {
  // Used after it was told, before it ended; and another, used after it ended.
  StartSmall();
  StoreChain(0, 4);
  StoreChain(100, 4);
  StoreChain(200, 8);
  ASSERT_TRUE(Tell("before", 3, 90, seconds(10)).ok());
  ASSERT_TRUE(Tell("after", 103, 90, seconds(10)).ok());
  Fetch(ns_, KeysOf(0, 4));
  clock_.Advance(seconds(11));
  store_->Housekeep();
  Fetch(ns_, KeysOf(100, 4));
  StoreChain(300, 8);
  EXPECT_EQ(Left(200, 8), 0U);
  EXPECT_EQ(Left(0, 4), 4U);
  EXPECT_EQ(Left(100, 4), 4U);
}

TEST_F(ConversationEvictionTest, WhatIsForgottenForOthersFallsBackToNone) {
  StartSmall(1,
             [](TieredStoreOptions& options) { options.conversations.count_per_tenant_max = 1; });
  StoreChain(0, 4);
  StoreChain(100, 12);
  ASSERT_TRUE(Tell("first", 3, 90).ok());
  ASSERT_TRUE(Tell("second", 111, 90).ok());
  EXPECT_EQ(store_->GetCounters().conversations_displaced, 1U);
  EXPECT_EQ(store_->GetStatus().conversations, 1U);
  StoreChain(200, 4);
  EXPECT_EQ(Left(0, 4), 0U);
  EXPECT_EQ(Left(100, 12), 12U);
}

TEST_F(ConversationEvictionTest, AnOrphanLeavesBeforeAllOthersWhateverItsPriority) {
  // Block 0 is damaged; 1 to 3 are of a conversation of the highest priority.
  StartSmall();
  StoreChain(0, 4);
  StoreChain(100, 12);
  ASSERT_TRUE(Tell("c", 3, 100).ok());
  {
    const FetchResult read = Fetch(ns_, KeysOf(0, 1));
    read.lease.parts()[0].extent.bytes()[0] ^= std::byte{1};
  }
  ASSERT_TRUE(*store_->CheckSuspect(ns_, KeyOf(0), 0, 0));
  StoreChain(200, 4);
  EXPECT_EQ(Left(100, 12), 12U);
  ExpectSound();
}

TEST_F(ConversationEvictionTest, AnOrphanThatIsLinkedAgainHasItsPriority) {
  StartSmall();
  StoreChain(0, 4);
  StoreChain(100, 11);
  ASSERT_TRUE(Tell("c", 3, 100).ok());
  {
    const FetchResult read = Fetch(ns_, KeysOf(0, 1));
    read.lease.parts()[0].extent.bytes()[0] ^= std::byte{1};
  }
  ASSERT_TRUE(*store_->CheckSuspect(ns_, KeyOf(0), 0, 0));
  ASSERT_EQ(Store(ns_, Root(ns_), KeysOf(0, 1)), 1U);
  StoreChain(200, 5);
  EXPECT_EQ(Left(0, 4), 4U);
  EXPECT_EQ(Left(100, 11), 7U);
}

// Memory moves between namespaces by last use alone: a priority neither keeps it nor takes it.
TEST_F(ConversationEvictionTest, APriorityKeepsNoMemoryFromOthers) {
  // One tenant's oldest blocks are the oldest of all, the others its newest; a second tenant's are
  // in between, and it wants more. If the oldest were not looked at for their priority, it would
  // get nothing.
  std::vector<std::uint64_t> rebalanced;
  for (const std::uint32_t priority : {50U, 0U, 100U}) {
    StartSmall(2);
    StoreChain(0, 8);
    ASSERT_TRUE(Tell("old", 7, priority).ok());
    NamespaceRef other = Open(SpecOf("m"), "other");
    Store(other, Root(other), KeysOf(1000, 16));
    StoreChain(100, 8);
    // In two halves: what asks for memory then has newer blocks than all of the first tenant's.
    Store(other, Root(other), KeysOf(2000, 8));
    Store(other, Root(other), KeysOf(3000, 8));
    store_->Quiesce();
    rebalanced.push_back(store_->GetCounters().regions_rebalanced);
    other = NamespaceRef();
    TearDown();
  }
  EXPECT_THAT(rebalanced, ElementsAre(1U, 1U, 1U));
}

TEST_F(ConversationEvictionTest, APriorityCostsItsNamespaceNoMoreThanItsOldestBlocks) {
  // A tenant with two regions, four of its blocks old; another one with the third region wants
  // more, again and again. It gets the region that the old ones are worth, and no second one: that
  // would be so if they stayed for their priority, and went on being the oldest of all.
  std::vector<std::vector<std::uint64_t>> outcomes;
  for (const std::uint32_t priority : {50U, 0U, 100U}) {
    StartSmall(3);
    StoreChain(0, 4);
    ASSERT_TRUE(Tell("old", 3, priority).ok());
    NamespaceRef other = Open(SpecOf("m"), "other");
    Store(other, Root(other), KeysOf(1000, 16));
    StoreChain(100, 28);
    for (std::uint64_t round = 2; round < 8; ++round) {
      Store(other, Root(other), KeysOf(1000 * round, 16));
      Fetch(ns_, KeysOf(100, 28));
      store_->Quiesce();
    }
    outcomes.push_back({Left(0, 4), Left(100, 28), store_->GetCounters().regions_rebalanced});
    other = NamespaceRef();
    TearDown();
  }
  EXPECT_THAT(outcomes[0], ElementsAre(0U, 16U, 1U));
  EXPECT_EQ(outcomes[1], outcomes[0]);
  EXPECT_EQ(outcomes[2], outcomes[0]);
}

TEST_F(ConversationEvictionTest, WhatIsNotCachedCannotBeNamed) {
  StartSmall();
  StoreChain(0, 2);
  EXPECT_THAT(std::string(Tell("c", 7, 50).status().message()), HasSubstr("leaf: "));
  EXPECT_EQ(Tell("c", 7, 50).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Tell("", 1, 50).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Tell("c", 1, 101).status().code(), absl::StatusCode::kInvalidArgument);
  const auto uneven =
      store_->UpdateConversation(ns_, {.name = "c", .leaf = KeyOf(1), .token_count = 17});
  EXPECT_THAT(std::string(uneven.status().message()), HasSubstr("token_count: got 17"));
  EXPECT_EQ(store_->GetStatus().conversations, 0U);
}

TEST_F(ConversationEvictionTest, ADescriptionSaysWhatWasToldAndWhatIsLeft) {
  StartSmall(1, [](TieredStoreOptions& options) { options.conversations.priority_max = 80; });
  StoreChain(0, 2);
  const auto told = Tell("c", 1, 100, seconds(100));
  ASSERT_TRUE(told.ok());
  EXPECT_EQ(told->priority, 80);
  clock_.Advance(seconds(30));
  const auto facts = store_->DescribeConversation(ns_, "c");
  ASSERT_TRUE(facts.ok());
  EXPECT_EQ(facts->leaf, KeyOf(1));
  EXPECT_EQ(facts->leaf_tier, Tier::kRam);
  EXPECT_EQ(facts->priority, 80);
  EXPECT_EQ(facts->ttl, seconds(70));
  EXPECT_EQ(facts->age, seconds(30));
  EXPECT_EQ(facts->idle, seconds(30));
  EXPECT_EQ(facts->updates, 1U);
  NamespaceRef other = Open(SpecOf("m"), "other");
  EXPECT_EQ(store_->DescribeConversation(other, "c").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ConversationEvictionTest, APurgeForgetsTheNamesToo) {
  StartSmall();
  StoreChain(0, 2);
  ASSERT_TRUE(Tell("c", 1, 90).ok());
  ASSERT_TRUE(store_->Purge(ns_.fingerprint()).ok());
  EXPECT_EQ(store_->DescribeConversation(ns_, "c").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->GetStatus().conversations, 0U);
}

// After every step the audit recounts: a block has a conversation's class exactly where one is
// anchored, and that of the highest.
TEST_F(ConversationEvictionTest, RandomStepsKeepClassesAndAnchorsInOrder) {
  // Two regions; chains that fork, grow, are evicted, damaged and stored anew; names that end and
  // that make room for each other.
  constexpr unsigned kSeed = 20277;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  StartSmall(2,
             [](TieredStoreOptions& options) { options.conversations.count_per_tenant_max = 8; });
  // Chain c: blocks 100 c to 100 c + 3 of its own, after the trunk 0 to 3.
  const auto chain_of = [](std::uint64_t chain, std::uint64_t length) {
    std::vector<BlockKey> keys = KeysOf(0, std::min<std::uint64_t>(length, 4));
    if (length > 4) {
      const auto own = KeysOf(100 * (chain + 1), length - 4);
      keys.insert(keys.end(), own.begin(), own.end());
    }
    return keys;
  };
  int told = 0;
  for (int step = 0; step < 20'000; ++step) {
    SCOPED_TRACE(step);
    const auto keys = chain_of(random() % 9, 1 + random() % 8);
    switch (random() % 8) {
      case 0:
      case 1:
      case 2:
        Store(ns_, Root(ns_), keys);
        break;
      case 3:
        Fetch(ns_, keys);
        break;
      case 4:
        clock_.Advance(seconds(random() % 20));
        store_->Housekeep();
        break;
      case 5:
        if (random() % 4 == 0) {
          const FetchResult read = Fetch(ns_, std::span(keys).last(1));
          if (read.lease.empty()) break;
          read.lease.parts()[0].extent.bytes()[0] ^= std::byte{1};
          ASSERT_TRUE(*store_->CheckSuspect(ns_, keys.back(), 0, 0));
        }
        break;
      default: {
        const auto facts = store_->UpdateConversation(ns_, {.name = std::to_string(random() % 20),
                                                            .leaf = keys.back(),
                                                            .token_count = 16 * keys.size(),
                                                            .priority = random() % 101,
                                                            .ttl = seconds(1 + random() % 100)});
        told += facts.ok() ? 1 : 0;
      }
    }
    ASSERT_TRUE(store_->Audit().ok()) << store_->Audit();
  }
  EXPECT_GT(told, 400);
  const StoreCounters counters = store_->GetCounters();
  EXPECT_GT(counters.conversations_ended, 20U);
  EXPECT_GT(counters.conversations_displaced, 20U);
  EXPECT_GT(counters.evicted_blocks, 400U);
  EXPECT_GT(counters.orphaned_blocks, 10U);
}

}  // namespace
}  // namespace kavern::tiers
