#include "tiers/ram/slot_allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

namespace kavern::tiers {
namespace {

TEST(SlotAllocator, WithoutRegionsThereIsNothingToGive) {
  SlotAllocator allocator(8);
  EXPECT_FALSE(allocator.Allocate().has_value());
  EXPECT_EQ(allocator.slot_count(), 0u);
}

TEST(SlotAllocator, EverySlotIsGivenOnceAndNoneBeyondTheLast) {
  // 70 slots a region: the second bitmap word has bits that are no slots.
  SlotAllocator allocator(70);
  allocator.AddRegion();
  allocator.AddRegion();
  std::set<SlotId> given;
  while (const auto slot = allocator.Allocate()) {
    EXPECT_LT(*slot, 140u);
    EXPECT_TRUE(given.insert(*slot).second) << *slot;
  }
  EXPECT_EQ(given.size(), 140u);
  EXPECT_EQ(allocator.used_count(), 140u);
}

TEST(SlotAllocator, AllocationFillsTheFullestRegionSoThatTheEmptiestDrains) {
  // Three regions: 3, 1 and 2 of 4 slots in use.
  SlotAllocator allocator(4);
  for (int i = 0; i < 3; ++i) allocator.AddRegion();
  for (int i = 0; i < 12; ++i) ASSERT_TRUE(allocator.Allocate().has_value());
  for (const SlotId slot : {0u, 4u, 5u, 6u, 8u, 9u}) allocator.Free(slot);

  EXPECT_EQ(allocator.RegionsByUse(), (std::vector<RegionOrdinal>{1, 2, 0}));
  EXPECT_EQ(allocator.Allocate(), SlotId{0});
  EXPECT_EQ(allocator.Allocate(), SlotId{8}) << "the lowest position of the next fullest";
}

TEST(SlotAllocator, ARegionBeingEmptiedGivesNothingAndIsGoneOnceEmpty) {
  // Region 0 has one slot in use and is draining; region 1 is empty.
  SlotAllocator allocator(2);
  const RegionOrdinal old_region = allocator.AddRegion();
  const auto moved = allocator.Allocate();
  allocator.AddRegion();
  allocator.SetDraining(old_region, true);
  const auto target = allocator.AllocateOutside(old_region);
  ASSERT_TRUE(target.has_value());
  EXPECT_NE(allocator.RegionOf(*target), old_region);
  allocator.Free(*moved);
  allocator.RemoveRegion(old_region);
  EXPECT_EQ(allocator.slot_count(), 2u);
  EXPECT_TRUE(allocator.InUse(*target));
  EXPECT_FALSE(allocator.InUse(*moved)) << "a slot of a region that is gone";

  const RegionOrdinal again = allocator.AddRegion();
  EXPECT_EQ(again, old_region) << "ordinals are used again";
  EXPECT_TRUE(allocator.Allocate().has_value());
  EXPECT_EQ(allocator.Allocate().value_or(kNoSlot), *moved) << "draining ended with the region";
}

// The same by search: regions as sets of slots.
class NaiveAllocator {
 public:
  struct Region {
    bool draining = false;
    std::set<std::uint32_t> used;
  };
  explicit NaiveAllocator(std::uint32_t slots) : slots_(slots) {}

  // How full the region is that must give the next slot; nothing when none can.
  std::optional<std::size_t> FullestWithRoom(RegionOrdinal avoid) const {
    std::optional<std::size_t> fullest;
    for (const auto& [ordinal, region] : regions) {
      if (ordinal == avoid || region.draining || region.used.size() == slots_) continue;
      fullest = std::max(fullest.value_or(0), region.used.size());
    }
    return fullest;
  }
  std::uint32_t LowestFree(RegionOrdinal ordinal) const {
    std::uint32_t position = 0;
    while (regions.at(ordinal).used.contains(position)) ++position;
    return position;
  }

  std::map<RegionOrdinal, Region> regions;

 private:
  std::uint32_t slots_;
};

class SlotAllocatorModel : public ::testing::TestWithParam<std::uint32_t> {
 protected:
  void Allocate(RegionOrdinal avoid) {
    const auto fullest = naive_.FullestWithRoom(avoid);
    const auto slot =
        avoid == kNoRegion ? allocator_.Allocate() : allocator_.AllocateOutside(avoid);
    ASSERT_EQ(slot.has_value(), fullest.has_value());
    if (!slot) return;
    auto& region = naive_.regions.at(allocator_.RegionOf(*slot));
    ASSERT_NE(allocator_.RegionOf(*slot), avoid);
    ASSERT_FALSE(region.draining);
    ASSERT_EQ(region.used.size(), *fullest);
    ASSERT_EQ(allocator_.PositionOf(*slot), naive_.LowestFree(allocator_.RegionOf(*slot)));
    region.used.insert(allocator_.PositionOf(*slot));
  }

  void FreeOneOf(RegionOrdinal ordinal) {
    auto& used = naive_.regions.at(ordinal).used;
    if (used.empty()) return;
    const auto position = std::next(used.begin(), static_cast<int>(random_() % used.size()));
    allocator_.Free(ordinal * GetParam() + *position);
    used.erase(position);
  }

  void AddRegion() {
    const RegionOrdinal ordinal = allocator_.AddRegion();
    ASSERT_TRUE(naive_.regions.try_emplace(ordinal).second) << "ordinal given twice";
  }

  void CheckAll() {
    std::uint64_t used = 0;
    std::size_t before = 0;
    for (const RegionOrdinal ordinal : allocator_.RegionsByUse()) {
      const auto& region = naive_.regions.at(ordinal);
      ASSERT_LE(before, region.used.size());
      before = region.used.size();
      used += before;
      ASSERT_EQ(allocator_.UsedIn(ordinal), region.used.size());
      std::vector<SlotId> slots;
      for (const std::uint32_t position : region.used) {
        slots.push_back(ordinal * GetParam() + position);
      }
      ASSERT_EQ(allocator_.SlotsInUse(ordinal), slots);
    }
    ASSERT_EQ(allocator_.RegionsByUse().size(), naive_.regions.size());
    ASSERT_EQ(allocator_.region_count(), naive_.regions.size());
    ASSERT_EQ(allocator_.used_count(), used);
  }

  RegionOrdinal AnyRegion() {
    return std::next(naive_.regions.begin(), static_cast<int>(random_() % naive_.regions.size()))
        ->first;
  }

  static constexpr unsigned kSeed = 20262;
  std::mt19937 random_{kSeed};
  SlotAllocator allocator_{GetParam()};
  NaiveAllocator naive_{GetParam()};
};

TEST_P(SlotAllocatorModel, RandomOperationsAgreeWithASearch) {
  // Up to ten regions that come, drain and go while slots are given and taken back.
  SCOPED_TRACE(kSeed);
  int removed = 0;
  for (int step = 0; step < 20'000; ++step) {
    SCOPED_TRACE(step);
    const auto choice = random_() % 100;
    if (naive_.regions.empty() || (choice < 3 && naive_.regions.size() < 10)) {
      AddRegion();
    } else if (choice < 8) {
      const RegionOrdinal ordinal = AnyRegion();
      naive_.regions[ordinal].draining = !naive_.regions[ordinal].draining;
      allocator_.SetDraining(ordinal, naive_.regions[ordinal].draining);
    } else if (choice < 12) {
      const RegionOrdinal ordinal = AnyRegion();
      if (naive_.regions[ordinal].used.empty()) {
        allocator_.RemoveRegion(ordinal);
        naive_.regions.erase(ordinal);
        ++removed;
      }
    } else if (choice < 55) {
      FreeOneOf(AnyRegion());
    } else {
      Allocate(choice < 60 ? AnyRegion() : kNoRegion);
    }
    if (HasFatalFailure()) return;
    CheckAll();
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(removed, 10);
}

INSTANTIATE_TEST_SUITE_P(SlotsPerRegion, SlotAllocatorModel, ::testing::Values(1, 3, 64, 65, 130));

}  // namespace
}  // namespace kavern::tiers
