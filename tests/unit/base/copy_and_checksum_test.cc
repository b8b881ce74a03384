// Does not check: kernels that this processor lacks (their cases are skipped), speed
// (tests/bench/copy_bench.cc), and order of the stores as seen by another process.
#include "base/copy_and_checksum.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#define KAVERN_TEST_UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define KAVERN_TEST_UNDER_TSAN 1
#endif
#endif

namespace kavern {
namespace {

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * kKiB;
constexpr std::uint32_t kSeed = 0x5EEDC0DE;

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// CRC32C from its definition, one bit at a time: shares nothing with the library under test.
std::uint32_t ReferenceCrc32c(std::span<const std::byte> data, std::uint32_t crc) {
  crc = ~crc;
  for (const std::byte byte : data) {
    crc ^= static_cast<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0);
  }
  return ~crc;
}

std::vector<std::byte> RandomBytes(std::size_t size) {
  std::vector<std::byte> bytes(size);
  std::mt19937_64 random(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// Memory of whole pages between two pages that may not be touched.
class GuardedPages {
 public:
  explicit GuardedPages(std::size_t size) : size_(size) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    mapped_bytes_ = (size + page - 1) / page * page + 2 * page;
    mapping_ = static_cast<std::byte*>(
        mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(static_cast<void*>(mapping_), MAP_FAILED);
    EXPECT_EQ(mprotect(mapping_ + page, mapped_bytes_ - 2 * page, PROT_READ | PROT_WRITE), 0);
    first_ = mapping_ + page;
    end_ = mapping_ + mapped_bytes_ - page;
  }
  ~GuardedPages() { munmap(mapping_, mapped_bytes_); }
  GuardedPages(const GuardedPages&) = delete;
  GuardedPages& operator=(const GuardedPages&) = delete;

  std::span<std::byte> AtStart() const { return {first_, size_}; }
  std::span<std::byte> AtEnd() const { return {end_ - size_, size_}; }

 private:
  std::size_t size_;
  std::size_t mapped_bytes_ = 0;
  std::byte* mapping_ = nullptr;
  std::byte* first_ = nullptr;
  std::byte* end_ = nullptr;
};

// Copies between buffers of chosen misalignment, and looks at every byte around the destination.
class CopyHarness {
 public:
  static constexpr std::size_t kMisalignments = 64;

  explicit CopyHarness(std::size_t size_max)
      : source_(RandomBytes(size_max + kMisalignments + kAlignment)),
        destination_(size_max + kMisalignments + kAlignment + 2 * kCanaryBytes) {}

  std::span<const std::byte> Source(std::size_t misalignment, std::size_t size) const {
    return {Align(source_.data()) + misalignment, size};
  }

  // Empty when the destination holds the source, the checksum is `expected_crc`, and nothing around
  // the destination changed; otherwise what was wrong.
  std::string Check(CopyKernel kernel, std::span<const std::byte> source,
                    std::size_t destination_misalignment, std::uint32_t expected_crc) {
    std::byte* start = Align(destination_.data() + kCanaryBytes) + destination_misalignment;
    const std::size_t size = source.size();
    std::memset(start - kCanaryBytes, kCanary, size + 2 * kCanaryBytes);
    const std::uint32_t crc = CopyAndChecksum({start, size}, source, kSeed, kernel);
    if (crc != expected_crc) return "wrong checksum";
    if (size > 0 && std::memcmp(start, source.data(), size) != 0) return "wrong bytes";
    for (std::size_t i = 0; i < kCanaryBytes; ++i) {
      if (start[-1 - static_cast<std::ptrdiff_t>(i)] != std::byte{kCanary}) return "wrote before";
      if (start[size + i] != std::byte{kCanary}) return "wrote behind";
    }
    return "";
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  static constexpr std::size_t kCanaryBytes = 128;
  static constexpr unsigned char kCanary = 0xA5;

  template <typename T>
  static T* Align(T* pointer) {
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    return pointer + (kAlignment - address % kAlignment) % kAlignment;
  }

  std::vector<std::byte> source_;
  std::vector<std::byte> destination_;
};

TEST(Crc32cTest, MatchesThePublishedVectors) {
  // The check value of the catalogue of CRCs and the vectors of RFC 3720, B.4.
  EXPECT_EQ(Crc32c(Bytes("123456789")), 0xE3069283u);
  std::array<std::byte, 32> data;
  data.fill(std::byte{0});
  EXPECT_EQ(Crc32c(data), 0x8A9136AAu);
  data.fill(std::byte{0xFF});
  EXPECT_EQ(Crc32c(data), 0x62A8AB43u);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i);
  EXPECT_EQ(Crc32c(data), 0x46DD794Eu);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(31 - i);
  EXPECT_EQ(Crc32c(data), 0x113FDB5Cu);
}

TEST(Crc32cTest, OfNothingIsTheValueSoFar) {
  EXPECT_EQ(Crc32c({}), 0u);
  EXPECT_EQ(Crc32c({}, kSeed), kSeed);
}

TEST(Crc32cTest, IsTheSameWhereverTheDataIsCut) {
  const std::vector<std::byte> data = RandomBytes(700);
  const std::uint32_t whole = ReferenceCrc32c(data, kSeed);
  for (std::size_t cut = 0; cut <= data.size(); ++cut) {
    const std::span<const std::byte> all(data);
    ASSERT_EQ(Crc32c(all.subspan(cut), Crc32c(all.first(cut), kSeed)), whole) << cut;
  }
}

TEST(PartChecksumSeedTest, IsTheChecksumOfKeyAndLittleEndianPart) {
  BlockKey key;
  for (std::size_t i = 0; i < key.bytes.size(); ++i) {
    key.bytes[i] = static_cast<std::uint8_t>(0xF0 + i);
  }
  std::vector<std::byte> message;
  for (const std::uint8_t byte : key.bytes) message.push_back(std::byte{byte});
  for (const int byte : {0x04, 0x03, 0x02, 0x01}) message.push_back(static_cast<std::byte>(byte));
  EXPECT_EQ(PartChecksumSeed(key, 0x01020304), ReferenceCrc32c(message, 0));
}

TEST(PartChecksumSeedTest, RightBytesOfAnotherBlockOrPartFail) {
  // The same payload under every key that differs from the first by one bit, and under four parts
  // of each: no two checksums may be equal, or a misdirected read would pass.
  const std::vector<std::byte> payload = RandomBytes(100);
  std::set<std::uint32_t> seeds;
  std::set<std::uint32_t> checksums;
  std::size_t parts = 0;
  for (std::size_t bit = 0; bit < 8 * BlockKey::kSize; ++bit) {
    BlockKey key;
    key.bytes.fill(0x11);
    key.bytes[bit / 8] ^= static_cast<std::uint8_t>(1u << (bit % 8));
    for (std::uint32_t part = 0; part < 4; ++part, ++parts) {
      seeds.insert(PartChecksumSeed(key, part));
      checksums.insert(Crc32c(payload, PartChecksumSeed(key, part)));
    }
  }
  EXPECT_EQ(seeds.size(), parts);
  EXPECT_EQ(checksums.size(), parts);
}

TEST(CopyKernelChoiceTest, PortableAlwaysRunsAndTheBestOneIsSupported) {
  EXPECT_TRUE(CopyKernelSupported(CopyKernel::kPortable));
  EXPECT_TRUE(CopyKernelSupported(BestCopyKernel()));
  EXPECT_EQ(BestCopyKernel(), BestCopyKernel());
}

class CopyKernelTest : public testing::TestWithParam<CopyKernel> {
 protected:
  void SetUp() override {
    if (!CopyKernelSupported(GetParam())) {
      GTEST_SKIP() << "this processor cannot run the kernel " << CopyKernelName(GetParam());
    }
  }
};

TEST_P(CopyKernelTest, EverySmallSizeAtSampledMisalignments) {
  CopyHarness harness(300);
  for (std::size_t size = 0; size <= 300; ++size) {
    for (const std::size_t source_at : {0, 1, 17, 31, 32, 63}) {
      const std::span<const std::byte> source = harness.Source(source_at, size);
      const std::uint32_t crc = ReferenceCrc32c(source, kSeed);
      for (const std::size_t destination_at : {0, 1, 15, 32, 47, 63}) {
        ASSERT_EQ(harness.Check(GetParam(), source, destination_at, crc), "")
            << "size " << size << ", source at " << source_at << ", destination at "
            << destination_at;
      }
    }
  }
}

TEST_P(CopyKernelTest, SizesAroundEveryBoundary) {
  // Around the chunk, the page, the size from which copies stream, and the blocks in use: a head, a
  // tail or a chunk too many or too few shows as wrong bytes, checksum or canary.
  CopyHarness harness(2 * kMiB + 100);
  for (const std::size_t around : {1 * kKiB, 2 * kKiB, 4 * kKiB, 8 * kKiB, 16 * kKiB, 17 * kKiB,
                                   64 * kKiB, 512 * kKiB, 2 * kMiB}) {
    for (const int offset : {-65, -64, -1, 0, 1, 31, 63, 64, 65, 97}) {
      const std::size_t size = around + static_cast<std::size_t>(offset);
      const std::span<const std::byte> source = harness.Source(offset < 0 ? 5 : 0, size);
      const std::uint32_t crc = ReferenceCrc32c(source, kSeed);
      for (const std::size_t destination_at : {0, 1, 33, 63}) {
        ASSERT_EQ(harness.Check(GetParam(), source, destination_at, crc), "")
            << "size " << size << ", destination at " << destination_at;
      }
    }
  }
}

TEST_P(CopyKernelTest, EveryPairOfMisalignmentsOfAStreamedCopy) {
  constexpr std::size_t kSize = 18 * kKiB + 77;
  CopyHarness harness(kSize);
  for (std::size_t source_at = 0; source_at < CopyHarness::kMisalignments; ++source_at) {
    const std::span<const std::byte> source = harness.Source(source_at, kSize);
    const std::uint32_t crc = ReferenceCrc32c(source, kSeed);
    for (std::size_t to = 0; to < CopyHarness::kMisalignments; ++to) {
      ASSERT_EQ(harness.Check(GetParam(), source, to, crc), "")
          << "source at " << source_at << ", destination at " << to;
    }
  }
}

TEST_P(CopyKernelTest, ChecksumContinuesOverPieces) {
  // One block copied in three pieces, the second too small to stream, has the checksum of the block
  // copied whole.
  const std::vector<std::byte> source = RandomBytes(100 * kKiB + 13);
  std::vector<std::byte> destination(source.size());
  const std::array<std::size_t, 3> pieces = {40 * kKiB + 1, 333, 60 * kKiB - 321};
  std::uint32_t crc = kSeed;
  std::size_t done = 0;
  for (const std::size_t piece : pieces) {
    crc = CopyAndChecksum(std::span(destination).subspan(done, piece),
                          std::span(source).subspan(done, piece), crc, GetParam());
    done += piece;
  }
  ASSERT_EQ(done, source.size());
  EXPECT_EQ(crc, ReferenceCrc32c(source, kSeed));
  EXPECT_EQ(destination, source);
}

TEST_P(CopyKernelTest, TouchesNoByteOutsideItsBuffers) {
  // Source and destination begin just behind, or end just before, a page that faults on any access:
  // reading or writing one byte too many kills the test.
  for (const std::size_t size : {std::size_t{1}, std::size_t{100}, 4 * kKiB - 1, 16 * kKiB,
                                 64 * kKiB, 64 * kKiB + 33, 512 * kKiB + 7}) {
    GuardedPages from(size);
    GuardedPages to(size);
    const std::vector<std::byte> data = RandomBytes(size);
    const std::uint32_t crc = ReferenceCrc32c(data, kSeed);
    for (const std::span<std::byte> source : {from.AtStart(), from.AtEnd()}) {
      std::memcpy(source.data(), data.data(), size);
      for (const std::span<std::byte> destination : {to.AtStart(), to.AtEnd()}) {
        std::memset(destination.data(), 0, size);
        ASSERT_EQ(CopyAndChecksum(destination, source, kSeed, GetParam()), crc) << size;
        ASSERT_EQ(std::memcmp(destination.data(), data.data(), size), 0) << size;
      }
    }
  }
}

// Overwrites `words` with 1, 2, 3, ... from first to last, again and again, until told to stop.
class RacingWriter {
 public:
  explicit RacingWriter(std::span<std::uint64_t> words)
      : thread_([this, words] {
          for (std::uint64_t pass = 1; !stop_.load(std::memory_order_relaxed); ++pass) {
            // Every byte of a word changes from pass to pass.
            const std::uint64_t value = pass * 0x0101010101010101u;
            for (std::uint64_t& word : words) {
              std::atomic_ref(word).store(value, std::memory_order_relaxed);
            }
          }
        }) {}
  ~RacingWriter() {
    stop_.store(true, std::memory_order_relaxed);
    thread_.join();
  }
  RacingWriter(const RacingWriter&) = delete;
  RacingWriter& operator=(const RacingWriter&) = delete;

 private:
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

TEST_P(CopyKernelTest, CoTenantWritingTheSourceNeverMakesTheChecksumLie) {
  // A thread overwrites the source without pause while it is copied. Each copy may hold any mix of
  // old and new words, but the checksum must be that of the bytes that arrived.
#if defined(KAVERN_TEST_UNDER_TSAN)
  GTEST_SKIP() << "races on purpose, which ThreadSanitizer must report";
#endif
  constexpr int kTornCopiesMin = 100;
  constexpr int kCopiesMax = 1'000'000;
  // The smallest is not streamed; the last has a head and a tail beside its chunks.
  for (const std::size_t size : {8 * kKiB, 32 * kKiB, 256 * kKiB - 7}) {
    std::vector<std::uint64_t> words((size + 7) / 8);
    const std::span<const std::byte> source = std::as_bytes(std::span(words)).first(size);
    std::vector<std::byte> buffer(size + 1);
    const std::span<std::byte> destination(buffer.data() + 1, size);
    int torn = 0;
    RacingWriter writer(words);
    // Without torn copies nothing was proved: go on until there are enough.
    for (int copies = 0; copies < kCopiesMax && torn < kTornCopiesMin; ++copies) {
      const std::uint32_t crc = CopyAndChecksum(destination, source, kSeed, GetParam());
      ASSERT_EQ(Crc32c(destination, kSeed), crc) << "copy " << copies << " of " << size;
      torn += destination[0] != destination[size - 8] ? 1 : 0;
    }
    EXPECT_EQ(torn, kTornCopiesMin) << "the writer hardly ever ran during a copy of " << size;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, CopyKernelTest,
                         testing::Values(CopyKernel::kPortable, CopyKernel::kAvx2,
                                         CopyKernel::kAvx512),
                         [](const testing::TestParamInfo<CopyKernel>& kernel) {
                           return std::string(CopyKernelName(kernel.param));
                         });

}  // namespace
}  // namespace kavern
