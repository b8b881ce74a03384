// Two tenants on one node: neither learns anything about the other.
#include <unistd.h>

#include "client/grpc_control_plane.h"
#include "client/wire_convert.h"
#include "tests/integration/node_test.h"
#include "tests/unit/service/attach_test_client.h"

namespace kavern {
namespace {

class TenancyTest : public NodeTest {
 protected:
  void Start() {
    const std::string uid = std::to_string(getuid());
    StartDaemon({"tenants=[{name: a, uids: [" + uid + "]}, {name: b, uids: [" + uid + "]}]"});
    a_client_ = ConnectAs("a");
    b_client_ = ConnectAs("b");
    a_ = *a_client_->OpenNamespace(TestSpec());
    b_ = *b_client_->OpenNamespace(TestSpec());
    keys_ = TestKeys(a_->fingerprint(), 1, 8);
    ASSERT_TRUE(StorePattern(*a_, keys_).ok());
  }
  std::unique_ptr<Client> ConnectAs(const std::string& tenant) {
    ClientOptions options;
    options.tenant = tenant;
    return Connect(options);
  }

  std::unique_ptr<Client> a_client_;
  std::unique_ptr<Client> b_client_;
  std::shared_ptr<Namespace> a_;
  std::shared_ptr<Namespace> b_;
  std::vector<BlockKey> keys_;
};

TEST_F(TenancyTest, TheSameModelIsAnotherNamespaceForEachTenant) {
  Start();
  EXPECT_NE(a_->fingerprint(), b_->fingerprint());
  EXPECT_EQ(a_->Match(keys_), keys_.size());
  EXPECT_EQ(b_->Match(keys_), 0U);
  const Fetched fetched = FetchPattern(*b_, keys_);
  EXPECT_EQ(fetched.ok, 0U);
  EXPECT_EQ(fetched.codes, std::vector<absl::StatusCode>(8, absl::StatusCode::kNotFound));
}

// B knows A's fingerprint and keys, and asks by hand.
TEST_F(TenancyTest, KnowingAnothersFingerprintAndKeysGivesNothing) {
  Start();
  service::AttachTestClient b;
  const auto welcome = b.Attach(socket_path() + ".attach", "b");
  ASSERT_TRUE(welcome.has_value());
  const client::CallContext context = {
      std::string(reinterpret_cast<const char*>(welcome->session_token), 16),
      Clock::System().Now() + std::chrono::seconds(20)};
  const auto control = *client::MakeGrpcControlPlane("unix:" + socket_path());
  const std::string fingerprint = client::PackFingerprint(a_->fingerprint());
  v1::FetchRequest fetch;
  fetch.set_fingerprint(fingerprint);
  fetch.set_keys(client::PackKeys(keys_));
  bool answered = false;
  EXPECT_TRUE(absl::IsFailedPrecondition(
      control->Fetch(context, fetch, [&](const v1::FetchResponse&) { answered = true; })));
  EXPECT_FALSE(answered);
  v1::MatchRequest match;
  match.set_fingerprint(fingerprint);
  match.set_keys(client::PackKeys(keys_));
  v1::MatchResponse matched;
  EXPECT_TRUE(absl::IsFailedPrecondition(control->Match(context, match, &matched)));
  v1::GetBlocksRequest get;
  get.set_fingerprint(fingerprint);
  get.set_keys(client::PackKeys(keys_));
  EXPECT_TRUE(absl::IsFailedPrecondition(
      control->GetBlocks(context, get, [&](const v1::GetBlocksResponse&) { answered = true; })));
  EXPECT_FALSE(answered);
  v1::BeginStoreRequest store;
  store.set_fingerprint(fingerprint);
  store.set_keys(client::PackKeys(keys_));
  v1::BeginStoreResponse begun;
  EXPECT_TRUE(absl::IsFailedPrecondition(control->BeginStore(context, store, &begun)));
}

TEST_F(TenancyTest, ATenantOutsideTheConfigurationIsRefused) {
  Start();
  service::AttachTestClient client;
  ASSERT_TRUE(client.Connect(socket_path() + ".attach"));
  ASSERT_TRUE(client.SendHello("c"));
  const auto answer = client.Receive();
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->type, shm::AttachType::kReject);
  EXPECT_EQ(answer->As<shm::RejectBody>().code,
            static_cast<int>(absl::StatusCode::kPermissionDenied));
}

// Memory that moves from one tenant to the other comes as fresh zeros.
TEST_F(TenancyTest, MemoryThatChangesTenantIsZero) {
  Start();
  for (std::uint32_t chain = 2; chain < 12; ++chain) {
    ASSERT_TRUE(StorePattern(*a_, TestKeys(a_->fingerprint(), chain, 100)).ok());
  }
  ASSERT_TRUE(Eventually([&] {
    const auto keys = TestKeys(b_->fingerprint(), 3, 16);
    auto lease = b_->BeginStore({.keys = keys});
    if (!lease.ok() || lease->outcomes()[0] != StoreOutcome::kStored) return false;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      for (const std::byte byte : lease->bytes(i)) EXPECT_EQ(byte, std::byte{0});
    }
    return true;
  }));
}

}  // namespace
}  // namespace kavern
