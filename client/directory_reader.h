// The client's side of a directory segment: which blocks are present, without an RPC.
#ifndef KAVERN_CLIENT_DIRECTORY_READER_H_
#define KAVERN_CLIENT_DIRECTORY_READER_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "base/tier.h"
#include "base/unique_fd.h"
#include "proto/kavern/v1/shm_layout.h"

namespace kavern::client {

// Reads memory that another process writes, and trusts none of it: the number of buckets is taken
// once and checked against the mapping, every loop is bounded, and whatever the bytes are, the
// worst answer is a wrong hint (a miss, or a hit that Fetch then denies). Thread-safe.
class DirectoryReader {
 public:
  // Takes a mapped segment over. PermissionDenied when the header is not that of a segment of this
  // namespace.
  static absl::StatusOr<DirectoryReader> Create(Mapping mapping,
                                                const NamespaceFingerprint& fingerprint,
                                                std::uint64_t generation);

  // The tiers that hold `key` (shm::kTierBit...), 0 when none does.
  std::uint8_t Lookup(const BlockKey& key) const;

  // Length of the longest prefix of `keys` whose blocks are all present.
  std::size_t MatchPrefix(std::span<const BlockKey> keys) const;

  // The fastest tier of each block of that prefix.
  std::vector<Tier> MatchTiers(std::span<const BlockKey> keys) const;

  std::uint64_t generation() const { return generation_; }
  // A successor was announced: what this one says is old.
  bool retired() const;

 private:
  DirectoryReader(Mapping mapping, std::uint64_t generation, std::uint32_t bucket_count);

  const shm::DirectoryBucketWords& bucket(std::uint64_t index) const;

  Mapping mapping_;
  std::uint64_t generation_;
  std::uint32_t bucket_mask_;
};

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_DIRECTORY_READER_H_
