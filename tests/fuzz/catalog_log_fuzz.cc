// The look at a log of the catalog that says whether RocksDB would take damage for the log's end.
// The first byte says whether the rest is a block of a log as it is, two of them, or describes the
// records of one.
//
// What it does not check: that RocksDB reads its logs so (tests/crash flips the bits of real ones).
#include <algorithm>
#include <vector>

#include "fuzz_input.h"
#include "tiers/nvme/catalog_log.h"

namespace {

using kavern::fuzz::Require;
using kavern::tiers::CatalogLogCheck;

constexpr std::size_t kHeaderBytes = 7;

bool IsReused(std::uint8_t type) {
  return type == 5 || type == 6 || type == 7 || type == 8;
}

bool IsFine(std::span<const std::byte> block) {
  return CatalogLogCheck().Next(block).empty();
}

// Goes through all bytes, and not from record to record. `ended`: by zeros, in an earlier block.
bool ExpectFine(std::span<const std::byte> block, bool* ended) {
  std::vector<bool> begins(block.size() + kHeaderBytes + 65536);
  begins[0] = true;
  for (std::size_t at = 0; at < block.size(); ++at) {
    const auto byte = [&](std::size_t i) { return std::to_integer<std::uint8_t>(block[at + i]); };
    if (*ended) {
      if (byte(0) != 0) return false;
      continue;
    }
    if (!begins[at] || block.size() - at < kHeaderBytes) continue;
    if (IsReused(byte(6))) return false;
    if (byte(4) == 0 && byte(5) == 0 && byte(6) == 0) {
      *ended = true;
      if (byte(0) != 0) return false;
    }
    begins[at + kHeaderBytes + byte(4) + std::size_t{256} * byte(5)] = true;
  }
  return true;
}

void AnyBytes(std::span<const std::byte> bytes) {
  const std::vector<std::byte> block(bytes.begin(), bytes.end());
  bool ended = false;
  Require(IsFine(block) == ExpectFine(block, &ended),
          "the records are those that the lengths lead to");
}

// What ended in the first block must not go on in the second.
void TwoBlocks(kavern::fuzz::Input& input) {
  const auto cut = input.Take<std::uint16_t>();
  const std::vector<std::byte> bytes(input.rest().begin(), input.rest().end());
  const auto first = std::span(bytes).first(std::min<std::size_t>(cut, bytes.size()));
  const auto second = std::span(bytes).subspan(first.size());
  CatalogLogCheck check;
  bool ended = false;
  const bool expected = ExpectFine(first, &ended);
  Require(check.Next(first).empty() == expected, "the first block is as good as if it were alone");
  if (expected) {
    Require(check.Next(second).empty() == ExpectFine(second, &ended),
            "the second block is looked at after the first");
  }
}

// What is no type is a six, so that whoever reads a type elsewhere finds a reused record.
void DescribedRecords(kavern::fuzz::Input& input) {
  constexpr std::byte kSix{6};
  const auto cut_bytes = input.Take<std::uint16_t>();
  std::vector<std::byte> block;
  std::vector<std::size_t> bad;  // where they begin
  while (!input.empty() && block.size() + kHeaderBytes <= kavern::tiers::kLogBlockBytes) {
    const auto type = input.Take<std::uint8_t>();
    const std::size_t left = kavern::tiers::kLogBlockBytes - block.size() - kHeaderBytes;
    const std::size_t length = std::min<std::size_t>(input.Take<std::uint16_t>(), left);
    if (IsReused(type) || (type == 0 && length == 0)) bad.push_back(block.size());
    block.insert(block.end(), 4, kSix);
    for (const std::size_t byte : {length % 256, length / 256, std::size_t{type}}) {
      block.push_back(static_cast<std::byte>(byte));
    }
    block.insert(block.end(), length, kSix);
  }
  // The last of a file may be cut short. A copy ends where its memory does.
  block.resize(block.size() - std::min<std::size_t>(cut_bytes, block.size()));
  block = std::vector<std::byte>(block.begin(), block.end());
  // A record of no type and no length has a checksum of sixes: no zeros, where all of it is there.
  const bool wrong = !bad.empty() && bad.front() + kHeaderBytes <= block.size();
  Require(IsFine(block) == !wrong, "the records are those that were written");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kavern::fuzz::Input input(data, size);
  const auto kind = input.Take<std::uint8_t>();
  if (kind == 2) {
    TwoBlocks(input);
  } else if (kind % 2 == 0) {
    AnyBytes(input.rest());
  } else {
    DescribedRecords(input);
  }
  return 0;
}
