// The example program of the README, as a user runs it.
#include "tests/integration/node_test.h"

namespace kavern {
namespace {

using ExampleTest = NodeTest;

TEST_F(ExampleTest, FetchesInTheSecondRunWhatTheFirstStored) {
  const CommandResult without = RunCommand({WORKER_EXAMPLE_BINARY, address()});
  EXPECT_EQ(without.status, 0);
  EXPECT_EQ(without.output, "no daemon: computed everything\n");
  StartDaemon();
  const CommandResult first = RunCommand({WORKER_EXAMPLE_BINARY, address()});
  EXPECT_EQ(first.status, 0);
  EXPECT_EQ(first.output, "16 blocks: 0 fetched, 16 computed\nnext turn: 16 to fetch\n");
  const CommandResult second = RunCommand({WORKER_EXAMPLE_BINARY, address()});
  EXPECT_EQ(second.status, 0);
  EXPECT_EQ(second.output, "16 blocks: 16 fetched, 0 computed\nnext turn: 16 to fetch\n");
  EXPECT_EQ(Status().counters().fetch_hit_blocks(), 16U);
}

}  // namespace
}  // namespace kavern
