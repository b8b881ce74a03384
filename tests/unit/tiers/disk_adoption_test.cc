// What recovery believes of blocks that say impossible things of each other: on disk anything may
// be named as a parent. Whatever is adopted can be evicted, or it would be on disk for ever.
//
// Says nothing of what headers look like (disk_format) or of where parts may lie (disk_index_fuzz).

#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "tests/unit/tiers/test_keys.h"
#include "tiers/nvme/block_device.h"
#include "tiers/nvme/disk_index.h"

namespace kavern::tiers {
namespace {

class DiskAdoptionTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kSegmentBytes = std::uint64_t{128} * 1024;  // 15 slots of a page
  static constexpr SegmentId kSegment = {0, 0};
  static constexpr std::uint64_t kEpoch = 77;
  static constexpr std::uint64_t kSlots = 30;

  DiskAdoptionTest() : index_(Options()) {
    fingerprint_.bytes.fill(1);
    EXPECT_TRUE(index_.AdoptSegment({kSegment, kDiskPage, kEpoch}));
  }
  DiskIndex::Options Options() {
    DiskIndex::Options options;
    options.segments = {2};
    options.segment_bytes = kSegmentBytes;
    options.on_evicted = [this](const DiskNamespace&, const BlockKey& key) {
      evicted_.push_back(key);
    };
    options.new_epoch = [this] { return ++last_epoch_; };
    return options;
  }
  // Each in a slot of its own.
  bool Adopt(const BlockKey& key, const BlockKey& parent) {
    const std::uint32_t position = next_position_++;
    return index_.AdoptPart({kSegment, position, kDiskPage, kEpoch}, {.fingerprint = fingerprint_,
                                                                      .key = key,
                                                                      .parent = parent,
                                                                      .part_count = 1,
                                                                      .payload_bytes = kDiskPage,
                                                                      .sequence = position + 1U});
  }
  bool IsThere(const BlockKey& key) {
    return DiskIndex::FindBlock(index_.Find(fingerprint_), key) != kNoBlock;
  }
  // As many as the disk has slots: all that was there before makes room.
  void FillWithOthers() {
    DiskNamespace& ns = index_.Open(fingerprint_, {kDiskPage});
    for (std::uint64_t n = 0; n < kSlots; ++n) {
      const BlockKey key = TestKey(1000 + n);
      const auto room = index_.Reserve(ns, key, fingerprint_.RootKey());
      ASSERT_TRUE(room.has_value()) << "after " << n << " blocks";
      EXPECT_TRUE(index_.Commit(ns, key, fingerprint_.RootKey(), *room,
                                std::vector<std::uint32_t>{0}, 1000 + n));
    }
    EXPECT_EQ(index_.block_count(), kSlots);
    EXPECT_EQ(index_.Audit(), "");
  }

  NamespaceFingerprint fingerprint_;
  std::vector<BlockKey> evicted_;
  std::uint64_t last_epoch_ = kEpoch;
  std::uint32_t next_position_ = 0;
  DiskIndex index_;
};

TEST_F(DiskAdoptionTest, ABlockThatIsItsOwnParentIsVoid) {
  EXPECT_FALSE(Adopt(TestKey(1), TestKey(1)));
  EXPECT_TRUE(Adopt(TestKey(2), fingerprint_.RootKey()));
  index_.FinishAdoption();
  EXPECT_FALSE(IsThere(TestKey(1)));
  EXPECT_TRUE(IsThere(TestKey(2)));
  EXPECT_EQ(index_.used_bytes(), kDiskPage) << "its slot is free";
  EXPECT_EQ(index_.Audit(), "");
}

TEST_F(DiskAdoptionTest, ABlockWhoseKeyIsNoneIsVoid) {
  EXPECT_FALSE(Adopt(BlockKey{}, TestKey(1)));
  EXPECT_FALSE(Adopt(fingerprint_.RootKey(), TestKey(1)));
  index_.FinishAdoption();
  EXPECT_EQ(index_.Find(fingerprint_), nullptr);
  EXPECT_EQ(index_.used_bytes(), 0U);
}

TEST_F(DiskAdoptionTest, SegmentsWithoutABlockAreFreeOnceAllWasTold) {
  EXPECT_TRUE(index_.AdoptSegment({{0, 1}, 2 * kDiskPage, kEpoch}));
  EXPECT_TRUE(Adopt(TestKey(1), fingerprint_.RootKey()));
  EXPECT_EQ(index_.segments_in_use(), 2U);
  index_.FinishAdoption();
  EXPECT_EQ(index_.segments_in_use(), 1U);
  EXPECT_EQ(index_.Audit(), "");
}

// A ring of blocks has no leaf, and leaves are what is evicted.
class RingAdoptionTest : public DiskAdoptionTest, public testing::WithParamInterface<unsigned> {};

TEST_P(RingAdoptionTest, BlocksThatDescendFromEachOtherAllMakeRoom) {
  const unsigned length = GetParam();
  std::vector<BlockKey> ring;
  for (unsigned n = 0; n < length; ++n) ring.push_back(TestKey(n));
  for (unsigned n = 0; n < length; ++n) {
    EXPECT_TRUE(Adopt(ring[n], ring[(n + 1) % length]));
    EXPECT_EQ(index_.Audit(), "");
  }
  index_.FinishAdoption();
  EXPECT_EQ(index_.block_count(), length);
  FillWithOthers();
  EXPECT_THAT(evicted_, testing::UnorderedElementsAreArray(ring));
}

INSTANTIATE_TEST_SUITE_P(Lengths, RingAdoptionTest, testing::Values(2U, 3U, 7U));

}  // namespace
}  // namespace kavern::tiers
