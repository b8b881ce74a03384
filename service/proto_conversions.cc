#include "service/proto_conversions.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kavern::service {
namespace {

// The protocol's enumerators begin with UNSPECIFIED, ours do not; the order is the same.
static_assert(static_cast<int>(KvDtype::kFloat32) + 1 == v1::KV_DTYPE_FLOAT32 &&
              static_cast<int>(KvDtype::kInt8) + 1 == v1::KV_DTYPE_INT8);
static_assert(static_cast<int>(LayerGroupKind::kFullAttention) + 1 ==
                  v1::LAYER_GROUP_KIND_FULL_ATTENTION &&
              static_cast<int>(LayerGroupKind::kRecurrentState) + 1 ==
                  v1::LAYER_GROUP_KIND_RECURRENT_STATE);
static_assert(
    static_cast<int>(tiers::StoreOutcome::kGranted) == v1::BeginStoreResponse::OUTCOME_GRANTED &&
    static_cast<int>(tiers::StoreOutcome::kExists) == v1::BeginStoreResponse::OUTCOME_EXISTS &&
    static_cast<int>(tiers::StoreOutcome::kDeclined) == v1::BeginStoreResponse::OUTCOME_DECLINED);

absl::Status OutOfRange(std::string_view field, std::int64_t value, std::int64_t last) {
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(field), ": got ", value, ", expected 1 to ", last));
}

absl::StatusOr<LayerGroup> FromProto(const v1::LayerGroup& proto, int index) {
  if (proto.kind() < v1::LAYER_GROUP_KIND_FULL_ATTENTION ||
      proto.kind() > v1::LAYER_GROUP_KIND_RECURRENT_STATE) {
    return OutOfRange(absl::StrCat("layout.groups[", index, "].kind"), proto.kind(),
                      v1::LAYER_GROUP_KIND_RECURRENT_STATE);
  }
  LayerGroup group;
  group.kind = static_cast<LayerGroupKind>(proto.kind() - 1);
  group.layer_count = proto.layer_count();
  group.kv_heads = proto.kv_heads();
  group.head_dim = proto.head_dim();
  group.window_tokens = proto.window_tokens();
  group.latent_dim = proto.latent_dim();
  group.state_bytes = proto.state_bytes();
  return group;
}

absl::StatusOr<KvLayout> FromProto(const v1::KvLayout& proto) {
  if (proto.dtype() < v1::KV_DTYPE_FLOAT32 || proto.dtype() > v1::KV_DTYPE_INT8) {
    return OutOfRange("layout.dtype", proto.dtype(), v1::KV_DTYPE_INT8);
  }
  if (proto.groups_size() < 1 ||
      static_cast<std::uint32_t>(proto.groups_size()) > KvLayout::kGroupsMax) {
    return OutOfRange("number of layout.groups", proto.groups_size(), KvLayout::kGroupsMax);
  }
  KvLayout layout;
  layout.dtype = static_cast<KvDtype>(proto.dtype() - 1);
  layout.tokens_per_block = proto.tokens_per_block();
  layout.shard_count = proto.shard_count();
  for (int i = 0; i < proto.groups_size(); ++i) {
    KAVERN_ASSIGN_OR_RETURN(LayerGroup group, FromProto(proto.groups(i), i));
    layout.groups.push_back(group);
  }
  return layout;
}

}  // namespace

absl::StatusOr<NamespaceSpec> FromProto(const v1::NamespaceSpec& proto) {
  NamespaceSpec spec;
  spec.model = proto.model();
  spec.weights_revision = proto.weights_revision();
  spec.adapter = proto.adapter();
  spec.quantization = proto.quantization();
  spec.rope = proto.rope();
  spec.engine_layout = proto.engine_layout();
  spec.epoch = proto.epoch();
  KAVERN_ASSIGN_OR_RETURN(spec.layout, FromProto(proto.layout()));
  KAVERN_RETURN_IF_ERROR(spec.Validate());
  return spec;
}

void ToProto(const NamespaceSpec& spec, v1::NamespaceSpec* proto) {
  proto->set_model(spec.model);
  proto->set_weights_revision(spec.weights_revision);
  proto->set_adapter(spec.adapter);
  proto->set_quantization(spec.quantization);
  proto->set_rope(spec.rope);
  proto->set_engine_layout(spec.engine_layout);
  proto->set_epoch(spec.epoch);
  v1::KvLayout* layout = proto->mutable_layout();
  layout->set_dtype(static_cast<v1::KvDtype>(static_cast<int>(spec.layout.dtype) + 1));
  layout->set_tokens_per_block(spec.layout.tokens_per_block);
  layout->set_shard_count(spec.layout.shard_count);
  for (const LayerGroup& group : spec.layout.groups) {
    v1::LayerGroup* out = layout->add_groups();
    out->set_kind(static_cast<v1::LayerGroupKind>(static_cast<int>(group.kind) + 1));
    out->set_layer_count(group.layer_count);
    out->set_kv_heads(group.kv_heads);
    out->set_head_dim(group.head_dim);
    out->set_window_tokens(group.window_tokens);
    out->set_latent_dim(group.latent_dim);
    out->set_state_bytes(group.state_bytes);
  }
}

absl::StatusOr<NamespaceFingerprint> ParseFingerprint(const std::string& bytes) {
  NamespaceFingerprint fingerprint;
  if (bytes.size() != fingerprint.bytes.size()) {
    return absl::InvalidArgumentError(absl::StrCat("fingerprint: got ", bytes.size(),
                                                   " bytes, expected ", fingerprint.bytes.size()));
  }
  std::memcpy(fingerprint.bytes.data(), bytes.data(), bytes.size());
  return fingerprint;
}

absl::StatusOr<BlockKey> ParseKey(std::string_view field, const std::string& bytes) {
  if (bytes.size() != BlockKey::kSize) {
    return absl::InvalidArgumentError(absl::StrCat(std::string(field), ": got ", bytes.size(),
                                                   " bytes, expected ", BlockKey::kSize));
  }
  BlockKey key;
  std::memcpy(key.bytes.data(), bytes.data(), BlockKey::kSize);
  return key;
}

absl::StatusOr<std::vector<BlockKey>> ParseKeys(const std::string& packed, std::uint64_t keys_max) {
  if (packed.empty() || packed.size() % BlockKey::kSize != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "keys: got ", packed.size(), " bytes, expected a positive multiple of ", BlockKey::kSize));
  }
  if (packed.size() / BlockKey::kSize > keys_max) {
    return absl::InvalidArgumentError(absl::StrCat("keys: got ", packed.size() / BlockKey::kSize,
                                                   " keys, expected at most "
                                                   "keys_per_request_max = ",
                                                   keys_max));
  }
  std::vector<BlockKey> keys(packed.size() / BlockKey::kSize);
  std::memcpy(keys.data(), packed.data(), packed.size());
  return keys;
}

absl::StatusOr<BlockKey> ParseParent(const std::string& bytes,
                                     const NamespaceFingerprint& fingerprint) {
  if (bytes.empty()) return fingerprint.RootKey();
  return ParseKey("parent", bytes);
}

absl::StatusOr<std::optional<tiers::DiskDurability>> ParseDurability(v1::Durability durability,
                                                                     bool has_disk) {
  if (durability == v1::DURABILITY_UNSPECIFIED) return std::nullopt;
  if (!has_disk && (durability == v1::DURABILITY_BATCH || durability == v1::DURABILITY_STRICT)) {
    return absl::InvalidArgumentError(
        "durability: the daemon has no NVMe tier (nvme.devices); expected DURABILITY_NONE");
  }
  switch (durability) {
    case v1::DURABILITY_NONE:
      return tiers::DiskDurability::kNone;
    case v1::DURABILITY_BATCH:
      return tiers::DiskDurability::kBatch;
    case v1::DURABILITY_STRICT:
      return tiers::DiskDurability::kStrict;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("durability: got ", static_cast<int>(durability), ", expected 0 to ",
                       static_cast<int>(v1::DURABILITY_STRICT)));
  }
}

absl::StatusOr<TurnSamples> FromProto(const v1::ReportTimingsRequest& proto) {
  // Before anything is copied.
  const auto count = static_cast<std::size_t>(proto.prefills_size()) +
                     static_cast<std::size_t>(proto.transfers_size());
  if (count > TurnSamples::kMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prefills, transfers: got ", count, ", expected at most ", TurnSamples::kMax, " together"));
  }
  TurnSamples samples;
  for (const v1::PrefillTiming& timing : proto.prefills()) {
    samples.prefills.push_back({timing.begin_token(), timing.end_token(), timing.ms()});
  }
  for (int i = 0; i < proto.transfers_size(); ++i) {
    const v1::TransferTiming& timing = proto.transfers(i);
    if (timing.tier() != v1::TIER_RAM && timing.tier() != v1::TIER_NVME) {
      return absl::InvalidArgumentError(absl::StrCat("transfers[", i, "].tier: got ",
                                                     static_cast<int>(timing.tier()), ", expected ",
                                                     static_cast<int>(v1::TIER_RAM), " (ram) or ",
                                                     static_cast<int>(v1::TIER_NVME), " (nvme)"));
    }
    samples.transfers.push_back({static_cast<Tier>(timing.tier()), timing.bytes(), timing.ms()});
  }
  return samples;
}

void ToProto(const TurnCosts& costs, v1::TurnCosts* proto) {
  v1::PrefillCost* prefill = proto->mutable_prefill();
  prefill->set_samples(costs.prefill.samples);
  prefill->set_measured(costs.prefill.measured);
  prefill->set_fixed_ms(costs.prefill.fixed_ms);
  prefill->set_ms_per_token(costs.prefill.ms_per_token);
  prefill->set_ms_per_square_token(costs.prefill.ms_per_square_token);
  for (int tier = 0; tier < kTierCount; ++tier) {
    const TransferCost& cost = costs.of(static_cast<Tier>(tier));
    if (cost.samples == 0) continue;
    v1::TransferCost* transfer = proto->add_transfers();
    transfer->set_tier(static_cast<v1::Tier>(tier));
    transfer->set_samples(cost.samples);
    transfer->set_measured(cost.measured);
    transfer->set_fixed_ms(cost.fixed_ms);
    transfer->set_ms_per_byte(cost.ms_per_byte);
  }
}

void ToProto(const tiers::Extent& extent, v1::Extent* proto) {
  proto->set_region_id(extent.region->id());
  proto->set_offset(extent.offset);
  proto->set_length(extent.length);
}

void ToProto(const tiers::NamespaceStatus& status, v1::NamespaceStatus* proto) {
  proto->set_fingerprint(Bytes(status.fingerprint));
  proto->set_tenant(status.tenant);
  ToProto(status.spec, proto->mutable_spec());
  proto->set_blocks(status.blocks);
  proto->set_incomplete_blocks(status.incomplete_blocks);
  proto->set_regions(status.regions);
  proto->set_slots(status.slots);
  proto->set_slots_used(status.slots_used);
  proto->set_sessions(status.refs);
  proto->set_fetch_hit_blocks(status.fetch_hit_blocks);
  proto->set_fetch_miss_blocks(status.fetch_miss_blocks);
  proto->set_disk_blocks(status.disk_blocks);
  proto->set_conversations(status.conversations);
  ToProto(status.costs, proto->mutable_costs());
}

void ToProto(const tiers::StoreCounters& counters, v1::Counters* proto) {
  proto->set_store_blocks(counters.store_blocks);
  proto->set_store_bytes(counters.store_bytes);
  proto->set_store_exists_blocks(counters.store_exists_blocks);
  proto->set_store_declined_blocks(counters.store_declined_blocks);
  proto->set_store_raced_blocks(counters.store_raced_blocks);
  proto->set_fetch_hit_blocks(counters.fetch_hit_blocks);
  proto->set_fetch_miss_blocks(counters.fetch_miss_blocks);
  proto->set_fetch_bytes(counters.fetch_bytes);
  proto->set_evicted_blocks(counters.evicted_blocks);
  proto->set_damaged_blocks(counters.damaged_blocks);
  proto->set_orphaned_blocks(counters.orphaned_blocks);
  proto->set_disk_stored_blocks(counters.disk_stored_blocks);
  proto->set_disk_lost_blocks(counters.disk_lost_blocks);
  proto->set_disk_declined_blocks(counters.disk_declined_blocks);
  proto->set_disk_evicted_blocks(counters.disk_evicted_blocks);
  proto->set_promoted_blocks(counters.promoted_blocks);
  proto->set_promotion_failures(counters.promotion_failures);
  proto->set_fetch_disk_blocks(counters.fetch_disk_blocks);
  proto->set_read_ahead_blocks(counters.read_ahead_blocks);
  proto->set_read_ahead_used_blocks(counters.read_ahead_used_blocks);
  proto->set_conversation_updates(counters.conversation_updates);
  proto->set_conversations_ended(counters.conversations_ended);
  proto->set_conversations_displaced(counters.conversations_displaced);
}

void ToProto(const tiers::StoreStatus& status, v1::RamStatus* proto) {
  const tiers::RegionPool::Status& pool = status.pool;
  proto->set_capacity_bytes(pool.capacity_bytes);
  proto->set_populated_bytes(pool.existing_bytes - pool.making_bytes);
  proto->set_assigned_bytes(status.assigned_bytes);
  proto->set_used_bytes(status.used_bytes);
  proto->set_leased_bytes(status.leased_bytes);
  proto->set_retired_bytes(status.RetiredBytes());
  proto->set_huge_page_bytes(pool.huge_page_bytes);
  proto->set_region_bytes(pool.region_bytes);
  proto->set_waiting_for(pool.waiting_for);
}

void ToProto(const tiers::DiskStatus& status, v1::NvmeStatus* proto) {
  proto->set_capacity_bytes(status.capacity_bytes);
  proto->set_used_bytes(status.used_bytes);
  proto->set_blocks(status.blocks);
  proto->set_recovered_blocks(status.recovered_blocks);
  proto->set_recovery_seconds(status.recovery_seconds);
  proto->set_recovering(status.recovering);
  proto->set_recovered_from_headers(status.recovered_from_headers);
  proto->set_write_back_blocks(status.write_back_blocks);
  proto->set_io(status.method);
  proto->set_read_bytes(status.io.read_bytes);
  proto->set_written_bytes(status.io.written_bytes);
  proto->set_read_failures(status.io.read_failures);
  proto->set_write_failures(status.io.write_failures);
  proto->set_damaged_parts(status.io.damaged_parts);
  proto->set_flushes(status.io.flushes);
  proto->set_queue_depth(status.queue_depth);
  proto->set_index_bytes(status.index_bytes);
  proto->set_catalog_bytes(status.catalog_bytes);
  proto->set_write_back_bytes(status.write_back_bytes);
}

std::string PackOutcomes(const std::vector<tiers::StoreOutcome>& outcomes) {
  std::string packed;
  packed.reserve(outcomes.size());
  for (const tiers::StoreOutcome outcome : outcomes) packed.push_back(static_cast<char>(outcome));
  return packed;
}

std::string Bytes(const NamespaceFingerprint& fingerprint) {
  return {reinterpret_cast<const char*>(fingerprint.bytes.data()), fingerprint.bytes.size()};
}

std::string Bytes(const BlockKey& key) {
  return {reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size()};
}

}  // namespace kavern::service
