#include "tiers/nvme/disk_slots.h"

#include <cassert>

#include "absl/strings/str_cat.h"

namespace kavern::tiers {

DiskSlots::DiskSlots(std::uint64_t slot_bytes, std::uint32_t slots_per_segment)
    : slot_bytes_(slot_bytes), allocator_(slots_per_segment) {}

RegionOrdinal DiskSlots::AddSegment(SegmentId segment, std::uint64_t epoch) {
  const RegionOrdinal ordinal = allocator_.AddRegion();
  if (ordinal >= segments_.size()) segments_.resize(ordinal + 1);
  segments_[ordinal] = {segment, epoch, 0, std::vector<State>(allocator_.slots_per_region())};
  return ordinal;
}

void DiskSlots::RemoveSegment(RegionOrdinal ordinal) {
  allocator_.RemoveRegion(ordinal);
  segments_[ordinal] = {};
}

std::vector<RegionOrdinal> DiskSlots::SegmentsOf(std::uint32_t device) const {
  std::vector<RegionOrdinal> ordinals = allocator_.RegionsByUse();
  std::erase_if(ordinals,
                [&](RegionOrdinal ordinal) { return segments_[ordinal].id.device != device; });
  return ordinals;
}

std::optional<RegionOrdinal> DiskSlots::EmptiestUnpinned() const {
  for (const RegionOrdinal ordinal : allocator_.RegionsByUse()) {
    if (segments_[ordinal].pinned == 0) return ordinal;
  }
  return std::nullopt;
}

std::vector<RegionOrdinal> DiskSlots::EmptySegments() const {
  std::vector<RegionOrdinal> empty;
  for (const RegionOrdinal ordinal : allocator_.RegionsByUse()) {
    if (!allocator_.SlotsInUse(ordinal).empty()) break;
    empty.push_back(ordinal);
  }
  return empty;
}

std::optional<SlotId> DiskSlots::Reserve() {
  const std::optional<SlotId> slot = allocator_.Allocate();
  if (slot.has_value()) {
    ++state(*slot).pins;
    ++segments_[allocator_.RegionOf(*slot)].pinned;
  }
  return slot;
}

bool DiskSlots::Claim(RegionOrdinal ordinal, std::uint32_t position, Owner owner) {
  if (position >= allocator_.slots_per_region() || !allocator_.Claim(ordinal, position)) {
    return false;
  }
  segments_[ordinal].slots[position].owner = owner;
  return true;
}

void DiskSlots::SetOwner(SlotId slot, Owner owner) {
  assert(allocator_.InUse(slot) && state(slot).owner.block == kNoBlock);
  state(slot).owner = owner;
}

void DiskSlots::Disown(SlotId slot) {
  state(slot).owner = {};
  if (state(slot).pins == 0) allocator_.Free(slot);
}

void DiskSlots::Pin(SlotId slot) {
  assert(allocator_.InUse(slot));
  if (state(slot).pins++ == 0) ++segments_[allocator_.RegionOf(slot)].pinned;
}

void DiskSlots::Unpin(SlotId slot) {
  assert(state(slot).pins > 0);
  if (--state(slot).pins > 0) return;
  --segments_[allocator_.RegionOf(slot)].pinned;
  if (state(slot).owner.block == kNoBlock) allocator_.Free(slot);
}

DiskPlace DiskSlots::PlaceOf(SlotId slot) const {
  const Segment& segment = segments_[allocator_.RegionOf(slot)];
  return {segment.id, allocator_.PositionOf(slot), slot_bytes_, segment.epoch};
}

std::uint64_t DiskSlots::MemoryBytes() const {
  return segments_.capacity() * sizeof(Segment) + slot_count() * sizeof(State);
}

std::string DiskSlots::Audit(std::uint64_t* owned, std::uint64_t* pins) const {
  std::uint64_t used = 0;
  for (const RegionOrdinal ordinal : allocator_.RegionsByUse()) {
    std::uint32_t pinned = 0;
    for (std::uint32_t position = 0; position < allocator_.slots_per_region(); ++position) {
      const State& slot = segments_[ordinal].slots[position];
      const bool in_use = slot.owner.block != kNoBlock || slot.pins > 0;
      const SlotId id = ordinal * allocator_.slots_per_region() + position;
      if (in_use != allocator_.InUse(id)) {
        return absl::StrCat("disk slot ", id, " is ",
                            in_use ? "in use but not allocated" : "allocated but not in use");
      }
      used += in_use ? 1 : 0;
      pinned += slot.pins > 0 ? 1 : 0;
      *owned += slot.owner.block != kNoBlock ? 1 : 0;
      *pins += slot.pins;
    }
    if (pinned != segments_[ordinal].pinned) {
      return absl::StrCat("disk segment ", ordinal, ": ", pinned, " slots pinned, ",
                          segments_[ordinal].pinned, " were counted");
    }
  }
  if (used != used_count()) {
    return absl::StrCat("disk slots: ", used, " in use, ", used_count(), " were counted");
  }
  return "";
}

}  // namespace kavern::tiers
