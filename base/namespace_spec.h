// Namespace: everything that must be equal for two workers to share blocks.
#ifndef KAVERN_BASE_NAMESPACE_SPEC_H_
#define KAVERN_BASE_NAMESPACE_SPEC_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/block_key.h"
#include "base/kv_layout.h"

namespace kavern {

// Names are opaque UTF-8 of at most kNameBytesMax bytes. The tenant is not among them: the daemon
// adds it, from the peer's credentials.
struct NamespaceSpec {
  std::string model;             // model id; not empty
  std::string weights_revision;  // commit hash, or a fingerprint of the weight files
  std::string adapter;           // LoRA by content; empty for none
  std::string quantization;      // of weights and KV; empty for none
  std::string rope;              // RoPE parameters as the engine resolved them
  std::string
      engine_layout;  // engine, attention backend and instruction set: who packs the bytes how
  std::uint64_t epoch = 0;  // moved by reset_cache and weight updates
  KvLayout layout;

  static constexpr std::size_t kNameBytesMax = 512;

  // InvalidArgument names the field.
  absl::Status Validate() const;

  friend bool operator==(const NamespaceSpec&, const NamespaceSpec&) = default;
};

// The first 128 bits of a SHA-256 over a canonical serialization of tenant and spec
// (docs/PROTOCOL.md). The spec must be valid.
NamespaceFingerprint Fingerprint(std::string_view tenant, const NamespaceSpec& spec);

}  // namespace kavern

#endif  // KAVERN_BASE_NAMESPACE_SPEC_H_
