#include "tiers/directory/directory_segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/tiers/segment_reader.h"
#include "tests/unit/tiers/test_keys.h"

namespace kavern::tiers {
namespace {

using shm::kTierBitNvme;
using shm::kTierBitRam;

constexpr int kKeysPerProbe = shm::kKeysPerBucket * static_cast<int>(shm::kProbeMax);

NamespaceFingerprint TestFingerprint() {
  return {TestKey(77).bytes};
}

std::unique_ptr<DirectorySegment> MakeSegment(std::uint64_t keys_expected) {
  auto segment = DirectorySegment::Create(TestFingerprint(), 5, keys_expected);
  EXPECT_TRUE(segment.ok()) << segment.status();
  return *std::move(segment);
}

SegmentReader ReaderOf(const DirectorySegment& segment) {
  auto mapping = Mapping::Map(segment.fd(), segment.size_bytes(), Mapping::Access::kReadOnly);
  EXPECT_TRUE(mapping.ok()) << mapping.status();
  return SegmentReader(*std::move(mapping));
}

TEST(DirectorySegment, TheHeaderSaysWhatTheSegmentIs) {
  const auto segment = MakeSegment(1000);
  const SegmentReader reader = ReaderOf(*segment);
  EXPECT_EQ(reader.header().magic, shm::kDirectoryMagic);
  EXPECT_EQ(reader.header().version, shm::kShmVersion);
  EXPECT_EQ(reader.header().generation, 5u);
  EXPECT_EQ(reader.header().retired, 0u);
  EXPECT_EQ(std::memcmp(reader.header().fingerprint, TestFingerprint().bytes.data(), 16), 0);
  const std::uint32_t buckets = reader.bucket_count();
  EXPECT_EQ(buckets & (buckets - 1), 0u) << "a power of two";
  EXPECT_EQ(segment->size_bytes(), shm::kDirectoryBucketsOffset + std::uint64_t{buckets} * 64);
  EXPECT_GE(segment->capacity(), 1000u);
}

TEST(DirectorySegment, TakesKeysUpToItsCapacityAndRefusesNextToNoneOnTheWay) {
  // Keys spread like hashes, so many that the table is as full as it may get.
  const auto segment = MakeSegment(12'000);
  std::vector<BlockKey> taken;
  std::uint64_t refused = 0;
  std::uint64_t number = 0;
  while (segment->entries() < segment->capacity()) {
    const BlockKey key = TestKey(number++);
    if (segment->Set(key, kTierBitRam)) {
      taken.push_back(key);
      continue;
    }
    ASSERT_GE(segment->entries(), segment->capacity() / 4 * 3);
    ASSERT_LT(++refused, segment->capacity() / 500);
  }
  EXPECT_FALSE(segment->Set(TestKey(number), kTierBitRam));
  EXPECT_TRUE(segment->Set(taken[0], kTierBitNvme)) << "a key that is in is no new key";

  const SegmentReader reader = ReaderOf(*segment);
  EXPECT_EQ(reader.header().entries, segment->capacity());
  EXPECT_EQ(reader.Lookup(TestKey(number)), 0);
  EXPECT_EQ(reader.Lookup(taken[0]), kTierBitNvme);
  for (std::size_t i = 1; i < taken.size(); ++i) ASSERT_EQ(reader.Lookup(taken[i]), kTierBitRam);
}

TEST(DirectorySegment, KeysOfOneHomeFillTheProbesAndHarmNobodyElse) {
  // A client crafts keys with equal first bytes: 24 fit, the next is refused, another home is
  // unharmed.
  const auto segment = MakeSegment(1000);
  const SegmentReader reader = ReaderOf(*segment);
  for (int i = 0; i < kKeysPerProbe; ++i) ASSERT_TRUE(segment->Set(KeyOfWords(3, i), kTierBitRam));
  EXPECT_FALSE(segment->Set(KeyOfWords(3, kKeysPerProbe), kTierBitRam));
  EXPECT_EQ(reader.Lookup(KeyOfWords(3, kKeysPerProbe)), 0);
  EXPECT_EQ(segment->entries(), static_cast<std::uint64_t>(kKeysPerProbe));
  EXPECT_TRUE(segment->Set(KeyOfWords(100, 1), kTierBitRam));

  segment->Erase(KeyOfWords(3, 0));
  EXPECT_TRUE(segment->Set(KeyOfWords(3, kKeysPerProbe), kTierBitRam)) << "room again";
  for (int i = 1; i <= kKeysPerProbe; ++i) ASSERT_EQ(reader.Lookup(KeyOfWords(3, i)), kTierBitRam);
}

TEST(DirectorySegment, ProbesWrapAroundTheEndOfTheTable) {
  const auto segment = MakeSegment(1);
  const SegmentReader reader = ReaderOf(*segment);
  const std::uint64_t last = reader.bucket_count() - 1;
  for (int i = 0; i < kKeysPerProbe; ++i) {
    ASSERT_TRUE(segment->Set(KeyOfWords(last, i), kTierBitRam)) << i;
  }
  for (int i = 0; i < kKeysPerProbe; ++i)
    EXPECT_EQ(reader.Lookup(KeyOfWords(last, i)), kTierBitRam);
}

TEST(DirectorySegment, SettingNoTierIsErasing) {
  const auto segment = MakeSegment(10);
  ASSERT_TRUE(segment->Set(TestKey(1), kTierBitRam));
  EXPECT_TRUE(segment->Set(TestKey(1), 0));
  EXPECT_EQ(segment->entries(), 0u);
  EXPECT_TRUE(segment->Set(TestKey(2), 0)) << "of a key that is absent, too";
  EXPECT_EQ(segment->entries(), 0u);
}

TEST(DirectorySegment, RefusesToBeLargerThanABucketNumberCanSay) {
  const auto segment = DirectorySegment::Create(TestFingerprint(), 1, UINT64_MAX);
  EXPECT_EQ(segment.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(DirectorySegment, WhoeverStillMapsItSeesThatItIsRetired) {
  // Once by Retire, once because the segment ended; the mapping outlives it.
  auto retired = MakeSegment(10);
  auto ended = MakeSegment(10);
  const SegmentReader first = ReaderOf(*retired);
  const SegmentReader second = ReaderOf(*ended);
  retired->Retire();
  EXPECT_EQ(first.header().retired, 1u);
  EXPECT_EQ(second.header().retired, 0u);
  ended.reset();
  EXPECT_EQ(second.header().retired, 1u);
}

TEST(DirectorySegment, ItsHolderCanNeitherWriteNorResizeIt) {
  // All that a client can try with the descriptor that it was sent.
  const auto segment = MakeSegment(100);
  const std::size_t size = segment->size_bytes();
  EXPECT_EQ(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, segment->fd(), 0), MAP_FAILED);

  void* const readable = mmap(nullptr, size, PROT_READ, MAP_SHARED, segment->fd(), 0);
  ASSERT_NE(readable, MAP_FAILED);
  EXPECT_NE(mprotect(readable, size, PROT_READ | PROT_WRITE), 0);
  munmap(readable, size);

  const char byte = 'x';
  EXPECT_EQ(pwrite(segment->fd(), &byte, 1, 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_NE(ftruncate(segment->fd(), 0), 0);
  EXPECT_NE(ftruncate(segment->fd(), static_cast<off_t>(2 * size)), 0);
  EXPECT_NE(fallocate(segment->fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);

  const std::string path = "/proc/self/fd/" + std::to_string(segment->fd());
  const UniqueFd reopened(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (reopened.valid()) {
    EXPECT_EQ(pwrite(reopened.get(), &byte, 1, 0), -1);
    EXPECT_EQ(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, reopened.get(), 0),
              MAP_FAILED);
    EXPECT_NE(ftruncate(reopened.get(), 0), 0);
  }
  EXPECT_TRUE(segment->Set(TestKey(1), kTierBitRam)) << "the daemon still can";
}

TEST(DirectorySegment, AReaderNeverSeesHalfOfAChange) {
  // One slot changes between keys without pause; tiers and both halves of each key belong together.
  // The reader goes on until it has seen many changes, so both threads ran.
  const auto segment = MakeSegment(10);
  const SegmentReader reader = ReaderOf(*segment);
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (std::uint64_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
      const std::uint64_t number = i % 250;
      const BlockKey key = KeyOfWords(number << 32, ~number);
      ASSERT_TRUE(segment->Set(key, static_cast<std::uint8_t>(number + 1)));
      segment->Erase(key);
    }
  });
  int present = 0;
  std::uint64_t different = 0;
  std::uint64_t previous = 0;
  while (present < 5'000 || different < 100) {
    const auto bucket = reader.ReadBucket(0);
    if (!bucket || bucket->tiers[0] == 0) continue;
    std::uint64_t low = 0;
    std::uint64_t high = 0;
    std::memcpy(&low, bucket->keys[0], sizeof(low));
    std::memcpy(&high, bucket->keys[0] + sizeof(low), sizeof(high));
    if (high != ~(low >> 32) || bucket->tiers[0] != (low >> 32) + 1) {
      ADD_FAILURE() << "torn: " << low << " " << high << " " << int{bucket->tiers[0]};
      break;
    }
    ++present;
    different += low != previous;
    previous = low;
  }
  stop = true;
  writer.join();
}

}  // namespace
}  // namespace kavern::tiers
