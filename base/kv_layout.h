// KV layout: what one token's KV looks like for one model, and so how large a block is.
#ifndef KAVERN_BASE_KV_LAYOUT_H_
#define KAVERN_BASE_KV_LAYOUT_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kavern {

// Element type of the stored KV.
enum class KvDtype : std::uint8_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  kFloat8E4M3,
  kFloat8E5M2,
  kInt8
};

// Bytes per element: 4, 2, 2, 1, 1, 1.
std::uint32_t DtypeBytes(KvDtype dtype);
// "float32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2", "int8".
std::string_view DtypeName(KvDtype dtype);
absl::StatusOr<KvDtype> ParseDtype(std::string_view name);

enum class LayerGroupKind : std::uint8_t {
  kFullAttention,   // every token's K and V
  kSlidingWindow,   // K and V, of which only the last window_tokens matter
  kLatent,          // MLA: one latent vector and one RoPE part per token, no separate K and V
  kRecurrentState,  // a constant-size state at the end of the block
};
std::string_view LayerGroupKindName(LayerGroupKind kind);

// Layers that keep the same kind and shape of KV. Numbers are those of one shard.
struct LayerGroup {
  LayerGroupKind kind = LayerGroupKind::kFullAttention;
  std::uint32_t layer_count = 0;
  std::uint32_t kv_heads = 0;  // full attention and sliding window: KV heads that one shard holds
  std::uint32_t head_dim = 0;  // full attention and sliding window
  std::uint32_t window_tokens = 0;  // sliding window
  std::uint32_t latent_dim = 0;     // latent: r_kv + d_rope
  std::uint64_t state_bytes = 0;    // recurrent state: bytes per layer per checkpoint

  friend bool operator==(const LayerGroup&, const LayerGroup&) = default;
};

// A part is what one worker rank stores of one layer group of one block: the unit that has an
// extent and a checksum. A block has shard_count * groups.size() parts and is visible once all are
// committed.
struct KvLayout {
  KvDtype dtype = KvDtype::kBFloat16;
  std::uint32_t tokens_per_block = 0;
  std::uint32_t shard_count = 1;  // distinct shards; ranks with identical bytes share one
  std::vector<LayerGroup> groups;

  static constexpr std::uint32_t kTokensPerBlockMax = 8192;
  static constexpr std::uint32_t kShardsMax = 64;
  static constexpr std::uint32_t kGroupsMax = 16;
  static constexpr std::uint32_t kPartsMax = 64;  // shards * groups
  static constexpr std::uint32_t kLayersMax = 4096;
  static constexpr std::uint64_t kPartBytesMax = std::uint64_t{1} << 31;
  static constexpr std::uint64_t kPartAlignment = 4096;

  // InvalidArgument names the field, its value and what was expected. Everything below needs a
  // valid layout.
  absl::Status Validate() const;

  std::uint32_t PartCount() const {
    return shard_count * static_cast<std::uint32_t>(groups.size());
  }
  std::uint32_t PartIndex(std::uint32_t shard, std::uint32_t group) const {
    return shard * static_cast<std::uint32_t>(groups.size()) + group;
  }

  // Payload of one part of group `group`, bytes: group -> layer -> the engine's own bytes of that
  // layer.
  std::uint64_t PartBytes(std::uint32_t group) const;
  // The slot that holds it: PartBytes rounded up to kPartAlignment.
  std::uint64_t SlotBytes(std::uint32_t group) const;
  // Payload of a whole block, all shards and groups.
  std::uint64_t BlockBytes() const;
  // KV bytes that one more token adds over all shards. Recurrent groups add none.
  std::uint64_t BytesPerToken() const;

  friend bool operator==(const KvLayout&, const KvLayout&) = default;
};

// A model for benchmarks, replays and priors of the cost model: KV shape and what prefill costs.
// Sources: the models' published config.json.
struct ModelPreset {
  std::string_view name;  // "llama-3-8b"
  std::uint32_t layers;
  std::uint32_t kv_heads;    // 0 for MLA
  std::uint32_t head_dim;    // 0 for MLA
  std::uint32_t latent_dim;  // MLA: r_kv + d_rope, else 0
  std::uint32_t query_heads;
  std::uint32_t query_key_dim;  // d_qk, per head
  std::uint32_t value_dim;      // d_v, per head
  double active_params;         // non-embedding parameters used per token

  // One full-attention or latent group, bfloat16, one shard. `scale_layers` in (0, 1] keeps that
  // share of the layers (at least one): a replay that must fit a small machine.
  KvLayout Layout(std::uint32_t tokens_per_block, double scale_layers = 1.0) const;

  // Milliseconds to prefill tokens [from, to) after a cached prefix of `from` tokens, at
  // `flops_per_second` (peak times the share of it that is reached): F(S) = 2 P S + L H_q (d_qk +
  // d_v) S^2 FLOPs, causal, and (F(to) - F(from)) / rate. Always of the whole model, never of a
  // scaled one.
  double PrefillMs(std::uint64_t from, std::uint64_t to, double flops_per_second) const;
};

// One H100 (989 TFLOP/s dense bf16) at half its peak: an assumption to compare models by, not a
// measurement.
inline constexpr double kReferenceFlopsPerSecond = 989e12 * 0.5;

std::span<const ModelPreset> ModelPresets();
// NotFound lists the known names.
absl::StatusOr<ModelPreset> FindModelPreset(std::string_view name);

}  // namespace kavern

#endif  // KAVERN_BASE_KV_LAYOUT_H_
