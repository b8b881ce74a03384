// A real kavernd in a process of its own, and what a worker does with it.
#ifndef KAVERN_TESTS_INTEGRATION_NODE_TEST_H_
#define KAVERN_TESTS_INTEGRATION_NODE_TEST_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/admin_client.h"
#include "client/kavern/client.h"
#include "gtest/gtest.h"
#include "tests/integration/child_process.h"

namespace kavern {

// Polls until `condition` holds; false after 20 s. For what other processes do.
bool Eventually(const std::function<bool()>& condition);

inline constexpr std::uint64_t kBlockBytes = 64 << 10;

// One part of kBlockBytes a block.
NamespaceSpec TestSpec(const std::string& model = "test-model");
// `count` keys of chain number `chain` in the namespace.
std::vector<BlockKey> TestKeys(const NamespaceFingerprint& fingerprint, std::uint32_t chain,
                               std::size_t count);

// Stores the chain's payload patterns.
absl::StatusOr<StoreResult> StorePattern(Namespace& ns, std::span<const BlockKey> keys,
                                         const BlockKey& parent = {});

struct Fetched {
  absl::Status status;
  std::vector<absl::StatusCode> codes;
  std::size_t ok = 0;
  std::uint64_t wrong_bytes = 0;  // of the parts that were reported as fetched
};
Fetched FetchPattern(Namespace& ns, std::span<const BlockKey> keys);

class NodeTest : public testing::Test {
 protected:
  // Starts the daemon with these settings beside the socket: 64 MiB of RAM in regions of 2 MiB
  // unless they say otherwise, and waits until it answers and its memory is in place: before, a
  // store may be declined.
  void StartDaemon(std::vector<std::string> settings = {});
  // SIGKILL.
  void KillDaemon();
  // SIGTERM; the exit status.
  int StopDaemon();
  void RestartDaemon() { StartDaemon(settings_); }
  ChildProcess& daemon() { return *daemon_; }

  std::unique_ptr<Client> Connect(ClientOptions options = {});
  std::unique_ptr<client::AdminClient> Admin();
  v1::GetStatusResponse Status();
  // The daemon holds no lease, in quarantine or not.
  bool NothingIsLeased();
  // A process of fault_client at its pause point `action`, see fault_client.cc.
  ChildProcess FaultClient(const std::string& action, const std::string& tenant = "");

  std::string directory() const { return directory_.path; }
  std::string socket_path() const { return directory_.path + "/kavern.sock"; }
  std::string address() const { return "unix://" + socket_path(); }

 private:
  struct TemporaryDirectory {
    TemporaryDirectory();
    ~TemporaryDirectory();
    std::string path;
  };
  TemporaryDirectory directory_;
  std::vector<std::string> settings_;
  std::optional<ChildProcess> daemon_;
};

}  // namespace kavern

#endif  // KAVERN_TESTS_INTEGRATION_NODE_TEST_H_
