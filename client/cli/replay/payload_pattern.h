// Payload that describes itself: every 8 bytes derive from the block key, the part and their
// offset, so any reader can verify any byte without an oracle.
#ifndef KAVERN_CLIENT_CLI_REPLAY_PAYLOAD_PATTERN_H_
#define KAVERN_CLIENT_CLI_REPLAY_PAYLOAD_PATTERN_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/block_key.h"

namespace kavern::cli {

// Fills `payload`, whose size is a multiple of 8, with the pattern of (key, part).
void FillPattern(const BlockKey& key, std::uint32_t part, std::span<std::byte> payload);

// How many bytes of `payload` differ from the pattern of (key, part).
std::uint64_t CountWrongBytes(const BlockKey& key, std::uint32_t part,
                              std::span<const std::byte> payload);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_REPLAY_PAYLOAD_PATTERN_H_
