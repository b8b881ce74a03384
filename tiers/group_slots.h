// The memory of one layer group of one namespace: its regions, and what each of their slots is for.
//
// Not thread-safe: the store's lock guards it.
#ifndef KAVERN_TIERS_GROUP_SLOTS_H_
#define KAVERN_TIERS_GROUP_SLOTS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/kv_layout.h"
#include "tiers/index/block_index.h"
#include "tiers/policy/eviction_policy.h"
#include "tiers/ram/region.h"
#include "tiers/ram/slot_allocator.h"

namespace kavern::tiers {

// A slot is in use while it has an owner (a committed part of a block) or a pin (a lease, or a copy
// in progress), and free otherwise. So a part that is dropped under a lease leaves a slot that only
// pins hold, and the last of them frees it (P4, P5).
class GroupSlots {
 public:
  struct Owner {
    BlockId block = kNoBlock;
    std::uint32_t part = 0;
  };

  // Sizes in bytes: of a part's payload, of the slot around it, and of a region, which holds one
  // slot at least.
  GroupSlots(std::uint64_t part_bytes, std::uint64_t slot_bytes, std::uint64_t region_bytes);

  // ---- Regions ----
  struct Grant {
    UseSequence last_use =
        0;  // of the store at that moment: what the region counts as while it is empty
    SteadyTime time;
    bool used = false;  // a slot of it was reserved since
  };
  RegionOrdinal AddRegion(std::shared_ptr<Region> region, Grant grant);
  // No slot of it may be in use.
  std::shared_ptr<Region> RemoveRegion(RegionOrdinal ordinal);
  // nullptr when there is no such region (any more).
  const Region* RegionAt(RegionOrdinal ordinal) const;
  const Grant& GrantOf(RegionOrdinal ordinal) const { return regions_[ordinal].grant; }
  std::vector<RegionOrdinal> RegionsByUse() const { return allocator_.RegionsByUse(); }
  std::uint32_t UsedIn(RegionOrdinal ordinal) const { return allocator_.UsedIn(ordinal); }
  std::uint32_t PinnedIn(RegionOrdinal ordinal) const { return regions_[ordinal].pinned; }
  std::vector<SlotId> SlotsInUse(RegionOrdinal ordinal) const {
    return allocator_.SlotsInUse(ordinal);
  }
  // Free slots in all regions but this one.
  std::uint64_t FreeOutside(RegionOrdinal ordinal) const;
  void SetDraining(RegionOrdinal ordinal, bool draining) {
    allocator_.SetDraining(ordinal, draining);
  }

  // ---- Slots ----
  // A free slot, which the caller has pinned once; nullopt: none is free.
  std::optional<SlotId> Reserve();
  std::optional<SlotId> ReserveOutside(RegionOrdinal avoid);
  // The slot must be in use and without owner.
  void SetOwner(SlotId slot, Owner owner);
  // Takes the owner away; the slot is free now unless it is pinned.
  void Disown(SlotId slot);
  Owner OwnerOf(SlotId slot) const;

  // The slot must be in use. False, and no pin, when it has as many pins as can be counted.
  [[nodiscard]] bool Pin(SlotId slot);
  void Unpin(SlotId slot);
  std::uint32_t PinsOf(SlotId slot) const { return state(slot).pins; }

  Extent ExtentOf(SlotId slot) const;

  // ---- Sums ----
  std::uint32_t region_count() const { return allocator_.region_count(); }
  std::uint32_t slots_per_region() const { return allocator_.slots_per_region(); }
  std::uint64_t slot_count() const { return allocator_.slot_count(); }
  std::uint64_t used_count() const { return allocator_.used_count(); }
  std::uint64_t free_count() const { return slot_count() - used_count(); }
  std::uint64_t pinned_count() const { return pinned_; }
  std::uint64_t part_bytes() const { return part_bytes_; }
  std::uint64_t slot_bytes() const { return slot_bytes_; }
  std::uint64_t MemoryBytes() const;

  // Recounts; adds the pins of all slots to `pins`. Empty when all is well.
  std::string Audit(std::uint64_t* pins) const;

 private:
  // 8 bytes: there is one for every slot of the node.
  struct SlotState {
    BlockId owner = kNoBlock;
    std::uint32_t pins : 26 = 0;
    std::uint32_t part : 6 = 0;
  };
  static constexpr std::uint32_t kPinsMax = (1U << 26) - 1;
  static_assert(KvLayout::kPartsMax <= 64, "a part index takes 6 bits");

  struct RegionState {
    std::shared_ptr<Region> region;  // shared with the sessions whose clients map it
    Grant grant = {};
    std::uint32_t pinned = 0;  // slots with a pin
    std::vector<SlotState> slots;
  };

  SlotState& state(SlotId slot) {
    return regions_[allocator_.RegionOf(slot)].slots[allocator_.PositionOf(slot)];
  }
  const SlotState& state(SlotId slot) const {
    return regions_[allocator_.RegionOf(slot)].slots[allocator_.PositionOf(slot)];
  }
  void FreeIfUnused(SlotId slot);

  const std::uint64_t part_bytes_;
  const std::uint64_t slot_bytes_;
  SlotAllocator allocator_;
  std::vector<RegionState> regions_;  // by ordinal
  std::uint64_t pinned_ = 0;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_GROUP_SLOTS_H_
