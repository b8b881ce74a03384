#include "tiers/nvme/catalog_log.h"

#include "absl/base/internal/endian.h"

namespace kavern::tiers {

bool HasReusedRecord(std::span<const std::byte> block) {
  constexpr std::size_t kHeaderBytes = 7;
  constexpr int kReusedFirst = 5;
  constexpr int kReusedLast = 8;
  for (std::size_t at = 0; at + kHeaderBytes <= block.size();) {
    const std::size_t length = absl::little_endian::Load16(block.data() + at + 4);
    const int type = std::to_integer<int>(block[at + 6]);
    if (type >= kReusedFirst && type <= kReusedLast) return true;
    at += kHeaderBytes + length;
  }
  return false;
}

}  // namespace kavern::tiers
