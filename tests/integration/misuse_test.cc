// Requests that are wrong: each gets a clear status, and the daemon serves on.
#include <grpcpp/grpcpp.h>

#include <cstring>
#include <fstream>

#include "client/grpc_control_plane.h"
#include "gmock/gmock.h"
#include "kavern/v1/kavern.grpc.pb.h"
#include "tests/integration/node_test.h"
#include "tests/unit/service/attach_test_client.h"

namespace kavern {
namespace {

using client::CallContext;
using testing::HasSubstr;

CallContext ContextOf(const std::string& token) {
  return {token, Clock::System().Now() + std::chrono::seconds(20)};
}

// The most memory that a process has ever had resident. 0: it is gone.
std::uint64_t PeakMemoryBytes(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  std::string word;
  while (file >> word) {
    std::uint64_t kib = 0;
    if (word == "VmHWM:" && file >> kib) return kib << 10;
  }
  return 0;
}

// AddressSanitizer keeps 256 MiB of freed memory, and red zones.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
constexpr std::uint64_t kSanitizerBytes = std::uint64_t{512} << 20;
#else
constexpr std::uint64_t kSanitizerBytes = 0;
#endif
#else
constexpr std::uint64_t kSanitizerBytes = 0;
#endif

class MisuseTest : public NodeTest {
 protected:
  void Start(std::vector<std::string> settings = {}) {
    StartDaemon(std::move(settings));
    client_ = Connect();
    ns_ = *client_->OpenNamespace(TestSpec());
    keys_ = TestKeys(ns_->fingerprint(), 1, 4);
  }
  void ExpectServesOn() {
    const auto keys = TestKeys(ns_->fingerprint(), 99, 4);
    ASSERT_TRUE(StorePattern(*ns_, keys).ok());
    const Fetched fetched = FetchPattern(*ns_, keys);
    EXPECT_EQ(fetched.ok, keys.size());
    EXPECT_EQ(fetched.wrong_bytes, 0U);
  }

  std::unique_ptr<Client> client_;
  std::shared_ptr<Namespace> ns_;
  std::vector<BlockKey> keys_;
};

// The second block's bytes are not those of its checksum, as if the copy had gone wrong.
TEST_F(MisuseTest, ACommitWithAWrongChecksumIsDataLossOnceAndThenAMiss) {
  Start();
  auto lease = ns_->BeginStore({.keys = keys_});
  ASSERT_TRUE(lease.ok());
  std::vector<std::byte> payload(kBlockBytes);
  const ConstBuffer piece(payload);
  for (std::size_t i = 0; i < keys_.size(); ++i) {
    ASSERT_TRUE(lease->Fill(i, {&piece, 1}).ok());
  }
  ASSERT_TRUE(lease->SetChecksum(1, 0x12345678).ok());
  ASSERT_TRUE(lease->Commit().ok());

  EXPECT_THAT(FetchPattern(*ns_, keys_).codes,
              testing::ElementsAre(absl::StatusCode::kOk, absl::StatusCode::kDataLoss,
                                   absl::StatusCode::kOk, absl::StatusCode::kOk));
  EXPECT_EQ(ns_->Match(keys_), 1U);
  EXPECT_EQ(FetchPattern(*ns_, keys_).codes[1], absl::StatusCode::kNotFound);
  EXPECT_EQ(Status().counters().damaged_blocks(), 1U);
  ExpectServesOn();
}

TEST_F(MisuseTest, KeysThatDoNotChainAreRefusedByName) {
  Start();
  ASSERT_TRUE(StorePattern(*ns_, keys_).ok());
  const auto other = TestKeys(ns_->fingerprint(), 2, 4);
  const auto unknown_parent = StorePattern(*ns_, std::span(other).subspan(1), other[0]);
  EXPECT_TRUE(absl::IsInvalidArgument(unknown_parent.status()));
  EXPECT_THAT(std::string(unknown_parent.status().message()), HasSubstr("parent"));
  // keys_[2] is known as the child of keys_[1].
  const std::vector<BlockKey> mixed = {other[0], keys_[2]};
  const auto foreign = StorePattern(*ns_, mixed);
  EXPECT_TRUE(absl::IsInvalidArgument(foreign.status())) << foreign.status();
  EXPECT_THAT(std::string(foreign.status().message()), HasSubstr("keys[1]"));
  EXPECT_TRUE(absl::IsInvalidArgument(
      StorePattern(*ns_, std::vector<BlockKey>{other[0], other[0]}).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(StorePattern(*ns_, std::vector<BlockKey>{BlockKey{}}).status()));
  EXPECT_EQ(ns_->Match(other), 0U);
  ExpectServesOn();
}

TEST_F(MisuseTest, ALeaseIsUselessAfterItsEnd) {
  Start();
  ASSERT_TRUE(StorePattern(*ns_, keys_).ok());
  auto fetch = ns_->Fetch({.keys = keys_});
  ASSERT_TRUE(fetch.ok());
  EXPECT_EQ(fetch->bytes(0).size(), kBlockBytes);
  EXPECT_TRUE(fetch->Release().ok());
  EXPECT_TRUE(fetch->bytes(0).empty());
  std::vector<std::byte> payload(kBlockBytes);
  const MutableBuffer piece(payload);
  EXPECT_TRUE(absl::IsFailedPrecondition(fetch->CopyTo(0, {&piece, 1})));
  EXPECT_TRUE(absl::IsFailedPrecondition(fetch->Release()));

  auto store = ns_->BeginStore({.keys = TestKeys(ns_->fingerprint(), 3, 1)});
  ASSERT_TRUE(store.ok());
  store->Abort();
  EXPECT_TRUE(store->bytes(0).empty());
  EXPECT_TRUE(absl::IsFailedPrecondition(store->Commit()));
  EXPECT_TRUE(Eventually([&] { return NothingIsLeased(); }));
}

// Calls as a hostile client makes them: with no token, a forged one, somebody's lease.
TEST_F(MisuseTest, WithoutItsOwnTokenACallerGetsNothing) {
  Start();
  ASSERT_TRUE(StorePattern(*ns_, keys_).ok());
  const auto lease = ns_->Fetch({.keys = keys_});
  ASSERT_TRUE(lease.ok());
  const auto control = *client::MakeGrpcControlPlane("unix:" + socket_path());
  EXPECT_TRUE(absl::IsUnauthenticated(control->Ping(ContextOf(""))));
  EXPECT_TRUE(absl::IsUnauthenticated(control->Ping(ContextOf(std::string(16, 'x')))));
  EXPECT_TRUE(absl::IsUnauthenticated(control->Ping(ContextOf("short"))));
  v1::GetStatusResponse status;
  EXPECT_TRUE(absl::IsUnauthenticated(control->GetStatus(ContextOf(""), {}, &status)));

  // A session of its own, but leases of another: ids are small numbers, and guessed at once.
  service::AttachTestClient stranger;
  const auto welcome = stranger.Attach(socket_path() + ".attach");
  ASSERT_TRUE(welcome.has_value());
  const std::string token(reinterpret_cast<const char*>(welcome->session_token), 16);
  v1::ReleaseRequest release;
  for (std::uint64_t id = 0; id < 100; ++id) release.add_lease_ids(id);
  v1::ReleaseResponse released;
  ASSERT_TRUE(control->Release(ContextOf(token), release, &released).ok());
  EXPECT_EQ(released.released(), 0U);
  v1::CommitStoreRequest commit;
  commit.set_lease_id(1);
  commit.add_checksums(0);
  v1::CommitStoreResponse committed;
  EXPECT_TRUE(
      absl::IsFailedPrecondition(control->CommitStore(ContextOf(token), commit, &committed)));
  // Once its attach connection is gone, so is its token.
  stranger.Close();
  EXPECT_TRUE(Eventually([&] { return absl::IsUnauthenticated(control->Ping(ContextOf(token))); }));
  ExpectServesOn();
}

// gRPC looks at a message's size only once it has come whole: what stops this one is the limit on
// all that is being received.
TEST_F(MisuseTest, AMessageOfOneGigabyteIsRefusedBeforeItIsInMemory) {
  Start();
  service::AttachTestClient attached;
  const auto welcome = attached.Attach(socket_path() + ".attach");
  ASSERT_TRUE(welcome.has_value());
  const std::string token(reinterpret_cast<const char*>(welcome->session_token), 16);
  const auto control = *client::MakeGrpcControlPlane("unix:" + socket_path());
  v1::MatchRequest request;
  request.mutable_keys()->resize(std::size_t{1} << 30);
  v1::MatchResponse response;
  const std::uint64_t peak_before = PeakMemoryBytes(daemon().pid());
  const absl::Status status = control->Match(ContextOf(token), request, &response);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  ASSERT_GT(peak_before, 0U);
  EXPECT_LT(PeakMemoryBytes(daemon().pid()), peak_before + (std::uint64_t{256} << 20));
  ExpectServesOn();
}

// A thousand calls of somebody without a session, each with a message that never ends: nobody is
// asked for a token before a message is whole, so only gRPC's own limit stands between them and all
// memory.
TEST_F(MisuseTest, MessagesThatAreHalfSentTakeABoundedShareOfMemory) {
  Start({"limits.receive_bytes_max=64MiB"});
  const std::uint64_t peak_before = PeakMemoryBytes(daemon().pid());
  ASSERT_GT(peak_before, 0U);
  ChildProcess caller({"/usr/bin/python3",
                       std::string(KAVERN_SOURCE_DIR) + "/tests/integration/half_sent_calls.py",
                       socket_path(), "1000", "4000000"});
  const std::string taken = caller.ReadLine();
  ASSERT_NE(taken, "");
  EXPECT_GT(std::stoull(taken), std::uint64_t{32} << 20);
  EXPECT_LT(PeakMemoryBytes(daemon().pid()),
            peak_before + (std::uint64_t{192} << 20) + kSanitizerBytes);
  caller.Kill();
  EXPECT_TRUE(
      Eventually([&] { return StorePattern(*ns_, TestKeys(ns_->fingerprint(), 5, 4)).ok(); }));
  ExpectServesOn();
}

TEST_F(MisuseTest, MoreKeysThanARequestMayHaveAreRefused) {
  Start({"limits.keys_per_request_max=16"});
  service::AttachTestClient attached;
  const auto welcome = attached.Attach(socket_path() + ".attach");
  ASSERT_TRUE(welcome.has_value());
  const std::string token(reinterpret_cast<const char*>(welcome->session_token), 16);
  const auto control = *client::MakeGrpcControlPlane("unix:" + socket_path());
  v1::MatchRequest request;
  request.mutable_keys()->resize(std::size_t{17} * 16, 'k');
  v1::MatchResponse response;
  EXPECT_FALSE(control->Match(ContextOf(token), request, &response).ok());
  // The library splits what is larger.
  const auto keys = TestKeys(ns_->fingerprint(), 5, 40);
  ASSERT_TRUE(StorePattern(*ns_, keys).ok());
  EXPECT_EQ(FetchPattern(*ns_, keys).ok, keys.size());
}

TEST_F(MisuseTest, WhatIsNotImplementedSaysWhichFeature) {
  Start();
  const auto stub = v1::Kavern::NewStub(
      grpc::CreateChannel("unix:" + socket_path(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::ForkConversationResponse response;
  const grpc::Status status =
      stub->ForkConversation(&context, v1::ForkConversationRequest(), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("forking a conversation"));
}

}  // namespace
}  // namespace kavern
