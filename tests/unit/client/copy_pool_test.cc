#include "client/copy_pool.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace kavern::client {
namespace {

class CopyPoolTest : public testing::TestWithParam<int> {};

TEST_P(CopyPoolTest, DoesEveryItemOnceWhoeverAsks) {
  CopyPool pool(GetParam());
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (const std::size_t count : {0, 1, 2, 7, 100}) {
        std::vector<std::atomic<int>> done(count);
        pool.Run(count, [&](std::size_t i) { ++done[i]; });
        for (const std::atomic<int>& times : done) EXPECT_EQ(times, 1);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

INSTANTIATE_TEST_SUITE_P(Threads, CopyPoolTest, testing::Values(1, 2, 4));

}  // namespace
}  // namespace kavern::client
