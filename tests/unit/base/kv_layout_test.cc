#include "base/kv_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace kavern {
namespace {

using ::testing::HasSubstr;

LayerGroup FullAttention(std::uint32_t layers, std::uint32_t kv_heads, std::uint32_t head_dim) {
  LayerGroup group;
  group.kind = LayerGroupKind::kFullAttention;
  group.layer_count = layers;
  group.kv_heads = kv_heads;
  group.head_dim = head_dim;
  return group;
}

LayerGroup SlidingWindow(std::uint32_t layers, std::uint32_t kv_heads, std::uint32_t head_dim,
                         std::uint32_t window_tokens) {
  LayerGroup group = FullAttention(layers, kv_heads, head_dim);
  group.kind = LayerGroupKind::kSlidingWindow;
  group.window_tokens = window_tokens;
  return group;
}

LayerGroup Latent(std::uint32_t layers, std::uint32_t latent_dim) {
  LayerGroup group;
  group.kind = LayerGroupKind::kLatent;
  group.layer_count = layers;
  group.latent_dim = latent_dim;
  return group;
}

LayerGroup Recurrent(std::uint32_t layers, std::uint64_t state_bytes) {
  LayerGroup group;
  group.kind = LayerGroupKind::kRecurrentState;
  group.layer_count = layers;
  group.state_bytes = state_bytes;
  return group;
}

KvLayout LayoutOf(std::vector<LayerGroup> groups) {
  KvLayout layout;
  layout.tokens_per_block = 16;
  layout.groups = std::move(groups);
  return layout;
}

void ExpectRefused(const KvLayout& layout, const std::string& part_of_message) {
  const absl::Status status = layout.Validate();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << part_of_message;
  EXPECT_THAT(std::string(status.message()), HasSubstr(part_of_message));
}

// One group of each kind over two shards: 16 tokens of bfloat16.
TEST(KvLayout, SizesOfEveryKindOfGroup) {
  KvLayout layout = LayoutOf({FullAttention(4, 8, 128), SlidingWindow(20, 4, 64, 1024),
                              Latent(61, 576), Recurrent(6, 5000)});
  layout.shard_count = 2;
  ASSERT_TRUE(layout.Validate().ok()) << layout.Validate();
  EXPECT_EQ(layout.PartBytes(0), 4ull * 2 * 8 * 128 * 2 * 16);
  EXPECT_EQ(layout.PartBytes(1), 20ull * 2 * 4 * 64 * 2 * 16);
  EXPECT_EQ(layout.PartBytes(2), 61ull * 576 * 2 * 16);
  EXPECT_EQ(layout.PartBytes(3), 6ull * 5000);
  EXPECT_EQ(layout.SlotBytes(0), layout.PartBytes(0));
  EXPECT_EQ(layout.SlotBytes(3), 32768u);
  EXPECT_EQ(layout.BlockBytes(), 2 * (262144ull + 327680 + 1124352 + 30000));
  EXPECT_EQ(layout.BytesPerToken(), 2 * (16384ull + 20480 + 70272));
  EXPECT_EQ(layout.PartCount(), 8u);
  EXPECT_EQ(layout.PartIndex(1, 3), 7u);
}

TEST(KvLayout, DtypesHaveTheirSizesAndNames) {
  const std::vector<std::pair<std::string, std::uint32_t>> expected = {
      {"float32", 4},     {"float16", 2},     {"bfloat16", 2},
      {"float8_e4m3", 1}, {"float8_e5m2", 1}, {"int8", 1}};
  for (const auto& [name, bytes] : expected) {
    const auto dtype = ParseDtype(name);
    ASSERT_TRUE(dtype.ok()) << dtype.status();
    EXPECT_EQ(DtypeBytes(*dtype), bytes) << name;
    EXPECT_EQ(DtypeName(*dtype), name);
    KvLayout layout = LayoutOf({FullAttention(1, 1, 8)});
    layout.dtype = *dtype;
    EXPECT_EQ(layout.PartBytes(0), 2u * 8 * 16 * bytes);
  }
  EXPECT_THAT(std::string(ParseDtype("bf16").status().message()), HasSubstr("bfloat16"));
}

TEST(KvLayout, NumbersOutOfTheirLimitsAreRefusedByName) {
  const KvLayout valid = LayoutOf({FullAttention(4, 8, 128)});
  ASSERT_TRUE(valid.Validate().ok());
  KvLayout layout = valid;
  layout.dtype = static_cast<KvDtype>(6);
  ExpectRefused(layout, "layout.dtype: got 6");
  layout = valid;
  layout.tokens_per_block = 0;
  ExpectRefused(layout, "layout.tokens_per_block: got 0");
  layout.tokens_per_block = KvLayout::kTokensPerBlockMax + 1;
  ExpectRefused(layout, "layout.tokens_per_block: got 8193, expected 1 to 8192");
  layout = valid;
  layout.shard_count = 0;
  ExpectRefused(layout, "layout.shard_count: got 0");
  layout.shard_count = 65;
  ExpectRefused(layout, "layout.shard_count: got 65");
  ExpectRefused(LayoutOf({}), "layout.groups: got 0");
  ExpectRefused(LayoutOf(std::vector<LayerGroup>(17, FullAttention(1, 1, 8))),
                "layout.groups: got 17");
  layout = LayoutOf(std::vector<LayerGroup>(13, FullAttention(1, 1, 8)));
  layout.shard_count = 5;
  ExpectRefused(layout, "5 shards of 13 groups, expected at most 64 parts");
  layout = valid;
  layout.groups[0].kind = static_cast<LayerGroupKind>(4);
  ExpectRefused(layout, "layout.groups[0].kind: got 4");
  ExpectRefused(LayoutOf({FullAttention(4, 8, 128), FullAttention(4097, 1, 8)}),
                "layout.groups[1].layer_count: got 4097, expected 1 to 4096");
}

// A number that its kind does not use would make two equal layouts differ, and one that it does
// use must not be 0: the block would be empty.
TEST(KvLayout, NumbersThatDoNotBelongToTheKindMustBeZeroAndTheOthersNot) {
  struct Member {
    const char* name;
    void (*set)(LayerGroup&, std::uint32_t);
    std::vector<LayerGroupKind> used_by;
  };
  using enum LayerGroupKind;
  const std::vector<Member> members = {
      {"layer_count",
       [](LayerGroup& g, std::uint32_t n) { g.layer_count = n; },
       {kFullAttention, kSlidingWindow, kLatent, kRecurrentState}},
      {"kv_heads",
       [](LayerGroup& g, std::uint32_t n) { g.kv_heads = n; },
       {kFullAttention, kSlidingWindow}},
      {"head_dim",
       [](LayerGroup& g, std::uint32_t n) { g.head_dim = n; },
       {kFullAttention, kSlidingWindow}},
      {"window_tokens",
       [](LayerGroup& g, std::uint32_t n) { g.window_tokens = n; },
       {kSlidingWindow}},
      {"latent_dim", [](LayerGroup& g, std::uint32_t n) { g.latent_dim = n; }, {kLatent}},
      {"state_bytes", [](LayerGroup& g, std::uint32_t n) { g.state_bytes = n; }, {kRecurrentState}},
  };
  for (const LayerGroup& group : {FullAttention(2, 4, 64), SlidingWindow(2, 4, 64, 100),
                                  Latent(2, 576), Recurrent(2, 4096)}) {
    ASSERT_TRUE(LayoutOf({group}).Validate().ok());
    for (const Member& member : members) {
      bool used = false;
      for (const LayerGroupKind kind : member.used_by) used = used || kind == group.kind;
      LayerGroup wrong = group;
      member.set(wrong, used ? 0 : 1);
      ExpectRefused(LayoutOf({wrong}), std::string("layout.groups[0].") + member.name + ": got ");
    }
  }
}

TEST(KvLayout, APartMayBeTwoGibibytesAndNotOneTokenMore) {
  // 2 * 16 heads * 128 * 2 bytes = 8 KiB per layer and token; 64 layers: 512 KiB per token.
  KvLayout layout = LayoutOf({FullAttention(64, 16, 128)});
  layout.tokens_per_block = 4096;
  EXPECT_EQ(layout.PartBytes(0), KvLayout::kPartBytesMax);
  EXPECT_TRUE(layout.Validate().ok());
  layout.tokens_per_block = 4097;
  ExpectRefused(layout, "layout.groups[0]");

  EXPECT_TRUE(LayoutOf({Recurrent(1, KvLayout::kPartBytesMax)}).Validate().ok());
  ExpectRefused(LayoutOf({Recurrent(1, KvLayout::kPartBytesMax + 1)}), "state_bytes");
  ExpectRefused(LayoutOf({Recurrent(2, KvLayout::kPartBytesMax)}), "layout.groups[0]");
}

// Products of these numbers wrap around 2^32 or 2^64, some to 0 or to a small size that would
// pass a check of the product alone.
TEST(KvLayout, HostileNumbersWhoseProductWrapsAreRefused) {
  constexpr std::uint32_t kMax32 = std::numeric_limits<std::uint32_t>::max();
  constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();
  for (const std::uint32_t number : {kMax32, kMax32 - 1, 1u << 31, 1u << 30, 1u << 24, 65537u}) {
    ExpectRefused(LayoutOf({FullAttention(number, 1, 1)}), "layer_count");
    ExpectRefused(LayoutOf({FullAttention(1, number, 1)}), "kv_heads");
    ExpectRefused(LayoutOf({FullAttention(1, 1, number)}), "head_dim");
    ExpectRefused(LayoutOf({Latent(1, number)}), "latent_dim");
    KvLayout layout = LayoutOf({FullAttention(1, 1, 1)});
    layout.shard_count = number;
    ExpectRefused(layout, "shard_count");
  }
  for (const std::uint64_t number : {kMax64, std::uint64_t{1} << 63, std::uint64_t{1} << 52}) {
    ExpectRefused(LayoutOf({Recurrent(4096, number)}), "state_bytes");
  }
  KvLayout every_limit = LayoutOf({FullAttention(4096, 4096, 65536)});
  every_limit.dtype = KvDtype::kFloat32;
  every_limit.tokens_per_block = KvLayout::kTokensPerBlockMax;
  ExpectRefused(every_limit, "layout.groups[0]");
  EXPECT_EQ(every_limit.PartBytes(0), std::uint64_t{1} << 56);
}

struct PublishedNumbers {
  const char* name;
  std::uint64_t bytes_per_token;
  std::optional<double> first_1k_ms;
  std::optional<double> at_32k_ms;
};

// Bytes per token follow exactly from the published config.json files. The milliseconds are
// published for one H100, 989 TFLOP/s dense bf16, at half its peak; "at 32k" is what 1,000
// tokens cost there, here [32,000, 33,000).
TEST(ModelPresets, ReproducePublishedSizesAndPrefillTimes) {
  const std::vector<PublishedNumbers> published = {
      {"gpt-2", 36864, 0.38, {}},         {"llama-2-7b", 524288, 26.7, 60.1},
      {"mistral-7b", 131072, 28.7, 62.1}, {"llama-3-8b", 131072, 28.7, 62.1},
      {"llama-3-70b", 327680, 279, 446},  {"qwen2.5-72b", 327680, 287, 453},
      {"gpt-3-175b", 4718592, {}, {}},    {"deepseek-v3", 70272, 149, 468},
      {"smollm2-135m", 23040, {}, {}},
  };
  EXPECT_EQ(ModelPresets().size(), published.size());
  for (const PublishedNumbers& numbers : published) {
    const auto preset = FindModelPreset(numbers.name);
    ASSERT_TRUE(preset.ok()) << preset.status();
    const KvLayout layout = preset->Layout(128);
    EXPECT_TRUE(layout.Validate().ok()) << numbers.name << ": " << layout.Validate();
    EXPECT_EQ(layout.BytesPerToken(), numbers.bytes_per_token) << numbers.name;
    EXPECT_EQ(layout.BlockBytes(), numbers.bytes_per_token * 128) << numbers.name;
    const double first = preset->PrefillMs(0, 1000, kReferenceFlopsPerSecond);
    const double at_32k = preset->PrefillMs(32000, 33000, kReferenceFlopsPerSecond);
    if (numbers.first_1k_ms) {
      EXPECT_NEAR(first / *numbers.first_1k_ms, 1, 0.03) << numbers.name;
    }
    if (numbers.at_32k_ms) {
      EXPECT_NEAR(at_32k / *numbers.at_32k_ms, 1, 0.03) << numbers.name;
    }
    EXPECT_GT(at_32k, first) << numbers.name;
  }
}

TEST(ModelPresets, PrefillInPiecesCostsWhatPrefillInOneCosts) {
  const ModelPreset preset = FindModelPreset("llama-3-8b").value();
  const double whole = preset.PrefillMs(0, 9000, kReferenceFlopsPerSecond);
  const double pieces = preset.PrefillMs(0, 1000, kReferenceFlopsPerSecond) +
                        preset.PrefillMs(1000, 9000, kReferenceFlopsPerSecond);
  EXPECT_NEAR(whole, pieces, whole * 1e-9);
  EXPECT_NEAR(preset.PrefillMs(0, 9000, 4 * kReferenceFlopsPerSecond), whole / 4, whole * 1e-9);
  EXPECT_EQ(preset.PrefillMs(500, 500, kReferenceFlopsPerSecond), 0);
}

TEST(ModelPresets, AScaledModelKeepsAShareOfItsLayersAndAtLeastOne) {
  const ModelPreset preset = FindModelPreset("llama-3-8b").value();
  EXPECT_EQ(preset.Layout(16, 0.25).groups[0].layer_count, 8u);
  EXPECT_EQ(preset.Layout(16, 0.25).BytesPerToken(), 131072u / 4);
  EXPECT_EQ(preset.Layout(16, 1e-9).groups[0].layer_count, 1u);
}

TEST(ModelPresets, AnUnknownNameIsAnsweredWithTheKnownOnes) {
  const absl::Status status = FindModelPreset("llama-4").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("llama-3-8b"));
}

}  // namespace
}  // namespace kavern
