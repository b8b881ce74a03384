#include "service/request_handlers.h"

#include <unistd.h>
#include <algorithm>

#include <cstring>
#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/service/test_node.h"

namespace kavern::service {
namespace {

using ::testing::HasSubstr;

// One attached session of tenant "default" with one namespace open.
class RequestHandlersTest : public ::testing::Test {
 protected:
  explicit RequestHandlersTest(const TestNodeOptions& options = {}) : node_(options) {
    session_ = node_.SessionOf(*client_.Attach(node_.path()));
    fingerprint_ = node_.Open(*session_);
  }

  v1::BeginStoreRequest StoreRequest(int first, int count) const {
    v1::BeginStoreRequest request;
    request.set_fingerprint(fingerprint_);
    request.set_keys(TestNode::Keys(first, count));
    return request;
  }
  absl::Status Begin(const v1::BeginStoreRequest& request) {
    v1::BeginStoreResponse response;
    return node_.handlers().BeginStore(*session_, request, &response);
  }
  v1::FetchResponse Fetch(const std::shared_ptr<Session>& session, const std::string& fingerprint,
                          int first, int count) {
    v1::FetchRequest request;
    request.set_fingerprint(fingerprint);
    request.set_keys(TestNode::Keys(first, count));
    v1::FetchResponse response;
    const absl::Status status = node_.handlers().Fetch(session, request, &response);
    EXPECT_TRUE(status.ok()) << status;
    return response;
  }
  v1::ReleaseResponse Release(Session& session, std::uint64_t lease_id) {
    v1::ReleaseRequest request;
    request.add_lease_ids(lease_id);
    v1::ReleaseResponse response;
    const absl::Status status = node_.handlers().Release(session, request, &response);
    EXPECT_TRUE(status.ok()) << status;
    return response;
  }

  TestNode node_;
  AttachTestClient client_;
  std::shared_ptr<Session> session_;
  std::string fingerprint_;
};

TEST_F(RequestHandlersTest, StoreThenMatchFetchAndRelease) {
  node_.Store(*session_, fingerprint_, 0, 4);
  EXPECT_EQ(session_->GetFacts().leases, 0u) << "a lease that is all committed ends by itself";

  v1::MatchRequest match;
  match.set_fingerprint(fingerprint_);
  match.set_keys(TestNode::Keys(0, 6));
  v1::MatchResponse matched;
  ASSERT_TRUE(node_.handlers().Match(*session_, match, &matched).ok());
  EXPECT_EQ(matched.prefix_blocks(), 4u);
  EXPECT_EQ(matched.tiers_size(), 4);

  const v1::FetchResponse fetched = Fetch(session_, fingerprint_, 0, 6);
  ASSERT_EQ(fetched.ready_size(), 4);
  ASSERT_EQ(fetched.failed_size(), 2);
  EXPECT_EQ(fetched.failed(0).code(), 5);
  EXPECT_EQ(fetched.failed(0).index(), 4u);
  EXPECT_EQ(fetched.ready(2).checksum(), TestNode::Checksum(2, TestNode::Payload(2)));
  EXPECT_EQ(fetched.ready(2).extent().length(), TestNode::kPartBytes);
  EXPECT_TRUE(session_->HoldsRegion(fetched.ready(2).extent().region_id()));
  EXPECT_EQ(session_->GetFacts().lease_bytes, 4 * TestNode::kPartBytes);

  EXPECT_EQ(Release(*session_, fetched.lease_id()).released(), 1u);
  EXPECT_EQ(Release(*session_, fetched.lease_id()).unknown(), 1u);
  EXPECT_EQ(node_.leased_bytes(), 0u);
}

TEST_F(RequestHandlersTest, TheRegionIsAnnouncedBeforeTheReplyThatNamesIt) {
  const v1::BeginStoreResponse begun = node_.Begin(*session_, fingerprint_, 0, 2);
  const auto region = client_.ReceiveType(shm::AttachType::kRegion);
  ASSERT_TRUE(region);
  EXPECT_EQ(region->As<shm::RegionBody>().region_id, begun.extents(0).region_id());
  EXPECT_EQ(region->As<shm::RegionBody>().size_bytes, TestNode::kRegionBytes);
  // Written through the client's own descriptor, the bytes are the daemon's bytes.
  const std::string payload = TestNode::Payload(0);
  ASSERT_EQ(::pwrite(region->fd.get(), payload.data(), payload.size(),
                     static_cast<off_t>(begun.extents(0).offset())),
            static_cast<ssize_t>(payload.size()));
  const absl::Status seen =
      session_->WithWriteLease(begun.lease_id(), [&](tiers::WriteLease& lease) {
        EXPECT_EQ(0, std::memcmp(lease.extent(0).bytes().data(), payload.data(), payload.size()));
        return absl::OkStatus();
      });
  EXPECT_TRUE(seen.ok());
}

TEST_F(RequestHandlersTest, FieldsOutOfShapeAreNamed) {
  const auto message = [&](const std::function<void(v1::BeginStoreRequest&)>& damage) {
    v1::BeginStoreRequest request = StoreRequest(0, 2);
    damage(request);
    const absl::Status status = Begin(request);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(message([](auto& r) { r.set_fingerprint("short"); }),
              HasSubstr("fingerprint: got 5"));
  EXPECT_THAT(message([](auto& r) { r.clear_keys(); }), HasSubstr("keys: got 0"));
  EXPECT_THAT(message([](auto& r) { r.set_keys(std::string(17, 'k')); }),
              HasSubstr("multiple of 16"));
  EXPECT_THAT(message([](auto& r) { r.set_keys(std::string(std::size_t{16} * 4097, 'k')); }),
              HasSubstr("keys_per_request_max = 4096"));
  EXPECT_THAT(message([](auto& r) { r.set_parent("x"); }), HasSubstr("parent: got 1"));
  EXPECT_THAT(message([](auto& r) { r.set_shard(1); }), HasSubstr("shard"));
  EXPECT_THAT(message([](auto& r) { r.set_group(1); }), HasSubstr("group"));
  EXPECT_THAT(message([](auto& r) { r.set_durability(static_cast<v1::Durability>(77)); }),
              HasSubstr("durability: got 77"));
  message([](auto& r) { r.set_parent(std::string(16, 'p')); });  // not in the index
  message([](auto& r) { r.set_keys(TestNode::Key(1) + TestNode::Key(1)); });
  EXPECT_EQ(node_.leased_bytes(), 0u);
}

TEST_F(RequestHandlersTest, NamespacesOutOfShapeAreNamed) {
  const auto message = [&](const std::function<void(v1::NamespaceSpec&)>& damage) {
    v1::OpenNamespaceRequest request;
    *request.mutable_spec() = TestNode::Spec();
    damage(*request.mutable_spec());
    v1::OpenNamespaceResponse response;
    const absl::Status status = node_.handlers().OpenNamespace(*session_, request, &response);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(message([](auto& s) { s.clear_model(); }), HasSubstr("model"));
  EXPECT_THAT(message([](auto& s) { s.mutable_layout()->clear_dtype(); }),
              HasSubstr("layout.dtype"));
  EXPECT_THAT(message([](auto& s) { s.mutable_layout()->set_dtype(static_cast<v1::KvDtype>(-5)); }),
              HasSubstr("layout.dtype: got -5"));
  EXPECT_THAT(message([](auto& s) { s.mutable_layout()->clear_groups(); }), HasSubstr("groups"));
  EXPECT_THAT(message([](auto& s) {
                for (int i = 0; i < 100'000; ++i) s.mutable_layout()->add_groups();
              }),
              HasSubstr("layout.groups: got 100001"));
  EXPECT_THAT(message([](auto& s) { s.mutable_layout()->mutable_groups(0)->clear_kind(); }),
              HasSubstr("layout.groups[0].kind"));
  EXPECT_THAT(
      message([](auto& s) { s.mutable_layout()->mutable_groups(0)->set_head_dim(32 * 1024); }),
      HasSubstr("region"));
}

TEST_F(RequestHandlersTest, ANamespaceSurvivesTheRoundTripThroughItsMessage) {
  v1::NamespaceSpec proto = TestNode::Spec();
  proto.set_weights_revision("r");
  proto.set_adapter("a");
  proto.set_quantization("q");
  proto.set_rope("o");
  proto.set_engine_layout("e");
  proto.set_epoch(9);
  v1::LayerGroup* state = proto.mutable_layout()->add_groups();
  state->set_kind(v1::LAYER_GROUP_KIND_RECURRENT_STATE);
  state->set_layer_count(2);
  state->set_state_bytes(100);
  const auto spec = FromProto(proto);
  ASSERT_TRUE(spec.ok()) << spec.status();
  v1::NamespaceSpec back;
  ToProto(*spec, &back);
  EXPECT_EQ(back.SerializeAsString(), proto.SerializeAsString());
}

TEST_F(RequestHandlersTest, AConversationIsToldAndDescribedInItsNamespaceOnly) {
  node_.Store(*session_, fingerprint_, 0, 3);
  v1::UpdateConversationRequest request;
  request.set_fingerprint(fingerprint_);
  request.set_conversation("chat");
  request.set_leaf(TestNode::Key(2));
  request.set_token_count(std::uint64_t{3} * TestNode::Spec().layout().tokens_per_block());
  v1::UpdateConversationResponse terms;
  absl::Status status = node_.handlers().UpdateConversation(*session_, request, &terms);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(terms.priority(), 50U) << "as none was said";
  EXPECT_EQ(terms.ttl_ms(), 3'600'000U);
  // 0 is a priority, and not none; a TTL without end is lowered.
  request.set_priority(0);
  request.set_ttl_ms(UINT64_MAX);
  status = node_.handlers().UpdateConversation(*session_, request, &terms);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(terms.priority(), 0U);
  EXPECT_EQ(terms.ttl_ms(), 86'400'000U);
  EXPECT_EQ(terms.updates(), 2U);

  v1::DescribeConversationRequest describe;
  describe.set_fingerprint(fingerprint_);
  describe.set_conversation("chat");
  v1::DescribeConversationResponse facts;
  status = node_.handlers().DescribeConversation(*session_, describe, &facts);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(facts.leaf(), TestNode::Key(2));
  EXPECT_EQ(facts.token_count(), request.token_count());
  EXPECT_EQ(facts.leaf_tier(), v1::TIER_RAM);
  EXPECT_LE(facts.ttl_ms(), 86'400'000U);
  describe.set_fingerprint(node_.Open(*session_, "another"));
  EXPECT_TRUE(absl::IsNotFound(node_.handlers().DescribeConversation(*session_, describe, &facts)));
}

TEST_F(RequestHandlersTest, ABadConversationNamesTheField) {
  node_.Store(*session_, fingerprint_, 0, 1);
  v1::UpdateConversationRequest good;
  good.set_fingerprint(fingerprint_);
  good.set_conversation("chat");
  good.set_leaf(TestNode::Key(0));
  good.set_token_count(TestNode::Spec().layout().tokens_per_block());
  const auto wrong = [&](const std::function<void(v1::UpdateConversationRequest&)>& change) {
    v1::UpdateConversationRequest request = good;
    change(request);
    v1::UpdateConversationResponse terms;
    const absl::Status status = node_.handlers().UpdateConversation(*session_, request, &terms);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(wrong([](auto& request) { request.set_leaf("short"); }), HasSubstr("leaf"));
  EXPECT_THAT(wrong([](auto& request) { request.set_conversation(""); }),
              HasSubstr("conversation"));
  EXPECT_THAT(wrong([](auto& request) { request.set_conversation(std::string(257, 'c')); }),
              HasSubstr("conversation"));
  EXPECT_THAT(wrong([](auto& request) { request.set_priority(101); }), HasSubstr("priority"));
  EXPECT_THAT(wrong([](auto& request) { request.set_token_count(0); }), HasSubstr("token_count"));
}

TEST_F(RequestHandlersTest, DurabilityWithoutDisksIsRefusedByName) {
  for (const v1::Durability durability : {v1::DURABILITY_BATCH, v1::DURABILITY_STRICT}) {
    v1::BeginStoreRequest request = StoreRequest(0, 1);
    request.set_durability(durability);
    EXPECT_TRUE(absl::IsInvalidArgument(Begin(request)));
    EXPECT_THAT(std::string(Begin(request).message()), HasSubstr("durability: the daemon has no"));
  }
  v1::BeginStoreRequest request = StoreRequest(0, 1);
  request.set_durability(static_cast<v1::Durability>(17));
  EXPECT_THAT(std::string(Begin(request).message()), HasSubstr("durability: got 17"));
}

// A second session of the same tenant tries every call with the first one's lease.
TEST_F(RequestHandlersTest, AnotherSessionsLeaseIsUnknown) {
  node_.Store(*session_, fingerprint_, 0, 1);
  const std::uint64_t write_lease = node_.Begin(*session_, fingerprint_, 10, 1).lease_id();
  const std::uint64_t read_lease = Fetch(session_, fingerprint_, 0, 1).lease_id();
  AttachTestClient client;
  const auto thief = node_.SessionOf(*client.Attach(node_.path()));
  node_.Open(*thief);
  node_.Begin(*thief, fingerprint_, 20, 1);

  v1::CommitStoreRequest commit;
  commit.set_lease_id(write_lease);
  commit.add_checksums(1);
  v1::CommitStoreResponse committed;
  const absl::Status status = node_.handlers().CommitStore(*thief, commit, &committed);
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("lease_id: "));
  v1::AbortStoreRequest abort;
  abort.set_lease_id(write_lease);
  v1::AbortStoreResponse aborted;
  EXPECT_TRUE(absl::IsFailedPrecondition(node_.handlers().AbortStore(*thief, abort, &aborted)));
  EXPECT_EQ(Release(*thief, read_lease).unknown(), 1u);
  EXPECT_EQ(session_->GetFacts().leases, 2u);
  // A read lease cannot be committed, nor a write lease released.
  EXPECT_EQ(Release(*session_, write_lease).unknown(), 1u);
  commit.set_lease_id(read_lease);
  EXPECT_TRUE(
      absl::IsFailedPrecondition(node_.handlers().CommitStore(*session_, commit, &committed)));
}

TEST_F(RequestHandlersTest, ALeaseIsOfNoUseAfterItsEnd) {
  const std::uint64_t lease_id = node_.Begin(*session_, fingerprint_, 0, 2).lease_id();
  v1::CommitStoreRequest commit;
  commit.set_lease_id(lease_id);
  commit.add_checksums(1);
  v1::CommitStoreResponse committed;
  ASSERT_TRUE(node_.handlers().CommitStore(*session_, commit, &committed).ok());
  EXPECT_EQ(session_->GetFacts().lease_bytes, TestNode::kPartBytes) << "half of it is left";
  EXPECT_TRUE(absl::IsInvalidArgument(node_.handlers().CommitStore(*session_, commit, &committed)));
  commit.set_first(7);
  EXPECT_TRUE(absl::IsInvalidArgument(node_.handlers().CommitStore(*session_, commit, &committed)));
  commit.clear_checksums();
  EXPECT_TRUE(absl::IsInvalidArgument(node_.handlers().CommitStore(*session_, commit, &committed)));
  v1::AbortStoreRequest abort;
  abort.set_lease_id(lease_id);
  v1::AbortStoreResponse aborted;
  ASSERT_TRUE(node_.handlers().AbortStore(*session_, abort, &aborted).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(node_.handlers().AbortStore(*session_, abort, &aborted)));
  EXPECT_EQ(node_.leased_bytes(), 0u);
}

TEST_F(RequestHandlersTest, DrainingRefusesNewWorkAndLetsTheOldEnd) {
  node_.Store(*session_, fingerprint_, 0, 1);
  const std::uint64_t read_lease = Fetch(session_, fingerprint_, 0, 1).lease_id();
  const std::uint64_t write_lease = node_.Begin(*session_, fingerprint_, 10, 1).lease_id();
  node_.handlers().Drain();
  EXPECT_TRUE(absl::IsUnavailable(Begin(StoreRequest(20, 1))));
  v1::FetchRequest fetch;
  fetch.set_fingerprint(fingerprint_);
  fetch.set_keys(TestNode::Key(0));
  v1::FetchResponse fetched;
  EXPECT_TRUE(absl::IsUnavailable(node_.handlers().Fetch(session_, fetch, &fetched)));
  v1::CommitStoreRequest commit;
  commit.set_lease_id(write_lease);
  commit.add_checksums(1);
  v1::CommitStoreResponse committed;
  EXPECT_TRUE(node_.handlers().CommitStore(*session_, commit, &committed).ok());
  EXPECT_EQ(Release(*session_, read_lease).released(), 1u);
}

TEST_F(RequestHandlersTest, ASessionWithoutSharedMemoryIsSentToTheByteStreams) {
  const auto tcp = node_.TcpSession();
  const std::string fingerprint = node_.Open(*tcp);
  v1::BeginStoreResponse begun;
  v1::BeginStoreRequest store = StoreRequest(0, 1);
  absl::Status status = node_.handlers().BeginStore(*tcp, store, &begun);
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("PutBlocks/GetBlocks"));
  v1::FetchRequest fetch;
  fetch.set_fingerprint(fingerprint);
  fetch.set_keys(TestNode::Key(0));
  v1::FetchResponse fetched;
  EXPECT_TRUE(absl::IsFailedPrecondition(node_.handlers().Fetch(tcp, fetch, &fetched)));
}

// Two bytes of a stored block are flipped in shared memory. The suspect is dropped, an honest block
// stays.
TEST_F(RequestHandlersTest, ADamagedSuspectIsDroppedAndASoundOneStays) {
  node_.Store(*session_, fingerprint_, 0, 2);
  const auto ns = session_->FindNamespace(*ParseFingerprint(fingerprint_));
  {
    const auto keys = ParseKeys(TestNode::Keys(0, 2), 2);
    const auto held = node_.store().Fetch(**ns, *keys, 0, 0);
    held->lease.parts()[1].extent.bytes()[100] ^= std::byte{0x11};
  }
  v1::ReleaseRequest request;
  for (int number = 0; number < 3; ++number) {  // the third is not even stored
    v1::ReleaseRequest::Suspect* suspect = request.add_suspects();
    suspect->set_fingerprint(fingerprint_);
    suspect->set_key(TestNode::Key(number));
  }
  v1::ReleaseResponse response;
  const absl::Status status = node_.handlers().Release(*session_, request, &response);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(response.damaged_dropped(), 1u);
  const v1::FetchResponse fetched = Fetch(session_, fingerprint_, 0, 2);
  ASSERT_EQ(fetched.ready_size(), 1);
  EXPECT_EQ(fetched.ready(0).index(), 0u);
  Release(*session_, fetched.lease_id());
}

// Room to look at two parts in one call. Four blocks are stored and damaged; the request names the
// first of them a thousand times, then all four.
TEST_F(RequestHandlersTest, SuspectsTakeOneLookEachAndABoundedTimeAltogether) {
  TestNodeOptions options;
  options.request_limits.inflight_bytes_max = 2 * TestNode::kPartBytes;
  TestNode node(options);
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  const std::string fingerprint = node.Open(*session);
  node.Store(*session, fingerprint, 0, 4);
  const auto ns = session->FindNamespace(*ParseFingerprint(fingerprint));
  {
    const auto held = node.store().Fetch(**ns, *ParseKeys(TestNode::Keys(0, 4), 4), 0, 0);
    for (const auto& part : held->lease.parts()) part.extent.bytes()[7] ^= std::byte{0x80};
  }
  v1::ReleaseRequest request;
  for (int i = 0; i < 1004; ++i) {
    v1::ReleaseRequest::Suspect* suspect = request.add_suspects();
    suspect->set_fingerprint(fingerprint);
    suspect->set_key(TestNode::Key(std::max(0, i - 1000)));
  }
  v1::ReleaseResponse response;
  const absl::Status status = node.handlers().Release(*session, request, &response);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(response.damaged_dropped(), 2u);
}

// A wrong suspect is found before anything is done: the lease stays.
TEST_F(RequestHandlersTest, ASuspectOfNoPartFailsTheWholeRelease) {
  node_.Store(*session_, fingerprint_, 0, 1);
  const v1::FetchResponse fetched = Fetch(session_, fingerprint_, 0, 1);
  v1::ReleaseRequest request;
  request.add_lease_ids(fetched.lease_id());
  v1::ReleaseRequest::Suspect* suspect = request.add_suspects();
  suspect->set_fingerprint(fingerprint_);
  suspect->set_key(TestNode::Key(0));
  suspect->set_shard(1);
  v1::ReleaseResponse response;
  EXPECT_TRUE(absl::IsInvalidArgument(node_.handlers().Release(*session_, request, &response)));
  EXPECT_EQ(node_.leased_bytes(), TestNode::kPartBytes);
  Release(*session_, fetched.lease_id());
}

TEST_F(RequestHandlersTest, AQuotaThatIsUsedUpDeclinesAndDoesNotFail) {
  TestNodeOptions options;
  options.session_limits.lease_bytes_max = 2 * TestNode::kPartBytes;
  TestNode node(options);
  AttachTestClient client;
  const auto session = node.SessionOf(*client.Attach(node.path()));
  v1::BeginStoreRequest request;
  request.set_fingerprint(node.Open(*session));
  request.set_keys(TestNode::Keys(0, 4));
  v1::BeginStoreResponse response;
  const absl::Status status = node.handlers().BeginStore(*session, request, &response);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(response.outcomes(), std::string({1, 1, 3, 3}));
  EXPECT_EQ(response.extents_size(), 2);
  EXPECT_FALSE(response.decline_reason().empty());
}

TEST_F(RequestHandlersTest, AnOperatorSeesTheNode) {
  node_.Store(*session_, fingerprint_, 0, 3);
  v1::GetStatusResponse status;
  ASSERT_TRUE(node_.handlers().GetStatus(*session_, {}, &status).ok());
  EXPECT_EQ(status.version(), "test");
  EXPECT_TRUE(status.ready());
  EXPECT_EQ(status.ram().capacity_bytes(), 1u << 20);
  EXPECT_EQ(status.counters().store_blocks(), 3u);
  EXPECT_EQ(status.ram().used_bytes(), 3 * TestNode::kPartBytes);
  EXPECT_EQ(status.ram().retired_bytes(), 0u);
  EXPECT_EQ(status.sessions(), 1u);
  EXPECT_EQ(status.directory_bytes(), 4096u + 256 * 64);
  EXPECT_EQ(status.degraded_size(), 1);
  v1::QuiesceResponse quiesced;
  EXPECT_TRUE(node_.handlers().Quiesce(*session_, {}, &quiesced).ok());
}

// Tenants a and b, neither an operator's; TCP sessions stand for them, because the calls are the
// same.
class TwoTenantsTest : public ::testing::Test {
 protected:
  TestNode node_;
  const std::shared_ptr<Session> a_ = node_.TcpSession("a");
  const std::shared_ptr<Session> b_ = node_.TcpSession("b");
};

TEST_F(TwoTenantsTest, AForeignNamespaceAndOneThatDoesNotExistLookTheSame) {
  const std::string of_a = node_.Open(*a_);
  const std::string of_b = node_.Open(*b_);
  EXPECT_NE(of_a, of_b) << "the tenant is part of the fingerprint";
  const auto try_all = [&](const std::string& fingerprint) {
    std::vector<absl::Status> statuses;
    v1::MatchRequest match;
    match.set_fingerprint(fingerprint);
    match.set_keys(TestNode::Key(0));
    v1::MatchResponse matched;
    statuses.push_back(node_.handlers().Match(*b_, match, &matched));
    v1::GetBlocksRequest get;
    get.set_fingerprint(fingerprint);
    get.set_keys(TestNode::Key(0));
    statuses.push_back(node_.handlers().BeginGet(b_, get).status());
    v1::PutBlocksRequest::Header put;
    put.set_fingerprint(fingerprint);
    put.set_keys(TestNode::Key(0));
    put.add_checksums(1);
    statuses.push_back(node_.handlers().BeginPut(b_, put).status());
    v1::ReleaseRequest release;
    release.add_suspects()->set_fingerprint(fingerprint);
    v1::ReleaseResponse released;
    statuses.push_back(node_.handlers().Release(*b_, release, &released));
    v1::PurgeNamespaceRequest purge;
    purge.set_fingerprint(fingerprint);
    v1::PurgeNamespaceResponse purged;
    statuses.push_back(node_.handlers().PurgeNamespace(*b_, purge, &purged));
    for (const absl::Status& status : statuses) EXPECT_FALSE(status.ok());
    return statuses;
  };
  EXPECT_EQ(try_all(of_a), try_all(std::string(16, 'n')));
}

TEST_F(TwoTenantsTest, AdministrationShowsOnlyTheOwnTenant) {
  node_.Open(*a_, "one");
  node_.Open(*a_, "two");
  const std::string of_b = node_.Open(*b_, "three");
  v1::ListNamespacesResponse list;
  ASSERT_TRUE(node_.handlers().ListNamespaces(*b_, {}, &list).ok());
  ASSERT_EQ(list.namespaces_size(), 1);
  EXPECT_EQ(list.namespaces(0).fingerprint(), of_b);
  EXPECT_EQ(list.namespaces(0).tenant(), "b");
  v1::GetStatusResponse status;
  ASSERT_TRUE(node_.handlers().GetStatus(*b_, {}, &status).ok());
  EXPECT_EQ(status.namespaces(), 1u);
  EXPECT_EQ(status.ram().capacity_bytes(), 0u);
  EXPECT_EQ(status.ram().populated_bytes(), 0u);
  EXPECT_EQ(status.degraded_size(), 0);
  v1::QuiesceResponse quiesced;
  EXPECT_TRUE(absl::IsPermissionDenied(node_.handlers().Quiesce(*b_, {}, &quiesced)));
  v1::DemoteResponse demoted;
  EXPECT_TRUE(absl::IsPermissionDenied(node_.handlers().Demote(*b_, {}, &demoted)));
  v1::PurgeNamespaceRequest purge;
  purge.set_fingerprint(of_b);
  v1::PurgeNamespaceResponse purged;
  EXPECT_TRUE(node_.handlers().PurgeNamespace(*b_, purge, &purged).ok());
}

TEST_F(TwoTenantsTest, AnOperatorWithoutATenantHasNoNamespaces) {
  const auto none = node_.TcpSession("");
  v1::OpenNamespaceRequest request;
  *request.mutable_spec() = TestNode::Spec();
  v1::OpenNamespaceResponse response;
  EXPECT_TRUE(absl::IsPermissionDenied(node_.handlers().OpenNamespace(*none, request, &response)));
}

}  // namespace
}  // namespace kavern::service
