#include "base/kv_layout.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/units.h"

namespace kavern {
namespace {

struct DtypeFacts {
  KvDtype dtype;
  std::string_view name;
  std::uint32_t bytes;
};
constexpr std::array<DtypeFacts, 6> kDtypes = {{
    {KvDtype::kFloat32, "float32", 4},
    {KvDtype::kFloat16, "float16", 2},
    {KvDtype::kBFloat16, "bfloat16", 2},
    {KvDtype::kFloat8E4M3, "float8_e4m3", 1},
    {KvDtype::kFloat8E5M2, "float8_e5m2", 1},
    {KvDtype::kInt8, "int8", 1},
}};

constexpr std::uint32_t kHeadsMax = 4096;
constexpr std::uint32_t kDimMax = 65536;
constexpr std::uint32_t kWindowMax = 1u << 30;
constexpr std::uint64_t kStateBytesMax = std::uint64_t{1} << 31;

// One number of a layer group: what it may be for the group's kind.
struct FieldRule {
  const char* name;
  std::uint64_t value;
  bool used;  // by this kind: then 1 to max, else 0
  std::uint64_t max;
};

absl::Status CheckField(std::size_t group, std::string_view kind, const FieldRule& rule) {
  if (!rule.used && rule.value != 0) {
    return absl::InvalidArgumentError(absl::StrCat("layout.groups[", group, "].", rule.name,
                                                   ": got ", rule.value, ", expected 0 for kind ",
                                                   absl::string_view(kind.data(), kind.size())));
  }
  if (rule.used && (rule.value == 0 || rule.value > rule.max)) {
    return absl::InvalidArgumentError(absl::StrCat("layout.groups[", group, "].", rule.name,
                                                   ": got ", rule.value, ", expected 1 to ",
                                                   rule.max));
  }
  return absl::OkStatus();
}

absl::Status CheckGroup(std::size_t index, const LayerGroup& group) {
  if (group.kind > LayerGroupKind::kRecurrentState) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout.groups[", index, "].kind: got ", static_cast<int>(group.kind),
                     ", expected 0 to ", static_cast<int>(LayerGroupKind::kRecurrentState)));
  }
  const bool window = group.kind == LayerGroupKind::kSlidingWindow;
  const bool heads = window || group.kind == LayerGroupKind::kFullAttention;
  const std::array<FieldRule, 6> rules = {{
      {"layer_count", group.layer_count, true, KvLayout::kLayersMax},
      {"kv_heads", group.kv_heads, heads, kHeadsMax},
      {"head_dim", group.head_dim, heads, kDimMax},
      {"window_tokens", group.window_tokens, window, kWindowMax},
      {"latent_dim", group.latent_dim, group.kind == LayerGroupKind::kLatent, kDimMax},
      {"state_bytes", group.state_bytes, group.kind == LayerGroupKind::kRecurrentState,
       kStateBytesMax},
  }};
  for (const FieldRule& rule : rules) {
    if (absl::Status status = CheckField(index, LayerGroupKindName(group.kind), rule);
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

// Bytes of one layer of a group for one token; 0 for recurrent state. At most 2 * 4096 * 65536 * 4
// = 2^31.
std::uint64_t LayerBytesPerToken(const LayerGroup& group, KvDtype dtype) {
  const std::uint64_t element = DtypeBytes(dtype);
  switch (group.kind) {
    case LayerGroupKind::kFullAttention:
    case LayerGroupKind::kSlidingWindow:
      return 2 * element * group.kv_heads * group.head_dim;
    case LayerGroupKind::kLatent:
      return element * group.latent_dim;
    case LayerGroupKind::kRecurrentState:
      return 0;
  }
  return 0;
}

// With the limits of Validate no product overflows: 2^31 per token and layer, 2^13 tokens, 2^12
// layers.
std::uint64_t GroupBytes(const KvLayout& layout, const LayerGroup& group) {
  if (group.kind == LayerGroupKind::kRecurrentState) return group.layer_count * group.state_bytes;
  return LayerBytesPerToken(group, layout.dtype) * group.layer_count * layout.tokens_per_block;
}

// Numbers of the models' published config.json; parameters without the embeddings.
constexpr std::array<ModelPreset, 9> kPresets = {{
    {"gpt-2", 12, 12, 64, 0, 12, 64, 64, 85e6},
    {"llama-2-7b", 32, 32, 128, 0, 32, 128, 128, 6.48e9},
    {"mistral-7b", 32, 8, 128, 0, 32, 128, 128, 6.98e9},
    {"llama-3-8b", 32, 8, 128, 0, 32, 128, 128, 6.98e9},
    {"llama-3-70b", 80, 8, 128, 0, 64, 128, 128, 68.45e9},
    {"qwen2.5-72b", 80, 8, 128, 0, 64, 128, 128, 70.2e9},
    {"gpt-3-175b", 96, 96, 128, 0, 96, 128, 128, 174e9},
    {"deepseek-v3", 61, 0, 0, 576, 128, 192, 128, 35.6e9},
    {"smollm2-135m", 30, 3, 64, 0, 9, 64, 64, 106e6},
}};

}  // namespace

std::uint32_t DtypeBytes(KvDtype dtype) {
  for (const DtypeFacts& facts : kDtypes) {
    if (facts.dtype == dtype) return facts.bytes;
  }
  return 0;
}

std::string_view DtypeName(KvDtype dtype) {
  for (const DtypeFacts& facts : kDtypes) {
    if (facts.dtype == dtype) return facts.name;
  }
  return "unknown";
}

absl::StatusOr<KvDtype> ParseDtype(std::string_view name) {
  std::string known;
  for (const DtypeFacts& facts : kDtypes) {
    if (facts.name == name) return facts.dtype;
    absl::StrAppend(&known, known.empty() ? "" : ", ", std::string(facts.name));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("dtype: got \"", std::string(name), "\", expected one of ", known));
}

std::string_view LayerGroupKindName(LayerGroupKind kind) {
  switch (kind) {
    case LayerGroupKind::kFullAttention:
      return "full_attention";
    case LayerGroupKind::kSlidingWindow:
      return "sliding_window";
    case LayerGroupKind::kLatent:
      return "latent";
    case LayerGroupKind::kRecurrentState:
      return "recurrent_state";
  }
  return "unknown";
}

absl::Status KvLayout::Validate() const {
  if (DtypeBytes(dtype) == 0) {
    return absl::InvalidArgumentError(absl::StrCat("layout.dtype: got ", static_cast<int>(dtype),
                                                   ", expected 0 to ", kDtypes.size() - 1));
  }
  if (tokens_per_block == 0 || tokens_per_block > kTokensPerBlockMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layout.tokens_per_block: got ", tokens_per_block, ", expected 1 to ", kTokensPerBlockMax));
  }
  if (shard_count == 0 || shard_count > kShardsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout.shard_count: got ", shard_count, ", expected 1 to ", kShardsMax));
  }
  if (groups.empty() || groups.size() > kGroupsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout.groups: got ", groups.size(), ", expected 1 to ", kGroupsMax));
  }
  if (PartCount() > kPartsMax) {
    return absl::InvalidArgumentError(absl::StrCat("layout: got ", shard_count, " shards of ",
                                                   groups.size(), " groups, expected at most ",
                                                   kPartsMax, " parts"));
  }
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (absl::Status status = CheckGroup(i, groups[i]); !status.ok()) return status;
    const std::uint64_t bytes = GroupBytes(*this, groups[i]);
    if (bytes > kPartBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("layout.groups[", i, "]: one block of one shard takes ", FormatBytes(bytes),
                       ", expected at most ", FormatBytes(kPartBytesMax)));
    }
  }
  return absl::OkStatus();
}

std::uint64_t KvLayout::PartBytes(std::uint32_t group) const {
  return GroupBytes(*this, groups[group]);
}

std::uint64_t KvLayout::SlotBytes(std::uint32_t group) const {
  return AlignUp(PartBytes(group), kPartAlignment);
}

std::uint64_t KvLayout::BlockBytes() const {
  std::uint64_t total = 0;
  for (std::uint32_t group = 0; group < groups.size(); ++group) total += PartBytes(group);
  return total * shard_count;
}

std::uint64_t KvLayout::BytesPerToken() const {
  std::uint64_t total = 0;
  for (const LayerGroup& group : groups) {
    total += LayerBytesPerToken(group, dtype) * group.layer_count;
  }
  return total * shard_count;
}

KvLayout ModelPreset::Layout(std::uint32_t tokens_per_block, double scale_layers) const {
  LayerGroup group;
  group.kind = latent_dim > 0 ? LayerGroupKind::kLatent : LayerGroupKind::kFullAttention;
  group.layer_count =
      std::max<std::uint32_t>(1, static_cast<std::uint32_t>(std::lround(layers * scale_layers)));
  group.kv_heads = kv_heads;
  group.head_dim = head_dim;
  group.latent_dim = latent_dim;
  KvLayout layout;
  layout.dtype = KvDtype::kBFloat16;
  layout.tokens_per_block = tokens_per_block;
  layout.groups = {group};
  return layout;
}

double ModelPreset::PrefillMs(std::uint64_t from, std::uint64_t to, double flops_per_second) const {
  const auto flops = [this](double tokens) {
    const double attention =
        static_cast<double>(layers) * query_heads * (query_key_dim + value_dim);
    return 2 * active_params * tokens + attention * tokens * tokens;
  };
  return (flops(static_cast<double>(to)) - flops(static_cast<double>(from))) / flops_per_second *
         1e3;
}

std::span<const ModelPreset> ModelPresets() {
  return kPresets;
}

absl::StatusOr<ModelPreset> FindModelPreset(std::string_view name) {
  std::vector<std::string> known;
  for (const ModelPreset& preset : kPresets) {
    if (preset.name == name) return preset;
    known.emplace_back(preset.name);
  }
  return absl::NotFoundError(absl::StrCat("model: got \"", std::string(name),
                                          "\", expected one of ", absl::StrJoin(known, ", ")));
}

}  // namespace kavern
