// The daemon goes and comes back.
#include "tests/unit/client/client_fixture.h"

namespace kavern {
namespace {

using ReattachTest = ClientTest;

TEST_F(ReattachTest, ARestartCostsMissesAndNothingElse) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 8);
  ASSERT_TRUE(Store(*ns, keys).ok());
  const NamespaceFingerprint fingerprint = ns->fingerprint();
  daemon_.Stop();
  EXPECT_TRUE(Eventually([&] { return !client->connection().attached; }));
  EXPECT_EQ(ns->Match(keys), 0U);
  EXPECT_TRUE(absl::IsUnavailable(Store(*ns, keys).status()));
  EXPECT_EQ(Fetch(*ns, keys)[0], absl::StatusCode::kUnavailable);
  daemon_.Start();
  ASSERT_TRUE(client->WaitUntilAttached(std::chrono::seconds(20)).ok());
  EXPECT_EQ(client->connection().attach_count, 2U);
  EXPECT_EQ(ns->fingerprint(), fingerprint);
  EXPECT_EQ(ns->Match(keys), 0U);
  ASSERT_TRUE(Store(*ns, keys).ok());
  EXPECT_EQ(ns->Match(keys), keys.size());
  EXPECT_EQ(Fetch(*ns, keys), AllOk(8));
}

// Leases of the old incarnation: reading goes on in memory that is still mapped, a commit fails,
// and both are harmless to the new incarnation, whatever their numbers mean there.
TEST_F(ReattachTest, LeasesOfADeadDaemonAreSafe) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 4);
  ASSERT_TRUE(Store(*ns, keys).ok());
  auto read = ns->Fetch({.keys = keys});
  const auto new_keys = Keys(*ns, 2, 4);
  auto write = ns->BeginStore({.keys = new_keys});
  ASSERT_TRUE(read.ok() && write.ok());
  daemon_.Stop();
  daemon_.Start();
  ASSERT_TRUE(Eventually([&] { return client->connection().attach_count == 2; }));
  ASSERT_TRUE(client->WaitUntilAttached(std::chrono::seconds(20)).ok());

  std::vector<std::byte> payload(kPartBytes);
  const MutableBuffer target(payload);
  EXPECT_EQ(read->CopyTo(2, {&target, 1}), absl::OkStatus());
  EXPECT_EQ(payload, Payload(keys[2]));
  const ConstBuffer source(payload);
  ASSERT_TRUE(write->Fill(0, {&source, 1}).ok());
  EXPECT_TRUE(absl::IsUnavailable(write->Commit()));
  EXPECT_EQ(ns->Match(new_keys), 0U);

  ASSERT_TRUE(Store(*ns, keys).ok());
  auto fresh = ns->Fetch({.keys = keys});
  ASSERT_TRUE(fresh.ok());
  (void)read->Release();  // a number that the new incarnation may have given to `fresh`
  EXPECT_EQ(daemon_.leased_bytes(), 4 * kPartBytes);
  EXPECT_TRUE(fresh->Release().ok());
  EXPECT_TRUE(
      Eventually([&] { return client->connection().mapped_bytes <= std::uint64_t{512} << 10; }));
}

TEST_F(ReattachTest, AClientMayComeBeforeItsDaemon) {
  daemon_.Stop();
  const auto client = daemon_.Connect();
  EXPECT_TRUE(absl::IsDeadlineExceeded(client->WaitUntilAttached(std::chrono::milliseconds(20))));
  EXPECT_TRUE(absl::IsUnavailable(client->OpenNamespace(SmallSpec()).status()));
  EXPECT_TRUE(absl::IsUnavailable(client->Ping()));
  daemon_.Start();
  ASSERT_TRUE(client->WaitUntilAttached(std::chrono::seconds(20)).ok());
  EXPECT_TRUE(Store(*Open(*client), Keys(*Open(*client), 1, 2)).ok());
}

// The daemon has forgotten the session although the socket is open.
TEST_F(ReattachTest, ASessionThatTheDaemonForgotIsMadeAnew) {
  const auto client = Connect();
  const auto ns = Open(*client);
  daemon_.FailNext("BeginStore", absl::UnauthenticatedError("session_token: unknown"));
  EXPECT_TRUE(absl::IsUnavailable(Store(*ns, Keys(*ns, 1, 1)).status()));
  EXPECT_TRUE(Eventually([&] { return client->connection().attach_count == 2; }));
  EXPECT_TRUE(Eventually([&] { return Store(*ns, Keys(*ns, 1, 1)).ok(); }));
}

TEST_F(ReattachTest, AClientMayEndBeforeItsLeases) {
  auto client = Connect();
  auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 2);
  ASSERT_TRUE(Store(*ns, keys).ok());
  auto lease = ns->Fetch({.keys = keys});
  ASSERT_TRUE(lease.ok());
  ns.reset();
  client.reset();
  std::vector<std::byte> payload(kPartBytes);
  const MutableBuffer target(payload);
  EXPECT_TRUE(lease->CopyTo(1, {&target, 1}).ok());
  EXPECT_EQ(payload, Payload(keys[1]));
}

// Clients work while the daemon restarts under them, several times.
TEST_F(ReattachTest, RestartsUnderLoadNeverGiveWrongBytes) {
  const auto client = Connect();
  const auto ns = Open(*client);
  std::atomic<bool> done = false;
  std::atomic<std::uint64_t> hits = 0;
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint32_t round = 0; !done; ++round) {
        const auto keys = Keys(*ns, t * 10 + round % 10, 8);
        (void)Store(*ns, keys);
        for (const absl::StatusCode code : Fetch(*ns, keys)) {
          hits += code == absl::StatusCode::kOk ? 1 : 0;
        }
      }
    });
  }
  for (int round = 0; round < 4; ++round) {
    const std::uint64_t before = hits;
    EXPECT_TRUE(Eventually([&] { return hits > before + 100; }));
    daemon_.Stop();
    daemon_.Start();
  }
  const std::uint64_t before = hits;
  EXPECT_TRUE(Eventually([&] { return hits > before + 100; }));
  done = true;
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace kavern
