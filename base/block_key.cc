#include "base/block_key.h"

#include <algorithm>
#include <bit>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/sha256.h"

namespace kavern {
namespace {

static_assert(std::endian::native == std::endian::little,
              "token ids are hashed as they lie in memory: little endian");

std::string HexOf(const std::array<std::uint8_t, 16>& bytes) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

absl::StatusOr<std::array<std::uint8_t, 16>> BytesOf(std::string_view hex) {
  const bool digits =
      hex.size() == 32 && std::all_of(hex.begin(), hex.end(), [](char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
      });
  if (!digits) {
    // Whatever a stranger sent is quoted in part only, and escaped.
    const std::string_view quoted = hex.substr(0, 40);
    return absl::InvalidArgumentError(absl::StrCat(
        "got ", hex.size(), " characters, \"",
        absl::CHexEscape(absl::string_view(quoted.data(), quoted.size())),
        hex.size() > quoted.size() ? "..." : "", "\", expected 32 hexadecimal digits"));
  }
  const std::string raw = absl::HexStringToBytes(absl::string_view(hex.data(), hex.size()));
  std::array<std::uint8_t, 16> bytes{};
  std::memcpy(bytes.data(), raw.data(), bytes.size());
  return bytes;
}

}  // namespace

std::string BlockKey::ToHex() const {
  return HexOf(bytes);
}

absl::StatusOr<BlockKey> BlockKey::FromHex(std::string_view hex) {
  auto parsed = BytesOf(hex);
  if (!parsed.ok()) return parsed.status();
  return BlockKey{*parsed};
}

std::string NamespaceFingerprint::ToHex() const {
  return HexOf(bytes);
}

absl::StatusOr<NamespaceFingerprint> NamespaceFingerprint::FromHex(std::string_view hex) {
  auto parsed = BytesOf(hex);
  if (!parsed.ok()) return parsed.status();
  return NamespaceFingerprint{*parsed};
}

BlockKey ComputeBlockKey(const BlockKey& parent, std::span<const std::uint32_t> tokens,
                         ExtraKeys extra_keys) {
  // A short message is put together here and hashed in one piece. Of a long one the first 64 bytes
  // are: SHA-256 then takes this and the rest of the tokens straight from where they lie, block by
  // block, and copies nothing into a buffer of its own.
  struct Head {
    std::array<std::uint8_t, 16> parent;
    std::uint32_t token_count;
    std::uint32_t extra_key_count;
    std::array<std::uint32_t, 26> tokens;
  };
  static_assert(sizeof(Head) == 128);
  constexpr std::size_t kTokensOfFirst64Bytes = 10;
  Head head;
  head.parent = parent.bytes;
  head.token_count = static_cast<std::uint32_t>(tokens.size());
  head.extra_key_count = static_cast<std::uint32_t>(extra_keys.size());
  const std::size_t head_tokens =
      tokens.size() <= head.tokens.size() ? tokens.size() : kTokensOfFirst64Bytes;
  std::copy_n(tokens.begin(), head_tokens, head.tokens.begin());

  Sha256 hash;
  hash.Update(&head, offsetof(Head, tokens) + head_tokens * sizeof(std::uint32_t));
  const std::span<const std::uint32_t> rest = tokens.subspan(head_tokens);
  if (!rest.empty()) hash.Update(rest.data(), rest.size_bytes());
  for (const std::string& extra : extra_keys) {
    const auto size = static_cast<std::uint32_t>(extra.size());
    hash.Update(&size, sizeof(size));
    hash.Update(extra.data(), extra.size());
  }
  return BlockKey{hash.Finish()};
}

BlockKeyChain::BlockKeyChain(const NamespaceFingerprint& fingerprint,
                             std::uint32_t tokens_per_block)
    : root_(fingerprint.RootKey()), tokens_per_block_(tokens_per_block) {}

void BlockKeyChain::Complete(std::span<const std::uint32_t> tokens) {
  const auto extra = extra_keys_.find(keys_.size());
  keys_.push_back(ComputeBlockKey(keys_.empty() ? root_ : keys_.back(), tokens,
                                  extra == extra_keys_.end() ? ExtraKeys{} : extra->second));
  if (extra != extra_keys_.end()) extra_keys_.erase(extra);
}

void BlockKeyChain::Append(std::span<const std::uint32_t> tokens) {
  if (!pending_.empty()) {
    const std::size_t taken =
        std::min<std::size_t>(tokens.size(), tokens_per_block_ - pending_.size());
    const auto head = tokens.first(taken);
    pending_.insert(pending_.end(), head.begin(), head.end());
    tokens = tokens.subspan(taken);
    if (pending_.size() < tokens_per_block_) return;
    Complete(pending_);
    pending_.clear();
  }
  for (; tokens.size() >= tokens_per_block_; tokens = tokens.subspan(tokens_per_block_)) {
    Complete(tokens.first(tokens_per_block_));
  }
  pending_.assign(tokens.begin(), tokens.end());
}

absl::Status BlockKeyChain::SetExtraKeys(std::size_t block_index,
                                         std::vector<std::string> extra_keys) {
  if (block_index < keys_.size()) {
    return absl::InvalidArgumentError(absl::StrCat("block_index: got ", block_index,
                                                   ", whose key is computed already; expected ",
                                                   keys_.size(), " or more"));
  }
  extra_keys_[block_index] = std::move(extra_keys);
  return absl::OkStatus();
}

absl::Status BlockKeyChain::Truncate(std::uint64_t new_token_count) {
  const std::uint64_t complete = keys_.size() * tokens_per_block_;
  if (new_token_count > token_count()) {
    return absl::InvalidArgumentError(
        absl::StrCat("token_count: got ", new_token_count, ", expected at most ", token_count()));
  }
  if (new_token_count < complete && new_token_count % tokens_per_block_ != 0) {
    return absl::InvalidArgumentError(absl::StrCat("token_count: got ", new_token_count,
                                                   ", expected a multiple of ", tokens_per_block_,
                                                   " tokens or at least ", complete));
  }
  pending_.resize(new_token_count > complete ? new_token_count - complete : 0);
  keys_.resize(new_token_count / tokens_per_block_);
  extra_keys_.erase(extra_keys_.lower_bound(keys_.size() + (pending_.empty() ? 0 : 1)),
                    extra_keys_.end());
  return absl::OkStatus();
}

}  // namespace kavern
