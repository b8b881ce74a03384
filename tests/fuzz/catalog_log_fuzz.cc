// The look at a log of the catalog that says whether RocksDB would take a damaged record for the
// log's end. The first byte says whether the rest is a block of a log as it is, or describes the
// records of one.
//
// What it does not check: that RocksDB reads its logs so (tests/crash flips the bits of real ones).
#include <algorithm>
#include <vector>

#include "fuzz_input.h"
#include "tiers/nvme/catalog_log.h"

namespace {

using kavern::fuzz::Require;
using kavern::tiers::HasReusedRecord;

constexpr std::size_t kHeaderBytes = 7;

bool IsReused(std::uint8_t type) {
  return type == 5 || type == 6 || type == 7 || type == 8;
}

// Goes through all bytes, and not from record to record.
void AnyBytes(std::span<const std::byte> bytes) {
  const std::vector<std::byte> block(bytes.begin(), bytes.end());
  std::vector<bool> begins(block.size() + kHeaderBytes + 65536);
  begins[0] = true;
  bool expected = false;
  for (std::size_t at = 0; at < block.size(); ++at) {
    if (!begins[at] || block.size() - at < kHeaderBytes) continue;
    const auto byte = [&](std::size_t i) { return std::to_integer<std::uint8_t>(block[at + i]); };
    expected = expected || IsReused(byte(6));
    begins[at + kHeaderBytes + byte(4) + std::size_t{256} * byte(5)] = true;
  }
  Require(HasReusedRecord(block) == expected, "the records are those that the lengths lead to");
}

// What is no type is a six, so that whoever reads a type elsewhere finds a reused record.
void DescribedRecords(kavern::fuzz::Input& input) {
  constexpr std::byte kSix{6};
  const auto cut_bytes = input.Take<std::uint16_t>();
  std::vector<std::byte> block;
  std::vector<std::size_t> reused;  // where they begin
  while (!input.empty() && block.size() + kHeaderBytes <= kavern::tiers::kLogBlockBytes) {
    const auto type = input.Take<std::uint8_t>();
    const std::size_t left = kavern::tiers::kLogBlockBytes - block.size() - kHeaderBytes;
    const std::size_t length = std::min<std::size_t>(input.Take<std::uint16_t>(), left);
    if (IsReused(type)) reused.push_back(block.size());
    block.insert(block.end(), 4, kSix);
    for (const std::size_t byte : {length % 256, length / 256, std::size_t{type}}) {
      block.push_back(static_cast<std::byte>(byte));
    }
    block.insert(block.end(), length, kSix);
  }
  // The last of a file may be cut short. A copy ends where its memory does.
  block.resize(block.size() - std::min<std::size_t>(cut_bytes, block.size()));
  block = std::vector<std::byte>(block.begin(), block.end());
  const bool expected = !reused.empty() && reused.front() + kHeaderBytes <= block.size();
  Require(HasReusedRecord(block) == expected, "the records are those that were written");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kavern::fuzz::Input input(data, size);
  if (input.Take<std::uint8_t>() % 2 == 0) {
    AnyBytes(input.rest());
  } else {
    DescribedRecords(input);
  }
  return 0;
}
