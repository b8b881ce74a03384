#include "client/cli/replay/payload_pattern.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace kavern::cli {
namespace {

BlockKey Key(std::uint8_t first) {
  BlockKey key;
  for (std::size_t i = 0; i < key.bytes.size(); ++i) {
    key.bytes[i] = static_cast<std::uint8_t>(first + 11 * i);
  }
  return key;
}

std::vector<std::byte> Pattern(const BlockKey& key, std::uint32_t part, std::size_t size) {
  std::vector<std::byte> payload(size);
  FillPattern(key, part, payload);
  return payload;
}

TEST(PayloadPattern, SeesAnySingleDamagedByte) {
  // Every byte of a payload in turn, by one bit and by all bits.
  std::vector<std::byte> payload = Pattern(Key(1), 2, 4096);
  ASSERT_EQ(CountWrongBytes(Key(1), 2, payload), 0u);
  for (std::byte& byte : payload) {
    const std::byte right = byte;
    byte = right ^ std::byte{0x10};
    ASSERT_EQ(CountWrongBytes(Key(1), 2, payload), 1u);
    byte = ~right;
    ASSERT_EQ(CountWrongBytes(Key(1), 2, payload), 1u);
    byte = right;
  }
}

TEST(PayloadPattern, CountsEveryDamagedByte) {
  std::vector<std::byte> payload = Pattern(Key(1), 0, 4096);
  for (std::size_t i = 100; i < 300; ++i) payload[i] ^= std::byte{1};
  EXPECT_EQ(CountWrongBytes(Key(1), 0, payload), 200u);
}

TEST(PayloadPattern, TheBytesOfAnotherKeyPartOrOffsetAreWrong) {
  const std::vector<std::byte> payload = Pattern(Key(1), 0, 4096);
  const std::uint64_t half = payload.size() / 2;
  EXPECT_GT(CountWrongBytes(Key(2), 0, payload), half) << "another block";
  EXPECT_GT(CountWrongBytes(Key(1), 1, payload), half) << "another part";
  std::vector<std::byte> shifted = payload;
  std::rotate(shifted.begin(), shifted.begin() + 8, shifted.end());
  EXPECT_GT(CountWrongBytes(Key(1), 0, shifted), half) << "shifted by a word";
  const std::vector<std::byte> zeros(4096);
  EXPECT_GT(CountWrongBytes(Key(1), 0, zeros), half) << "never written";
}

}  // namespace
}  // namespace kavern::cli
