#include "tiers/namespace_directory.h"

#include <fcntl.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/kavern/v1/shm_layout.h"

namespace kavern::tiers {
namespace {

constexpr std::uint64_t kKeysExpectedMin = 256;

// Whether a segment that refuses a key is short of room. Keys made to crowd a few buckets are
// refused by any size: they stay unlisted, or a hostile client could make the directory grow for
// ever.
bool IsFull(const DirectorySegment& segment) {
  return segment.entries() >= segment.capacity() / 4 * 3;
}

}  // namespace

NamespaceDirectory::NamespaceDirectory(const NamespaceFingerprint& fingerprint, StoreShared& shared)
    : fingerprint_(fingerprint), shared_(shared) {}

std::uint8_t TierIndices::TiersOf(const BlockKey& key) const {
  std::uint8_t tiers = 0;
  if (const BlockId id = ram.Find(key); id != kNoBlock && ram.IsVisible(id)) {
    tiers |= shm::kTierBitRam;
  }
  if (disk == nullptr) return tiers;
  if (const BlockId id = disk->Find(key); id != kNoBlock && disk->IsVisible(id)) {
    tiers |= shm::kTierBitNvme;
  }
  return tiers;
}

std::uint64_t TierIndices::CountMax() const {
  return ram.visible_count() + (disk == nullptr ? 0 : disk->visible_count());
}

void NamespaceDirectory::Update(const BlockKey& key, const TierIndices& indices) {
  Set(key, indices.TiersOf(key), indices);
}

void NamespaceDirectory::LeaveRam(const BlockKey& key, const TierIndices& indices) {
  constexpr auto kOthers = static_cast<std::uint8_t>(~shm::kTierBitRam);
  Set(key, indices.TiersOf(key) & kOthers, indices);
}

void NamespaceDirectory::Set(const BlockKey& key, std::uint8_t tiers, const TierIndices& indices) {
  if (tiers == 0) {
    if (segment_ != nullptr) segment_->Erase(key);
    return;
  }
  if (segment_ != nullptr && segment_->Set(key, tiers)) return;
  // The kernel refused a segment not long ago: do not ask it again for every block.
  if (lacks_segment_) return;
  if (segment_ != nullptr && !IsFull(*segment_)) {
    lacks_keys_ = true;
    return;
  }
  Rebuild(indices);
}

void NamespaceDirectory::Drop() {
  lacks_segment_ = false;
  lacks_keys_ = false;
  if (segment_ == nullptr) return;
  segment_->Retire();
  shared_.events.OnDirectoryGone(fingerprint_, segment_->generation());
  shared_.retired_directories.push_back(std::move(segment_));
}

void NamespaceDirectory::Retry(const TierIndices& indices) {
  if (lacks_segment_) Rebuild(indices);
}

void NamespaceDirectory::Announce() {
  if (segment_ != nullptr && !AnnounceSegment(*segment_)) ++shared_.counters.directory_failures;
}

void NamespaceDirectory::Rebuild(const TierIndices& indices) {
  auto successor = DirectorySegment::Create(fingerprint_, ++shared_.last_directory_generation,
                                            std::max(kKeysExpectedMin, 2 * indices.CountMax()));
  bool lacks_keys = false;
  if (successor.ok()) {
    for (const BlockIndex* index : {&indices.ram, indices.disk}) {
      if (index == nullptr) continue;
      for (const BlockId id : index->AllBlocks()) {
        if (!index->IsVisible(id)) continue;
        const BlockKey& key = index->KeyOf(id);
        if (!(*successor)->Set(key, indices.TiersOf(key))) lacks_keys = true;
      }
    }
  }
  if (!successor.ok() || !AnnounceSegment(**successor)) {
    lacks_segment_ = true;
    ++shared_.counters.directory_failures;
    return;
  }
  if (segment_ != nullptr) {
    segment_->Retire();
    shared_.retired_directories.push_back(std::move(segment_));
  }
  segment_ = *std::move(successor);
  lacks_segment_ = false;
  lacks_keys_ = lacks_keys;
}

bool NamespaceDirectory::AnnounceSegment(const DirectorySegment& segment) {
  UniqueFd fd(fcntl(segment.fd(), F_DUPFD_CLOEXEC, 0));
  if (!fd.valid()) return false;
  shared_.events.OnDirectory(fingerprint_, segment.generation(), segment.size_bytes(),
                             std::move(fd));
  return true;
}

std::string NamespaceDirectory::Audit(const TierIndices& indices) const {
  std::uint64_t found = 0;
  for (const BlockIndex* index : {&indices.ram, indices.disk}) {
    if (index == nullptr) continue;
    for (const BlockId id : index->AllBlocks()) {
      const BlockKey& key = index->KeyOf(id);
      // Those in both are counted with RAM's.
      if (index == indices.disk && indices.ram.Find(key) != kNoBlock) continue;
      const std::uint8_t tiers = segment_ == nullptr ? 0 : segment_->Get(key);
      const std::uint8_t expected = indices.TiersOf(key);
      if ((tiers & ~expected) != 0) {
        return absl::StrCat("the directory names ", key.ToHex(), ", which is not visible");
      }
      if (tiers != expected && !degraded()) {
        return absl::StrCat("the directory lacks ", key.ToHex());
      }
      found += tiers != 0 ? 1 : 0;
    }
  }
  const std::uint64_t entries = segment_ == nullptr ? 0 : segment_->entries();
  if (entries != found) {
    return absl::StrCat("the directory has ", entries, " entries, of which ", found, " are blocks");
  }
  return "";
}

}  // namespace kavern::tiers
