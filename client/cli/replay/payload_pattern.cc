#include "client/cli/replay/payload_pattern.h"

#include <cstring>

namespace kavern::cli {
namespace {

// word(i) = (a + i * kStep) ^ b with a, b from the key: one add and one xor per word, so that
// generating and checking keep up with memory; kStep is odd, so no two offsets of a block share a
// word.
constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15;

struct Seed {
  std::uint64_t a;
  std::uint64_t b;

  Seed(const BlockKey& key, std::uint32_t part) {
    std::memcpy(&a, key.bytes.data(), sizeof(a));
    std::memcpy(&b, key.bytes.data() + sizeof(a), sizeof(b));
    b += std::uint64_t{part} * 0xd1342543de82ef95;
  }
  std::uint64_t Word(std::uint64_t index) const { return (a + index * kStep) ^ b; }
};

std::uint64_t DifferingBytes(std::uint64_t x, std::uint64_t y) {
  std::uint64_t count = 0;
  for (std::uint64_t difference = x ^ y; difference != 0; difference >>= 8) {
    count += (difference & 0xff) != 0 ? 1 : 0;
  }
  return count;
}

}  // namespace

void FillPattern(const BlockKey& key, std::uint32_t part, std::span<std::byte> payload) {
  const Seed seed(key, part);
  for (std::size_t i = 0; i < payload.size() / 8; ++i) {
    const std::uint64_t word = seed.Word(i);
    std::memcpy(payload.data() + 8 * i, &word, sizeof(word));
  }
}

std::uint64_t CountWrongBytes(const BlockKey& key, std::uint32_t part,
                              std::span<const std::byte> payload) {
  const Seed seed(key, part);
  // One pass that the compiler can vectorize says whether all is well; the slow count is for when
  // it is not.
  std::uint64_t any = 0;
  for (std::size_t i = 0; i < payload.size() / 8; ++i) {
    std::uint64_t word = 0;
    std::memcpy(&word, payload.data() + 8 * i, sizeof(word));
    any |= word ^ seed.Word(i);
  }
  if (any == 0) return 0;
  std::uint64_t wrong = 0;
  for (std::size_t i = 0; i < payload.size() / 8; ++i) {
    std::uint64_t word = 0;
    std::memcpy(&word, payload.data() + 8 * i, sizeof(word));
    wrong += DifferingBytes(word, seed.Word(i));
  }
  return wrong;
}

}  // namespace kavern::cli
