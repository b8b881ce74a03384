// Block keys: what makes two blocks of KV the same block.
//
// A block key is 128 bits of a SHA-256 chained over (parent key, token ids, extra keys). The same
// tokens after the same prefix in the same namespace give the same key in any process, on any
// machine, in any language. docs/PROTOCOL.md specifies the bytes; tests/golden/block_keys.json
// holds vectors that every binding must match.
#ifndef KAVERN_BASE_BLOCK_KEY_H_
#define KAVERN_BASE_BLOCK_KEY_H_

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace kavern {

// 128 bits, compared and printed as bytes. The all-zero key is never produced and means "none".
struct BlockKey {
  std::array<std::uint8_t, 16> bytes{};

  static constexpr std::size_t kSize = 16;

  bool IsZero() const { return *this == BlockKey{}; }
  // 32 lower-case hexadecimal digits.
  std::string ToHex() const;
  static absl::StatusOr<BlockKey> FromHex(std::string_view hex);

  friend auto operator<=>(const BlockKey&, const BlockKey&) = default;

  // The key is a hash already: the table index is eight of its bytes, mixed by absl with its own
  // seed.
  template <typename H>
  friend H AbslHashValue(H state, const BlockKey& key) {
    std::uint64_t word = 0;
    std::memcpy(&word, key.bytes.data(), sizeof(word));
    return H::combine(std::move(state), word);
  }
};
static_assert(sizeof(BlockKey) == BlockKey::kSize);

// 128 bits that stand for everything that changes KV bytes (base/namespace_spec.h). The parent of
// every first block. A type of its own so that it cannot be passed for a block.
struct NamespaceFingerprint {
  std::array<std::uint8_t, 16> bytes{};

  std::string ToHex() const;
  static absl::StatusOr<NamespaceFingerprint> FromHex(std::string_view hex);

  // The parent of the first block of every chain in this namespace.
  BlockKey RootKey() const { return BlockKey{bytes}; }

  friend auto operator<=>(const NamespaceFingerprint&, const NamespaceFingerprint&) = default;
  template <typename H>
  friend H AbslHashValue(H state, const NamespaceFingerprint& fingerprint) {
    return H::combine(std::move(state), BlockKey{fingerprint.bytes});
  }
};

// What else, beside tokens and prefix, changes the KV of one block: the content hash of an image, a
// cache salt. Opaque bytes, at most 4 GiB each; order matters.
using ExtraKeys = std::span<const std::string>;

// Key of the block that holds `tokens` (exactly one block's worth) after `parent`; `parent` is the
// namespace's RootKey() for the first block. Allocates nothing.
BlockKey ComputeBlockKey(const BlockKey& parent, std::span<const std::uint32_t> tokens,
                         ExtraKeys extra_keys = {});

// The keys of one growing conversation, each computed once.
// Not thread-safe.
class BlockKeyChain {
 public:
  // `tokens_per_block` > 0.
  BlockKeyChain(const NamespaceFingerprint& fingerprint, std::uint32_t tokens_per_block);

  // Appends token ids. Every block that this completes gets its key; the rest waits for more
  // tokens.
  void Append(std::span<const std::uint32_t> tokens);

  // Sets the extra keys of block `block_index`, which must not be complete yet (InvalidArgument).
  absl::Status SetExtraKeys(std::size_t block_index, std::vector<std::string> extra_keys);

  // Forgets all tokens from `token_count` on, and the extra keys of the blocks that begin there or
  // later: an edited history. InvalidArgument when there are fewer, or when `token_count` is inside
  // a complete block (its tokens are not kept): cut at a block boundary. Nothing changes then.
  absl::Status Truncate(std::uint64_t token_count);

  std::span<const BlockKey> keys() const { return keys_; }
  std::uint64_t token_count() const { return keys_.size() * tokens_per_block_ + pending_.size(); }
  std::uint32_t tokens_per_block() const { return tokens_per_block_; }

 private:
  void Complete(std::span<const std::uint32_t> tokens);

  BlockKey root_;
  std::uint32_t tokens_per_block_;
  std::vector<BlockKey> keys_;
  std::vector<std::uint32_t> pending_;  // tokens of the block that is not complete yet
  // By block index, until the block's key is computed.
  std::map<std::size_t, std::vector<std::string>> extra_keys_;
};

}  // namespace kavern

#endif  // KAVERN_BASE_BLOCK_KEY_H_
