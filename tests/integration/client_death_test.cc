// Workers that die at the worst moments.
#include <signal.h>

#include "tests/integration/node_test.h"

namespace kavern {
namespace {

class ClientDeathTest : public NodeTest, public testing::WithParamInterface<const char*> {};

// A worker is killed at the point that the parameter names. What it held is free again, nothing of
// what it had not committed is visible, and others can fill the whole tier.
TEST_P(ClientDeathTest, LeavesNothingBehind) {
  StartDaemon();
  ChildProcess worker = FaultClient(GetParam());
  ASSERT_EQ(worker.ReadLine(), "ready");
  EXPECT_GT(Status().ram().leased_bytes(), 0U);
  worker.Kill();
  EXPECT_TRUE(Eventually([&] { return NothingIsLeased(); }));

  const auto client = Connect();
  const auto ns = *client->OpenNamespace(TestSpec());
  const bool had_committed = std::string(GetParam()) == "hold-reading";
  EXPECT_EQ(ns->Match(TestKeys(ns->fingerprint(), 1, 8)), had_committed ? 8U : 0U);
  for (std::uint32_t chain = 2; chain < 11; ++chain) {
    const auto keys = TestKeys(ns->fingerprint(), chain, 100);
    const auto stored = StorePattern(*ns, keys);
    ASSERT_TRUE(stored.ok()) << stored.status();
    EXPECT_EQ(stored->outcomes.back(), StoreOutcome::kStored) << stored->decline_reason;
  }
  for (std::uint32_t chain = 2; chain < 11; ++chain) {
    const Fetched fetched = FetchPattern(*ns, TestKeys(ns->fingerprint(), chain, 100));
    EXPECT_EQ(fetched.ok, 100U);
    EXPECT_EQ(fetched.wrong_bytes, 0U);
  }
  EXPECT_EQ(Status().counters().evicted_blocks(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Points, ClientDeathTest,
                         testing::Values("hold-begun", "hold-writing", "hold-filled",
                                         "hold-reading"),
                         [](const auto& point) {
                           std::string name = point.param;
                           name.erase(name.find('-'), 1);
                           return name;
                         });

using ClientFreezeTest = NodeTest;

// SIGSTOP is not death: a stopped worker may go on writing at any time, so what it holds stays its
// own.
TEST_F(ClientFreezeTest, KeepsTheLeasesOfAStoppedWorker) {
  StartDaemon();
  ChildProcess worker = FaultClient("hold-writing");
  ASSERT_EQ(worker.ReadLine(), "ready");
  worker.Signal(SIGSTOP);
  const std::uint64_t leased = Status().ram().leased_bytes();
  EXPECT_EQ(leased, 8 * kBlockBytes);

  const auto client = Connect();
  const auto ns = *client->OpenNamespace(TestSpec());
  for (std::uint32_t chain = 2; chain < 30; ++chain) {
    const auto keys = TestKeys(ns->fingerprint(), chain, 64);
    ASSERT_TRUE(StorePattern(*ns, keys).ok());
    const Fetched fetched = FetchPattern(*ns, keys);
    EXPECT_EQ(fetched.ok, keys.size());
    EXPECT_EQ(fetched.wrong_bytes, 0U);
  }
  EXPECT_TRUE(Eventually([&] { return Status().ram().leased_bytes() == leased; }));
  worker.Kill();
  EXPECT_TRUE(Eventually([&] { return NothingIsLeased(); }));
}

}  // namespace
}  // namespace kavern
