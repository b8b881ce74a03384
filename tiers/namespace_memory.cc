// The half of NamespaceStore that deals in regions: taking slots, emptying regions, giving them up.

#include <algorithm>
#include <utility>

#include "tiers/namespace_store.h"

namespace kavern::tiers {
namespace {

// How much one planning step does while it holds the store's lock.
constexpr int kEvictionsPerStep = 64;
constexpr std::size_t kMovesPerStep = 32;
constexpr std::uint64_t kMoveBytesPerStep = std::uint64_t{8} << 20;

}  // namespace

std::optional<SlotId> NamespaceStore::Reserve(std::uint32_t group, UseSequence youngest_victim) {
  std::optional<SlotId> slot = groups_[group].Reserve();
  while (!slot.has_value() && groups_[group].region_count() > 0 && youngest_victim > 0 &&
         EvictNext(youngest_victim)) {
    slot = groups_[group].Reserve();
  }
  return slot;
}

void NamespaceStore::AddRegion(std::uint32_t group, std::shared_ptr<Region> region,
                               SteadyTime now) {
  groups_[group].AddRegion(std::move(region), {.last_use = shared_.last_use, .time = now});
  ++shared_.assigned_regions;
}

std::uint32_t NamespaceStore::region_count() const {
  std::uint32_t count = 0;
  for (const GroupSlots& slots : groups_) count += slots.region_count();
  return count;
}

bool NamespaceStore::HasEmptyMemory() const {
  return index_.size() == 0 && std::all_of(groups_.begin(), groups_.end(),
                                           [](const GroupSlots& s) { return s.used_count() == 0; });
}

void NamespaceStore::RetireIfEmpty() {
  if (!HasEmptyMemory()) return;
  for (std::uint32_t group = 0; group < groups_.size(); ++group) {
    for (const RegionOrdinal ordinal : groups_[group].RegionsByUse()) RetireRegion(group, ordinal);
  }
  if (disk() == nullptr) directory_.Drop();
}

std::optional<NamespaceStore::Surplus> NamespaceStore::FindSurplus(
    std::uint32_t group, SteadyTime granted_before) const {
  const GroupSlots& slots = groups_[group];
  for (const RegionOrdinal ordinal : slots.RegionsByUse()) {
    if (slots.PinnedIn(ordinal) > 0) continue;
    const GroupSlots::Grant& grant = slots.GrantOf(ordinal);
    if (!grant.used && grant.time >= granted_before) continue;
    const std::uint32_t used = slots.UsedIn(ordinal);
    if (used == 0) return Surplus{ordinal, grant.last_use};
    if (const auto oldest = OldestUse(); oldest.has_value()) return Surplus{ordinal, *oldest};
    // Nothing can be evicted, but the region may still be emptied by moving: the last resort.
    if (used <= slots.FreeOutside(ordinal)) return Surplus{ordinal, shared_.last_use};
    return std::nullopt;
  }
  return std::nullopt;
}

NamespaceStore::DrainState NamespaceStore::PlanDrain(std::uint32_t group, RegionOrdinal ordinal,
                                                     std::vector<Move>* moves) {
  GroupSlots& slots = groups_[group];
  slots.SetDraining(ordinal, true);
  const std::uint32_t used_before = slots.UsedIn(ordinal);
  const std::uint64_t free_before = slots.FreeOutside(ordinal);
  const bool evicted_all = !MakeRoomOutside(group, ordinal);
  if (slots.UsedIn(ordinal) == 0) return DrainState::kDrained;
  if (slots.UsedIn(ordinal) > slots.FreeOutside(ordinal)) {
    const bool progress =
        slots.UsedIn(ordinal) < used_before || slots.FreeOutside(ordinal) > free_before;
    return evicted_all && !progress ? DrainState::kBlocked : DrainState::kMoving;
  }
  std::uint64_t bytes = 0;
  for (const SlotId slot : slots.SlotsInUse(ordinal)) {
    if (moves->size() == kMovesPerStep || bytes >= kMoveBytesPerStep) break;
    const GroupSlots::Owner owner = slots.OwnerOf(slot);
    if (slots.PinsOf(slot) > 0 || owner.block == kNoBlock) continue;
    const std::optional<SlotId> to = slots.ReserveOutside(ordinal);
    if (!to.has_value()) break;
    if (!slots.Pin(slot)) break;  // cannot happen: it had no pin
    move_pins_ += 2;
    bytes += slots.slot_bytes();
    moves->push_back({.from = {index_.RefOf(owner.block), slot},
                      .to = *to,
                      .part = owner.part,
                      .source = slots.ExtentOf(slot).bytes(),
                      .destination = slots.ExtentOf(*to).bytes()});
  }
  return moves->empty() ? DrainState::kBlocked : DrainState::kMoving;
}

bool NamespaceStore::MakeRoomOutside(std::uint32_t group, RegionOrdinal ordinal) {
  const GroupSlots& slots = groups_[group];
  for (int evicted = 0; evicted < kEvictionsPerStep; ++evicted) {
    if (slots.UsedIn(ordinal) <= slots.FreeOutside(ordinal)) return true;
    if (!EvictOldest()) return false;
  }
  return true;
}

void NamespaceStore::FinishMoves(std::uint32_t group, std::span<const Move> moves) {
  GroupSlots& slots = groups_[group];
  for (const Move& move : moves) {
    const bool ours_alone = slots.PinsOf(move.from.slot) == 1;
    if (ours_alone && index_.IsAlive(move.from.block)) {
      index_.MovePart(move.from.block.id, move.part, move.to);
      slots.SetOwner(move.to, {move.from.block.id, move.part});
      slots.Disown(move.from.slot);
    }
    slots.Unpin(move.from.slot);
    slots.Unpin(move.to);
    move_pins_ -= 2;
  }
}

void NamespaceStore::RetireRegion(std::uint32_t group, RegionOrdinal ordinal) {
  std::shared_ptr<Region> region = groups_[group].RemoveRegion(ordinal);
  --shared_.assigned_regions;
  shared_.events.OnRegionRetired(region->id());
  shared_.retired_regions.push_back(std::move(region));
}

}  // namespace kavern::tiers
