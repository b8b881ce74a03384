// Which write of a block counts: of all that a disk holds, the last that is whole. What recovery
// decides while it fills an index (DiskIndex::AdoptPart), of headers alone.
#ifndef KAVERN_TIERS_NVME_LIVE_WRITES_H_
#define KAVERN_TIERS_NVME_LIVE_WRITES_H_

#include <cstdint>
#include <functional>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/block_key.h"
#include "tiers/nvme/disk_format.h"

namespace kavern::tiers {

// Not thread-safe.
class LiveWrites {
 public:
  // Each part once, none that is void by segment, epoch or purge.
  void Add(const disk::SlotHeader& header);

  // Of everything that was added: a later write of the block is whole, so this part is void.
  bool IsSuperseded(const disk::SlotHeader& header) const;
  // `whole`: some write of the block is.
  void ForEachBlock(
      const std::function<void(const NamespaceFingerprint&, bool whole)>& block) const;

 private:
  using Block = std::pair<NamespaceFingerprint, BlockKey>;
  using Write = std::tuple<NamespaceFingerprint, BlockKey, std::uint64_t>;  // sequence
  static constexpr std::uint64_t kNoWrite = 0;  // sequences begin behind it

  absl::flat_hash_map<Write, std::uint32_t> parts_;  // of writes that are not whole yet
  absl::flat_hash_map<Block, std::uint64_t> live_;   // sequence of the last whole write
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_LIVE_WRITES_H_
