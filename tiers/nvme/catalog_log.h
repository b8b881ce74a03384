// What we look for in the catalog's log files before RocksDB reads them: damage that it would take
// for the end of a log, and open without a word.
//
// A log is a sequence of blocks, each a sequence of records: a header of 7 bytes (checksum, u32;
// length of what follows, u16, little endian; type, u8) and as many bytes. No record crosses a
// block's end; what is left there and too short for a header is no record.
#ifndef KAVERN_TIERS_NVME_CATALOG_LOG_H_
#define KAVERN_TIERS_NVME_CATALOG_LOG_H_

#include <cstddef>
#include <span>

#include "absl/strings/string_view.h"

namespace kavern::tiers {

inline constexpr std::size_t kLogBlockBytes = 32768;

// One for each file.
class CatalogLogCheck {
 public:
  // What is wrong with the file's next block, empty if nothing: a record of a type that only logs
  // in reused files have; or a record of zeros with anything but zeros after it, in this block or
  // a later one. (With zeros up to the file's end, a log was cut short.) Follows the lengths as
  // they are, and looks at no checksum. The block may hold anything, and the last one of a file may
  // be shorter.
  absl::string_view Next(std::span<const std::byte> block);

 private:
  bool ended_ = false;  // by a record of zeros
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_CATALOG_LOG_H_
