// The reader of a segment that may hold anything.
#include "client/directory_reader.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace kavern::client {
namespace {

constexpr std::uint32_t kBuckets = 64;
constexpr std::size_t kSegmentBytes =
    shm::kDirectoryBucketsOffset + kBuckets * sizeof(shm::DirectoryBucket);

NamespaceFingerprint TestFingerprint() {
  NamespaceFingerprint fingerprint;
  fingerprint.bytes.fill(7);
  return fingerprint;
}

// A segment that the test writes as it likes, and the reader's own mapping of it.
class Segment {
 public:
  explicit Segment(std::size_t size = kSegmentBytes)
      : fd_(memfd_create("segment", MFD_CLOEXEC)), size_(size) {
    EXPECT_EQ(ftruncate(fd_.get(), static_cast<off_t>(size)), 0);
    writable_ = *Mapping::Map(fd_.get(), size, Mapping::Access::kReadWrite);
    auto* header = reinterpret_cast<shm::DirectoryHeader*>(writable_.data());
    header->magic = shm::kDirectoryMagic;
    header->version = shm::kShmVersion;
    header->bucket_count = kBuckets;
    header->generation = 1;
    const NamespaceFingerprint fingerprint = TestFingerprint();
    std::memcpy(header->fingerprint, fingerprint.bytes.data(), 16);
  }

  std::byte* data() { return writable_.data(); }
  shm::DirectoryHeader& header() {
    return *reinterpret_cast<shm::DirectoryHeader*>(writable_.data());
  }
  shm::DirectoryBucketWords& bucket(std::uint32_t i) {
    return reinterpret_cast<shm::DirectoryBucketWords*>(writable_.data() +
                                                        shm::kDirectoryBucketsOffset)[i];
  }
  absl::StatusOr<DirectoryReader> Read() const {
    return DirectoryReader::Create(*Mapping::Map(fd_.get(), size_, Mapping::Access::kReadOnly),
                                   TestFingerprint(), 1);
  }

 private:
  UniqueFd fd_;
  std::size_t size_;
  Mapping writable_;
};

TEST(DirectoryReaderTest, AForeignHeaderIsRefused) {
  const auto refused = [](const std::function<void(Segment&)>& change) {
    Segment segment;
    change(segment);
    return !segment.Read().ok();
  };
  EXPECT_FALSE(refused([](Segment&) {}));
  EXPECT_TRUE(refused([](Segment& s) { s.header().magic ^= 1; }));
  EXPECT_TRUE(refused([](Segment& s) { s.header().version += 1; }));
  EXPECT_TRUE(refused([](Segment& s) { s.header().fingerprint[3] ^= 1; }));
  EXPECT_TRUE(refused([](Segment& s) { s.header().generation = 2; }));
  for (const std::uint32_t count : {0U, 1U << 31, 63U, 128U, ~0U}) {
    EXPECT_TRUE(refused([count](Segment& s) { s.header().bucket_count = count; })) << count;
  }
  EXPECT_FALSE(Segment(100).Read().ok());
}

// The writer died in the middle of an update: the sequence is odd for ever.
TEST(DirectoryReaderTest, ABucketThatStaysInChangeIsAMiss) {
  Segment segment;
  BlockKey key;
  key.bytes[0] = 5;
  key.bytes[9] = 1;
  shm::DirectoryBucketWords& bucket = segment.bucket(5);
  std::memcpy(&bucket.words[2], key.bytes.data(), 16);
  reinterpret_cast<shm::DirectoryBucket*>(&bucket)->tiers[0] = shm::kTierBitRam;
  const auto reader = segment.Read();
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(reader->Lookup(key), shm::kTierBitRam);
  reinterpret_cast<shm::DirectoryBucket*>(&bucket)->sequence = 3;
  EXPECT_EQ(reader->Lookup(key), 0);
}

// Every bit of the segment is random, the bucket count of the header included once the reader has
// it. All that is asked of it: it returns.
TEST(DirectoryReaderTest, NoiseNeverCrashesLoopsOrReadsOutside) {
  Segment segment;
  const auto reader = segment.Read();
  ASSERT_TRUE(reader.ok());
  const std::uint64_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 200; ++round) {
    for (std::size_t at = 0; at < kSegmentBytes; at += 8) {
      const std::uint64_t word = round % 3 == 0 ? ~std::uint64_t{0} : random();
      std::memcpy(segment.data() + at, &word, sizeof(word));
    }
    std::vector<BlockKey> keys(16);
    for (BlockKey& key : keys) {
      for (std::uint8_t& byte : key.bytes) byte = static_cast<std::uint8_t>(random());
    }
    EXPECT_LE(reader->MatchPrefix(keys), keys.size());
    (void)reader->retired();
  }
}

// The same while another thread writes.
TEST(DirectoryReaderTest, NoiseThatChangesUnderTheReaderIsBoundedToo) {
  Segment segment;
  const auto reader = segment.Read();
  ASSERT_TRUE(reader.ok());
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    std::mt19937_64 random(1);
    while (!stop) {
      std::uint64_t& word = segment.bucket(random() % kBuckets).words[random() % 8];
      std::atomic_ref<std::uint64_t>(word).store(random(), std::memory_order_relaxed);
    }
  });
  std::mt19937_64 random(2);
  for (int i = 0; i < 20000; ++i) {
    BlockKey key;
    for (std::uint8_t& byte : key.bytes) byte = static_cast<std::uint8_t>(random());
    (void)reader->Lookup(key);
  }
  stop = true;
  writer.join();
}

}  // namespace
}  // namespace kavern::client
