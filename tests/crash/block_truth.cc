#include "tests/crash/block_truth.h"

#include <cstring>

#include "tests/unit/tiers/store_fixture.h"

namespace kavern::tiers {
namespace {

constexpr std::uint64_t kBlocksPerNamespace = 1'000'000;

std::uint64_t Mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

std::uint64_t WordAt(const BlockName& name, std::uint32_t part, std::uint64_t version,
                     std::uint64_t offset) {
  const std::uint64_t block = name.ns * kBlocksPerNamespace + name.n;
  return Mix(Mix(Mix(block * 16 + part) ^ version) + offset);
}

}  // namespace

BlockKey KeyOf(const BlockName& name) {
  return KeyOf(name.ns * kBlocksPerNamespace + name.n + 1);
}

void FillBytes(std::span<std::byte> bytes, const BlockName& name, std::uint32_t part,
               std::uint64_t version) {
  for (std::size_t at = 0; at < bytes.size(); at += 8) {
    const std::uint64_t word = WordAt(name, part, version, at);
    std::memcpy(bytes.data() + at, &word, 8);
  }
}

Verdict BlockTruth::Judge(const BlockName& name, std::uint32_t part,
                          std::span<const std::byte> bytes) const {
  const auto known = versions_.find(name);
  if (known == versions_.end()) return Verdict::kWrong;
  std::uint64_t first = 0;
  std::memcpy(&first, bytes.data(), 8);
  for (const std::uint64_t version : known->second) {
    if (WordAt(name, part, version, 0) != first) continue;
    for (std::size_t at = 0; at < bytes.size(); at += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes.data() + at, 8);
      if (word != WordAt(name, part, version, at)) return Verdict::kWrong;
    }
    const auto purged = purged_.find(name.ns);
    return purged != purged_.end() && version <= purged->second ? Verdict::kResurrected
                                                                : Verdict::kRight;
  }
  return Verdict::kWrong;
}

}  // namespace kavern::tiers
