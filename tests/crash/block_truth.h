// What a store may serve: kept outside of it, and of the process that is killed.
#ifndef KAVERN_TESTS_CRASH_BLOCK_TRUTH_H_
#define KAVERN_TESTS_CRASH_BLOCK_TRUTH_H_

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/block_key.h"

namespace kavern::tiers {

// A block of the harness: number `n` of namespace `ns`.
struct BlockName {
  std::uint32_t ns = 0;
  std::uint64_t n = 0;
  friend auto operator<=>(const BlockName&, const BlockName&) = default;
};
BlockKey KeyOf(const BlockName& name);

// Every 8 bytes derive from block, part, version and offset. Each store of a block has a version of
// its own, so that bytes say which store they are from.
void FillBytes(std::span<std::byte> bytes, const BlockName& name, std::uint32_t part,
               std::uint64_t version);

enum class Verdict : std::uint8_t { kRight, kWrong, kResurrected };

class BlockTruth {
 public:
  // The block is about to be stored with these versions' bytes. Versions only grow.
  void Begun(const BlockName& name, std::uint64_t version) { versions_[name].push_back(version); }
  // A purge of the namespace was acknowledged: what was begun with versions up to this one is gone.
  void Purged(std::uint32_t ns, std::uint64_t version) { purged_[ns] = version; }

  Verdict Judge(const BlockName& name, std::uint32_t part, std::span<const std::byte> bytes) const;
  // By name: every block that was ever begun.
  const std::map<BlockName, std::vector<std::uint64_t>>& versions() const { return versions_; }

 private:
  std::map<BlockName, std::vector<std::uint64_t>> versions_;
  std::map<std::uint32_t, std::uint64_t> purged_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_CRASH_BLOCK_TRUTH_H_
