// The directory of one namespace through its segments' lives: made with the first visible block,
// succeeded by a larger one when it is full, gone when the namespace is empty.
//
// Not thread-safe: the store's lock guards it.
#ifndef KAVERN_TIERS_NAMESPACE_DIRECTORY_H_
#define KAVERN_TIERS_NAMESPACE_DIRECTORY_H_

#include <cstdint>
#include <memory>
#include <string>

#include "base/block_key.h"
#include "tiers/directory/directory_segment.h"
#include "tiers/index/block_index.h"
#include "tiers/store_shared.h"

namespace kavern::tiers {

// The blocks of one namespace in every tier.
struct TierIndices {
  const BlockIndex& ram;
  const BlockIndex* disk = nullptr;  // nullptr: none of it is on disk

  // shm::kTierBit... of every tier that has the whole block.
  std::uint8_t TiersOf(const BlockKey& key) const;
  // Keys that some tier has, at most.
  std::uint64_t CountMax() const;
};

// A directory never names a block that is not visible. It may lack some that are: when the kernel
// refuses a segment, until Retry() succeeds; and keys made to crowd a bucket. Clients then see
// misses that are none.
class NamespaceDirectory {
 public:
  NamespaceDirectory(const NamespaceFingerprint& fingerprint, StoreShared& shared);

  // Says what the indices say about the key by now. Where no tier has it (any more) no reader finds
  // it when this returns.
  void Update(const BlockKey& key, const TierIndices& indices);
  // The block is about to leave the RAM tier: what is said of it afterwards is said before its
  // bytes can be overwritten.
  void LeaveRam(const BlockKey& key, const TierIndices& indices);
  // The namespace is empty.
  void Drop();
  // Builds anew what could not be built before. Nothing to do when nothing is lacking.
  void Retry(const TierIndices& indices);
  // Builds anew: many blocks came at once.
  void Rebuild(const TierIndices& indices);
  // Says again which segment is the present one, if there is one.
  void Announce();

  // Whether it lacks visible blocks.
  bool degraded() const { return lacks_segment_ || lacks_keys_; }
  // Of the present segment; 0: there is none.
  std::uint64_t generation() const { return segment_ == nullptr ? 0 : segment_->generation(); }
  std::uint64_t size_bytes() const { return segment_ == nullptr ? 0 : segment_->size_bytes(); }

  // Compares with the index; empty when they agree.
  std::string Audit(const TierIndices& indices) const;

 private:
  void Set(const BlockKey& key, std::uint8_t tiers, const TierIndices& indices);
  [[nodiscard]] bool AnnounceSegment(const DirectorySegment& segment);

  const NamespaceFingerprint fingerprint_;
  StoreShared& shared_;
  std::unique_ptr<DirectorySegment> segment_;
  bool lacks_segment_ = false;  // the kernel refused the one that was due
  bool lacks_keys_ = false;     // the segment refused keys
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NAMESPACE_DIRECTORY_H_
