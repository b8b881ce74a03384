// What we look for in the catalog's log files before RocksDB reads them.
//
// A log is a sequence of blocks, each a sequence of records: a header of 7 bytes (checksum, u32;
// length of what follows, u16, little endian; type, u8) and as many bytes. No record crosses a
// block's end; what is left there and too short for a header is no record.
#ifndef KAVERN_TIERS_NVME_CATALOG_LOG_H_
#define KAVERN_TIERS_NVME_CATALOG_LOG_H_

#include <cstddef>
#include <span>

namespace kavern::tiers {

inline constexpr std::size_t kLogBlockBytes = 32768;

// Whether a record of the block is of a type that only logs in reused files have. Follows the
// lengths as they are, and looks at no checksum. The block may hold anything, and the last one of a
// file may be shorter.
bool HasReusedRecord(std::span<const std::byte> block);

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_CATALOG_LOG_H_
