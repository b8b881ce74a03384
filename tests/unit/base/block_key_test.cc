#include "base/block_key.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <unordered_set>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/strings/escaping.h"
#include "base/namespace_spec.h"

namespace kavern {
namespace {

using ::testing::Contains;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

using Tokens = std::vector<std::uint32_t>;

Tokens Counting(std::size_t count, std::uint32_t first = 0) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

NamespaceFingerprint SomeNamespace(std::uint8_t byte = 1) {
  NamespaceFingerprint fingerprint;
  fingerprint.bytes.fill(byte);
  return fingerprint;
}

std::vector<BlockKey> KeysOf(const BlockKeyChain& chain) {
  return {chain.keys().begin(), chain.keys().end()};
}

std::vector<BlockKey> KeysOf(const Tokens& tokens, std::uint32_t tokens_per_block,
                             const NamespaceFingerprint& fingerprint = SomeNamespace()) {
  BlockKeyChain chain(fingerprint, tokens_per_block);
  chain.Append(tokens);
  return KeysOf(chain);
}

nlohmann::json GoldenVectors() {
  std::ifstream file(std::string(KAVERN_SOURCE_DIR) + "/tests/golden/block_keys.json");
  return nlohmann::json::parse(file);
}

LayerGroupKind KindNamed(const std::string& name) {
  for (int kind = 0; kind <= static_cast<int>(LayerGroupKind::kRecurrentState); ++kind) {
    if (LayerGroupKindName(static_cast<LayerGroupKind>(kind)) == name) {
      return static_cast<LayerGroupKind>(kind);
    }
  }
  ADD_FAILURE() << "no layer group kind " << name;
  return LayerGroupKind::kFullAttention;
}

NamespaceSpec SpecOf(const nlohmann::json& vector) {
  NamespaceSpec spec;
  spec.model = vector["model"];
  spec.weights_revision = vector["weights_revision"];
  spec.adapter = vector["adapter"];
  spec.quantization = vector["quantization"];
  spec.rope = vector["rope"];
  spec.engine_layout = vector["engine_layout"];
  spec.epoch = vector["epoch"];
  spec.layout.dtype = ParseDtype(vector["dtype"].get<std::string>()).value();
  spec.layout.tokens_per_block = vector["tokens_per_block"];
  spec.layout.shard_count = vector["shard_count"];
  for (const auto& group : vector["groups"]) {
    spec.layout.groups.push_back({KindNamed(group["kind"]), group["layer_count"], group["kv_heads"],
                                  group["head_dim"], group["window_tokens"], group["latent_dim"],
                                  group["state_bytes"]});
  }
  return spec;
}

// Vectors written by tests/golden/make_block_keys.py, which shares no code with us.
// A difference in either direction means that two languages would not share a single block.
TEST(GoldenVectors, EveryNamespaceHasTheFingerprintOfTheIndependentImplementation) {
  const nlohmann::json golden = GoldenVectors();
  ASSERT_GE(golden["namespaces"].size(), 5u);
  std::unordered_set<std::string> distinct;
  for (const auto& vector : golden["namespaces"]) {
    const NamespaceSpec spec = SpecOf(vector);
    EXPECT_TRUE(spec.Validate().ok()) << spec.Validate();
    const std::string tenant = vector["tenant"];
    const std::string expected = vector["fingerprint"];
    EXPECT_EQ(Fingerprint(tenant, spec).ToHex(), expected) << tenant << " " << spec.model;
    distinct.insert(expected);
  }
  EXPECT_EQ(distinct.size(), golden["namespaces"].size());
}

TEST(GoldenVectors, EveryChainHasTheKeysOfTheIndependentImplementation) {
  const nlohmann::json golden = GoldenVectors();
  std::size_t keys_checked = 0;
  for (const auto& vector : golden["chains"]) {
    const auto& name_space = golden["namespaces"][vector["namespace"].get<std::size_t>()];
    BlockKeyChain chain(
        NamespaceFingerprint::FromHex(name_space["fingerprint"].get<std::string>()).value(),
        vector["tokens_per_block"]);
    for (const auto& extra : vector["extra_keys"]) {
      std::vector<std::string> extra_keys;
      for (const auto& hex : extra["hex"]) {
        extra_keys.push_back(absl::HexStringToBytes(hex.get<std::string>()));
      }
      ASSERT_TRUE(chain.SetExtraKeys(extra["block"], extra_keys).ok());
    }
    const std::uint32_t seed = vector["seed"];
    Tokens tokens(vector["token_count"].get<std::size_t>());
    for (std::uint32_t i = 0; i < tokens.size(); ++i) tokens[i] = i * 2654435761u + seed;
    chain.Append(tokens);

    std::vector<std::string> computed;
    for (const BlockKey& key : chain.keys()) computed.push_back(key.ToHex());
    EXPECT_EQ(computed, vector["keys"].get<std::vector<std::string>>()) << vector["name"];
    keys_checked += computed.size();
  }
  EXPECT_GE(keys_checked, 30u);
}

// The numbers printed in docs/PROTOCOL.md, "Worked example".
TEST(GoldenVectors, TheWorkedExampleOfTheProtocolPageIsTrue) {
  NamespaceSpec spec;
  spec.model = "tiny";
  spec.layout.tokens_per_block = 4;
  LayerGroup group;
  group.layer_count = 1;
  group.kv_heads = 1;
  group.head_dim = 8;
  spec.layout.groups = {group};
  const NamespaceFingerprint fingerprint = Fingerprint("default", spec);
  EXPECT_EQ(fingerprint.ToHex(), "3c94eed5e3a1e4decb11ce1375ebffc7");

  const BlockKey first = ComputeBlockKey(fingerprint.RootKey(), Tokens{1, 2, 3, 70000});
  EXPECT_EQ(first.ToHex(), "150f63fd085ee17de38f714c60945800");
  const std::vector<std::string> extra = {"img"};
  EXPECT_EQ(ComputeBlockKey(first, Tokens{5, 6, 7, 8}, extra).ToHex(),
            "b357d780dd06af5e99e90d23c000259b");
}

TEST(BlockKey, OneChangedTokenChangesItsBlockAndEveryLaterOneAndNoEarlierOne) {
  Tokens tokens = Counting(160);
  const std::vector<BlockKey> before = KeysOf(tokens, 16);
  tokens[5 * 16 + 15] ^= 1;
  const std::vector<BlockKey> after = KeysOf(tokens, 16);
  ASSERT_THAT(after, SizeIs(10));
  for (std::size_t block = 0; block < 10; ++block) {
    EXPECT_EQ(before[block] == after[block], block < 5) << block;
  }
}

TEST(BlockKey, TheSameTokensInAnotherNamespaceShareNoKey) {
  const Tokens tokens = Counting(64);
  const std::vector<BlockKey> here = KeysOf(tokens, 16, SomeNamespace(1));
  const std::vector<BlockKey> there = KeysOf(tokens, 16, SomeNamespace(2));
  for (const BlockKey& key : here) EXPECT_THAT(there, Not(Contains(key)));
}

// A message whose pieces could be cut in two ways would give two blocks one key.
TEST(BlockKey, ExtraKeysCutInAnotherWayOrPassedAsTokensGiveAnotherKey) {
  const BlockKey parent = SomeNamespace().RootKey();
  const Tokens tokens = {1, 2};
  using Extra = std::vector<std::string>;
  const std::vector<BlockKey> keys = {
      ComputeBlockKey(parent, tokens),
      ComputeBlockKey(parent, tokens, Extra{""}),
      ComputeBlockKey(parent, tokens, Extra{"", ""}),
      ComputeBlockKey(parent, tokens, Extra{"ab", "c"}),
      ComputeBlockKey(parent, tokens, Extra{"a", "bc"}),
      ComputeBlockKey(parent, tokens, Extra{"c", "ab"}),
      ComputeBlockKey(parent, tokens, Extra{"abc"}),
      ComputeBlockKey(parent, Tokens{1}, Extra{std::string("\x02\0\0\0", 4)}),
      ComputeBlockKey(parent, Tokens{1, 2, 0}),
  };
  for (std::size_t i = 0; i < keys.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(keys[i], keys[j]) << i << " and " << j;
  }
}

TEST(BlockKey, HexSurvivesARoundTripInEitherCase) {
  BlockKey key;
  for (std::size_t i = 0; i < BlockKey::kSize; ++i)
    key.bytes[i] = static_cast<std::uint8_t>(i * 17);
  EXPECT_EQ(key.ToHex(), "00112233445566778899aabbccddeeff");
  EXPECT_EQ(BlockKey::FromHex(key.ToHex()).value(), key);
  EXPECT_EQ(BlockKey::FromHex("00112233445566778899AABBCCDDEEFF").value(), key);
  EXPECT_EQ(NamespaceFingerprint::FromHex(key.ToHex()).value().RootKey(), key);
  EXPECT_TRUE(BlockKey{}.IsZero());
  EXPECT_FALSE(key.IsZero());
}

TEST(BlockKey, TextThatIsNotThirtyTwoDigitsIsRefusedAndQuotedOnlyInPart) {
  const std::string good = "00112233445566778899aabbccddeeff";
  for (const std::string& bad :
       {std::string(), good.substr(1), good + "0", "0x" + good.substr(2), good.substr(1) + "g",
        " " + good.substr(1), std::string(31, '0') + '\0', good.substr(2) + "\xc3\xa9"}) {
    const auto key = BlockKey::FromHex(bad);
    EXPECT_EQ(key.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(key.status().message()), HasSubstr("32 hexadecimal digits"));
    EXPECT_FALSE(NamespaceFingerprint::FromHex(bad).ok()) << bad;
  }
  const auto huge = BlockKey::FromHex(std::string(1 << 20, '\n'));
  EXPECT_LT(huge.status().message().size(), 300u);
  EXPECT_THAT(std::string(huge.status().message()), Not(HasSubstr("\n")));
}

TEST(BlockKey, KeysThatDifferInOneByteAreOrderedByThatByteAndHashApart) {
  BlockKey low, high;
  low.bytes = {1, 0, 255};
  high.bytes = {1, 1, 0};
  EXPECT_LT(low, high);
  EXPECT_EQ(absl::Hash<BlockKey>()(low), absl::Hash<BlockKey>()(BlockKey(low)));
  EXPECT_NE(absl::Hash<BlockKey>()(low), absl::Hash<BlockKey>()(high));
}

// 1,000 tokens appended in pieces of every size from 0 to 40, so that pieces end before, at and
// after block boundaries; one-shot and incremental keys must agree at every step.
TEST(BlockKeyChain, AppendingInPiecesOfAnySizeGivesTheKeysOfOneAppend) {
  const Tokens tokens = Counting(1000, 7);
  for (const std::uint32_t size : {1u, 7u, 16u}) {
    const std::vector<BlockKey> expected = KeysOf(tokens, size);
    ASSERT_THAT(expected, SizeIs(1000 / size));
    BlockKeyChain chain(SomeNamespace(), size);
    std::size_t appended = 0;
    for (std::size_t piece = 0; appended < tokens.size(); piece = (piece + 1) % 41) {
      const std::size_t count = std::min(piece, tokens.size() - appended);
      chain.Append(std::span(tokens).subspan(appended, count));
      appended += count;
      ASSERT_EQ(chain.token_count(), appended);
      ASSERT_THAT(KeysOf(chain),
                  ElementsAreArray(expected.begin(), expected.begin() + appended / size));
    }
  }
}

TEST(BlockKeyChain, ExtraKeysChangeTheirBlockAndEveryLaterOneAndNoEarlierOne) {
  const Tokens tokens = Counting(96);
  const std::vector<BlockKey> plain = KeysOf(tokens, 16);
  BlockKeyChain chain(SomeNamespace(), 16);
  ASSERT_TRUE(chain.SetExtraKeys(2, {"image"}).ok());
  chain.Append(tokens);
  ASSERT_THAT(chain.keys(), SizeIs(6));
  for (std::size_t block = 0; block < 6; ++block) {
    EXPECT_EQ(chain.keys()[block] == plain[block], block < 2) << block;
  }
}

// Block 1 holds 4 of its 16 tokens when its extra keys arrive: still in time.
// Block 0 is complete: a key that was handed out must not become a lie.
TEST(BlockKeyChain, ExtraKeysArriveInTimeUntilTheLastTokenOfTheBlock) {
  const Tokens tokens = Counting(32);
  BlockKeyChain early(SomeNamespace(), 16);
  ASSERT_TRUE(early.SetExtraKeys(1, {"salt"}).ok());
  early.Append(tokens);

  BlockKeyChain late(SomeNamespace(), 16);
  late.Append(std::span(tokens).first(20));
  const absl::Status refused = late.SetExtraKeys(0, {"salt"});
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("block_index"));
  EXPECT_TRUE(late.SetExtraKeys(1, {"salt"}).ok());
  late.Append(std::span(tokens).subspan(20));
  EXPECT_EQ(KeysOf(late), KeysOf(early));
}

TEST(BlockKeyChain, AnEditedHistoryGivesTheKeysOfAChainThatNeverHadTheOldTail) {
  Tokens tokens = Counting(100);
  BlockKeyChain chain(SomeNamespace(), 16);
  chain.Append(tokens);  // 6 blocks and 4 tokens
  ASSERT_TRUE(chain.Truncate(48).ok());
  EXPECT_EQ(chain.token_count(), 48u);
  EXPECT_THAT(chain.keys(), SizeIs(3));

  const Tokens tail = Counting(40, 5000);
  chain.Append(tail);
  tokens.resize(48);
  tokens.insert(tokens.end(), tail.begin(), tail.end());
  EXPECT_EQ(KeysOf(chain), KeysOf(tokens, 16));

  ASSERT_TRUE(chain.Truncate(0).ok());
  EXPECT_EQ(chain.token_count(), 0u);
  chain.Append(tokens);
  EXPECT_EQ(KeysOf(chain), KeysOf(tokens, 16));
}

TEST(BlockKeyChain, ACutInsideTheIncompleteBlockKeepsItsFirstTokens) {
  const Tokens tokens = Counting(64);
  BlockKeyChain chain(SomeNamespace(), 16);
  chain.Append(std::span(tokens).first(30));
  ASSERT_TRUE(chain.Truncate(20).ok());
  EXPECT_EQ(chain.token_count(), 20u);
  chain.Append(std::span(tokens).subspan(20));
  EXPECT_EQ(KeysOf(chain), KeysOf(tokens, 16));
}

// 2 blocks and 8 tokens: 17 lies inside the complete block 1, 41 past the end.
TEST(BlockKeyChain, ACutThatCannotBeMadeIsRefusedAndChangesNothing) {
  const Tokens tokens = Counting(48);
  BlockKeyChain chain(SomeNamespace(), 16);
  chain.Append(std::span(tokens).first(40));
  for (const std::uint64_t count : {1u, 15u, 17u, 31u, 41u}) {
    const absl::Status status = chain.Truncate(count);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << count;
    EXPECT_THAT(std::string(status.message()), HasSubstr("token_count"));
    EXPECT_EQ(chain.token_count(), 40u);
  }
  EXPECT_EQ(chain.Truncate(UINT64_MAX).code(), absl::StatusCode::kInvalidArgument);
  chain.Append(std::span(tokens).subspan(40));
  EXPECT_EQ(KeysOf(chain), KeysOf(tokens, 16));
}

// The image of block 1 belongs to a turn that the user took back. Each case cuts it off in
// another way; the chain that follows must not carry the image.
TEST(BlockKeyChain, ExtraKeysOfForgottenBlocksAreForgotten) {
  const Tokens tokens = Counting(48);
  for (const std::size_t appended : {16u, 24u, 48u}) {
    BlockKeyChain chain(SomeNamespace(), 16);
    ASSERT_TRUE(chain.SetExtraKeys(1, {"image"}).ok());
    chain.Append(std::span(tokens).first(appended));
    ASSERT_TRUE(chain.Truncate(16).ok());
    chain.Append(std::span(tokens).subspan(16));
    EXPECT_EQ(KeysOf(chain), KeysOf(tokens, 16)) << appended;
  }
}

TEST(BlockKeyChain, ExtraKeysOfABlockThatIsOnlyShortenedAreKept) {
  const Tokens tokens = Counting(48);
  BlockKeyChain whole(SomeNamespace(), 16);
  ASSERT_TRUE(whole.SetExtraKeys(1, {"image"}).ok());
  whole.Append(tokens);

  BlockKeyChain cut(SomeNamespace(), 16);
  ASSERT_TRUE(cut.SetExtraKeys(1, {"image"}).ok());
  cut.Append(std::span(tokens).first(30));
  ASSERT_TRUE(cut.Truncate(17).ok());
  cut.Append(std::span(tokens).subspan(17));
  EXPECT_EQ(KeysOf(cut), KeysOf(whole));
}

}  // namespace
}  // namespace kavern
