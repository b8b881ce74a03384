// Slots of one size on all devices: which segments have them, and what each is for.
//
// Not thread-safe: the store's lock guards it. Does no I/O.
#ifndef KAVERN_TIERS_NVME_DISK_SLOTS_H_
#define KAVERN_TIERS_NVME_DISK_SLOTS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "tiers/index/block_index.h"
#include "tiers/nvme/disk_part.h"
#include "tiers/ram/slot_allocator.h"

namespace kavern::tiers {

struct DiskNamespace;

// A slot is in use while it has an owner (a part of a block) or a pin (I/O in progress), and free
// otherwise.
class DiskSlots {
 public:
  struct Owner {
    DiskNamespace* ns = nullptr;
    BlockId block = kNoBlock;
    std::uint32_t part = 0;
  };

  // `slots_per_segment` > 0.
  DiskSlots(std::uint64_t slot_bytes, std::uint32_t slots_per_segment);

  RegionOrdinal AddSegment(SegmentId segment, std::uint64_t epoch);
  // No slot of it may be in use.
  void RemoveSegment(RegionOrdinal ordinal);
  // The emptiest segment without I/O; nullopt: there is none.
  std::optional<RegionOrdinal> EmptiestUnpinned() const;
  // Those without any slot in use.
  std::vector<RegionOrdinal> EmptySegments() const;
  std::vector<SlotId> SlotsInUse(RegionOrdinal ordinal) const {
    return allocator_.SlotsInUse(ordinal);
  }
  SegmentId SegmentAt(RegionOrdinal ordinal) const { return segments_[ordinal].id; }
  std::vector<RegionOrdinal> SegmentsOf(std::uint32_t device) const;
  // It gives no slots to Reserve() from now on.
  void SetDraining(RegionOrdinal ordinal) { allocator_.SetDraining(ordinal, true); }

  // A free slot, pinned once; nullopt: none is free.
  std::optional<SlotId> Reserve();
  SlotId SlotAt(RegionOrdinal ordinal, std::uint32_t position) const {
    return ordinal * allocator_.slots_per_region() + position;
  }
  // Takes a certain slot, without pin. False: it is in use, or there is none.
  bool Claim(RegionOrdinal ordinal, std::uint32_t position, Owner owner);
  void SetOwner(SlotId slot, Owner owner);
  // The slot is free now unless it is pinned.
  void Disown(SlotId slot);
  Owner OwnerOf(SlotId slot) const { return state(slot).owner; }
  void Pin(SlotId slot);
  void Unpin(SlotId slot);

  DiskPlace PlaceOf(SlotId slot) const;
  std::uint64_t slot_bytes() const { return slot_bytes_; }
  std::uint32_t segment_count() const { return allocator_.region_count(); }
  std::uint64_t slot_count() const { return allocator_.slot_count(); }
  std::uint64_t used_count() const { return allocator_.used_count(); }
  std::uint64_t MemoryBytes() const;

  // Recounts: owned slots and pins. Empty when sums agree.
  std::string Audit(std::uint64_t* owned, std::uint64_t* pins) const;

 private:
  struct State {
    Owner owner;
    std::uint32_t pins = 0;
  };
  struct Segment {
    SegmentId id;
    std::uint64_t epoch = 0;
    std::uint32_t pinned = 0;  // slots with a pin
    std::vector<State> slots;
  };

  State& state(SlotId slot) {
    return segments_[allocator_.RegionOf(slot)].slots[allocator_.PositionOf(slot)];
  }
  const State& state(SlotId slot) const {
    return segments_[allocator_.RegionOf(slot)].slots[allocator_.PositionOf(slot)];
  }

  const std::uint64_t slot_bytes_;
  SlotAllocator allocator_;
  std::vector<Segment> segments_;  // by ordinal
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_DISK_SLOTS_H_
