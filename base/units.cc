#include "base/units.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/numeric/int128.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kavern {
namespace {

using std::chrono::milliseconds;

// "1.5 TiB" as 15 / 10 and "TiB". Not a double: sizes above 2^53 and tenths must come out exact.
struct Quantity {
  std::uint64_t numerator;
  std::uint64_t denominator;  // a power of ten, at most 10^9
  std::string unit;
};

std::optional<Quantity> Split(std::string_view text) {
  const std::string trimmed(
      absl::StripAsciiWhitespace(absl::string_view(text.data(), text.size())));
  const std::size_t end = std::min(trimmed.find_first_not_of("0123456789."), trimmed.size());
  std::string digits = trimmed.substr(0, end);
  const std::size_t point = digits.find('.');
  const std::size_t decimals = point == std::string::npos ? 0 : digits.size() - point - 1;
  if (decimals > 9 || (point != std::string::npos && (point == 0 || decimals == 0))) {
    return std::nullopt;
  }
  if (point != std::string::npos) digits.erase(point, 1);
  Quantity quantity{0, 1, std::string(absl::StripAsciiWhitespace(trimmed.substr(end)))};
  if (!absl::SimpleAtoi(digits, &quantity.numerator)) return std::nullopt;  // also a second point
  for (std::size_t i = 0; i < decimals; ++i) quantity.denominator *= 10;
  return quantity;
}

absl::Status BadBytes(std::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat("got \"", absl::string_view(text.data(), text.size()),
                   "\", expected a size such as 64GiB, 512 KiB or 4096"));
}

absl::Status BadDuration(std::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat("got \"", absl::string_view(text.data(), text.size()),
                   "\", expected a duration with its unit, such as 250ms, 10s, 5m, 2h or 1d"));
}

constexpr std::array<std::pair<std::string_view, std::uint64_t>, 5> kBinaryUnits = {
    {{"TiB", kTiB}, {"GiB", kGiB}, {"MiB", kMiB}, {"KiB", kKiB}, {"B", 1}}};
constexpr std::array<std::pair<std::string_view, std::uint64_t>, 4> kDecimalUnits = {
    {{"TB", 1000000000000}, {"GB", 1000000000}, {"MB", 1000000}, {"KB", 1000}}};
// 30,000 years: sums of a few never overflow.
constexpr std::uint64_t kDurationMsMax = 1000000000000000;
constexpr std::array<std::pair<std::string_view, std::int64_t>, 5> kDurationUnits = {
    {{"d", 86400000}, {"h", 3600000}, {"m", 60000}, {"s", 1000}, {"ms", 1}}};

}  // namespace

absl::StatusOr<std::uint64_t> ParseBytes(std::string_view text) {
  const std::optional<Quantity> quantity = Split(text);
  if (!quantity) return BadBytes(text);
  std::uint64_t factor = quantity->unit.empty() ? 1 : 0;
  const auto match = [&](const auto& units) {
    for (const auto& [name, value] : units) {
      if (absl::EqualsIgnoreCase(quantity->unit, absl::string_view(name.data(), name.size()))) {
        factor = value;
      }
    }
  };
  match(kBinaryUnits);
  match(kDecimalUnits);
  if (factor == 0 || (factor == 1 && quantity->denominator != 1)) return BadBytes(text);
  const absl::uint128 bytes = absl::uint128(quantity->numerator) * factor / quantity->denominator;
  if (absl::Uint128High64(bytes) != 0) return BadBytes(text);
  return absl::Uint128Low64(bytes);
}

std::string FormatBytes(std::uint64_t bytes) {
  const auto unit = std::find_if(kBinaryUnits.begin(), std::prev(kBinaryUnits.end()),
                                 [bytes](const auto& entry) { return bytes >= entry.second; });
  const auto& [name, value] = *unit;
  if (bytes % value == 0) {
    return absl::StrCat(bytes / value, " ", absl::string_view(name.data(), name.size()));
  }
  const double scaled = static_cast<double>(bytes) / static_cast<double>(value);
  // 9.996 has two digits before the point once it is rounded to three.
  const int decimals = scaled < 9.995 ? 2 : scaled < 99.95 ? 1 : 0;
  return absl::StrFormat("%.*f %s", decimals, scaled, std::string(name));
}

absl::StatusOr<milliseconds> ParseDuration(std::string_view text) {
  const std::optional<Quantity> quantity = Split(text);
  if (!quantity) return BadDuration(text);
  for (const auto& [name, value] : kDurationUnits) {
    if (quantity->unit != name) continue;
    const absl::uint128 scaled = absl::uint128(quantity->numerator) * value;
    const absl::uint128 total = scaled / quantity->denominator;
    if (scaled % quantity->denominator != 0 || total > kDurationMsMax) return BadDuration(text);
    return milliseconds(absl::Uint128Low64(total));
  }
  return BadDuration(text);
}

std::string FormatDuration(milliseconds duration) {
  const std::int64_t total = duration.count();
  for (const auto& [name, value] : kDurationUnits) {
    if (total != 0 && total % value == 0) {
      return absl::StrCat(total / value, absl::string_view(name.data(), name.size()));
    }
  }
  return "0ms";
}

}  // namespace kavern
