// ReportTimings: hostile samples are refused as a whole and by name, and what is estimated of one
// tenant's namespace never shows in another's.
#include <cmath>
#include <functional>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "service/request_handlers.h"
#include "tests/unit/service/test_node.h"

namespace kavern::service {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// Two tenants on sessions as a TCP listener has them: timings need no shared memory.
class ReportTimingsTest : public ::testing::Test {
 protected:
  v1::ReportTimingsRequest Request(int samples, double ms_per_token = 0.1) const {
    v1::ReportTimingsRequest request;
    request.set_fingerprint(fingerprint_);
    for (int i = 0; i < samples; ++i) {
      v1::PrefillTiming* timing = request.add_prefills();
      timing->set_end_token(static_cast<std::uint64_t>(100 * (i % 7 + 1)));
      timing->set_ms(static_cast<double>(timing->end_token()) * ms_per_token);
    }
    return request;
  }
  static void AddTransfer(v1::ReportTimingsRequest& request, v1::Tier tier, std::uint64_t bytes,
                          double ms) {
    v1::TransferTiming* timing = request.add_transfers();
    timing->set_tier(tier);
    timing->set_bytes(bytes);
    timing->set_ms(ms);
  }
  absl::StatusOr<v1::TurnCosts> Report(Session& session, const v1::ReportTimingsRequest& request) {
    v1::ReportTimingsResponse response;
    absl::Status status = node_.handlers().ReportTimings(session, request, &response);
    if (!status.ok()) return status;
    return response.costs();
  }
  v1::TurnCosts CostsOnOpening(Session& session) {
    v1::OpenNamespaceRequest request;
    *request.mutable_spec() = TestNode::Spec();
    v1::OpenNamespaceResponse response;
    const absl::Status status = node_.handlers().OpenNamespace(session, request, &response);
    EXPECT_TRUE(status.ok()) << status;
    return response.costs();
  }

  TestNode node_;
  std::shared_ptr<Session> session_ = node_.TcpSession("a");
  std::string fingerprint_ = node_.Open(*session_);
};

TEST_F(ReportTimingsTest, AnotherWorkerOfTheTenantIsToldWhatWasMeasuredWhenItOpens) {
  EXPECT_FALSE(CostsOnOpening(*session_).prefill().measured());
  v1::ReportTimingsRequest request = Request(20);
  for (int i = 1; i <= 10; ++i) AddTransfer(request, v1::TIER_NVME, 1000000ULL * i, 1 + i);
  const auto told = Report(*session_, request);
  ASSERT_TRUE(told.ok()) << told.status();
  EXPECT_EQ(told->prefill().samples(), 20u);
  EXPECT_TRUE(told->prefill().measured());
  EXPECT_NEAR(told->prefill().ms_per_token(), 0.1, 0.001);
  ASSERT_EQ(told->transfers_size(), 1);
  EXPECT_EQ(told->transfers(0).tier(), v1::TIER_NVME);
  EXPECT_NEAR(told->transfers(0).fixed_ms(), 1, 0.01);
  EXPECT_NEAR(told->transfers(0).ms_per_byte(), 1e-6, 1e-8);

  const auto worker = node_.TcpSession("a");
  EXPECT_EQ(CostsOnOpening(*worker).SerializeAsString(), told->SerializeAsString());
  v1::ListNamespacesResponse list;
  ASSERT_TRUE(node_.handlers().ListNamespaces(*worker, {}, &list).ok());
  EXPECT_EQ(list.namespaces(0).costs().SerializeAsString(), told->SerializeAsString());
  // Without samples it only asks.
  EXPECT_EQ(Report(*session_, Request(0))->SerializeAsString(), told->SerializeAsString());
}

// The first sample that is wrong is named, and none of the request counts.
TEST_F(ReportTimingsTest, HostileSamplesAreRefusedByNameAndChangeNothing) {
  const auto before = Report(*session_, Request(20));
  ASSERT_TRUE(before.ok());
  const auto refused = [&](const std::function<void(v1::ReportTimingsRequest&)>& damage) {
    v1::ReportTimingsRequest request = Request(5, 9);
    damage(request);
    const absl::Status status = Report(*session_, request).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const double ms : {std::nan(""), kInfinity, -kInfinity, -1.0, 0.0, 1e-12, 1e12}) {
    EXPECT_THAT(refused([&](auto& r) { r.mutable_prefills(3)->set_ms(ms); }),
                StartsWith("prefills[3].ms: got"));
    EXPECT_THAT(refused([&](auto& r) { AddTransfer(r, v1::TIER_RAM, 1 << 20, ms); }),
                StartsWith("transfers[0].ms: got"));
  }
  EXPECT_THAT(refused([](auto& r) { r.mutable_prefills(4)->set_begin_token(UINT64_MAX); }),
              StartsWith("prefills[4].end_token: got"));
  EXPECT_THAT(refused([](auto& r) { r.mutable_prefills(0)->set_end_token(UINT64_MAX); }),
              StartsWith("prefills[0].end_token: got"));
  EXPECT_THAT(refused([](auto& r) { AddTransfer(r, v1::TIER_RAM, 0, 1); }),
              StartsWith("transfers[0].bytes: got 0"));
  EXPECT_THAT(refused([](auto& r) { AddTransfer(r, v1::TIER_RAM, UINT64_MAX, 1); }),
              StartsWith("transfers[0].bytes: got"));
  // 258 is 2 in eight bits.
  for (const int tier : {0, 1, 4, 258, -1, INT32_MAX}) {
    EXPECT_THAT(refused([&](auto& r) { AddTransfer(r, static_cast<v1::Tier>(tier), 4096, 1); }),
                HasSubstr("transfers[0].tier: got " + std::to_string(tier)));
  }
  EXPECT_THAT(refused([&](auto& r) { r = Request(257); }), HasSubstr("got 257, expected at most"));
  EXPECT_THAT(refused([&](auto& r) {
                r = Request(200);
                for (int i = 0; i < 57; ++i) AddTransfer(r, v1::TIER_RAM, 4096, 1);
              }),
              HasSubstr("got 257, expected at most 256 together"));
  EXPECT_THAT(refused([](auto& r) { r.set_fingerprint("short"); }), StartsWith("fingerprint"));
  EXPECT_EQ(CostsOnOpening(*session_).SerializeAsString(), before->SerializeAsString());
  EXPECT_TRUE(Report(*session_, Request(256)).ok());
}

TEST_F(ReportTimingsTest, ATenantNeverSeesAnothersTimings) {
  ASSERT_TRUE(Report(*session_, Request(50)).ok());
  const auto other = node_.TcpSession("b");
  EXPECT_EQ(CostsOnOpening(*other).prefill().samples(), 0u);
  v1::ListNamespacesResponse list;
  ASSERT_TRUE(node_.handlers().ListNamespaces(*other, {}, &list).ok());
  ASSERT_EQ(list.namespaces_size(), 1);
  EXPECT_EQ(list.namespaces(0).costs().prefill().samples(), 0u);
  // Nor can it name the namespace: the answer is that for one which does not exist.
  v1::ReportTimingsRequest unknown = Request(5);
  unknown.set_fingerprint(std::string(16, 'n'));
  const absl::Status foreign = Report(*other, Request(5)).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(foreign));
  EXPECT_EQ(foreign, Report(*other, unknown).status());
  EXPECT_EQ(CostsOnOpening(*session_).prefill().samples(), 50u);
}

TEST_F(ReportTimingsTest, WhatWasMeasuredIsForgottenWithTheNamespace) {
  ASSERT_TRUE(Report(*session_, Request(50)).ok());
  session_->FreeEverything();
  session_ = node_.TcpSession("a");
  EXPECT_EQ(CostsOnOpening(*session_).prefill().samples(), 0u);
}

// Each sample is compared with what was predicted before it, so there is none of the first few.
TEST_F(ReportTimingsTest, PredictionsAreComparedWithWhatCameThen) {
  ASSERT_TRUE(Report(*session_, Request(20, 0.1)).ok());
  ASSERT_TRUE(Report(*session_, Request(1, 0.3)).ok());
  const tiers::PredictionRatios ratios = node_.store().GetCounters().predictions.prefill;
  std::uint64_t count = 0;
  for (const std::uint64_t in_bucket : ratios.counts) count += in_bucket;
  EXPECT_EQ(count, 21 - CostFit::kMeasuredFrom);
  EXPECT_EQ(ratios.counts[8], 1u) << "three times as long: between 2 and 4";
  EXPECT_NEAR(ratios.sum, 16 + 3, 0.5);
}

}  // namespace
}  // namespace kavern::service
