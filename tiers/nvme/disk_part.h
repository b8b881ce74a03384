// A part of a block on disk, and where it lies.
#ifndef KAVERN_TIERS_NVME_DISK_PART_H_
#define KAVERN_TIERS_NVME_DISK_PART_H_

#include <cstdint>

#include "base/block_key.h"

namespace kavern::tiers {

// A segment of one device.
struct SegmentId {
  std::uint32_t device = 0;
  std::uint32_t segment = 0;

  friend auto operator<=>(const SegmentId&, const SegmentId&) = default;
};

// A slot of one segment, in one use of that segment.
struct DiskPlace {
  SegmentId segment;
  std::uint32_t position = 0;
  std::uint64_t slot_bytes = 0;  // room for payload
  std::uint64_t epoch = 0;       // of the segment's use
};

// Who a part is, and what its payload must be.
struct DiskPart {
  NamespaceFingerprint fingerprint;
  BlockKey key;
  BlockKey parent;  // the root key for a first block
  std::uint32_t part = 0;
  std::uint32_t part_count = 1;
  std::uint64_t payload_bytes = 0;
  std::uint32_t checksum = 0;  // CRC32C of the payload, seeded by key and part
  std::uint64_t sequence = 0;  // of the store's writes
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_DISK_PART_H_
