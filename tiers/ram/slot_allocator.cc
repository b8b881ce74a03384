#include "tiers/ram/slot_allocator.h"

#include <bit>
#include <cassert>

namespace kavern::tiers {

SlotAllocator::SlotAllocator(std::uint32_t slots_per_region) : slots_per_region_(slots_per_region) {
  assert(slots_per_region > 0);
}

RegionOrdinal SlotAllocator::AddRegion() {
  RegionOrdinal ordinal = 0;
  if (free_ordinals_.empty()) {
    ordinal = static_cast<RegionOrdinal>(regions_.size());
    regions_.emplace_back();
  } else {
    ordinal = *free_ordinals_.begin();
    free_ordinals_.erase(free_ordinals_.begin());
  }
  Region& region = regions_[ordinal];
  region = Region{};
  region.present = true;
  region.used_bits.assign((slots_per_region_ + 63) / 64, 0);
  // Bits past the last slot read as used, for ever.
  if (slots_per_region_ % 64 != 0) region.used_bits.back() = ~0ULL << (slots_per_region_ % 64);
  by_use_.insert({0, ordinal});
  ++region_count_;
  return ordinal;
}

void SlotAllocator::RemoveRegion(RegionOrdinal ordinal) {
  Region& region = regions_[ordinal];
  assert(region.present && region.used == 0);
  by_use_.erase({region.used, ordinal});
  region = Region{};
  free_ordinals_.insert(ordinal);
  --region_count_;
}

std::optional<SlotId> SlotAllocator::Allocate() {
  return AllocateOutside(kNoRegion);
}

std::optional<SlotId> SlotAllocator::AllocateOutside(RegionOrdinal avoid) {
  // Full regions sort last; the fullest with room stands just before them.
  auto it = by_use_.lower_bound({slots_per_region_, 0});
  while (it != by_use_.begin()) {
    --it;
    const RegionOrdinal ordinal = it->second;
    if (ordinal != avoid && !regions_[ordinal].draining) return TakeFrom(ordinal);
  }
  return std::nullopt;
}

SlotId SlotAllocator::TakeFrom(RegionOrdinal ordinal) {
  Region& region = regions_[ordinal];
  std::uint32_t word = 0;
  while (region.used_bits[word] == ~0ULL) ++word;
  const auto bit = static_cast<std::uint32_t>(std::countr_one(region.used_bits[word]));
  region.used_bits[word] |= 1ULL << bit;
  SetUsed(ordinal, region.used + 1);
  ++used_;
  return ordinal * slots_per_region_ + word * 64 + bit;
}

bool SlotAllocator::Claim(RegionOrdinal ordinal, std::uint32_t position) {
  Region& region = regions_[ordinal];
  assert(region.present && position < slots_per_region_);
  std::uint64_t& word = region.used_bits[position / 64];
  const std::uint64_t bit = 1ULL << (position % 64);
  if ((word & bit) != 0) return false;
  word |= bit;
  SetUsed(ordinal, region.used + 1);
  ++used_;
  return true;
}

void SlotAllocator::Free(SlotId slot) {
  assert(InUse(slot));
  const RegionOrdinal ordinal = RegionOf(slot);
  const std::uint32_t position = PositionOf(slot);
  Region& region = regions_[ordinal];
  region.used_bits[position / 64] &= ~(1ULL << (position % 64));
  SetUsed(ordinal, region.used - 1);
  --used_;
}

void SlotAllocator::SetUsed(RegionOrdinal ordinal, std::uint32_t used) {
  Region& region = regions_[ordinal];
  by_use_.erase({region.used, ordinal});
  region.used = used;
  by_use_.insert({used, ordinal});
}

void SlotAllocator::SetDraining(RegionOrdinal ordinal, bool draining) {
  regions_[ordinal].draining = draining;
}

bool SlotAllocator::InUse(SlotId slot) const {
  const RegionOrdinal ordinal = RegionOf(slot);
  if (ordinal >= regions_.size() || !regions_[ordinal].present) return false;
  const std::uint32_t position = PositionOf(slot);
  return (regions_[ordinal].used_bits[position / 64] >> (position % 64) & 1) != 0;
}

std::uint32_t SlotAllocator::UsedIn(RegionOrdinal ordinal) const {
  return regions_[ordinal].used;
}

std::vector<SlotId> SlotAllocator::SlotsInUse(RegionOrdinal ordinal) const {
  std::vector<SlotId> slots;
  for (std::uint32_t position = 0; position < slots_per_region_; ++position) {
    const SlotId slot = ordinal * slots_per_region_ + position;
    if (InUse(slot)) slots.push_back(slot);
  }
  return slots;
}

std::vector<RegionOrdinal> SlotAllocator::RegionsByUse() const {
  std::vector<RegionOrdinal> ordinals;
  ordinals.reserve(by_use_.size());
  for (const auto& [used, ordinal] : by_use_) ordinals.push_back(ordinal);
  return ordinals;
}

}  // namespace kavern::tiers
