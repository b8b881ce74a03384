#include "client/wire_convert.h"

namespace kavern::client {
namespace {

// Both enumerations list the same values in the same order, the message's after its UNSPECIFIED.
template <typename Message, typename Value>
Message AfterUnspecified(Value value) {
  return static_cast<Message>(static_cast<int>(value) + 1);
}
static_assert(static_cast<int>(KvDtype::kInt8) + 1 == v1::KV_DTYPE_INT8);
static_assert(static_cast<int>(LayerGroupKind::kRecurrentState) + 1 ==
              v1::LAYER_GROUP_KIND_RECURRENT_STATE);

}  // namespace

std::string PackKeys(std::span<const BlockKey> keys) {
  static_assert(sizeof(BlockKey) == BlockKey::kSize);
  return std::string(reinterpret_cast<const char*>(keys.data()), keys.size_bytes());
}

std::string PackKey(const BlockKey& key) {
  return PackKeys({&key, 1});
}

std::string PackFingerprint(const NamespaceFingerprint& fingerprint) {
  return PackKey(fingerprint.RootKey());
}

Tier TierOf(int number) {
  return number > 0 && number < kTierCount ? static_cast<Tier>(number) : Tier::kNone;
}

void FillSpec(const NamespaceSpec& spec, v1::NamespaceSpec* message) {
  message->set_model(spec.model);
  message->set_weights_revision(spec.weights_revision);
  message->set_adapter(spec.adapter);
  message->set_quantization(spec.quantization);
  message->set_rope(spec.rope);
  message->set_engine_layout(spec.engine_layout);
  message->set_epoch(spec.epoch);
  v1::KvLayout* layout = message->mutable_layout();
  layout->set_dtype(AfterUnspecified<v1::KvDtype>(spec.layout.dtype));
  layout->set_tokens_per_block(spec.layout.tokens_per_block);
  layout->set_shard_count(spec.layout.shard_count);
  for (const LayerGroup& group : spec.layout.groups) {
    v1::LayerGroup* added = layout->add_groups();
    added->set_kind(AfterUnspecified<v1::LayerGroupKind>(group.kind));
    added->set_layer_count(group.layer_count);
    added->set_kv_heads(group.kv_heads);
    added->set_head_dim(group.head_dim);
    added->set_window_tokens(group.window_tokens);
    added->set_latent_dim(group.latent_dim);
    added->set_state_bytes(group.state_bytes);
  }
}

}  // namespace kavern::client
