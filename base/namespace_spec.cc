#include "base/namespace_spec.h"

#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/sha256.h"

namespace kavern {
namespace {

// Tags of the canonical serialization; docs/PROTOCOL.md lists them. Never reuse a number.
enum Tag : std::uint8_t {
  kTenant = 1,
  kModel = 2,
  kWeightsRevision = 3,
  kAdapter = 4,
  kQuantization = 5,
  kRope = 6,
  kEngineLayout = 7,
  kEpoch = 8,
  kDtype = 9,
  kTokensPerBlock = 10,
  kShardCount = 11,
  kGroup = 12,
};

void AppendInteger(std::uint64_t value, int bytes, std::string* out) {
  for (int i = 0; i < bytes; ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}

void AppendField(Tag tag, std::string_view value, std::string* out) {
  out->push_back(static_cast<char>(tag));
  AppendInteger(value.size(), 4, out);
  out->append(value);
}

void AppendNumber(Tag tag, std::uint64_t value, int bytes, std::string* out) {
  out->push_back(static_cast<char>(tag));
  AppendInteger(static_cast<std::uint64_t>(bytes), 4, out);
  AppendInteger(value, bytes, out);
}

std::string SerializeGroup(const LayerGroup& group) {
  std::string bytes;
  AppendInteger(static_cast<std::uint8_t>(group.kind), 1, &bytes);
  AppendInteger(group.layer_count, 4, &bytes);
  AppendInteger(group.kv_heads, 4, &bytes);
  AppendInteger(group.head_dim, 4, &bytes);
  AppendInteger(group.window_tokens, 4, &bytes);
  AppendInteger(group.latent_dim, 4, &bytes);
  AppendInteger(group.state_bytes, 8, &bytes);
  return bytes;
}

std::string Serialize(std::string_view tenant, const NamespaceSpec& spec) {
  std::string bytes("kavern.namespace.v1", sizeof("kavern.namespace.v1"));  // with its NUL
  AppendField(kTenant, tenant, &bytes);
  AppendField(kModel, spec.model, &bytes);
  AppendField(kWeightsRevision, spec.weights_revision, &bytes);
  AppendField(kAdapter, spec.adapter, &bytes);
  AppendField(kQuantization, spec.quantization, &bytes);
  AppendField(kRope, spec.rope, &bytes);
  AppendField(kEngineLayout, spec.engine_layout, &bytes);
  AppendNumber(kEpoch, spec.epoch, 8, &bytes);
  AppendNumber(kDtype, static_cast<std::uint8_t>(spec.layout.dtype), 1, &bytes);
  AppendNumber(kTokensPerBlock, spec.layout.tokens_per_block, 4, &bytes);
  AppendNumber(kShardCount, spec.layout.shard_count, 4, &bytes);
  for (const LayerGroup& group : spec.layout.groups) {
    AppendField(kGroup, SerializeGroup(group), &bytes);
  }
  return bytes;
}

}  // namespace

absl::Status NamespaceSpec::Validate() const {
  if (model.empty()) {
    return absl::InvalidArgumentError("model: got \"\", expected the model's id");
  }
  const std::array<std::pair<const char*, const std::string*>, 6> names = {{
      {"model", &model},
      {"weights_revision", &weights_revision},
      {"adapter", &adapter},
      {"quantization", &quantization},
      {"rope", &rope},
      {"engine_layout", &engine_layout},
  }};
  for (const auto& [field, value] : names) {
    if (value->size() > kNameBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": got ", value->size(), " bytes, expected at most ", kNameBytesMax));
    }
  }
  return layout.Validate();
}

NamespaceFingerprint Fingerprint(std::string_view tenant, const NamespaceSpec& spec) {
  const std::string bytes = Serialize(tenant, spec);
  Sha256 hash;
  hash.Update(bytes.data(), bytes.size());
  return NamespaceFingerprint{hash.Finish()};
}

}  // namespace kavern
