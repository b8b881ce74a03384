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

void NamespaceDirectory::Publish(const BlockKey& key, const BlockIndex& index) {
  if (segment_ != nullptr && segment_->Set(key, shm::kTierBitRam)) return;
  // The kernel refused a segment not long ago: do not ask it again for every block.
  if (lacks_segment_) return;
  if (segment_ != nullptr && !IsFull(*segment_)) {
    lacks_keys_ = true;
    return;
  }
  Rebuild(index);
}

void NamespaceDirectory::Erase(const BlockKey& key) {
  if (segment_ != nullptr) segment_->Erase(key);
}

void NamespaceDirectory::Drop() {
  lacks_segment_ = false;
  lacks_keys_ = false;
  if (segment_ == nullptr) return;
  segment_->Retire();
  shared_.events.OnDirectoryGone(fingerprint_, segment_->generation());
  shared_.retired_directories.push_back(std::move(segment_));
}

void NamespaceDirectory::Retry(const BlockIndex& index) {
  if (lacks_segment_) Rebuild(index);
}

void NamespaceDirectory::Announce() {
  if (segment_ != nullptr && !AnnounceSegment(*segment_)) ++shared_.counters.directory_failures;
}

void NamespaceDirectory::Rebuild(const BlockIndex& index) {
  auto successor = DirectorySegment::Create(fingerprint_, ++shared_.last_directory_generation,
                                            std::max(kKeysExpectedMin, 2 * index.visible_count()));
  bool lacks_keys = false;
  if (successor.ok()) {
    for (const BlockId id : index.AllBlocks()) {
      if (index.IsVisible(id) && !(*successor)->Set(index.KeyOf(id), shm::kTierBitRam)) {
        lacks_keys = true;
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

std::string NamespaceDirectory::Audit(const BlockIndex& index) const {
  std::uint64_t found = 0;
  for (const BlockId id : index.AllBlocks()) {
    const BlockKey& key = index.KeyOf(id);
    const std::uint8_t tiers = segment_ == nullptr ? 0 : segment_->Get(key);
    if (tiers != 0 && !index.IsVisible(id)) {
      return absl::StrCat("the directory names ", key.ToHex(), ", which is not visible");
    }
    if (tiers == 0 && index.IsVisible(id) && !degraded()) {
      return absl::StrCat("the directory lacks ", key.ToHex());
    }
    found += tiers != 0 ? 1 : 0;
  }
  const std::uint64_t entries = segment_ == nullptr ? 0 : segment_->entries();
  if (entries != found) {
    return absl::StrCat("the directory has ", entries, " entries, of which ", found, " are blocks");
  }
  return "";
}

}  // namespace kavern::tiers
