// Reads all slots of one segment and says what each is. Part of StoreInspector::Verify.
#ifndef KAVERN_TIERS_NVME_SEGMENT_CHECK_H_
#define KAVERN_TIERS_NVME_SEGMENT_CHECK_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "tiers/nvme/disk_format.h"
#include "tiers/nvme/store_inspector.h"

namespace kavern::tiers {

// Whole pages into memory that is aligned to them. DataLoss: the file ends too early; otherwise
// what the system said.
absl::Status ReadPages(int file, std::uint64_t offset, std::span<std::byte> pages);

struct SegmentCheckInput {
  int file = -1;
  InspectedSegment segment;
  std::uint64_t segment_bytes = 0;
  // The catalog's current entry for the slot at an offset; nullptr: it has none.
  std::function<const disk::SlotHeader*(std::uint64_t offset)> listed;
  bool catalog_is_sound = true;  // false: `listed` knows nothing
  std::function<bool(const disk::SlotHeader&)> is_purged;
  std::function<bool(const disk::SlotHeader&)> is_superseded;
  std::function<void(std::uint64_t bytes)> progress;
};

// Counts and damage of the segment's slots; `void_entries` has those that the slots contradict. The
// payload of what is void is not looked at: nobody will.
StoreVerdict CheckSegment(const SegmentCheckInput& input);

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_SEGMENT_CHECK_H_
