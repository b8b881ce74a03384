#include "tiers/policy/write_budget.h"

#include "gtest/gtest.h"

namespace kavern::tiers {
namespace {

using std::chrono::seconds;

// One byte a second, at most 1000 at once.
constexpr WriteBudget::Options kBytePerSecond = {.bytes_per_day = 86400, .burst_bytes = 1000};
constexpr SteadyTime kStart{std::chrono::hours(1)};

TEST(WriteBudget, WithoutALimitEverythingFits) {
  WriteBudget budget({}, kStart, UINT64_MAX);
  EXPECT_TRUE(budget.Take(kStart, UINT64_MAX));
  EXPECT_EQ(budget.Available(kStart), UINT64_MAX);
  EXPECT_EQ(budget.WhenEnough(kStart, UINT64_MAX), kStart);
}

TEST(WriteBudget, ABurstIsSpentOnceAndComesBackWithTime) {
  WriteBudget budget(kBytePerSecond, kStart, UINT64_MAX);
  EXPECT_TRUE(budget.Take(kStart, 600));
  EXPECT_FALSE(budget.Take(kStart, 401));
  EXPECT_TRUE(budget.Take(kStart, 400));
  EXPECT_FALSE(budget.Take(kStart + seconds(9), 10));
  EXPECT_TRUE(budget.Take(kStart + seconds(11), 10));
  EXPECT_EQ(budget.Available(kStart + seconds(1'000'000)), 1000U);
}

TEST(WriteBudget, OverADayNoMoreIsWrittenThanConfigured) {
  WriteBudget budget(kBytePerSecond, kStart, 0);
  std::uint64_t written = 0;
  for (int second = 0; second <= 86400; ++second) {
    while (budget.Take(kStart + seconds(second), 7)) written += 7;
  }
  EXPECT_LE(written, 86400U);
  EXPECT_GT(written, 86400U - 14);
}

TEST(WriteBudget, WhenEnoughIsTheFirstMomentAtWhichTakeSucceeds) {
  WriteBudget budget(kBytePerSecond, kStart, 10);
  const SteadyTime when = budget.WhenEnough(kStart, 100);
  EXPECT_GE(when, kStart + seconds(90));
  EXPECT_LT(when, kStart + seconds(91));
  EXPECT_FALSE(budget.Take(when - seconds(1), 100));
  EXPECT_TRUE(budget.Take(when, 100));
}

TEST(WriteBudget, WhatIsLargerThanTheBurstNeverFits) {
  WriteBudget budget(kBytePerSecond, kStart, UINT64_MAX);
  EXPECT_FALSE(budget.Take(kStart + seconds(1'000'000), 1001));
  EXPECT_EQ(budget.WhenEnough(kStart, 1001), SteadyTime::max());
}

TEST(WriteBudget, WhatWasNotWrittenIsGivenBackUpToTheBurst) {
  WriteBudget budget(kBytePerSecond, kStart, UINT64_MAX);
  EXPECT_TRUE(budget.Take(kStart, 1000));
  budget.Return(300);
  EXPECT_EQ(budget.Available(kStart), 300U);
  budget.Return(5000);
  EXPECT_EQ(budget.Available(kStart), 1000U);
}

TEST(WriteBudget, ARestartRefillsByTheTimeInBetweenAndNoMore) {
  EXPECT_EQ(RefilledBytes(kBytePerSecond, 100, 50), 150U);
  EXPECT_EQ(RefilledBytes(kBytePerSecond, 100, 1e9), 1000U);
  // A clock that was set back.
  EXPECT_EQ(RefilledBytes(kBytePerSecond, 100, -50), 100U);
}

}  // namespace
}  // namespace kavern::tiers
