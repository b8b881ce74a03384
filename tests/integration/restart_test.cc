// The daemon dies, ends and comes back under live clients.
#include <signal.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <thread>

#include "tests/integration/node_test.h"

namespace kavern {
namespace {

using RestartTest = NodeTest;

// Two workers store and fetch all the time, in processes of their own, while the daemon is killed
// and started again under them, twice. A third client, in this process, holds a lease across it.
TEST_F(RestartTest, ClientsOfAKilledDaemonGoOnWithMissesAndRecover) {
  StartDaemon();
  ChildProcess load_a = FaultClient("load");
  ChildProcess load_b = FaultClient("load");
  for (ChildProcess* load : {&load_a, &load_b}) {
    ASSERT_EQ(load->ReadLine(), "ready");
    load->WriteLine("go");
  }
  const auto client = Connect();
  const auto ns = *client->OpenNamespace(TestSpec());
  const auto keys = TestKeys(ns->fingerprint(), 100, 8);
  ASSERT_TRUE(StorePattern(*ns, keys).ok());
  auto lease = ns->Fetch({.keys = keys});
  ASSERT_TRUE(lease.ok());

  for (int round = 0; round < 2; ++round) {
    KillDaemon();
    // The old region stays mapped for the lease, and the bytes are still right.
    std::vector<std::byte> payload(kBlockBytes);
    const MutableBuffer piece(payload);
    if (round == 0) {
      EXPECT_TRUE(lease->CopyTo(0, {&piece, 1}).ok());
    }
    EXPECT_TRUE(Eventually([&] { return !client->connection().attached; }));
    EXPECT_EQ(ns->Match(keys), 0U);
    EXPECT_TRUE(absl::IsUnavailable(FetchPattern(*ns, keys).status));
    RestartDaemon();
    ASSERT_TRUE(client->WaitUntilAttached(std::chrono::seconds(20)).ok());
    ASSERT_TRUE(Eventually([&] { return StorePattern(*ns, keys).ok(); }));
    EXPECT_EQ(ns->Match(keys), keys.size());
    const Fetched fetched = FetchPattern(*ns, keys);
    EXPECT_EQ(fetched.ok, keys.size());
    EXPECT_EQ(fetched.wrong_bytes, 0U);
  }
  EXPECT_EQ(client->connection().attach_count, 3U);
  EXPECT_TRUE(Eventually([&] { return Status().counters().fetch_hit_blocks() > 100; }));
  for (ChildProcess* load : {&load_a, &load_b}) {
    load->Kill();
    EXPECT_EQ(load->ReadAll(), "");  // never "wrong"
  }
}

TEST_F(RestartTest, CallsFailAtOnceWhileTheDaemonIsAway) {
  StartDaemon();
  const auto client = Connect();
  const auto ns = *client->OpenNamespace(TestSpec());
  KillDaemon();
  ASSERT_TRUE(Eventually([&] { return !client->connection().attached; }));
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(absl::IsUnavailable(StorePattern(*ns, TestKeys(ns->fingerprint(), 1, 1)).status()));
  }
  // A hundred calls that each waited for their deadline of 5 s would take minutes.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(4));
}

TEST_F(RestartTest, TermEndsAnIdleDaemonWithSuccessAndRemovesItsSockets) {
  StartDaemon();
  const auto client = Connect();
  EXPECT_EQ(StopDaemon(), 0);
  EXPECT_NE(access(socket_path().c_str(), F_OK), 0);
  EXPECT_NE(access((socket_path() + ".attach").c_str(), F_OK), 0);
}

// A lease that nobody ends keeps the daemon for its drain time, and no longer.
TEST_F(RestartTest, TermWaitsForLeasesAtMostItsDrainTime) {
  StartDaemon({"shutdown.drain=300ms"});
  ChildProcess worker = FaultClient("hold-begun");
  ASSERT_EQ(worker.ReadLine(), "ready");
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(StopDaemon(), 1);
  const auto took = std::chrono::steady_clock::now() - start;
  EXPECT_GE(took, std::chrono::milliseconds(300));
  EXPECT_LT(took, std::chrono::seconds(10));
}

// What a daemon that was killed leaves behind, and what is no socket at all.
TEST_F(RestartTest, AStaleSocketIsReplacedAndAFileIsNot) {
  StartDaemon();
  KillDaemon();
  ASSERT_EQ(access(socket_path().c_str(), F_OK), 0);
  RestartDaemon();
  EXPECT_EQ(StopDaemon(), 0);

  std::ofstream(socket_path()) << "somebody's file";
  EXPECT_EQ(RunCommand({KAVERND_BINARY, "--set", "listen.socket=" + socket_path(), "--set",
                        "http.address=", "--set", "ram.capacity=64MiB", "--set", "log.level=error"})
                .status,
            1);
  std::string kept;
  std::getline(std::ifstream(socket_path()) >> std::ws, kept);
  EXPECT_EQ(kept, "somebody's file");
}

TEST_F(RestartTest, ASecondDaemonOnTheSameSocketIsRefusedAndTheFirstServesOn) {
  StartDaemon();
  EXPECT_EQ(RunCommand({KAVERND_BINARY, "--set", "listen.socket=" + socket_path(), "--set",
                        "http.address=", "--set", "ram.capacity=64MiB", "--set", "log.level=error"})
                .status,
            1);
  const auto client = Connect();
  const auto ns = client->OpenNamespace(TestSpec());
  EXPECT_TRUE(ns.ok()) << ns.status();
}

TEST_F(RestartTest, ADaemonThatCannotFitItsMemoryRefusesToStart) {
  EXPECT_EQ(RunCommand({KAVERND_BINARY, "--set", "listen.socket=" + socket_path(), "--set",
                        "http.address=", "--set", "ram.capacity=1TiB", "--set", "log.level=error"})
                .status,
            1);
}

}  // namespace
}  // namespace kavern
