// What the client's tests share: a daemon in this process, one small model, payloads that derive
// from their keys.
#ifndef KAVERN_TESTS_UNIT_CLIENT_CLIENT_FIXTURE_H_
#define KAVERN_TESTS_UNIT_CLIENT_CLIENT_FIXTURE_H_

#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "client/kavern/client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/in_process_daemon.h"

namespace kavern {

inline constexpr std::uint64_t kPartBytes = 4096;

inline NamespaceSpec SmallSpec(const std::string& model = "model") {
  NamespaceSpec spec;
  spec.model = model;
  spec.layout.dtype = KvDtype::kInt8;
  spec.layout.tokens_per_block = 16;
  LayerGroup group;
  group.layer_count = 2;
  group.kv_heads = 2;
  group.head_dim = kPartBytes / 16 / 2 / 2 / 2;
  spec.layout.groups.push_back(group);
  return spec;
}

class ClientTest : public testing::Test {
 protected:
  std::unique_ptr<Client> Connect(ClientOptions options = {}) {
    auto client = daemon_.Connect(options);
    const absl::Status attached = client->WaitUntilAttached(std::chrono::seconds(20));
    EXPECT_TRUE(attached.ok()) << attached;
    return client;
  }

  static std::shared_ptr<Namespace> Open(Client& client, const std::string& model = "model") {
    auto ns = client.OpenNamespace(SmallSpec(model));
    EXPECT_TRUE(ns.ok()) << ns.status();
    return *std::move(ns);
  }

  static std::vector<BlockKey> Keys(const Namespace& ns, std::uint32_t chain, std::size_t count) {
    std::vector<BlockKey> keys;
    BlockKey parent = ns.fingerprint().RootKey();
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uint32_t tokens[] = {chain, i};
      parent = ComputeBlockKey(parent, tokens);
      keys.push_back(parent);
    }
    return keys;
  }

  static std::vector<std::byte> Payload(const BlockKey& key) {
    std::vector<std::byte> payload(kPartBytes);
    for (std::size_t i = 0; i < payload.size(); ++i) {
      payload[i] = static_cast<std::byte>(key.bytes[i % 16] + i / 16);
    }
    return payload;
  }

  static absl::StatusOr<StoreResult> Store(Namespace& ns, std::span<const BlockKey> keys,
                                           const BlockKey& parent = {},
                                           Durability durability = Durability::kConfigured) {
    std::vector<std::vector<std::byte>> payloads;
    for (const BlockKey& key : keys) payloads.push_back(Payload(key));
    const std::vector<ConstBuffer> buffers(payloads.begin(), payloads.end());
    return ns.Store({.parent = parent, .keys = keys, .durability = durability}, buffers);
  }

  // Codes of the blocks; fails the test when one that is reported as fetched has other bytes.
  static std::vector<absl::StatusCode> Fetch(Namespace& ns, std::span<const BlockKey> keys) {
    std::vector<std::vector<std::byte>> payloads(keys.size(), std::vector<std::byte>(kPartBytes));
    const std::vector<MutableBuffer> buffers(payloads.begin(), payloads.end());
    const auto fetched = ns.FetchInto({.keys = keys}, buffers);
    if (!fetched.ok()) return std::vector<absl::StatusCode>(keys.size(), fetched.status().code());
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (fetched->codes[i] == absl::StatusCode::kOk) {
        EXPECT_EQ(payloads[i], Payload(keys[i])) << "block " << i;
      }
    }
    return fetched->codes;
  }

  static std::vector<absl::StatusCode> AllOk(std::size_t count) {
    return std::vector<absl::StatusCode>(count, absl::StatusCode::kOk);
  }

  static bool Eventually(const std::function<bool()>& condition) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > give_up) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

  InProcessDaemon daemon_;
};

}  // namespace kavern

#endif  // KAVERN_TESTS_UNIT_CLIENT_CLIENT_FIXTURE_H_
