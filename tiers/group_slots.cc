#include "tiers/group_slots.h"

#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kavern::tiers {

GroupSlots::GroupSlots(std::uint64_t part_bytes, std::uint64_t slot_bytes,
                       std::uint64_t region_bytes)
    : part_bytes_(part_bytes),
      slot_bytes_(slot_bytes),
      allocator_(static_cast<std::uint32_t>(region_bytes / slot_bytes)) {}

RegionOrdinal GroupSlots::AddRegion(std::shared_ptr<Region> region, Grant grant) {
  const RegionOrdinal ordinal = allocator_.AddRegion();
  if (ordinal >= regions_.size()) regions_.resize(ordinal + 1);
  RegionState& added = regions_[ordinal];
  added.region = std::move(region);
  added.grant = grant;
  added.slots.resize(allocator_.slots_per_region());
  return ordinal;
}

std::shared_ptr<Region> GroupSlots::RemoveRegion(RegionOrdinal ordinal) {
  assert(allocator_.UsedIn(ordinal) == 0);
  allocator_.RemoveRegion(ordinal);
  RegionState removed = std::exchange(regions_[ordinal], RegionState{});
  while (!regions_.empty() && regions_.back().region == nullptr) regions_.pop_back();
  return std::move(removed.region);
}

const Region* GroupSlots::RegionAt(RegionOrdinal ordinal) const {
  return ordinal < regions_.size() ? regions_[ordinal].region.get() : nullptr;
}

std::uint64_t GroupSlots::FreeOutside(RegionOrdinal ordinal) const {
  return free_count() - (slots_per_region() - UsedIn(ordinal));
}

std::optional<SlotId> GroupSlots::Reserve() {
  return ReserveOutside(kNoRegion);
}

std::optional<SlotId> GroupSlots::ReserveOutside(RegionOrdinal avoid) {
  const std::optional<SlotId> slot =
      avoid == kNoRegion ? allocator_.Allocate() : allocator_.AllocateOutside(avoid);
  if (!slot.has_value()) return std::nullopt;
  state(*slot).pins = 1;
  RegionState& region = regions_[allocator_.RegionOf(*slot)];
  region.grant.used = true;
  ++region.pinned;
  ++pinned_;
  return slot;
}

void GroupSlots::SetOwner(SlotId slot, Owner owner) {
  SlotState& entry = state(slot);
  assert(allocator_.InUse(slot) && entry.owner == kNoBlock);
  entry.owner = owner.block;
  entry.part = owner.part & 63U;
}

void GroupSlots::Disown(SlotId slot) {
  state(slot).owner = kNoBlock;
  FreeIfUnused(slot);
}

GroupSlots::Owner GroupSlots::OwnerOf(SlotId slot) const {
  const SlotState& entry = state(slot);
  return {entry.owner, entry.part};
}

bool GroupSlots::Pin(SlotId slot) {
  SlotState& entry = state(slot);
  assert(allocator_.InUse(slot));
  if (entry.pins == kPinsMax) return false;
  if (entry.pins == 0) {
    ++regions_[allocator_.RegionOf(slot)].pinned;
    ++pinned_;
  }
  entry.pins = (entry.pins + 1) & kPinsMax;
  return true;
}

void GroupSlots::Unpin(SlotId slot) {
  SlotState& entry = state(slot);
  assert(entry.pins > 0);
  entry.pins = (entry.pins - 1) & kPinsMax;
  if (entry.pins > 0) return;
  --regions_[allocator_.RegionOf(slot)].pinned;
  --pinned_;
  FreeIfUnused(slot);
}

void GroupSlots::FreeIfUnused(SlotId slot) {
  const SlotState& entry = state(slot);
  if (entry.owner == kNoBlock && entry.pins == 0) allocator_.Free(slot);
}

Extent GroupSlots::ExtentOf(SlotId slot) const {
  Region* region = regions_[allocator_.RegionOf(slot)].region.get();
  return {region, allocator_.PositionOf(slot) * slot_bytes_, part_bytes_};
}

std::uint64_t GroupSlots::MemoryBytes() const {
  std::uint64_t bytes = regions_.capacity() * sizeof(RegionState);
  for (const RegionState& region : regions_) bytes += region.slots.capacity() * sizeof(SlotState);
  return bytes;
}

std::string GroupSlots::Audit(std::uint64_t* pins) const {
  std::uint64_t pinned = 0;
  std::uint64_t used = 0;
  for (RegionOrdinal ordinal = 0; ordinal < regions_.size(); ++ordinal) {
    const RegionState& region = regions_[ordinal];
    if (region.region == nullptr) continue;
    std::uint32_t pinned_here = 0;
    for (std::uint32_t position = 0; position < region.slots.size(); ++position) {
      const SlotState& entry = region.slots[position];
      const SlotId slot = ordinal * slots_per_region() + position;
      const bool held = entry.owner != kNoBlock || entry.pins > 0;
      if (held != allocator_.InUse(slot)) {
        return absl::StrCat("slot ", slot, held ? " is held but free" : " is in use by nobody");
      }
      used += held ? 1 : 0;
      pinned_here += entry.pins > 0 ? 1 : 0;
      *pins += entry.pins;
    }
    if (pinned_here != region.pinned) {
      return absl::StrCat("region ", ordinal, " counts ", region.pinned, " pinned slots, has ",
                          pinned_here);
    }
    pinned += pinned_here;
  }
  if (used != used_count()) return absl::StrCat(used_count(), " slots counted, ", used, " in use");
  if (pinned != pinned_) return absl::StrCat(pinned_, " pins counted, ", pinned, " slots pinned");
  return "";
}

}  // namespace kavern::tiers
