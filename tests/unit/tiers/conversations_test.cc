// The table of conversations alone: names, bounds, ends, anchors.
#include "tiers/conversations.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/unit/tiers/test_keys.h"

namespace kavern::tiers {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

NamespaceFingerprint NamespaceOf(std::uint8_t number) {
  NamespaceFingerprint ns;
  ns.bytes.fill(number);
  return ns;
}

class ConversationsTest : public ::testing::Test {
 protected:
  explicit ConversationsTest(const ConversationOptions& options = {.count_max = 5,
                                                                   .count_per_tenant_max = 3})
      : table_(options) {}

  // At `now_`, told anew for `ttl`.
  const Conversation& Tell(const std::string& name, seconds ttl, BlockId anchor = kNoBlock,
                           std::uint8_t priority = 50, const std::string& tenant = "a",
                           std::uint8_t ns = 1) {
    ConversationTable::Told told;
    told.leaf = TestKey(++keys_);
    told.token_count = 16;
    told.terms = {priority, ttl};
    told.now = now_;
    told.anchor = anchor;
    left_.clear();
    return table_.Update(NamespaceOf(ns), tenant, name, told, &left_);
  }
  bool Knows(const std::string& name, std::uint8_t ns = 1) const {
    return table_.Find(NamespaceOf(ns), name, now_) != nullptr;
  }
  std::optional<std::uint8_t> PriorityAt(BlockId block) const {
    return table_.PriorityAt(NamespaceOf(1), block);
  }
  void TearDown() override { EXPECT_EQ(table_.Audit(), ""); }

  ConversationTable table_;
  SteadyTime now_{hours(1)};
  std::vector<ConversationTable::Left> left_;
  std::uint64_t keys_ = 0;
};

TEST(ConversationTerms, WhatIsBeyondTheLimitsIsLoweredToThem) {
  const ConversationOptions options = {
      .priority_max = 80, .ttl_max = hours(2), .ttl_default = hours(1)};
  const auto terms = [&](std::optional<std::uint32_t> priority, milliseconds ttl) {
    return *ClampTerms(options, priority, ttl);
  };
  EXPECT_EQ(terms(60, seconds(5)).priority, 60);
  EXPECT_EQ(terms(60, seconds(5)).ttl, seconds(5));
  EXPECT_EQ(terms(100, hours(3)).priority, 80);
  EXPECT_EQ(terms(100, hours(3)).ttl, hours(2));
  EXPECT_EQ(terms({}, milliseconds(0)).priority, kPriorityDefault);
  EXPECT_EQ(terms({}, milliseconds(0)).ttl, hours(1));
  EXPECT_EQ(terms(0, milliseconds(0)).priority, 0);
}

TEST(ConversationTerms, NonsenseIsRefusedByName) {
  const auto wrong = [](std::optional<std::uint32_t> priority, milliseconds ttl) {
    return std::string(ClampTerms({}, priority, ttl).status().message());
  };
  EXPECT_THAT(wrong(101, seconds(1)), HasSubstr("priority: got 101, expected 0 to 100"));
  EXPECT_THAT(wrong({}, milliseconds(-1)), HasSubstr("ttl_ms: got -1"));
  EXPECT_THAT(std::string(CheckConversationName("").message()), HasSubstr("conversation: got 0"));
  EXPECT_TRUE(CheckConversationName(std::string(256, 'n')).ok());
  EXPECT_FALSE(CheckConversationName(std::string(257, 'n')).ok());
}

TEST_F(ConversationsTest, ANameIsOfItsNamespaceAndIsToldAnew) {
  Tell("c", seconds(10));
  EXPECT_TRUE(Knows("c"));
  EXPECT_FALSE(Knows("c", 2));
  now_ += seconds(4);
  const Conversation& again = Tell("c", seconds(10), kNoBlock, 70);
  EXPECT_EQ(again.updates, 2U);
  EXPECT_EQ(again.priority, 70);
  EXPECT_EQ(again.leaf, TestKey(2));
  EXPECT_EQ(again.created, now_ - seconds(4));
  EXPECT_EQ(again.updated, now_);
  EXPECT_EQ(again.ends, now_ + seconds(10));
  EXPECT_EQ(table_.size(), 1U);
}

TEST_F(ConversationsTest, OneThatEndedIsNotFoundEvenBeforeTheSweepAndBeginsAnew) {
  Tell("c", seconds(10));
  now_ += seconds(10);
  EXPECT_FALSE(Knows("c"));
  EXPECT_EQ(table_.size(), 1U);
  EXPECT_EQ(Tell("c", seconds(10)).updates, 1U);
  EXPECT_TRUE(Knows("c"));
}

TEST_F(ConversationsTest, TheSweepTakesWhatEndedAndSaysWhereItWas) {
  Tell("long", seconds(30), 7);
  Tell("short", seconds(10), 8);
  now_ += seconds(9);
  EXPECT_THAT(table_.TakeEnded(now_, 100), IsEmpty());
  now_ += seconds(1);
  const auto ended = table_.TakeEnded(now_, 100);
  ASSERT_EQ(ended.size(), 1U);
  EXPECT_EQ(ended[0].anchor, 8U);
  EXPECT_TRUE(ended[0].ended);
  EXPECT_EQ(PriorityAt(8), std::nullopt);
  EXPECT_TRUE(Knows("long"));
  EXPECT_EQ(table_.ended(), 1U);
  EXPECT_EQ(table_.displaced(), 0U);
  now_ += hours(1);
  EXPECT_EQ(table_.TakeEnded(now_, 100).size(), 1U);
  EXPECT_EQ(table_.size(), 0U);
}

TEST_F(ConversationsTest, AFullTenantLosesItsOwnThatEndsFirst) {
  // Three are allowed; "b" ends first, whoever was told first.
  Tell("a", seconds(30));
  Tell("b", seconds(10), 8);
  Tell("c", seconds(20));
  Tell("other", seconds(1), kNoBlock, 50, "b", 2);
  Tell("d", seconds(5));
  EXPECT_FALSE(Knows("b"));
  EXPECT_TRUE(Knows("a") && Knows("c") && Knows("d") && Knows("other", 2));
  ASSERT_EQ(left_.size(), 1U);
  EXPECT_EQ(left_[0].anchor, 8U);
  EXPECT_FALSE(left_[0].ended);
  EXPECT_EQ(table_.displaced(), 1U);
  Tell("d", seconds(50));
  EXPECT_EQ(table_.displaced(), 1U) << "one that is told anew takes no room";
}

// A tenant that names a lot must not make others forget.
TEST_F(ConversationsTest, AFullTableTakesFromTheTenantWithTheMost) {
  for (const char* name : {"1", "2", "3"}) Tell(name, hours(9));
  for (const char* name : {"1", "2"}) Tell(name, seconds(1), kNoBlock, 50, "b", 2);
  ASSERT_EQ(table_.size(), 5U);
  Tell("1", hours(1), kNoBlock, 50, "c", 3);
  EXPECT_EQ(table_.size(), 5U);
  EXPECT_TRUE(Knows("1", 2) && Knows("2", 2)) << "although these end first";
  EXPECT_EQ(left_.at(0).ns, NamespaceOf(1));
}

TEST_F(ConversationsTest, ABlockHasTheHighestPriorityOfThoseAnchoredThere) {
  Tell("low", hours(1), 7, 20);
  Tell("high", hours(1), 7, 90);
  EXPECT_EQ(PriorityAt(7), 90);
  Tell("high", hours(1), 9, 90);
  EXPECT_EQ(PriorityAt(7), 20) << "it has moved on";
  EXPECT_EQ(left_.at(0).anchor, 7U);
  table_.MoveAnchors(NamespaceOf(1), 9, 7);
  EXPECT_EQ(PriorityAt(9), std::nullopt);
  EXPECT_EQ(PriorityAt(7), 90);
  EXPECT_THAT(table_.AnchorsOf(NamespaceOf(1)), UnorderedElementsAre(7U));
  table_.MoveAnchors(NamespaceOf(1), 7, kNoBlock);
  EXPECT_THAT(table_.AnchorsOf(NamespaceOf(1)), IsEmpty());
  EXPECT_TRUE(Knows("low") && Knows("high"));
}

TEST_F(ConversationsTest, ADroppedNamespaceLeavesNothing) {
  Tell("a", hours(1), 7);
  Tell("b", hours(1), 7, 50, "a", 2);
  table_.DropNamespace(NamespaceOf(1));
  EXPECT_FALSE(Knows("a"));
  EXPECT_TRUE(Knows("b", 2));
  EXPECT_EQ(table_.size(), 1U);
}

class ManyConversations : public ConversationsTest {
 protected:
  ManyConversations() : ConversationsTest({.count_max = 1000, .count_per_tenant_max = 1000}) {}
};

TEST_F(ManyConversations, WhatSharesABlockIsBoundedAndTheLeastGoesWithout) {
  // 100 at one block, of priorities 0 to 99: moving them moves 64 at most.
  for (int i = 0; i < 100; ++i) {
    Tell(absl::StrCat(i), hours(1), 7, static_cast<std::uint8_t>(i));
  }
  int anchored = 0;
  for (int i = 0; i < 100; ++i) {
    const Conversation* found = table_.Find(NamespaceOf(1), absl::StrCat(i), now_);
    ASSERT_NE(found, nullptr);
    EXPECT_EQ(found->anchor == 7, i >= 36) << i;
    anchored += found->anchor == 7 ? 1 : 0;
  }
  EXPECT_EQ(anchored, 64);
  EXPECT_EQ(PriorityAt(7), 99);
}

}  // namespace
}  // namespace kavern::tiers
