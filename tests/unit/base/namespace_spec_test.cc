#include "base/namespace_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace kavern {
namespace {

using ::testing::HasSubstr;

NamespaceSpec ValidSpec() {
  NamespaceSpec spec;
  spec.model = "meta-llama/Meta-Llama-3-8B";
  spec.weights_revision = "8cde5ca8";
  spec.rope = "theta=500000";
  spec.engine_layout = "vllm/flash/avx512";
  spec.layout.tokens_per_block = 16;
  LayerGroup attention;
  attention.layer_count = 4;
  attention.kv_heads = 4;
  attention.head_dim = 128;
  LayerGroup window = attention;
  window.kind = LayerGroupKind::kSlidingWindow;
  window.window_tokens = 1024;
  spec.layout.groups = {attention, window};
  return spec;
}

// Every field is changed alone, by as little as possible, and text is moved between neighbours.
// Two workers that differ in any of it must not share a block.
TEST(Fingerprint, AnyDifferenceBetweenTwoWorkersSeparatesThem) {
  using Change = std::function<void(NamespaceSpec&)>;
  const std::vector<std::pair<const char*, Change>> changes = {
      {"model", [](auto& spec) { spec.model += "-Instruct"; }},
      {"weights_revision", [](auto& spec) { spec.weights_revision[0] ^= 1; }},
      {"adapter", [](auto& spec) { spec.adapter = "lora"; }},
      {"quantization", [](auto& spec) { spec.quantization = "lora"; }},
      {"rope", [](auto& spec) { spec.rope += "0"; }},
      {"engine_layout", [](auto& spec) { spec.engine_layout = "vllm/flash/amx"; }},
      {"text moved to the next field",
       [](auto& spec) { spec.adapter = std::exchange(spec.weights_revision, ""); }},
      {"epoch", [](auto& spec) { spec.epoch = 1; }},
      {"high half of epoch", [](auto& spec) { spec.epoch = std::uint64_t{1} << 32; }},
      {"dtype", [](auto& spec) { spec.layout.dtype = KvDtype::kFloat16; }},
      {"tokens_per_block", [](auto& spec) { spec.layout.tokens_per_block = 32; }},
      {"shard_count", [](auto& spec) { spec.layout.shard_count = 2; }},
      {"group missing", [](auto& spec) { spec.layout.groups.pop_back(); }},
      {"group repeated",
       [](auto& spec) { spec.layout.groups.push_back(spec.layout.groups.back()); }},
      {"groups swapped",
       [](auto& spec) { std::swap(spec.layout.groups[0], spec.layout.groups[1]); }},
      {"kind", [](auto& spec) { spec.layout.groups[0].kind = LayerGroupKind::kSlidingWindow; }},
      {"layer_count", [](auto& spec) { ++spec.layout.groups[0].layer_count; }},
      {"kv_heads", [](auto& spec) { ++spec.layout.groups[0].kv_heads; }},
      {"head_dim", [](auto& spec) { ++spec.layout.groups[0].head_dim; }},
      {"window_tokens", [](auto& spec) { ++spec.layout.groups[1].window_tokens; }},
      {"latent_dim", [](auto& spec) { spec.layout.groups[0].latent_dim = 1; }},
      {"state_bytes", [](auto& spec) { spec.layout.groups[0].state_bytes = 1; }},
      {"high half of state_bytes",
       [](auto& spec) { spec.layout.groups[0].state_bytes = std::uint64_t{1} << 32; }},
  };
  std::vector<std::pair<std::string, NamespaceFingerprint>> seen = {
      {"unchanged", Fingerprint("default", ValidSpec())},
      {"another tenant", Fingerprint("other", ValidSpec())},
      {"no tenant", Fingerprint("", ValidSpec())},
  };
  for (const auto& [name, change] : changes) {
    NamespaceSpec spec = ValidSpec();
    change(spec);
    seen.emplace_back(name, Fingerprint("default", spec));
  }
  for (std::size_t i = 0; i < seen.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      EXPECT_NE(seen[i].second, seen[j].second) << seen[i].first << " and " << seen[j].first;
    }
  }
  EXPECT_EQ(Fingerprint("default", ValidSpec()), seen[0].second);
}

TEST(NamespaceSpec, ANameThatIsMissingOrTooLongIsNamed) {
  EXPECT_TRUE(ValidSpec().Validate().ok());
  NamespaceSpec unnamed = ValidSpec();
  unnamed.model.clear();
  EXPECT_THAT(std::string(unnamed.Validate().message()), HasSubstr("model: got \"\""));

  const std::vector<std::pair<const char*, std::string NamespaceSpec::*>> names = {
      {"model", &NamespaceSpec::model},     {"weights_revision", &NamespaceSpec::weights_revision},
      {"adapter", &NamespaceSpec::adapter}, {"quantization", &NamespaceSpec::quantization},
      {"rope", &NamespaceSpec::rope},       {"engine_layout", &NamespaceSpec::engine_layout},
  };
  for (const auto& [field, member] : names) {
    NamespaceSpec spec = ValidSpec();
    spec.*member = std::string(NamespaceSpec::kNameBytesMax, 'x');
    EXPECT_TRUE(spec.Validate().ok()) << field;
    spec.*member += "x";
    EXPECT_EQ(spec.Validate().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(spec.Validate().message()),
                HasSubstr(std::string(field) + ": got 513 bytes, expected at most 512"));
  }
}

TEST(NamespaceSpec, ALayoutThatCannotBeIsRefusedWithTheSpec) {
  NamespaceSpec spec = ValidSpec();
  spec.layout.groups.clear();
  EXPECT_EQ(spec.Validate().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(spec.Validate().message()), HasSubstr("layout.groups"));
}

}  // namespace
}  // namespace kavern
