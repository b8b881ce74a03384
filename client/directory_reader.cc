#include "client/directory_reader.h"

#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kavern::client {
namespace {

using shm::DirectoryBucketWords;
using shm::DirectoryHeader;

// How many keys ahead buckets are fetched: the table is larger than any cache, and a lookup is one
// line of it.
constexpr std::size_t kPrefetchKeys = 8;

struct KeyWords {
  std::uint64_t low;
  std::uint64_t high;
  explicit KeyWords(const BlockKey& key) {
    std::memcpy(&low, key.bytes.data(), sizeof(low));
    std::memcpy(&high, key.bytes.data() + sizeof(low), sizeof(high));
  }
};

// Acquire on every word keeps the second look at word 0 behind them, as the writer's releases keep
// its even sequence behind its words. On x86 these are plain loads.
std::uint64_t Load(const std::uint64_t& word) {
  return __atomic_load_n(&word, __ATOMIC_ACQUIRE);
}

struct BucketView {
  std::uint8_t tiers = 0;  // of the key; 0: not in this bucket
  bool passed = false;     // keys were turned away here
};

// One consistent look at a bucket. Gives up after a bounded number of changes under its eyes: that
// is a miss.
BucketView Look(const DirectoryBucketWords& bucket, const KeyWords& key) {
  for (int attempt = 0; attempt < shm::kSequenceRetriesMax; ++attempt) {
    const std::uint64_t before = Load(bucket.words[0]);
    if ((before & 1) != 0) continue;
    BucketView view;
    for (int slot = 0; slot < shm::kKeysPerBucket; ++slot) {
      if (Load(bucket.words[2 + 2 * slot]) == key.low &&
          Load(bucket.words[3 + 2 * slot]) == key.high) {
        view.tiers |= static_cast<std::uint8_t>(before >> (32 + 8 * slot));
      }
    }
    view.passed = Load(bucket.words[1]) > 0;
    if (Load(bucket.words[0]) == before) return view;
  }
  return {};
}

}  // namespace

absl::StatusOr<DirectoryReader> DirectoryReader::Create(Mapping mapping,
                                                        const NamespaceFingerprint& fingerprint,
                                                        std::uint64_t generation) {
  const auto refuse = [](const char* what) {
    return absl::PermissionDeniedError(absl::StrCat("directory segment: ", what));
  };
  if (mapping.size() < shm::kDirectoryBucketsOffset + sizeof(DirectoryBucketWords)) {
    return refuse("too small");
  }
  DirectoryHeader header;
  std::memcpy(&header, mapping.data(), sizeof(header));
  if (header.magic != shm::kDirectoryMagic || header.version != shm::kShmVersion) {
    return refuse("not a directory segment of this version");
  }
  if (std::memcmp(header.fingerprint, fingerprint.bytes.data(), sizeof(header.fingerprint)) != 0) {
    return refuse("of another namespace");
  }
  if (header.generation != generation) return refuse("of another generation");
  const std::size_t room =
      (mapping.size() - shm::kDirectoryBucketsOffset) / sizeof(DirectoryBucketWords);
  if (!std::has_single_bit(header.bucket_count) || header.bucket_count > room) {
    return refuse("bucket_count is no power of two that fits");
  }
  return DirectoryReader(std::move(mapping), generation, header.bucket_count);
}

DirectoryReader::DirectoryReader(Mapping mapping, std::uint64_t generation,
                                 std::uint32_t bucket_count)
    : mapping_(std::move(mapping)), generation_(generation), bucket_mask_(bucket_count - 1) {}

const DirectoryBucketWords& DirectoryReader::bucket(std::uint64_t index) const {
  const auto* buckets =
      reinterpret_cast<const DirectoryBucketWords*>(mapping_.data() + shm::kDirectoryBucketsOffset);
  return buckets[index & bucket_mask_];
}

std::uint8_t DirectoryReader::Lookup(const BlockKey& key) const {
  const KeyWords words(key);
  for (std::uint32_t probe = 0; probe < shm::kProbeMax; ++probe) {
    const BucketView view = Look(bucket(words.low + probe), words);
    if (view.tiers != 0) return view.tiers;
    if (!view.passed) return 0;
  }
  return 0;
}

std::size_t DirectoryReader::MatchPrefix(std::span<const BlockKey> keys) const {
  for (std::size_t i = 0; i < std::min(kPrefetchKeys, keys.size()); ++i) {
    __builtin_prefetch(&bucket(KeyWords(keys[i]).low));
  }
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (i + kPrefetchKeys < keys.size()) {
      __builtin_prefetch(&bucket(KeyWords(keys[i + kPrefetchKeys]).low));
    }
    if (Lookup(keys[i]) == 0) return i;
  }
  return keys.size();
}

std::vector<Tier> DirectoryReader::MatchTiers(std::span<const BlockKey> keys) const {
  std::vector<Tier> tiers;
  for (const BlockKey& key : keys) {
    const std::uint8_t bits = Lookup(key);
    if (bits == 0) break;
    tiers.push_back((bits & shm::kTierBitHbm) != 0   ? Tier::kHbm
                    : (bits & shm::kTierBitRam) != 0 ? Tier::kRam
                                                     : Tier::kNvme);
  }
  return tiers;
}

bool DirectoryReader::retired() const {
  const auto* header = reinterpret_cast<const DirectoryHeader*>(mapping_.data());
  return __atomic_load_n(&header->retired, __ATOMIC_ACQUIRE) != 0;
}

}  // namespace kavern::client
