// The queue alone: blocks are numbers, and the test says which are of use and when they were used.
#include "tiers/write_back_queue.h"

#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kavern::tiers {
namespace {

using std::chrono::seconds;
constexpr SteadyTime kStart{std::chrono::hours(1)};

class WriteBackQueueTest : public ::testing::Test {
 protected:
  void Start(const WriteBackQueue::Options& options) {
    queue_.emplace(options, [this](const WriteBackQueue::Entry& entry) {
      const auto found = uses_.find(entry.block.id);
      return found == uses_.end() ? std::nullopt : std::optional(found->second);
    });
  }
  void Push(BlockId id, SteadyTime now, DiskDurability durability = DiskDurability::kBatch,
            std::uint64_t bytes = 10) {
    uses_[id] = ++last_use_;
    queue_->Push({nullptr, {id, 0}, {}, bytes, durability, last_use_, now});
  }
  void Use(BlockId id) { uses_[id] = ++last_use_; }
  // Everything that is due at `now`, in order.
  std::vector<BlockId> TakeDue(SteadyTime now, bool hurry = false) {
    std::vector<BlockId> ids;
    while (queue_->Due(now, hurry, &lost_) != nullptr) ids.push_back(queue_->Pop().block.id);
    return ids;
  }

  std::map<BlockId, UseSequence> uses_;
  UseSequence last_use_ = 0;
  std::deque<WriteBackQueue::Entry> lost_;
  std::optional<WriteBackQueue> queue_;
};

TEST_F(WriteBackQueueTest, EagerIsInOrderAndAtOnce) {
  Start({});
  for (BlockId id = 1; id <= 3; ++id) Push(id, kStart);
  EXPECT_THAT(TakeDue(kStart), testing::ElementsAre(1, 2, 3));
  EXPECT_EQ(queue_->bytes(), 0U);
}

TEST_F(WriteBackQueueTest, StrictOnesDoNotWaitBehindOthersInAnyMode) {
  Start({.mode = WriteBackMode::kOnEviction});
  Push(1, kStart);
  Push(2, kStart, DiskDurability::kStrict);
  EXPECT_THAT(TakeDue(kStart), testing::ElementsAre(2));
  EXPECT_EQ(queue_->size(), 1U);
}

TEST_F(WriteBackQueueTest, IdleWaitsAndAUseStartsTheTimeAnew) {
  Start({.mode = WriteBackMode::kIdle, .idle_time = seconds(10)});
  Push(1, kStart);
  Push(2, kStart + seconds(1));
  EXPECT_EQ(queue_->NextAt(), kStart + seconds(10));
  EXPECT_THAT(TakeDue(kStart + seconds(9)), testing::IsEmpty());
  Use(1);
  EXPECT_THAT(TakeDue(kStart + seconds(12)), testing::ElementsAre(2));
  EXPECT_THAT(TakeDue(kStart + seconds(21)), testing::IsEmpty());
  EXPECT_THAT(TakeDue(kStart + seconds(22)), testing::ElementsAre(1));
}

TEST_F(WriteBackQueueTest, OnEvictionWritesTheOldestUnusedUntilTheRestFits) {
  Start({.mode = WriteBackMode::kOnEviction, .waiting_bytes_max = 30});
  for (BlockId id = 1; id <= 5; ++id) Push(id, kStart);
  Use(1);
  // 50 bytes wait, 30 may; the first was used since and waits anew.
  EXPECT_THAT(TakeDue(kStart), testing::ElementsAre(2, 3));
  EXPECT_EQ(queue_->bytes(), 30U);
  EXPECT_EQ(queue_->NextAt(), std::nullopt);
}

TEST_F(WriteBackQueueTest, WhereAllWereUsedTheOldestIsWrittenAllTheSame) {
  Start({.mode = WriteBackMode::kOnEviction, .waiting_bytes_max = 20});
  for (BlockId id = 1; id <= 3; ++id) Push(id, kStart);
  for (BlockId id = 1; id <= 3; ++id) Use(id);
  EXPECT_THAT(TakeDue(kStart), testing::ElementsAre(1));
}

TEST_F(WriteBackQueueTest, AHurryMakesAllOfThemDue) {
  Start({.mode = WriteBackMode::kIdle, .idle_time = seconds(10)});
  for (BlockId id = 1; id <= 3; ++id) Push(id, kStart);
  EXPECT_THAT(TakeDue(kStart, true), testing::ElementsAre(1, 2, 3));
}

TEST_F(WriteBackQueueTest, BlocksThatLeftAreReportedAndNotWritten) {
  Start({});
  for (BlockId id = 1; id <= 3; ++id) Push(id, kStart);
  uses_.erase(1);
  uses_.erase(2);
  EXPECT_THAT(TakeDue(kStart), testing::ElementsAre(3));
  ASSERT_EQ(lost_.size(), 2U);
  EXPECT_EQ(lost_[0].block.id, 1U);
  EXPECT_EQ(lost_[1].block.id, 2U);
  EXPECT_EQ(queue_->bytes(), 0U);
}

TEST_F(WriteBackQueueTest, EntriesOfBlocksThatLeftDoNotPileUp) {
  Start({.mode = WriteBackMode::kOnEviction});
  for (BlockId id = 1; id <= 100'000; ++id) {
    Push(id, kStart);
    if (id > 100) uses_.erase(id - 100);
    queue_->Due(kStart, false, &lost_);
  }
  EXPECT_LE(queue_->size(), 1100U);
  EXPECT_EQ(queue_->size() + lost_.size(), 100'000U);
}

}  // namespace
}  // namespace kavern::tiers
