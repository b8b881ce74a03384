// The places where blocks live.
#ifndef KAVERN_BASE_TIER_H_
#define KAVERN_BASE_TIER_H_

#include <cstdint>
#include <string_view>

namespace kavern {

// From fast to slow. The numbers are those of the protocol.
enum class Tier : std::uint8_t { kNone = 0, kHbm = 1, kRam = 2, kNvme = 3 };
inline constexpr int kTierCount = 4;  // kNone included

// "hbm", "ram", "nvme"; "none" for anything else.
constexpr std::string_view TierName(Tier tier) {
  switch (tier) {
    case Tier::kHbm:
      return "hbm";
    case Tier::kRam:
      return "ram";
    case Tier::kNvme:
      return "nvme";
    case Tier::kNone:
      break;
  }
  return "none";
}

}  // namespace kavern

#endif  // KAVERN_BASE_TIER_H_
