#include "tiers/policy/leaf_first_lru.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

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

// The same, by search instead of by order.
struct NaiveLru {
  struct Block {
    UseSequence last_use = 0;
    bool candidate = false;
  };
  std::map<BlockId, Block> blocks;

  std::optional<EvictionPolicy::Choice> Victim() const {
    std::optional<EvictionPolicy::Choice> best;
    for (const auto& [id, block] : blocks) {
      if (block.candidate && (!best || block.last_use < best->last_use)) {
        best = EvictionPolicy::Choice{id, block.last_use};
      }
    }
    return best;
  }
};

TEST(LeafFirstLru, RandomOperationsChooseTheVictimThatASearchChooses) {
  // 60 ids, many equal sequences (ties go to the lowest id), candidates that are touched.
  constexpr unsigned kSeed = 20261;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  LeafFirstLru lru;
  NaiveLru naive;
  int victims = 0;
  for (int step = 0; step < 50'000; ++step) {
    const BlockId id = random() % 60;
    switch (random() % 8) {
      case 0:
        lru.Remove(id);
        naive.blocks.erase(id);
        break;
      case 1:
      case 2:
      case 3: {
        const UseSequence sequence = random() % 4 == 0 ? 0 : static_cast<UseSequence>(step / 3);
        lru.Touch(id, sequence);
        naive.blocks[id].last_use = sequence;
        break;
      }
      default: {
        if (!naive.blocks.contains(id)) break;
        const bool candidate = random() % 2 == 0;
        lru.SetCandidate(id, candidate);
        naive.blocks[id].candidate = candidate;
      }
    }
    const auto expected = naive.Victim();
    const auto got = lru.Victim();
    ASSERT_EQ(got.has_value(), expected.has_value()) << "step " << step;
    if (expected) {
      ASSERT_EQ(got->id, expected->id) << "step " << step;
      ASSERT_EQ(got->last_use, expected->last_use) << "step " << step;
      ++victims;
    }
    if (const auto it = naive.blocks.find(id); it != naive.blocks.end()) {
      ASSERT_EQ(lru.LastUse(id), it->second.last_use) << "step " << step;
    }
  }
  EXPECT_GT(victims, 40'000);
}

}  // namespace
}  // namespace kavern::tiers
