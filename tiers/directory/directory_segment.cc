#include "tiers/directory/directory_segment.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/sealed_memfd.h"
#include "base/status_macros.h"

namespace kavern::tiers {
namespace {

using shm::DirectoryBucketWords;
using shm::DirectoryHeader;
using shm::kKeysPerBucket;
using shm::kProbeMax;

// Past this share of places Set refuses: a larger successor is due. With keys that are hashes, some
// key finds all its buckets full from a load of 0.35 (4 million buckets) to 0.5 (8 thousand) on; at
// 0.5 that is one key in several thousand.
constexpr double kLoadMax = 0.5;
constexpr std::uint32_t kBucketsMin = 16;
constexpr std::uint32_t kBucketsMax = std::uint32_t{1} << 30;  // 64 GiB

// Word 0 of a bucket: sequence in bits 0-31, tiers of slot i in byte 4 + i.
constexpr std::uint64_t kSequenceMask = 0xffffffff;

std::uint8_t TiersOf(std::uint64_t word, int slot) {
  return static_cast<std::uint8_t>(word >> (32 + 8 * slot));
}
std::uint64_t WithTiers(std::uint64_t word, int slot, std::uint8_t tiers) {
  const int shift = 32 + 8 * slot;
  return (word & ~(std::uint64_t{0xff} << shift)) | (std::uint64_t{tiers} << shift);
}

struct KeyWords {
  std::uint64_t low;
  std::uint64_t high;
  explicit KeyWords(const BlockKey& key) {
    std::memcpy(&low, key.bytes.data(), sizeof(low));
    std::memcpy(&high, key.bytes.data() + sizeof(low), sizeof(high));
  }
};

std::uint64_t Load(const std::uint64_t& word) {
  return __atomic_load_n(&word, __ATOMIC_RELAXED);
}

// Changes one bucket under its sequence lock. A reader loads word 0 with acquire, the others with
// acquire, word 0 again, and has a consistent bucket if both loads of word 0 were equal and even.
// That holds on weak memory models too: a reader that saw a word of this change (release store) is
// bound to see the odd sequence stored before it, or a later one, at its second look; one that saw
// the even sequence of the change (release store) at its first look sees all the words of it. Word
// 0 holds the tiers as well: they change while the sequence is odd. No fence: ThreadSanitizer would
// not see it.
class BucketChange {
 public:
  explicit BucketChange(DirectoryBucketWords& bucket)
      : bucket_(bucket), word0_(Load(bucket.words[0])) {
    Advance();
    __atomic_store_n(&bucket_.words[0], word0_, __ATOMIC_RELAXED);
  }
  ~BucketChange() {
    // Two steps, so that tiers change while the sequence is odd.
    __atomic_store_n(&bucket_.words[0], word0_, __ATOMIC_RELEASE);
    Advance();
    __atomic_store_n(&bucket_.words[0], word0_, __ATOMIC_RELEASE);
  }
  BucketChange(const BucketChange&) = delete;
  BucketChange& operator=(const BucketChange&) = delete;

  void SetTiers(int slot, std::uint8_t tiers) { word0_ = WithTiers(word0_, slot, tiers); }
  void SetKey(int slot, const KeyWords& key) {
    Store(2 + 2 * slot, key.low);
    Store(3 + 2 * slot, key.high);
  }
  void AddPassed(std::int64_t difference) {
    Store(1, Load(bucket_.words[1]) + static_cast<std::uint64_t>(difference));
  }

 private:
  void Store(int index, std::uint64_t value) {
    __atomic_store_n(&bucket_.words[index], value, __ATOMIC_RELEASE);
  }
  void Advance() { word0_ = (word0_ & ~kSequenceMask) | ((word0_ + 1) & kSequenceMask); }

  DirectoryBucketWords& bucket_;
  std::uint64_t word0_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DirectorySegment>> DirectorySegment::Create(
    const NamespaceFingerprint& fingerprint, std::uint64_t generation,
    std::uint64_t keys_expected) {
  const double buckets = static_cast<double>(keys_expected) / kKeysPerBucket / kLoadMax;
  if (buckets >= kBucketsMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("directory segment: got ", keys_expected, " keys, more than it can hold"));
  }
  const std::uint32_t bucket_count =
      std::bit_ceil(std::max(kBucketsMin, static_cast<std::uint32_t>(buckets) + 1));
  const std::size_t size =
      shm::kDirectoryBucketsOffset + std::size_t{bucket_count} * sizeof(DirectoryBucketWords);
  KAVERN_ASSIGN_OR_RETURN(UniqueFd fd, CreateMemfd("kavern-directory", size, MemfdPages::kNormal));
  KAVERN_ASSIGN_OR_RETURN(Mapping mapping,
                          Mapping::Map(fd.get(), size, Mapping::Access::kReadWrite));
  KAVERN_RETURN_IF_ERROR(SealMemfd(fd.get(), MemfdWriters::kOnlyThisMapping));

  auto* const header = reinterpret_cast<DirectoryHeader*>(mapping.data());
  header->magic = shm::kDirectoryMagic;
  header->version = shm::kShmVersion;
  header->bucket_count = bucket_count;
  std::memcpy(header->fingerprint, fingerprint.bytes.data(), sizeof(header->fingerprint));
  header->generation = generation;
  return std::unique_ptr<DirectorySegment>(
      new DirectorySegment(std::move(fd), std::move(mapping), generation, bucket_count));
}

DirectorySegment::DirectorySegment(UniqueFd fd, Mapping mapping, std::uint64_t generation,
                                   std::uint32_t bucket_count)
    : fd_(std::move(fd)),
      mapping_(std::move(mapping)),
      generation_(generation),
      bucket_count_(bucket_count) {}

DirectorySegment::~DirectorySegment() {
  Retire();
}

DirectoryHeader& DirectorySegment::header() const {
  return *reinterpret_cast<DirectoryHeader*>(mapping_.data());
}

DirectoryBucketWords& DirectorySegment::bucket(std::uint32_t index) const {
  auto* const buckets =
      reinterpret_cast<DirectoryBucketWords*>(mapping_.data() + shm::kDirectoryBucketsOffset);
  return buckets[index & (bucket_count_ - 1)];
}

std::optional<DirectorySegment::Place> DirectorySegment::Find(const BlockKey& key) const {
  const KeyWords words(key);
  const auto home = static_cast<std::uint32_t>(words.low);
  for (std::uint32_t probe = 0; probe < kProbeMax; ++probe) {
    const DirectoryBucketWords& candidate = bucket(home + probe);
    for (int slot = 0; slot < kKeysPerBucket; ++slot) {
      if (TiersOf(Load(candidate.words[0]), slot) != 0 &&
          Load(candidate.words[2 + 2 * slot]) == words.low &&
          Load(candidate.words[3 + 2 * slot]) == words.high) {
        return Place{probe, slot};
      }
    }
    if (Load(candidate.words[1]) == 0) return std::nullopt;
  }
  return std::nullopt;
}

bool DirectorySegment::Set(const BlockKey& key, std::uint8_t tiers) {
  if (tiers == 0) {
    Erase(key);
    return true;
  }
  const KeyWords words(key);
  const auto home = static_cast<std::uint32_t>(words.low);
  if (const auto place = Find(key)) {
    BucketChange change(bucket(home + place->probe));
    change.SetTiers(place->slot, tiers);
    return true;
  }
  if (entries_ >= capacity()) return false;
  for (std::uint32_t probe = 0; probe < kProbeMax; ++probe) {
    DirectoryBucketWords& candidate = bucket(home + probe);
    for (int slot = 0; slot < kKeysPerBucket; ++slot) {
      if (TiersOf(Load(candidate.words[0]), slot) != 0) continue;
      {
        BucketChange change(candidate);
        change.SetKey(slot, words);
        change.SetTiers(slot, tiers);
      }
      for (std::uint32_t before = 0; before < probe; ++before) {
        BucketChange change(bucket(home + before));
        change.AddPassed(1);
      }
      SetEntries(entries_ + 1);
      return true;
    }
  }
  return false;
}

void DirectorySegment::Erase(const BlockKey& key) {
  const auto place = Find(key);
  if (!place) return;
  const auto home = static_cast<std::uint32_t>(KeyWords(key).low);
  {
    BucketChange change(bucket(home + place->probe));
    change.SetTiers(place->slot, 0);
  }
  for (std::uint32_t before = 0; before < place->probe; ++before) {
    BucketChange change(bucket(home + before));
    change.AddPassed(-1);
  }
  SetEntries(entries_ - 1);
}

std::uint8_t DirectorySegment::Get(const BlockKey& key) const {
  const auto place = Find(key);
  if (!place) return 0;
  const auto home = static_cast<std::uint32_t>(KeyWords(key).low);
  return TiersOf(Load(bucket(home + place->probe).words[0]), place->slot);
}

void DirectorySegment::Retire() {
  if (mapping_.valid()) __atomic_store_n(&header().retired, 1, __ATOMIC_RELEASE);
}

void DirectorySegment::SetEntries(std::uint64_t entries) {
  entries_ = entries;
  __atomic_store_n(&header().entries, entries, __ATOMIC_RELAXED);
}

std::uint64_t DirectorySegment::capacity() const {
  return static_cast<std::uint64_t>(kLoadMax * kKeysPerBucket * bucket_count_);
}

}  // namespace kavern::tiers
