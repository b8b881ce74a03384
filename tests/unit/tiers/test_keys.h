// Keys for tests, made from numbers.
#ifndef KAVERN_TESTS_UNIT_TIERS_TEST_KEYS_H_
#define KAVERN_TESTS_UNIT_TIERS_TEST_KEYS_H_

#include <cstdint>
#include <cstring>

#include "base/block_key.h"

namespace kavern::tiers {

// The first 8 bytes decide a key's home in a directory; the second tell keys of one home apart.
inline BlockKey KeyOfWords(std::uint64_t low, std::uint64_t high) {
  BlockKey key;
  std::memcpy(key.bytes.data(), &low, sizeof(low));
  std::memcpy(key.bytes.data() + sizeof(low), &high, sizeof(high));
  return key;
}

// Distinct keys for distinct numbers, spread like hashes.
inline BlockKey TestKey(std::uint64_t number) {
  std::uint64_t mixed = (number + 1) * 0x9e3779b97f4a7c15;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
  return KeyOfWords(mixed, number + 1);
}

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_UNIT_TIERS_TEST_KEYS_H_
