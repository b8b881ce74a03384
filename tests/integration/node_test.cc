#include "tests/integration/node_test.h"

#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "client/cli/replay/payload_pattern.h"

namespace kavern {

bool Eventually(const std::function<bool()>& condition) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > give_up) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

NamespaceSpec TestSpec(const std::string& model) {
  NamespaceSpec spec;
  spec.model = model;
  spec.layout.dtype = KvDtype::kInt8;
  spec.layout.tokens_per_block = 64;
  LayerGroup group;
  group.layer_count = 4;
  group.kv_heads = 2;
  group.head_dim = kBlockBytes / 64 / 4 / 2 / 2;
  spec.layout.groups.push_back(group);
  return spec;
}

std::vector<BlockKey> TestKeys(const NamespaceFingerprint& fingerprint, std::uint32_t chain,
                               std::size_t count) {
  std::vector<BlockKey> keys;
  BlockKey parent = fingerprint.RootKey();
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t tokens[] = {chain, i};
    parent = ComputeBlockKey(parent, tokens);
    keys.push_back(parent);
  }
  return keys;
}

absl::StatusOr<StoreResult> StorePattern(Namespace& ns, std::span<const BlockKey> keys,
                                         const BlockKey& parent) {
  const std::uint64_t part_bytes = ns.spec().layout.PartBytes(0);
  std::vector<std::byte> memory(keys.size() * part_bytes);
  std::vector<ConstBuffer> buffers;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const MutableBuffer part = std::span(memory).subspan(i * part_bytes, part_bytes);
    cli::FillPattern(keys[i], 0, part);
    buffers.push_back(part);
  }
  return ns.Store({.parent = parent, .keys = keys}, buffers);
}

Fetched FetchPattern(Namespace& ns, std::span<const BlockKey> keys) {
  const std::uint64_t part_bytes = ns.spec().layout.PartBytes(0);
  std::vector<std::byte> memory(keys.size() * part_bytes);
  std::vector<MutableBuffer> buffers;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    buffers.push_back(std::span(memory).subspan(i * part_bytes, part_bytes));
  }
  Fetched fetched;
  const auto result = ns.FetchInto({.keys = keys}, buffers);
  fetched.status = result.status();
  if (!result.ok()) return fetched;
  fetched.codes = result->codes;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (result->codes[i] != absl::StatusCode::kOk) continue;
    ++fetched.ok;
    fetched.wrong_bytes += cli::CountWrongBytes(keys[i], 0, buffers[i]);
  }
  return fetched;
}

NodeTest::TemporaryDirectory::TemporaryDirectory() {
  std::string name = std::filesystem::temp_directory_path() / "kavern-test-XXXXXX";
  if (mkdtemp(name.data()) == nullptr) std::abort();
  path = name;
}

NodeTest::TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

void NodeTest::StartDaemon(std::vector<std::string> settings) {
  settings_ = std::move(settings);
  std::vector<std::string> arguments = {KAVERND_BINARY};
  std::vector<std::string> all = {"listen.socket=" + socket_path(),
                                  "http.address=",
                                  "ram.capacity=64MiB",
                                  "ram.region=2MiB",
                                  "ram.reserve=0",
                                  "log.level=warning"};
  all.insert(all.end(), settings_.begin(), settings_.end());
  for (const std::string& setting : all) {
    arguments.push_back("--set");
    arguments.push_back(setting);
  }
  daemon_.reset();
  daemon_.emplace(arguments);
  ASSERT_TRUE(Eventually([&] {
    auto admin = client::AdminClient::Connect(address(), "", std::chrono::seconds(5));
    if (!admin.ok()) return false;
    const auto status = (*admin)->GetStatus();
    return status.ok() && status->ram().populated_bytes() == status->ram().capacity_bytes();
  }));
}

void NodeTest::KillDaemon() {
  daemon_->Kill();
}

int NodeTest::StopDaemon() {
  daemon_->Signal(SIGTERM);
  return daemon_->Wait();
}

std::unique_ptr<Client> NodeTest::Connect(ClientOptions options) {
  options.address = address();
  auto client = Client::Create(options);
  EXPECT_TRUE(client.ok()) << client.status();
  const absl::Status attached = (*client)->WaitUntilAttached(std::chrono::seconds(10));
  EXPECT_TRUE(attached.ok()) << attached;
  return *std::move(client);
}

std::unique_ptr<client::AdminClient> NodeTest::Admin() {
  auto admin = client::AdminClient::Connect(address(), "", std::chrono::seconds(10));
  EXPECT_TRUE(admin.ok()) << admin.status();
  return *std::move(admin);
}

v1::GetStatusResponse NodeTest::Status() {
  const auto status = Admin()->GetStatus();
  EXPECT_TRUE(status.ok()) << status.status();
  return status.ok() ? *status : v1::GetStatusResponse();
}

bool NodeTest::NothingIsLeased() {
  const v1::GetStatusResponse status = Status();
  return status.leases() == 0 && status.ram().leased_bytes() == 0 &&
         status.quarantined_bytes() == 0;
}

ChildProcess NodeTest::FaultClient(const std::string& action, const std::string& tenant) {
  return ChildProcess({FAULT_CLIENT_BINARY, address(), action, tenant});
}

}  // namespace kavern
