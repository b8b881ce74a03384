#include "tests/unit/service/test_node.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <utility>

#include "base/copy_and_checksum.h"
#include "gtest/gtest.h"

namespace kavern::service {
namespace {

std::string MakeDirectory() {
  std::string name = "/tmp/kavern-service-XXXXXX";
  if (::mkdtemp(name.data()) == nullptr) ::abort();
  ::chmod(name.c_str(), 0755);  // so that a child of another uid reaches the socket
  return name;
}

}  // namespace

TestNode::TestNode(const TestNodeOptions& options)
    : directory_(MakeDirectory()),
      path_(directory_ + "/kavern.sock" + shm::kAttachSuffix),
      tenants_(*TenantMap::Create(options.tenants, {}, ::geteuid())),
      sessions_(options.sessions_max) {
  AttachServerOptions attach;
  attach.socket_path = path_;
  attach.socket_mode = 0666;
  attach.session_limits = options.session_limits;
  attach.handshakes_max = options.handshakes_max;
  attach.hello_timeout = options.hello_timeout;
  attach.clock = options.clock;
  attach_ = *AttachServer::Create(attach, tenants_, sessions_);

  tiers::TieredStoreOptions store;
  store.ram.capacity_bytes = options.capacity_bytes;
  store.ram.region_bytes = kRegionBytes;
  store.ram.huge_pages = tiers::HugePages::kOff;
  store_ = *tiers::TieredStore::Create(store, *attach_);
  store_->Quiesce();
  handlers_ = std::make_unique<RequestHandlers>(
      *store_, sessions_, options.request_limits,
      RequestHandlers::Node{.version = "test",
                            .incarnation = std::string(16, 'i'),
                            .started = Clock::System().Now(),
                            .ready = [] { return true; },
                            .degraded =
                                [] {
                                  return std::vector<Degradation>{{"a feature", "fails"}};
                                }});
  attach_->Start();
}

TestNode::~TestNode() {
  attach_->Stop();
  EXPECT_EQ(leased_bytes(), 0u) << "a lease outlived every session";
  const absl::Status audit = store_->Audit();
  EXPECT_TRUE(audit.ok()) << audit;
  store_.reset();
  attach_.reset();
  std::filesystem::remove_all(directory_);
}

v1::NamespaceSpec TestNode::Spec(const std::string& model) {
  v1::NamespaceSpec spec;
  spec.set_model(model);
  v1::KvLayout* layout = spec.mutable_layout();
  layout->set_dtype(v1::KV_DTYPE_FLOAT32);
  layout->set_tokens_per_block(16);
  layout->set_shard_count(1);
  v1::LayerGroup* group = layout->add_groups();
  group->set_kind(v1::LAYER_GROUP_KIND_FULL_ATTENTION);
  group->set_layer_count(1);
  group->set_kv_heads(1);
  group->set_head_dim(32);  // 2 * 4 bytes * 32 * 16 tokens = kPartBytes
  return spec;
}

std::string TestNode::Keys(int first, int count) {
  std::string packed;
  for (int number = first; number < first + count; ++number) {
    char key[BlockKey::kSize] = {};
    std::snprintf(key, sizeof(key), "key %d", number);
    packed.append(key, sizeof(key));
  }
  return packed;
}

std::shared_ptr<Session> TestNode::SessionOf(const shm::WelcomeBody& welcome) {
  auto session = sessions_.Authenticate(
      {reinterpret_cast<const char*>(welcome.session_token), sizeof(welcome.session_token)});
  EXPECT_TRUE(session.ok()) << session.status();
  return session.ok() ? *session : nullptr;
}

std::shared_ptr<Session> TestNode::TcpSession(const std::string& tenant) {
  return std::make_shared<Session>(*RandomToken(), tenant, false, PeerCredentials{}, "tcp",
                                   UniqueFd(), SessionLimits{}, Clock::System().Now());
}

std::string TestNode::Open(Session& session, const std::string& model) {
  v1::OpenNamespaceRequest request;
  *request.mutable_spec() = Spec(model);
  v1::OpenNamespaceResponse response;
  const absl::Status status = handlers_->OpenNamespace(session, request, &response);
  EXPECT_TRUE(status.ok()) << status;
  return response.fingerprint();
}

v1::BeginStoreResponse TestNode::Begin(Session& session, const std::string& fingerprint, int first,
                                       int count) {
  v1::BeginStoreRequest request;
  request.set_fingerprint(fingerprint);
  request.set_keys(Keys(first, count));
  v1::BeginStoreResponse response;
  const absl::Status status = handlers_->BeginStore(session, request, &response);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(response.extents_size(), count) << response.decline_reason();
  return response;
}

void TestNode::Store(Session& session, const std::string& fingerprint, int first, int count) {
  const v1::BeginStoreResponse begun = Begin(session, fingerprint, first, count);
  v1::CommitStoreRequest commit;
  commit.set_lease_id(begun.lease_id());
  for (int i = 0; i < count; ++i) {
    const std::string payload = Payload(first + i);
    const absl::Status written =
        session.WithWriteLease(begun.lease_id(), [&](tiers::WriteLease& lease) {
          std::memcpy(lease.extent(static_cast<std::size_t>(i)).bytes().data(), payload.data(),
                      payload.size());
          return absl::OkStatus();
        });
    EXPECT_TRUE(written.ok()) << written;
    commit.add_checksums(Checksum(first + i, payload));
  }
  v1::CommitStoreResponse committed;
  const absl::Status status = handlers_->CommitStore(session, commit, &committed);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(committed.committed(), static_cast<std::uint32_t>(count));
}

std::string TestNode::Payload(int number) {
  std::string payload(kPartBytes, '\0');
  for (std::size_t i = 0; i < payload.size(); ++i) {
    payload[i] = static_cast<char>(static_cast<std::size_t>(number) * 131 + i * 7);
  }
  return payload;
}

std::uint32_t TestNode::Checksum(int number, const std::string& payload) {
  BlockKey key;
  std::memcpy(key.bytes.data(), Key(number).data(), BlockKey::kSize);
  return Crc32c(std::as_bytes(std::span(payload)), PartChecksumSeed(key, 0));
}

}  // namespace kavern::service
