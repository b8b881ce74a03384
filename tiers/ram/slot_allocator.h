// Which slots of which regions are free: the bookkeeping of one size class of one namespace.
//
// A pure state machine. Slots are numbered region_ordinal * slots_per_region + position.
#ifndef KAVERN_TIERS_RAM_SLOT_ALLOCATOR_H_
#define KAVERN_TIERS_RAM_SLOT_ALLOCATOR_H_

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "tiers/index/block_index.h"

namespace kavern::tiers {

// Ordinal of a region among those of one allocator. Ordinals of removed regions are used again.
using RegionOrdinal = std::uint32_t;
inline constexpr RegionOrdinal kNoRegion = 0xffffffff;

class SlotAllocator {
 public:
  explicit SlotAllocator(std::uint32_t slots_per_region);

  RegionOrdinal AddRegion();
  // The region must have no slot in use.
  void RemoveRegion(RegionOrdinal ordinal);

  // A free slot, of the fullest region that has one: so that the emptiest drains. Lowest position
  // first. nullopt when all are in use.
  std::optional<SlotId> Allocate();
  // A free slot outside `avoid`: compaction.
  std::optional<SlotId> AllocateOutside(RegionOrdinal avoid);
  // Takes a certain slot: one that was in use before a restart. False: it is in use.
  bool Claim(RegionOrdinal ordinal, std::uint32_t position);
  void Free(SlotId slot);

  // A region being emptied gives no slots to Allocate.
  void SetDraining(RegionOrdinal ordinal, bool draining);

  bool InUse(SlotId slot) const;
  RegionOrdinal RegionOf(SlotId slot) const { return slot / slots_per_region_; }
  std::uint32_t PositionOf(SlotId slot) const { return slot % slots_per_region_; }
  std::uint32_t UsedIn(RegionOrdinal ordinal) const;
  // Slots in use of one region, ascending.
  std::vector<SlotId> SlotsInUse(RegionOrdinal ordinal) const;

  // Every region, the emptiest first.
  std::vector<RegionOrdinal> RegionsByUse() const;

  std::uint32_t slots_per_region() const { return slots_per_region_; }
  std::uint32_t region_count() const { return region_count_; }
  std::uint64_t slot_count() const {
    return static_cast<std::uint64_t>(region_count_) * slots_per_region_;
  }
  std::uint64_t used_count() const { return used_; }

 private:
  struct Region {
    bool present = false;
    bool draining = false;
    std::uint32_t used = 0;
    std::vector<std::uint64_t> used_bits;
  };

  SlotId TakeFrom(RegionOrdinal ordinal);
  void SetUsed(RegionOrdinal ordinal, std::uint32_t used);

  std::uint32_t slots_per_region_;
  std::uint32_t region_count_ = 0;
  std::uint64_t used_ = 0;
  std::vector<Region> regions_;  // by ordinal
  absl::btree_set<RegionOrdinal> free_ordinals_;
  absl::btree_set<std::pair<std::uint32_t, RegionOrdinal>> by_use_;  // (slots in use, ordinal)
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_RAM_SLOT_ALLOCATOR_H_
