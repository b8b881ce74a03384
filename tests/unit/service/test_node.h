// A daemon's insides without gRPC: real attach socket, real store with a few MiB of memory.
#ifndef KAVERN_TESTS_UNIT_SERVICE_TEST_NODE_H_
#define KAVERN_TESTS_UNIT_SERVICE_TEST_NODE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "service/request_handlers.h"
#include "service/session/attach_server.h"
#include "service/session/session_table.h"
#include "tests/unit/service/attach_test_client.h"
#include "tiers/tiered_store.h"

namespace kavern::service {

struct TestNodeOptions {
  std::vector<TenantRule> tenants;  // empty: this process's uid is "default"
  std::uint64_t sessions_max = 4096;
  SessionLimits session_limits;
  RequestLimits request_limits;
  std::uint64_t handshakes_max = 64;
  std::chrono::milliseconds hello_timeout{60'000};
  const Clock* clock = &Clock::System();
  std::uint64_t capacity_bytes = 1 << 20;
};

class TestNode {
 public:
  explicit TestNode(const TestNodeOptions& options = {});
  ~TestNode();

  static constexpr std::uint64_t kPartBytes = 4096;
  static constexpr std::uint64_t kRegionBytes = 64 << 10;
  // One shard, one group, parts of kPartBytes.
  static v1::NamespaceSpec Spec(const std::string& model = "model");
  // Packed keys number [first, first + count).
  static std::string Keys(int first, int count);
  static std::string Key(int number) { return Keys(number, 1); }

  const std::string& path() const { return path_; }
  const std::string& directory() const { return directory_; }
  AttachServer& attach() { return *attach_; }
  SessionTable& sessions() { return sessions_; }
  tiers::TieredStore& store() { return *store_; }
  RequestHandlers& handlers() { return *handlers_; }

  // The session of a welcome; fails the test when there is none.
  std::shared_ptr<Session> SessionOf(const shm::WelcomeBody& welcome);
  // A session without a socket, as a TCP listener has it.
  std::shared_ptr<Session> TcpSession(const std::string& tenant = "default");
  // Opens Spec(model); the fingerprint.
  std::string Open(Session& session, const std::string& model = "model");
  // BeginStore at the root, granted for all `count` keys or the test fails.
  v1::BeginStoreResponse Begin(Session& session, const std::string& fingerprint, int first,
                               int count);
  // Begins, writes bytes that derive from key and offset, commits.
  void Store(Session& session, const std::string& fingerprint, int first, int count);
  // Payload of a key, and its checksum.
  static std::string Payload(int number);
  static std::uint32_t Checksum(int number, const std::string& payload);
  std::uint64_t leased_bytes() { return store_->GetStatus().leased_bytes; }

 private:
  std::string directory_;
  std::string path_;
  TenantMap tenants_;
  SessionTable sessions_;
  std::unique_ptr<AttachServer> attach_;
  std::unique_ptr<tiers::TieredStore> store_;
  std::unique_ptr<RequestHandlers> handlers_;
};

}  // namespace kavern::service

#endif  // KAVERN_TESTS_UNIT_SERVICE_TEST_NODE_H_
