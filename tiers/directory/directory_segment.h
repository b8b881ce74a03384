// The daemon's side of a directory segment: the table of what is present in one namespace, in
// memory that clients map read-only (proto/kavern/v1/shm_layout.h).
//
// One writer: the store calls with its lock held. Readers are other processes; they see every
// change through the buckets' sequence locks.
#ifndef KAVERN_TIERS_DIRECTORY_DIRECTORY_SEGMENT_H_
#define KAVERN_TIERS_DIRECTORY_DIRECTORY_SEGMENT_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "base/unique_fd.h"
#include "proto/kavern/v1/shm_layout.h"

namespace kavern::tiers {

class DirectorySegment {
 public:
  // A memfd whose capacity() is at least `keys_expected`.
  // ResourceExhausted or Internal from the kernel. The memory is sealed: nobody but this object can
  // write it.
  static absl::StatusOr<std::unique_ptr<DirectorySegment>> Create(
      const NamespaceFingerprint& fingerprint, std::uint64_t generation,
      std::uint64_t keys_expected);

  // Says in the header that nothing follows, when destroyed: a client that still maps it sees
  // `retired`.
  ~DirectorySegment();

  // Publishes the tiers that hold `key` (kTierBit...); none of them is Erase. False when the table
  // cannot take the key: all kProbeMax buckets are full, or the load is past its bound. Build a
  // larger successor, then Retire().
  [[nodiscard]] bool Set(const BlockKey& key, std::uint8_t tiers);

  // After this no reader finds the key. A key that is absent is no error.
  void Erase(const BlockKey& key);

  // Tiers of the key, 0 when absent. The writer's own view.
  std::uint8_t Get(const BlockKey& key) const;

  // Tells readers that a successor exists.
  void Retire();

  int fd() const { return fd_.get(); }
  std::uint64_t size_bytes() const { return mapping_.size(); }
  std::uint64_t generation() const { return generation_; }
  std::uint64_t entries() const { return entries_; }
  // Keys that it takes at most. With fewer, Set refuses only a key whose kProbeMax buckets are all
  // full: of keys that are hashes next to none below three quarters of it.
  std::uint64_t capacity() const;

 private:
  DirectorySegment(UniqueFd fd, Mapping mapping, std::uint64_t generation,
                   std::uint32_t bucket_count);

  // Where a key is: so many buckets after its home.
  struct Place {
    std::uint32_t probe;
    int slot;
  };
  std::optional<Place> Find(const BlockKey& key) const;
  shm::DirectoryHeader& header() const;
  shm::DirectoryBucketWords& bucket(std::uint32_t index) const;  // modulo bucket_count_
  void SetEntries(std::uint64_t entries);

  UniqueFd fd_;
  Mapping mapping_;
  std::uint64_t generation_;
  std::uint32_t bucket_count_;
  std::uint64_t entries_ = 0;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_DIRECTORY_DIRECTORY_SEGMENT_H_
