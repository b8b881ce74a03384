#include "base/turn_costs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

namespace kavern {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::string Refused(const absl::Status& status) {
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  return std::string(status.message());
}

TEST(PrefillSampleTest, WhatCannotBeATimingIsRefusedByName) {
  EXPECT_TRUE((PrefillSample{0, 1, 0.01}.Validate().ok()));
  EXPECT_TRUE((PrefillSample{0, PrefillSample::kTokensMax, 3.6e6}.Validate().ok()));
  for (const double ms : {kNan, kInfinity, -kInfinity, -1.0, 0.0, 1e-300, 1e-4, 1e7, 1e300}) {
    EXPECT_THAT(Refused(PrefillSample{0, 512, ms}.Validate()), StartsWith("ms: got")) << ms;
  }
  EXPECT_THAT(Refused(PrefillSample{5, 5, 1}.Validate()), HasSubstr("end_token: got 5"));
  EXPECT_THAT(Refused(PrefillSample{6, 5, 1}.Validate()), HasSubstr("above begin_token = 6"));
  EXPECT_THAT(Refused(PrefillSample{0, PrefillSample::kTokensMax + 1, 1e3}.Validate()),
              StartsWith("end_token: got"));
  EXPECT_THAT(Refused(PrefillSample{UINT64_MAX - 1, UINT64_MAX, 1}.Validate()),
              StartsWith("end_token: got"));
}

TEST(TransferSampleTest, WhatCannotBeATimingIsRefusedByName) {
  EXPECT_TRUE((TransferSample{Tier::kRam, 4096, 0.01}.Validate().ok()));
  EXPECT_TRUE((TransferSample{Tier::kNvme, TransferSample::kBytesMax, 3e6}.Validate().ok()));
  for (const double ms : {kNan, kInfinity, -1.0, 0.0, 1e-300, 1e300}) {
    EXPECT_THAT(Refused(TransferSample{Tier::kRam, 1 << 20, ms}.Validate()), StartsWith("ms: got"));
  }
  EXPECT_THAT(Refused(TransferSample{Tier::kRam, 0, 1}.Validate()), HasSubstr("bytes: got 0"));
  EXPECT_THAT(Refused(TransferSample{Tier::kRam, UINT64_MAX, 1}.Validate()),
              StartsWith("bytes: got"));
  for (const int tier : {0, 1, 4, 255}) {
    EXPECT_THAT(Refused(TransferSample{static_cast<Tier>(tier), 4096, 1}.Validate()),
                StartsWith("tier: got"));
  }
}

TEST(TurnCostsTest, NothingIsSaidOfWhatWasNotMeasured) {
  PrefillFit prefill;
  TransferFit transfer;
  for (std::uint64_t i = 1; i < CostFit::kMeasuredFrom; ++i) {
    EXPECT_EQ(prefill.Add({0, 100, 10}), std::nullopt);
    EXPECT_EQ(transfer.Add({Tier::kRam, 1000, 10}), std::nullopt);
    EXPECT_EQ(prefill.Cost().samples, i);
    EXPECT_FALSE(prefill.Cost().measured);
    EXPECT_EQ(prefill.Cost().Ms(0, 100), 0);
    EXPECT_FALSE(transfer.Cost().measured);
    EXPECT_EQ(transfer.Cost().Ms(1000), 0);
  }
  prefill.Add({0, 100, 10});
  transfer.Add({Tier::kRam, 1000, 10});
  EXPECT_TRUE(prefill.Cost().measured && transfer.Cost().measured);
  EXPECT_NEAR(prefill.Cost().Ms(0, 100), 10, 0.1);
  EXPECT_NEAR(transfer.Cost().Ms(1000), 10, 0.1);
}

// Prefill of the later tokens of a long prompt is dearer, and the parts add up but for the fixed
// one.
TEST(TurnCostsTest, PrefillCostsWhatTheFormulaSays) {
  const PrefillCost cost{2, 0.5, 0.001, 9, true};
  EXPECT_DOUBLE_EQ(cost.Ms(100, 300), 2 + 100 + 0.001 * (90000 - 10000));
  EXPECT_DOUBLE_EQ(cost.Ms(0, 100) + cost.Ms(100, 300), cost.Ms(0, 300) + cost.fixed_ms);
  EXPECT_EQ(cost.Ms(100, 100), 0);
}

}  // namespace
}  // namespace kavern
