// Which write of a block counts, where the disk holds several of them.

#include "tiers/nvme/live_writes.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "tests/unit/tiers/test_keys.h"
#include "tiers/nvme/block_device.h"
#include "tiers/nvme/disk_index.h"

namespace kavern::tiers {
namespace {

using testing::Pair;
using testing::UnorderedElementsAre;

NamespaceFingerprint Whose(std::uint8_t n) {
  NamespaceFingerprint fingerprint;
  fingerprint.bytes.fill(n);
  return fingerprint;
}

disk::SlotHeader PartOf(std::uint64_t key, std::uint64_t sequence, std::uint32_t part = 0,
                        std::uint32_t part_count = 1, std::uint8_t whose = 1) {
  disk::SlotHeader header = {};
  header.fingerprint = Whose(whose).bytes;
  header.key = TestKey(key).bytes;
  header.part = part;
  header.part_count = part_count;
  header.payload_bytes = kDiskPage;
  header.sequence = sequence;
  return header;
}

std::multimap<NamespaceFingerprint, bool> BlocksOf(const LiveWrites& live) {
  std::multimap<NamespaceFingerprint, bool> blocks;
  live.ForEachBlock([&](const NamespaceFingerprint& fingerprint, bool whole) {
    blocks.emplace(fingerprint, whole);
  });
  return blocks;
}

TEST(LiveWritesTest, TheLaterOfTwoWritesCountsInWhicheverOrderTheyAreMet) {
  LiveWrites live;
  live.Add(PartOf(1, 20));
  live.Add(PartOf(1, 10));
  live.Add(PartOf(2, 5));
  live.Add(PartOf(2, 6));
  EXPECT_TRUE(live.IsSuperseded(PartOf(1, 10)));
  EXPECT_FALSE(live.IsSuperseded(PartOf(1, 20)));
  EXPECT_TRUE(live.IsSuperseded(PartOf(2, 5)));
  EXPECT_FALSE(live.IsSuperseded(PartOf(2, 6)));
  EXPECT_THAT(BlocksOf(live), UnorderedElementsAre(Pair(Whose(1), true), Pair(Whose(1), true)));
}

TEST(LiveWritesTest, ALaterWriteThatIsNotWholeSupersedesNothing) {
  LiveWrites live;
  live.Add(PartOf(1, 10, 0, 2));
  live.Add(PartOf(1, 10, 1, 2));
  live.Add(PartOf(1, 20, 1, 2));
  EXPECT_FALSE(live.IsSuperseded(PartOf(1, 10, 0, 2)));
  EXPECT_FALSE(live.IsSuperseded(PartOf(1, 10, 1, 2)));
  EXPECT_THAT(BlocksOf(live), UnorderedElementsAre(Pair(Whose(1), true)));
}

TEST(LiveWritesTest, PartsOfTwoWritesMakeNoBlock) {
  LiveWrites live;
  live.Add(PartOf(1, 10, 0, 2));
  live.Add(PartOf(1, 20, 1, 2));
  EXPECT_FALSE(live.IsSuperseded(PartOf(1, 10, 0, 2)));
  EXPECT_THAT(BlocksOf(live), UnorderedElementsAre(Pair(Whose(1), false)));
}

TEST(LiveWritesTest, TheSameKeyInAnotherNamespaceIsAnotherBlock) {
  LiveWrites live;
  live.Add(PartOf(1, 10));
  live.Add(PartOf(1, 20, 0, 1, 2));
  EXPECT_FALSE(live.IsSuperseded(PartOf(1, 10)));
  EXPECT_THAT(BlocksOf(live), UnorderedElementsAre(Pair(Whose(1), true), Pair(Whose(2), true)));
}

// Five writes of each of six blocks of two parts; of every write a random part may be missing. What
// recovery adopts of them is what counts here.
TEST(LiveWritesTest, RecoveryAgrees) {
  constexpr SegmentId kSegment = {0, 0};
  constexpr std::uint64_t kEpoch = 7;
  std::uint64_t whole_blocks = 0;
  std::uint64_t superseded = 0;
  for (unsigned seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    std::vector<disk::SlotHeader> headers;
    for (std::uint64_t sequence = 1; sequence <= 30; ++sequence) {
      const std::uint32_t missing = random() % 4;  // 2, 3: none
      for (std::uint32_t part = 0; part < 2; ++part) {
        if (part != missing) headers.push_back(PartOf(sequence % 6, sequence, part, 2));
      }
    }
    std::shuffle(headers.begin(), headers.end(), random);

    DiskIndex::Options options;
    options.segments = {1};
    options.segment_bytes = std::uint64_t{1} << 20;
    options.on_evicted = [](const DiskNamespace&, const BlockKey&) {};
    options.new_epoch = [] { return std::uint64_t{8}; };
    DiskIndex index(options);
    ASSERT_TRUE(index.AdoptSegment({kSegment, kDiskPage, kEpoch}));
    LiveWrites live;
    std::uint32_t position = 0;
    for (const disk::SlotHeader& header : headers) {
      live.Add(header);
      index.AdoptPart({kSegment, position++, kDiskPage, kEpoch},
                      {.fingerprint = Whose(1),
                       .key = BlockKey{header.key},
                       .parent = Whose(1).RootKey(),
                       .part = header.part,
                       .part_count = header.part_count,
                       .payload_bytes = header.payload_bytes,
                       .checksum = static_cast<std::uint32_t>(header.sequence),
                       .sequence = header.sequence});
    }
    index.FinishAdoption();

    std::uint64_t whole = 0;
    live.ForEachBlock([&](const NamespaceFingerprint&, bool is_whole) { whole += is_whole; });
    EXPECT_EQ(index.block_count(), whole);
    whole_blocks += whole;
    const DiskNamespace* ns = index.Find(Whose(1));
    for (const disk::SlotHeader& header : headers) {
      const BlockId id = DiskIndex::FindBlock(ns, BlockKey{header.key});
      const std::uint64_t adopted = id == kNoBlock ? 0 : ns->index.PartsOf(id)[0].checksum;
      EXPECT_EQ(live.IsSuperseded(header), header.sequence < adopted);
      superseded += header.sequence < adopted;
    }
  }
  EXPECT_GT(whole_blocks, 0U);
  EXPECT_GT(superseded, 0U);
}

}  // namespace
}  // namespace kavern::tiers
