#include "tiers/nvme/live_writes.h"

#include <algorithm>

namespace kavern::tiers {

void LiveWrites::Add(const disk::SlotHeader& header) {
  const NamespaceFingerprint fingerprint{header.fingerprint};
  const BlockKey key{header.key};
  std::uint64_t& live = live_[{fingerprint, key}];
  if (header.part_count > 1) {
    const Write write = {fingerprint, key, header.sequence};
    if (++parts_[write] < header.part_count) return;
    parts_.erase(write);
  }
  live = std::max(live, header.sequence);
}

bool LiveWrites::IsSuperseded(const disk::SlotHeader& header) const {
  const auto live = live_.find({NamespaceFingerprint{header.fingerprint}, BlockKey{header.key}});
  return live != live_.end() && header.sequence < live->second;
}

void LiveWrites::ForEachBlock(
    const std::function<void(const NamespaceFingerprint&, bool whole)>& block) const {
  for (const auto& [whose, sequence] : live_) block(whose.first, sequence != kNoWrite);
}

}  // namespace kavern::tiers
