#include "base/units.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kavern {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

TEST(ParseBytes, ReadsWhatPeopleWrite) {
  const std::vector<std::pair<std::string, std::uint64_t>> cases = {
      {"0", 0},
      {"4096", 4096},
      {"  4096  ", 4096},
      {"17B", 17},
      {"64GiB", 64 * kGiB},
      {"512 KiB", 512 * kKiB},
      {"512 kib", 512 * kKiB},
      {"1.5TiB", 1536 * kGiB},
      {"2GB", 2000000000},
      {"0.5 MB", 500000},
      {"1.123456789TB", 1123456789000},
      {"0.1GiB", 107374182},                   // not 107374182.4
      {"9007199254740993", 9007199254740993},  // 2^53 + 1 is no double
      {"9007199254740993B", 9007199254740993},
      {"18446744073709551615", UINT64_MAX},
      {"16777215TiB", 16777215 * kTiB},
  };
  for (const auto& [text, bytes] : cases) {
    const auto parsed = ParseBytes(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.status();
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(ParseBytes, RefusesWhatCouldMeanSomethingElseOrDoesNotFit) {
  for (const char* text : {"",
                           " ",
                           "lots",
                           "GiB",
                           "-1",
                           "-1GiB",
                           "+5",
                           "64G",
                           "64 Gi",
                           "1e9",
                           "0x10",
                           "1.5",
                           "1.5B",
                           "1.",
                           ".5GiB",
                           "1.2.3GiB",
                           ".",
                           "1,5GiB",
                           "1 2GiB",
                           "64GiBs",
                           "nan",
                           "inf",
                           "1.0000000001GiB",
                           "18446744073709551616",
                           "16777216TiB",
                           "99999999999999999999GiB"}) {
    const auto parsed = ParseBytes(text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("expected a size such as"));
  }
}

TEST(FormatBytes, IsExactWhereTheUnitDividesAndHasThreeDigitsElsewhere) {
  const std::vector<std::pair<std::uint64_t, std::string>> cases = {
      {0, "0 B"},
      {1023, "1023 B"},
      {1024, "1 KiB"},
      {1500, "1.46 KiB"},
      {64 * kMiB, "64 MiB"},
      {1000000, "977 KiB"},
      {kGiB + kGiB / 2, "1.50 GiB"},
      {kGiB * 10 - 1, "10.0 GiB"},
      {kGiB * 100 - 1, "100 GiB"},
      {kGiB - 1, "1024 MiB"},
      {3000 * kTiB, "3000 TiB"},
      {UINT64_MAX, "16777216 TiB"},
  };
  for (const auto& [bytes, text] : cases) EXPECT_EQ(FormatBytes(bytes), text) << bytes;
}

// The error of three digits is at most half a percent; a size that is printed exactly returns
// exactly.
TEST(FormatBytes, WhatIsPrintedCanBeReadBack) {
  for (const std::uint64_t bytes : {std::uint64_t{1}, 1500 * kKiB, 64 * kGiB, 5 * kTiB + 7}) {
    const auto back = ParseBytes(FormatBytes(bytes));
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_NEAR(static_cast<double>(*back), static_cast<double>(bytes), 0.005 * bytes);
  }
  EXPECT_EQ(ParseBytes(FormatBytes(64 * kGiB)).value(), 64 * kGiB);
}

TEST(ParseDuration, ReadsWhatPeopleWrite) {
  const std::vector<std::pair<std::string, std::int64_t>> cases = {
      {"0s", 0},        {"250ms", 250},     {"10s", 10000},   {" 5 m ", 300000},
      {"2h", 7200000},  {"1d", 86400000},   {"1.5s", 1500},   {"0.29s", 290},
      {"1.001s", 1001}, {"0.5d", 43200000}, {"0.1h", 360000}, {"11574d", 999993600000}};
  for (const auto& [text, ms] : cases) {
    const auto parsed = ParseDuration(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.status();
    EXPECT_EQ(parsed->count(), ms) << text;
  }
}

TEST(ParseDuration, RefusesAMissingUnitAFractionOfAMillisecondAndWhatDoesNotFit) {
  for (const char* text : {"", "10", "s", "-1s", "10 seconds", "10S", "10M", "1y", "0.5ms",
                           "1.0001s", "1e3s", "100000000000d", "18446744073709551615d"}) {
    const auto parsed = ParseDuration(text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("expected a duration"));
  }
}

TEST(FormatDuration, IsExactAndCanBeReadBack) {
  const std::vector<std::pair<std::int64_t, std::string>> cases = {
      {0, "0ms"},     {1, "1ms"},     {1500, "1500ms"}, {10000, "10s"},
      {90000, "90s"}, {300000, "5m"}, {7200000, "2h"},  {86400000, "1d"}};
  for (const auto& [ms, text] : cases) {
    EXPECT_EQ(FormatDuration(milliseconds(ms)), text);
    EXPECT_EQ(ParseDuration(text).value(), milliseconds(ms));
  }
}

TEST(AlignUp, RoundsUpAndKeepsMultiples) {
  EXPECT_EQ(AlignUp(0, 4096), 0u);
  EXPECT_EQ(AlignUp(1, 4096), 4096u);
  EXPECT_EQ(AlignUp(4096, 4096), 4096u);
  EXPECT_EQ(AlignUp(4097, 4096), 8192u);
  EXPECT_EQ(AlignUp((std::uint64_t{1} << 31) + 1, 4096), (std::uint64_t{1} << 31) + 4096);
}

}  // namespace
}  // namespace kavern
