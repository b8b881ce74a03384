#include "tiers/policy/leaf_first_lru.h"

#include <gtest/gtest.h>

#include <iterator>
#include <map>
#include <random>
#include <tuple>

namespace kavern::tiers {
namespace {

TEST(EvictionPolicyFactory, MakesEveryKnownPolicyAndNoOther) {
  ASSERT_FALSE(KnownEvictionPolicies().empty());
  for (const std::string& name : KnownEvictionPolicies()) {
    const auto policy = MakeEvictionPolicy(name);
    ASSERT_NE(policy, nullptr) << name;
    EXPECT_EQ(policy->name(), name);
  }
  EXPECT_EQ(MakeEvictionPolicy("LRU"), nullptr);
  EXPECT_EQ(MakeEvictionPolicy(""), nullptr);
}

TEST(LeafFirstLru, ABlockThatIsNoCandidateIsNeverTheVictim) {
  // Block 1 is the oldest, but in use; then block 2, the only other, is too.
  LeafFirstLru lru;
  lru.Touch(1, 10);
  lru.Touch(2, 20);
  EXPECT_FALSE(lru.Victim().has_value());
  lru.SetCandidate(2, true);
  ASSERT_TRUE(lru.Victim().has_value());
  EXPECT_EQ(lru.Victim()->id, 2u);
  EXPECT_EQ(lru.Victim()->last_use, 20u);
  lru.SetCandidate(2, false);
  EXPECT_FALSE(lru.Victim().has_value());
}

TEST(LeafFirstLru, ABlockThatBecomesALeafLateKeepsThePlaceOfItsLastUse) {
  // Block 1 was used before block 2 and becomes a candidate after it.
  LeafFirstLru lru;
  lru.Touch(1, 10);
  lru.Touch(2, 20);
  lru.SetCandidate(2, true);
  lru.SetCandidate(1, true);
  EXPECT_EQ(lru.Victim()->id, 1u);
}

TEST(LeafFirstLru, AnIdUsedAgainInheritsNothing) {
  // Block 3 leaves as a candidate; another block gets its id.
  LeafFirstLru lru;
  lru.Touch(3, 5);
  lru.SetCandidate(3, true);
  lru.Remove(3);
  EXPECT_FALSE(lru.Victim().has_value());
  EXPECT_EQ(lru.LastUse(3), 0u);
  lru.Touch(3, 7);
  EXPECT_FALSE(lru.Victim().has_value()) << "a tracked block starts as no candidate";
}

TEST(EvictionClass, ClassesAreInTheOrderOfPrioritiesWithThePlainOneInTheMiddle) {
  for (std::uint8_t priority = 1; priority <= kPriorityMax; ++priority) {
    EXPECT_LT(ClassOfPriority(priority - 1), ClassOfPriority(priority));
  }
  EXPECT_LT(kEndedClass, ClassOfPriority(0));
  EXPECT_LT(ClassOfPriority(49), kPlainClass);
  EXPECT_LT(kPlainClass, ClassOfPriority(50));
  EXPECT_LT(ClassOfPriority(100), 128) << "more does not fit into seven bits";
}

TEST(LeafFirstLru, AClassComesBeforeUseAndTheOldestIsFoundNevertheless) {
  // Block 1 is the oldest, block 3 of the lowest class.
  LeafFirstLru lru;
  for (const BlockId id : {1, 2, 3}) {
    lru.Touch(id, UseSequence{id} * 10);
    lru.SetCandidate(id, true);
  }
  lru.SetClass(1, ClassOfPriority(60));
  lru.SetClass(3, ClassOfPriority(40));
  EXPECT_EQ(lru.Victim()->id, 3u);
  EXPECT_EQ(lru.Victim()->last_use, 30u);
  EXPECT_EQ(lru.Oldest()->id, 1u);
  EXPECT_EQ(lru.Oldest()->last_use, 10u);
  lru.Touch(1, 40);
  EXPECT_EQ(lru.ClassOf(1), ClassOfPriority(60)) << "a use does not change it";
  EXPECT_EQ(lru.Oldest()->id, 2u);
}

TEST(LeafFirstLru, AUseLiftsABlockOutOfTheClassOfWhatEnded) {
  LeafFirstLru lru;
  lru.Touch(1, 10);
  EXPECT_EQ(lru.ClassOf(1), kPlainClass);
  lru.SetClass(1, kEndedClass);
  EXPECT_EQ(lru.LastUse(1), 10u);
  lru.Touch(1, 20);
  EXPECT_EQ(lru.ClassOf(1), kPlainClass);
}

// The same, by search instead of by order.
struct NaiveLru {
  struct Block {
    UseSequence last_use = 0;
    bool candidate = false;
    EvictionClass eviction_class = kPlainClass;
  };
  std::map<BlockId, Block> blocks;

  std::optional<EvictionPolicy::Choice> Victim(bool by_class) const {
    std::optional<EvictionPolicy::Choice> best;
    EvictionClass best_class = 0;
    for (const auto& [id, block] : blocks) {
      const EvictionClass eviction_class = by_class ? block.eviction_class : EvictionClass{0};
      if (block.candidate && (!best || std::tie(eviction_class, block.last_use) <
                                           std::tie(best_class, best->last_use))) {
        best = EvictionPolicy::Choice{id, block.last_use};
        best_class = eviction_class;
      }
    }
    return best;
  }
};

TEST(LeafFirstLru, RandomOperationsChooseTheVictimThatASearchChooses) {
  // 60 ids, many equal sequences (ties in a class go to the lowest id), five classes, candidates
  // that are touched and that change their class.
  constexpr unsigned kSeed = 20261;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  LeafFirstLru lru;
  NaiveLru naive;
  int victims = 0;
  for (int step = 0; step < 50'000; ++step) {
    const BlockId id = random() % 60;
    switch (random() % 9) {
      case 0:
        lru.Remove(id);
        naive.blocks.erase(id);
        break;
      case 1:
      case 2:
      case 3: {
        const UseSequence sequence = random() % 4 == 0 ? 0 : static_cast<UseSequence>(step / 3);
        lru.Touch(id, sequence);
        NaiveLru::Block& block = naive.blocks[id];
        block.last_use = sequence;
        if (block.eviction_class == kEndedClass) block.eviction_class = kPlainClass;
        break;
      }
      case 4: {
        if (!naive.blocks.contains(id)) break;
        constexpr EvictionClass kClasses[] = {kEndedClass, ClassOfPriority(0), kPlainClass,
                                              ClassOfPriority(50), ClassOfPriority(100)};
        const EvictionClass eviction_class = kClasses[random() % std::size(kClasses)];
        lru.SetClass(id, eviction_class);
        naive.blocks[id].eviction_class = eviction_class;
        break;
      }
      default: {
        if (!naive.blocks.contains(id)) break;
        const bool candidate = random() % 2 == 0;
        lru.SetCandidate(id, candidate);
        naive.blocks[id].candidate = candidate;
      }
    }
    const auto expected = naive.Victim(/*by_class=*/true);
    const auto got = lru.Victim();
    ASSERT_EQ(got.has_value(), expected.has_value()) << "step " << step;
    if (expected) {
      ASSERT_EQ(got->id, expected->id) << "step " << step;
      ASSERT_EQ(got->last_use, expected->last_use) << "step " << step;
      ASSERT_EQ(lru.Oldest()->last_use, naive.Victim(/*by_class=*/false)->last_use)
          << "step " << step;
      ++victims;
    }
    if (const auto it = naive.blocks.find(id); it != naive.blocks.end()) {
      ASSERT_EQ(lru.LastUse(id), it->second.last_use) << "step " << step;
      ASSERT_EQ(lru.ClassOf(id), it->second.eviction_class) << "step " << step;
    }
  }
  EXPECT_GT(victims, 40'000);
}

}  // namespace
}  // namespace kavern::tiers
