#include "tiers/nvme/catalog_log.h"

#include <algorithm>

#include "absl/base/internal/endian.h"

namespace kavern::tiers {
namespace {

constexpr std::size_t kHeaderBytes = 7;
constexpr int kReusedFirst = 5;
constexpr int kReusedLast = 8;

bool AllZeros(std::span<const std::byte> bytes) {
  return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
}

}  // namespace

absl::string_view CatalogLogCheck::Next(std::span<const std::byte> block) {
  for (std::size_t at = 0; !ended_ && at + kHeaderBytes <= block.size();) {
    const std::size_t length = absl::little_endian::Load16(block.data() + at + 4);
    const int type = std::to_integer<int>(block[at + 6]);
    if (type >= kReusedFirst && type <= kReusedLast) return "a record of a damaged type";
    if (type == 0 && length == 0) {
      ended_ = true;
      block = block.subspan(at);
    } else {
      at += kHeaderBytes + length;
    }
  }
  return ended_ && !AllZeros(block) ? "zeros where a record was" : absl::string_view();
}

}  // namespace kavern::tiers
