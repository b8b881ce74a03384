#include "service/session/attach_server.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/unit/service/test_node.h"

namespace kavern::service {
namespace {

class ManualClock final : public Clock {
 public:
  SteadyTime Now() const override { return SteadyTime(SteadyDuration(ticks_.load())); }
  double WallSeconds() const override { return 0; }
  void Advance(std::chrono::milliseconds by) { ticks_ += SteadyDuration(by).count(); }

 private:
  std::atomic<SteadyDuration::rep> ticks_ = SteadyDuration(std::chrono::hours(1)).count();
};

std::size_t OpenDescriptors() {
  const auto entries = std::filesystem::directory_iterator("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
}

TEST(AttachServerTest, TheWelcomeTellsWhoIsWho) {
  TestNode node;
  AttachTestClient client;
  ASSERT_TRUE(client.Connect(node.path()));
  ASSERT_TRUE(client.SendHello("default", "a worker"));
  const auto welcome = client.Receive()->As<shm::WelcomeBody>();
  EXPECT_STREQ(welcome.tenant, "default");
  EXPECT_EQ(welcome.daemon_pid, static_cast<std::uint64_t>(::getpid()));
  EXPECT_EQ(welcome.operator_rights, 1u);
  EXPECT_TRUE(std::equal(node.attach().incarnation().begin(), node.attach().incarnation().end(),
                         welcome.incarnation));
  const auto session = node.SessionOf(welcome);
  ASSERT_NE(session, nullptr);
  EXPECT_EQ(session->client_name(), "a worker");
  EXPECT_EQ(session->peer().pid, ::getpid());
  EXPECT_TRUE(session->shares_memory());
}

// A child of another uid connects to a socket that everybody may reach. Its credentials map to no
// tenant.
TEST(AttachServerTest, APeerOfAnUnmappedUidIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  TestNode node;
  ForkedClient stranger(node.path(), "", 12345);
  EXPECT_FALSE(stranger.welcome());
  EXPECT_EQ(stranger.reject_code(), static_cast<int>(absl::StatusCode::kPermissionDenied));
  ForkedClient impostor(node.path(), "default", 12345);
  EXPECT_EQ(impostor.reject_code(), static_cast<int>(absl::StatusCode::kPermissionDenied));
  EXPECT_EQ(node.attach().GetCounters().rejected, 2u);
  EXPECT_TRUE(node.sessions().All().empty());
}

TEST(AttachServerTest, AMappedUidIsItsTenantAndNoOperator) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  TestNodeOptions options;
  options.tenants = {{"a", {12345}, {}}, {"b", {12346}, {}}};
  TestNode node(options);
  ForkedClient client(node.path(), "", 12345);
  ASSERT_TRUE(client.welcome());
  EXPECT_STREQ(client.welcome()->tenant, "a");
  EXPECT_EQ(client.welcome()->operator_rights, 0u);
  ForkedClient other(node.path(), "b", 12345);
  EXPECT_EQ(other.reject_code(), static_cast<int>(absl::StatusCode::kPermissionDenied));
}

// A child holds a write lease and closes its socket: fenced at once, pinned while it lives, freed
// by its death.
TEST(AttachServerTest, ExtentsStayPinnedUntilTheProcessIsDead) {
  TestNode node;
  ForkedClient client(node.path(), "");
  ASSERT_TRUE(client.welcome());
  const auto session = node.SessionOf(*client.welcome());
  const std::string fingerprint = node.Open(*session);
  node.Begin(*session, fingerprint, 0, 3);
  EXPECT_EQ(node.leased_bytes(), 3 * TestNode::kPartBytes);

  client.CloseSocket();
  ASSERT_TRUE(Eventually([&] { return session->fenced(); }));
  EXPECT_FALSE(node.sessions()
                   .Authenticate({reinterpret_cast<const char*>(session->token().data()), 16})
                   .ok());
  // A turn of the attach thread later, and another: nothing was freed.
  AttachTestClient bystander;
  ASSERT_TRUE(bystander.Attach(node.path()));
  EXPECT_EQ(node.leased_bytes(), 3 * TestNode::kPartBytes);
  EXPECT_EQ(node.sessions().GetTotals().quarantined_bytes, 3 * TestNode::kPartBytes);

  client.Kill();
  EXPECT_TRUE(Eventually([&] { return node.leased_bytes() == 0; }));
  EXPECT_TRUE(Eventually([&] { return node.attach().GetCounters().ended == 1; }));
  EXPECT_EQ(session->GetFacts().region_shares, 0u);
}

TEST(AttachServerTest, AKilledClientIsFreedEntirely) {
  TestNode node;
  ForkedClient client(node.path(), "");
  ASSERT_TRUE(client.welcome());
  const auto session = node.SessionOf(*client.welcome());
  const std::string fingerprint = node.Open(*session);
  node.Begin(*session, fingerprint, 0, 3);
  client.Kill();
  EXPECT_TRUE(Eventually([&] { return node.sessions().All().empty(); }));
  EXPECT_TRUE(session->fenced());
  EXPECT_EQ(node.leased_bytes(), 0u);
  for (const tiers::NamespaceStatus& ns : node.store().ListNamespaces()) EXPECT_EQ(ns.refs, 0u);
}

// A grandchild inherits the socket, so no end of file comes when its parent dies. The pidfd must
// do.
TEST(AttachServerTest, AForkedChildThatKeepsTheSocketOpenKeepsNothingElse) {
  TestNode node;
  ForkedClient client(node.path(), "");
  ASSERT_TRUE(client.welcome());
  const auto session = node.SessionOf(*client.welcome());
  const std::string fingerprint = node.Open(*session);
  node.Begin(*session, fingerprint, 0, 2);
  const int holder = client.ForkHolder();
  client.Kill();
  ASSERT_TRUE(std::filesystem::exists("/proc/" + std::to_string(holder)));
  EXPECT_TRUE(Eventually([&] { return node.leased_bytes() == 0; }));
  EXPECT_TRUE(Eventually([&] { return node.sessions().All().empty(); }));
}

TEST(AttachServerTest, ASessionThatHoldsNothingEndsWithItsConnection) {
  TestNode node;
  AttachTestClient client;
  ASSERT_TRUE(client.Attach(node.path()));
  client.Close();
  EXPECT_TRUE(Eventually([&] { return node.attach().GetCounters().ended == 1; }));
  EXPECT_TRUE(node.sessions().All().empty());
}

// Beside a healthy session, one client per kind of rubbish. Each loses its own connection, nobody
// else's.
TEST(AttachServerTest, RubbishEndsTheSessionThatSentItAndNoOther) {
  TestNode node;
  AttachTestClient healthy;
  const auto session = node.SessionOf(*healthy.Attach(node.path()));

  const AttachMessage good = EncodeAttach(shm::AttachType::kRegionUnmapped, shm::RegionIdBody{1});
  const auto with = [&](std::size_t offset, std::uint16_t value) {
    AttachMessage message = good;
    std::memcpy(message.data() + offset, &value, sizeof(value));
    return message;
  };
  const std::vector<AttachMessage> rubbish = {
      AttachMessage(1),
      AttachMessage(good.begin(), good.end() - 1),
      AttachMessage(shm::kAttachMessageBytesMax, std::byte{0x5a}),
      AttachMessage(shm::kAttachMessageBytesMax + 1, std::byte{0x5a}),
      AttachMessage(100'000, std::byte{0x5a}),
      with(offsetof(shm::AttachHeader, magic), 0),
      with(offsetof(shm::AttachHeader, version), 9),
      with(offsetof(shm::AttachHeader, type), 2),
      with(offsetof(shm::AttachHeader, type), 999),
      with(offsetof(shm::AttachHeader, body_bytes), 9),
      EncodeAttach(shm::AttachType::kHello, shm::HelloBody{}),  // a second hello
  };
  for (const AttachMessage& message : rubbish) {
    AttachTestClient attached;
    ASSERT_TRUE(attached.Attach(node.path()));
    ASSERT_TRUE(attached.SendRaw(message));
    EXPECT_TRUE(attached.Receive()->end_of_file);
    AttachTestClient stranger;
    ASSERT_TRUE(stranger.Connect(node.path()));
    if (message != rubbish.back()) {
      ASSERT_TRUE(stranger.SendRaw(message));
      const auto answer = stranger.Receive();
      EXPECT_TRUE(answer->end_of_file || answer->type == shm::AttachType::kReject);
    }
  }
  EXPECT_TRUE(
      Eventually([&] { return node.attach().GetCounters().fenced_by_protocol == rubbish.size(); }));
  EXPECT_FALSE(session->fenced());
  ASSERT_TRUE(session->Send(EncodeAttach(shm::AttachType::kDraining, {})).ok());
  EXPECT_EQ(healthy.Receive()->type, shm::AttachType::kDraining);
}

// Descriptors come with a message that is otherwise fine. They must neither be used nor stay open.
TEST(AttachServerTest, DescriptorsFromAClientEndItsSessionAndAreClosed) {
  TestNode node;
  AttachTestClient warm_up;
  ASSERT_TRUE(warm_up.Attach(node.path()));
  warm_up.Close();
  ASSERT_TRUE(Eventually([&] { return node.attach().GetCounters().ended == 1; }));
  const std::size_t before = OpenDescriptors();
  for (int i = 0; i < 10; ++i) {
    AttachTestClient client;
    ASSERT_TRUE(client.Attach(node.path()));
    const UniqueFd gift(::memfd_create("gift", MFD_CLOEXEC));
    ASSERT_TRUE(client.SendRaw(EncodeAttach(shm::AttachType::kRegionUnmapped, shm::RegionIdBody{1}),
                               gift.get()));
    EXPECT_TRUE(client.Receive()->end_of_file);
  }
  EXPECT_TRUE(Eventually([&] { return node.attach().GetCounters().fenced_by_protocol == 10; }));
  EXPECT_TRUE(Eventually([&] { return OpenDescriptors() == before; }));
}

// The clock is held still, then moved past the timeout; a bystander's hello makes the thread look
// at it.
TEST(AttachServerTest, AConnectionThatNeverSaysHelloIsClosed) {
  ManualClock clock;
  TestNodeOptions options;
  options.clock = &clock;
  options.hello_timeout = std::chrono::milliseconds(1000);
  TestNode node(options);
  AttachTestClient silent;
  ASSERT_TRUE(silent.Connect(node.path()));
  AttachTestClient bystander;
  ASSERT_TRUE(bystander.Attach(node.path()));
  EXPECT_EQ(node.attach().GetCounters().rejected, 0u);
  clock.Advance(std::chrono::milliseconds(1001));
  ASSERT_TRUE(AttachTestClient().Attach(node.path()));
  const auto answer = silent.Receive();
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->As<shm::RejectBody>().code,
            static_cast<int>(absl::StatusCode::kDeadlineExceeded));
  EXPECT_TRUE(silent.Receive()->end_of_file);
}

TEST(AttachServerTest, PastHandshakesMaxTheOldestSilentConnectionGoes) {
  TestNodeOptions options;
  options.handshakes_max = 2;
  TestNode node(options);
  AttachTestClient silent[3];
  for (AttachTestClient& client : silent) ASSERT_TRUE(client.Connect(node.path()));
  EXPECT_EQ(silent[0].Receive()->As<shm::RejectBody>().code,
            static_cast<int>(absl::StatusCode::kResourceExhausted));
  ASSERT_TRUE(silent[2].SendHello());
  EXPECT_EQ(silent[2].Receive()->type, shm::AttachType::kWelcome);
  ASSERT_TRUE(silent[1].SendHello());
  EXPECT_EQ(silent[1].Receive()->type, shm::AttachType::kWelcome);
}

TEST(AttachServerTest, PastSessionsMaxAnAttachIsRejectedUntilOneEnds) {
  TestNodeOptions options;
  options.sessions_max = 1;
  TestNode node(options);
  AttachTestClient first;
  ASSERT_TRUE(first.Attach(node.path()));
  AttachTestClient second;
  ASSERT_TRUE(second.Connect(node.path()) && second.SendHello());
  EXPECT_EQ(second.Receive()->As<shm::RejectBody>().code,
            static_cast<int>(absl::StatusCode::kResourceExhausted));
  first.Close();
  ASSERT_TRUE(Eventually([&] { return node.sessions().All().empty(); }));
  EXPECT_TRUE(AttachTestClient().Attach(node.path()));
}

// 1,000 sessions that say nothing; then one more works, and one message reaches all of them.
TEST(AttachServerTest, AThousandIdleConnectionsDisturbNobody) {
  TestNode node;
  std::vector<AttachTestClient> idle(1000);
  for (AttachTestClient& client : idle) ASSERT_TRUE(client.Attach(node.path()));
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  const std::string fingerprint = node.Open(*session);
  node.Store(*session, fingerprint, 0, 1);
  node.attach().Drain();
  for (AttachTestClient& each : idle) {
    ASSERT_EQ(each.Receive()->type, shm::AttachType::kDraining);
  }
  idle.clear();
  EXPECT_TRUE(Eventually([&] { return node.sessions().All().size() == 1; }));
}

// One client sends as fast as it can; twenty others attach meanwhile.
TEST(AttachServerTest, AFloodOfMessagesDoesNotKeepOthersWaiting) {
  TestNode node;
  AttachTestClient flooding;
  ASSERT_TRUE(flooding.Attach(node.path()));
  std::atomic<bool> stop = false;
  std::atomic<std::uint64_t> sent = 0;
  std::thread flood([&] {
    while (!stop && flooding.SendUnmapped(1)) ++sent;
  });
  ASSERT_TRUE(Eventually([&] { return sent > 1000; }));
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(AttachTestClient().Attach(node.path()));
  stop = true;
  flood.join();
  EXPECT_GT(sent, 1000u);
}

TEST(AttachServerTest, DrainingTellsEverybodyAndAcceptsNoMore) {
  TestNode node;
  AttachTestClient attached;
  ASSERT_TRUE(attached.Attach(node.path()));
  AttachTestClient silent;
  ASSERT_TRUE(silent.Connect(node.path()));
  node.attach().Drain();
  EXPECT_EQ(attached.Receive()->type, shm::AttachType::kDraining);
  EXPECT_TRUE(Eventually([&] { return !AttachTestClient().Connect(node.path()); }));
  EXPECT_FALSE(std::filesystem::exists(node.path()));
  // Accepted before, or never: it does not stay connected.
  const auto answer = silent.Receive();
  EXPECT_TRUE(answer->end_of_file || answer->type == shm::AttachType::kReject);
  EXPECT_EQ(node.sessions().All().size(), 1u);
}

TEST(AttachServerTest, StoppingEndsEverySessionAndShowsIt) {
  TestNode node;
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  const std::string fingerprint = node.Open(*session);
  node.Begin(*session, fingerprint, 0, 2);
  ASSERT_TRUE(client.ReceiveType(shm::AttachType::kRegion));
  node.attach().Stop();
  EXPECT_EQ(node.leased_bytes(), 0u);
  EXPECT_TRUE(node.sessions().All().empty());
  while (true) {
    const auto packet = client.Receive();
    ASSERT_TRUE(packet);
    if (packet->end_of_file) break;
  }
  node.attach().Stop();
}

// The process may open no more descriptors when a connection arrives. Accepting it fails until some
// are free.
TEST(AttachServerTest, OutOfDescriptorsTheListenerRestsAndRecovers) {
  TestNode node;
  rlimit former{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &former), 0);
  AttachTestClient client;
  std::vector<UniqueFd> hoard(1);
  hoard[0] = UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const rlimit low = {.rlim_cur = static_cast<rlim_t>(hoard[0].get()) + 64,
                      .rlim_max = former.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  while (hoard.back().valid()) hoard.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  hoard.resize(hoard.size() - 2);  // one that is none, and one for the client's own end
  const bool asked = client.Connect(node.path()) && client.SendHello();
  const std::clock_t before = std::clock();
  const bool paused = Eventually([&] { return node.attach().GetCounters().accept_pauses >= 3; });
  const std::clock_t spent = std::clock() - before;
  hoard.clear();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &former), 0);
  EXPECT_TRUE(asked);
  EXPECT_TRUE(paused);
  EXPECT_LT(spent, CLOCKS_PER_SEC / 4) << "it spun";
  EXPECT_EQ(client.Receive()->type, shm::AttachType::kWelcome);
}

TEST(AttachServerTest, ADirectoryReachesWhoeverOpenedItsNamespaceAndNobodyElse) {
  TestNode node;
  AttachTestClient opener;
  AttachTestClient other;
  const auto session = node.SessionOf(*opener.Attach(node.path()));
  const auto other_session = node.SessionOf(*other.Attach(node.path()));
  const std::string fingerprint = node.Open(*session);
  node.Open(*other_session, "another model");
  node.Store(*session, fingerprint, 0, 1);
  const auto told = opener.ReceiveType(shm::AttachType::kDirectory);
  ASSERT_TRUE(told);
  EXPECT_TRUE(told->fd.valid());
  EXPECT_EQ(0, std::memcmp(told->As<shm::DirectoryBody>().fingerprint, fingerprint.data(), 16));

  // A latecomer gets the present one, once, however often it opens the namespace.
  AttachTestClient late;
  const auto late_session = node.SessionOf(*late.Attach(node.path()));
  for (int i = 0; i < 3; ++i) node.Open(*late_session);
  ASSERT_TRUE(late.ReceiveType(shm::AttachType::kDirectory));
  node.attach().Drain();
  EXPECT_EQ(late.Receive()->type, shm::AttachType::kDraining);
  while (true) {
    const auto packet = other.Receive();
    ASSERT_TRUE(packet && !packet->end_of_file);
    if (packet->type == shm::AttachType::kDraining) break;
    EXPECT_NE(0, std::memcmp(packet->As<shm::DirectoryBody>().fingerprint, fingerprint.data(), 16));
  }
}

TEST(AttachServerTest, ARetiredRegionIsToldToItsHoldersOnly) {
  TestNode node;
  AttachTestClient holder;
  AttachTestClient other;
  const auto session = node.SessionOf(*holder.Attach(node.path()));
  ASSERT_TRUE(other.Attach(node.path()));
  const auto region =
      *tiers::Region::Create(4242, TestNode::kRegionBytes, tiers::HugePages::kOff, nullptr);
  ASSERT_TRUE(session->ShareRegion(*region).ok());
  node.attach().OnRegionRetired(4242);
  const auto retired = holder.ReceiveType(shm::AttachType::kRegionRetired);
  ASSERT_TRUE(retired);
  EXPECT_EQ(retired->As<shm::RegionIdBody>().region_id, 4242u);
  EXPECT_TRUE(session->HoldsRegion(4242)) << "its memory counts until the client unmapped it";
  ASSERT_TRUE(holder.SendUnmapped(4242));
  EXPECT_TRUE(Eventually([&] { return !session->HoldsRegion(4242); }));
  node.attach().Drain();
  EXPECT_EQ(other.Receive()->type, shm::AttachType::kDraining);
}

}  // namespace
}  // namespace kavern::service
