// The queue of a block device, and what is left of one of its requests, without a device.

#include "tiers/nvme/io_queue.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "tiers/nvme/io_cursor.h"

namespace kavern::tiers {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr SteadyTime kNow = SteadyTime(std::chrono::hours(1));

class IoQueueTest : public testing::Test {
 protected:
  DiskIo Io(std::uint64_t offset, IoPriority priority = IoPriority::kFetch) {
    DiskIo io;
    io.offset = offset;
    io.priority = priority;
    io.pieces = {page_};
    io.done = [this, offset](absl::Status status) {
      told_.push_back(offset);
      status_ = std::move(status);
    };
    return io;
  }
  static std::vector<std::uint64_t> PopAll(IoQueue& queue) {
    std::vector<std::uint64_t> offsets;
    while (const auto io = queue.Pop()) offsets.push_back(io->offset);
    return offsets;
  }

  std::vector<std::byte> memory_ = std::vector<std::byte>(kDiskPage);
  std::span<std::byte> page_ = memory_;
  std::vector<std::uint64_t> told_;
  absl::Status status_;
};

TEST_F(IoQueueTest, TheMoreUrgentComesFirstAndEqualsInOrder) {
  IoQueue queue("disk", 100, kDiskPage * 100);
  queue.Push(Io(1, IoPriority::kScrub));
  queue.Push(Io(2, IoPriority::kWriteBack));
  queue.Push(Io(3, IoPriority::kPrefetch));
  queue.Push(Io(4, IoPriority::kFetch));
  DiskIo flush = Io(5, IoPriority::kWriteBack);
  flush.op = DiskIo::Op::kFlush;
  queue.Push(std::move(flush));
  queue.Push(Io(6, IoPriority::kFetch));
  EXPECT_EQ(queue.size(), 6U);
  EXPECT_THAT(PopAll(queue), ElementsAre(4, 6, 3, 5, 2, 1));
  EXPECT_TRUE(queue.empty());
}

TEST_F(IoQueueTest, NobodyIsPassedOverForEver) {
  IoQueue queue("disk", 10'000, kDiskPage * 10'000);
  queue.Push(Io(1, IoPriority::kScrub));
  queue.Push(Io(2, IoPriority::kWriteBack));
  std::vector<std::uint64_t> begun;
  // Fetches come as fast as they are begun.
  for (std::uint64_t i = 0; i < 3ULL * kPassesMax; ++i) {
    queue.Push(Io(100 + i));
    begun.push_back(queue.Pop()->offset);
  }
  EXPECT_EQ(begun[kPassesMax], 2U);
  EXPECT_EQ(begun[kPassesMax + 1], 1U);
}

TEST_F(IoQueueTest, AtItsDeadlineItEndsAndNotBefore) {
  IoQueue queue("disk", 100, kDiskPage * 100);
  EXPECT_EQ(queue.next_deadline(), SteadyTime::max());
  DiskIo io = Io(1);
  io.deadline = kNow;
  queue.Push(std::move(io));
  queue.Push(Io(2));
  EXPECT_EQ(queue.next_deadline(), kNow);
  queue.Expire(kNow - SteadyDuration(1));
  EXPECT_FALSE(queue.has_ended());
  queue.Expire(kNow);
  IoQueue::Tell(queue.TakeEnded());
  EXPECT_THAT(told_, ElementsAre(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status_)) << status_;
  EXPECT_THAT(std::string(status_.message()), HasSubstr("disk"));
  EXPECT_EQ(queue.next_deadline(), SteadyTime::max());
  EXPECT_EQ(queue.counts().expired, 1U);
  EXPECT_THAT(PopAll(queue), ElementsAre(2));
}

TEST_F(IoQueueTest, CancelEndsWhatBearsTheTokenAndNothingElse) {
  IoQueue queue("disk", 100, kDiskPage * 100);
  for (std::uint64_t i = 1; i <= 6; ++i) {
    DiskIo io = Io(i, i % 2 == 0 ? IoPriority::kScrub : IoPriority::kFetch);
    io.token = i <= 3 ? 7 : 0;
    queue.Push(std::move(io));
  }
  queue.Cancel(8);
  queue.Cancel(0);
  EXPECT_FALSE(queue.has_ended());
  queue.Cancel(7);
  IoQueue::Tell(queue.TakeEnded());
  EXPECT_THAT(told_, ElementsAre(1, 3, 2));
  EXPECT_TRUE(absl::IsCancelled(status_)) << status_;
  EXPECT_EQ(queue.counts().cancelled, 3U);
  EXPECT_THAT(PopAll(queue), ElementsAre(5, 4, 6));
}

TEST_F(IoQueueTest, BeyondItsLimitsItRefuses) {
  IoQueue queue("disk", 3, kDiskPage * 100);
  for (std::uint64_t i = 1; i <= 4; ++i) queue.Push(Io(i));
  IoQueue::Tell(queue.TakeEnded());
  EXPECT_THAT(told_, ElementsAre(4));
  EXPECT_TRUE(absl::IsResourceExhausted(status_)) << status_;
  EXPECT_THAT(std::string(status_.message()), HasSubstr("at most 3"));
  EXPECT_EQ(queue.counts().refused, 1U);
  ASSERT_TRUE(queue.Pop().has_value());
  queue.Push(Io(5));
  EXPECT_FALSE(queue.has_ended());

  IoQueue bytes("disk", 100, 2 * kDiskPage);
  for (std::uint64_t i = 1; i <= 3; ++i) bytes.Push(Io(i));
  EXPECT_EQ(bytes.counts().refused, 1U);
  EXPECT_THAT(PopAll(bytes), ElementsAre(1, 2));
  IoQueue small("disk", 100, 1);
  small.Push(Io(1));
  small.Push(Io(2));
  EXPECT_THAT(PopAll(small), ElementsAre(1));
}

TEST_F(IoQueueTest, WhatIsLeftOfAShortTransferBeginsWhereItEnded) {
  std::vector<std::byte> first(8);
  std::vector<std::byte> second(4);
  DiskIo io;
  io.offset = 100;
  io.pieces = {first, second};
  IoCursor cursor(io);
  cursor.Advance(0);
  EXPECT_EQ(cursor.vectors().size(), 2U);
  cursor.Advance(3);
  EXPECT_EQ(cursor.offset(), 103U);
  EXPECT_EQ(cursor.vectors()[0].iov_base, first.data() + 3);
  EXPECT_EQ(cursor.vectors()[0].iov_len, 5U);
  cursor.Advance(5);  // exactly to the end of a piece
  ASSERT_EQ(cursor.vectors().size(), 1U);
  EXPECT_EQ(cursor.vectors()[0].iov_base, second.data());
  EXPECT_FALSE(cursor.done());
  cursor.Advance(4);
  EXPECT_EQ(cursor.offset(), 112U);
  EXPECT_TRUE(cursor.done());
  IoCursor over(io);
  over.Advance(10);  // across a boundary
  EXPECT_EQ(over.vectors()[0].iov_base, second.data() + 2);
}

}  // namespace
}  // namespace kavern::tiers
