#include "service/session/session.h"

#include <sys/socket.h>

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/unit/service/test_node.h"

namespace kavern::service {
namespace {

tiers::ReadLease ReadOf(TestNode& node, Session& session, const std::string& fingerprint,
                        int number) {
  const auto ns = session.FindNamespace(*ParseFingerprint(fingerprint));
  const auto keys = ParseKeys(TestNode::Key(number), 1);
  return std::move(node.store().Fetch(**ns, *keys, 0, 0)->lease);
}

TEST(SessionTest, AForgedTokenOpensNothing) {
  TestNode node;
  AttachTestClient client;
  const auto welcome = client.Attach(node.path());
  ASSERT_TRUE(welcome);
  const std::string token(reinterpret_cast<const char*>(welcome->session_token), 16);
  EXPECT_TRUE(node.sessions().Authenticate(token).ok());
  for (const std::string& forged : {std::string(), std::string(16, '\0'), token.substr(0, 15),
                                    token + "x", std::string(1 << 20, 'x')}) {
    EXPECT_TRUE(absl::IsUnauthenticated(node.sessions().Authenticate(forged).status()));
  }
  for (int bit = 0; bit < 128; ++bit) {
    std::string flipped = token;
    char& byte = flipped[static_cast<std::size_t>(bit / 8)];
    byte = static_cast<char>(static_cast<unsigned char>(byte) ^ (1U << (bit % 8)));
    EXPECT_FALSE(node.sessions().Authenticate(flipped).ok()) << bit;
  }
}

// One session with room for two leases and 12 KiB. What is refused must be given back at once.
TEST(SessionTest, LeasesPastTheLimitsAreRefusedAndGivenBack) {
  TestNodeOptions options;
  options.session_limits.leases_max = 2;
  options.session_limits.lease_bytes_max = 3 * TestNode::kPartBytes;
  TestNode node(options);
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  const std::string fingerprint = node.Open(*session);
  node.Store(*session, fingerprint, 0, 3);

  const auto first = session->AddLease(ReadOf(node, *session, fingerprint, 0));
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(session->AddLease(ReadOf(node, *session, fingerprint, 1)).ok());
  EXPECT_EQ(session->LeaseBytesLeft(), TestNode::kPartBytes);
  EXPECT_TRUE(absl::IsResourceExhausted(
      session->AddLease(ReadOf(node, *session, fingerprint, 2)).status()));
  EXPECT_EQ(node.leased_bytes(), 2 * TestNode::kPartBytes);
  EXPECT_TRUE(session->ReleaseRead(*first));
  EXPECT_FALSE(session->ReleaseRead(*first)) << "a lease was released twice";
  EXPECT_EQ(node.leased_bytes(), TestNode::kPartBytes);
}

TEST(SessionTest, LeaseBytesPastTheLimitAreRefused) {
  TestNodeOptions options;
  options.session_limits.lease_bytes_max = TestNode::kPartBytes;
  TestNode node(options);
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  const std::string fingerprint = node.Open(*session);
  node.Store(*session, fingerprint, 0, 1);
  ASSERT_TRUE(session->AddLease(ReadOf(node, *session, fingerprint, 0)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(
      session->AddLease(ReadOf(node, *session, fingerprint, 0)).status()));
  EXPECT_EQ(node.leased_bytes(), TestNode::kPartBytes);
}

TEST(SessionTest, AFencedSessionKeepsWhatItIsGivenUntilItIsGone) {
  TestNode node;
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  const std::string fingerprint = node.Open(*session);
  node.Store(*session, fingerprint, 0, 2);
  tiers::ReadLease late = ReadOf(node, *session, fingerprint, 0);
  tiers::ReadLease later = ReadOf(node, *session, fingerprint, 1);
  ASSERT_TRUE(session->AddLease(ReadOf(node, *session, fingerprint, 0)).ok());
  session->Fence();
  EXPECT_TRUE(absl::IsUnauthenticated(session->AddLease(std::move(late)).status()));
  EXPECT_EQ(session->GetFacts().leases, 2u);
  session->FreeEverything();
  EXPECT_EQ(session->GetFacts().leases, 0u);
  EXPECT_TRUE(absl::IsUnauthenticated(session->AddLease(std::move(later)).status()));
  EXPECT_EQ(node.leased_bytes(), 0u) << "a lease went to a session that is gone";
}

// A commit is in progress when the process dies. The lease must live until the commit is done, and
// not longer.
TEST(SessionTest, ACommitInProgressOutlivesTheEndOfItsSession) {
  TestNode node;
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  const std::string fingerprint = node.Open(*session);
  const auto begun = node.Begin(*session, fingerprint, 0, 2);
  const absl::Status status =
      session->WithWriteLease(begun.lease_id(), [&](tiers::WriteLease& lease) {
        std::thread([&] { session->FreeEverything(); }).join();
        EXPECT_EQ(lease.size(), 2u);
        EXPECT_EQ(lease.bytes(), 2 * TestNode::kPartBytes);
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(node.leased_bytes(), 0u);
  EXPECT_TRUE(absl::IsFailedPrecondition(session->WithWriteLease(
      begun.lease_id(), [](tiers::WriteLease&) { return absl::OkStatus(); })));
}

TEST(SessionTest, NamespacesPastTheLimitAreRefused) {
  TestNodeOptions options;
  options.session_limits.namespaces_max = 2;
  TestNode node(options);
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  node.Open(*session, "a");
  node.Open(*session, "b");
  node.Open(*session, "a");  // again is fine
  v1::OpenNamespaceRequest request;
  *request.mutable_spec() = TestNode::Spec("c");
  v1::OpenNamespaceResponse response;
  EXPECT_TRUE(
      absl::IsResourceExhausted(node.handlers().OpenNamespace(*session, request, &response)));
  EXPECT_EQ(session->GetFacts().namespaces, 2u);
}

// The client reads nothing: messages fill the socket, then the queue of 16, then the session ends
// itself.
TEST(SessionTest, AClientThatDoesNotReadIsFencedWhenItsQueueIsFull) {
  TestNodeOptions options;
  options.session_limits.queued_messages_max = 16;
  TestNode node(options);
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  const AttachMessage message = EncodeAttach(shm::AttachType::kRegionRetired, shm::RegionIdBody{1});
  absl::Status status;
  std::uint64_t queued = 0;
  for (int i = 0; i < 100'000 && status.ok(); ++i) {
    queued = std::max(queued, session->GetFacts().queued_messages);
    status = session->Send(message);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(queued, 16u);
  EXPECT_TRUE(session->fenced());
  EXPECT_TRUE(Eventually([&] { return node.attach().GetCounters().fenced_by_protocol == 1; }));
}

// The client reads late: what waited in the queue comes, all of it and in order.
TEST(SessionTest, WhatWasQueuedArrivesInOrderOnceTheClientReads) {
  TestNode node;
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  std::uint64_t sent = 0;
  while (session->GetFacts().queued_messages < 1000) {
    ASSERT_TRUE(
        session->Send(EncodeAttach(shm::AttachType::kRegionRetired, shm::RegionIdBody{sent++}))
            .ok());
  }
  for (std::uint64_t i = 0; i < sent; ++i) {
    const auto packet = client.Receive();
    ASSERT_TRUE(packet);
    ASSERT_EQ(packet->As<shm::RegionIdBody>().region_id, i);
  }
  EXPECT_EQ(session->GetFacts().queued_messages, 0u);
}

// Eight threads share one region at once, as calls of one client do: one message, and it comes
// once.
TEST(SessionTest, ARegionIsSentOnceHoweverManyCallsShareIt) {
  TestNode node;
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  const auto region =
      *tiers::Region::Create(77, TestNode::kRegionBytes, tiers::HugePages::kOff, nullptr);
  std::vector<std::thread> threads;
  threads.reserve(8);
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] { EXPECT_TRUE(session->ShareRegion(*region).ok()); });
  }
  for (std::thread& thread : threads) thread.join();
  const auto packet = client.Receive();
  ASSERT_TRUE(packet);
  EXPECT_EQ(packet->type, shm::AttachType::kRegion);
  EXPECT_EQ(packet->As<shm::RegionBody>().region_id, 77u);
  EXPECT_EQ(packet->As<shm::RegionBody>().size_bytes, TestNode::kRegionBytes);
  EXPECT_TRUE(packet->fd.valid());
  ASSERT_TRUE(session->Send(EncodeAttach(shm::AttachType::kDraining, {})).ok());
  EXPECT_EQ(client.Receive()->type, shm::AttachType::kDraining);
}

TEST(SessionTest, ARegionLivesUntilTheClientUnmappedIt) {
  TestNode node;
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  std::atomic<bool> destroyed = false;
  auto region = *tiers::Region::Create(77, TestNode::kRegionBytes, tiers::HugePages::kOff,
                                       [&] { destroyed = true; });
  ASSERT_TRUE(session->ShareRegion(*region).ok());
  region.reset();
  EXPECT_FALSE(destroyed);
  ASSERT_TRUE(client.SendUnmapped(12345));  // never had it: ignored
  ASSERT_TRUE(client.SendUnmapped(77));
  EXPECT_TRUE(Eventually([&] { return destroyed.load(); }));
  EXPECT_FALSE(session->fenced());
}

TEST(SessionTest, TotalsTellQuarantineFromUse) {
  TestNode node;
  AttachTestClient live_client;
  AttachTestClient dead_client;
  const auto live = node.SessionOf(*live_client.Attach(node.path()));
  const auto dead = node.SessionOf(*dead_client.Attach(node.path()));
  const std::string fingerprint = node.Open(*live);
  node.Open(*dead);
  node.Begin(*live, fingerprint, 0, 1);
  node.Begin(*dead, fingerprint, 10, 2);
  dead_client.Close();  // this process, which connected, lives: quarantine
  ASSERT_TRUE(Eventually([&] { return dead->fenced(); }));
  const SessionTable::Totals totals = node.sessions().GetTotals();
  EXPECT_EQ(totals.live, 1u);
  EXPECT_EQ(totals.fenced, 1u);
  EXPECT_EQ(totals.leases, 2u);
  EXPECT_EQ(totals.lease_bytes, 3 * TestNode::kPartBytes);
  EXPECT_EQ(totals.quarantined_bytes, 2 * TestNode::kPartBytes);
}

}  // namespace
}  // namespace kavern::service
