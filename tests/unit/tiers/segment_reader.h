// What a client sees of a directory segment: a read-only mapping, the words of its buckets, and the
// steps of proto/kavern/v1/shm_layout.h, written anew for the tests.
#ifndef KAVERN_TESTS_UNIT_TIERS_SEGMENT_READER_H_
#define KAVERN_TESTS_UNIT_TIERS_SEGMENT_READER_H_

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>

#include "base/block_key.h"
#include "base/unique_fd.h"
#include "proto/kavern/v1/shm_layout.h"

namespace kavern::tiers {

class SegmentReader {
 public:
  explicit SegmentReader(Mapping mapping) : mapping_(std::move(mapping)) {}

  const shm::DirectoryHeader& header() const {
    return *reinterpret_cast<const shm::DirectoryHeader*>(mapping_.data());
  }
  std::uint32_t bucket_count() const { return header().bucket_count; }

  // A consistent copy of one bucket; nullopt when it was in change.
  std::optional<shm::DirectoryBucket> ReadBucket(std::uint32_t index) const {
    const std::uint64_t* const words = Words(index & (bucket_count() - 1));
    std::array<std::uint64_t, shm::kWordsPerBucket> copy{};
    for (int i = 0; i < shm::kWordsPerBucket; ++i) {
      copy[i] = __atomic_load_n(&words[i], __ATOMIC_ACQUIRE);
    }
    const std::uint64_t again = __atomic_load_n(&words[0], __ATOMIC_ACQUIRE);
    if (copy[0] != again || (again & 1) != 0) return std::nullopt;
    shm::DirectoryBucket bucket;
    std::memcpy(&bucket, copy.data(), sizeof(bucket));
    return bucket;
  }

  // Tiers of the key; 0 when a reader calls it a miss.
  std::uint8_t Lookup(const BlockKey& key) const {
    std::uint64_t home = 0;
    std::memcpy(&home, key.bytes.data(), sizeof(home));
    for (std::uint32_t probe = 0; probe < shm::kProbeMax; ++probe) {
      std::optional<shm::DirectoryBucket> bucket;
      for (int i = 0; i < shm::kSequenceRetriesMax && !bucket; ++i) {
        bucket = ReadBucket(static_cast<std::uint32_t>(home) + probe);
      }
      if (!bucket) return 0;
      for (int slot = 0; slot < shm::kKeysPerBucket; ++slot) {
        if (bucket->tiers[slot] != 0 &&
            std::memcmp(bucket->keys[slot], key.bytes.data(), BlockKey::kSize) == 0) {
          return bucket->tiers[slot];
        }
      }
      if (bucket->passed == 0) return 0;
    }
    return 0;
  }

 private:
  const std::uint64_t* Words(std::uint32_t index) const {
    return reinterpret_cast<const std::uint64_t*>(mapping_.data() + shm::kDirectoryBucketsOffset) +
           std::size_t{index} * shm::kWordsPerBucket;
  }

  Mapping mapping_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_UNIT_TIERS_SEGMENT_READER_H_
