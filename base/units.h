// Sizes and durations as people write them.
#ifndef KAVERN_BASE_UNITS_H_
#define KAVERN_BASE_UNITS_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace kavern {

inline constexpr std::uint64_t kKiB = 1024;
inline constexpr std::uint64_t kMiB = 1024 * kKiB;
inline constexpr std::uint64_t kGiB = 1024 * kMiB;
inline constexpr std::uint64_t kTiB = 1024 * kGiB;

// "64GiB", "512 KiB", "1.5TiB", "4096" (bytes), also decimal "2GB"; units in any case. A fraction
// of a byte in a larger unit ("0.1GiB") is cut off. InvalidArgument says what was expected.
absl::StatusOr<std::uint64_t> ParseBytes(std::string_view text);

// In the largest binary unit that is not above the value: whole where it divides the value ("64
// MiB"), else three significant digits ("1.46 GiB").
std::string FormatBytes(std::uint64_t bytes);

// "250ms", "10s", "5m", "2h", "1d"; a bare number is refused: its unit would be a guess.
absl::StatusOr<std::chrono::milliseconds> ParseDuration(std::string_view text);
std::string FormatDuration(std::chrono::milliseconds duration);

// `value` rounded up to a multiple of `alignment`, a power of two.
constexpr std::uint64_t AlignUp(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

}  // namespace kavern

#endif  // KAVERN_BASE_UNITS_H_
