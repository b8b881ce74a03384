// Plans through the public interface, and how the timings that they are made of come about.
#include <chrono>
#include <cmath>

#include "client/turn_timings.h"
#include "tests/unit/client/client_fixture.h"

namespace kavern {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// 32 blocks of 16 tokens are enough bytes for a sample.
constexpr std::size_t kBlocks = 32;
constexpr std::uint64_t kTokens = kBlocks * 16 + 8;

class PlanTest : public ClientTest {
 protected:
  // `ms_per_token` of prefills of 512 tokens.
  static void ReportPrefills(Namespace& ns, double ms_per_token, int count = 8) {
    for (int i = 0; i < count; ++i) {
      const absl::Status status = ns.ReportPrefill(
          {.end_token = 512,
           .duration = std::chrono::duration<double, std::milli>(512 * ms_per_token)});
      EXPECT_TRUE(status.ok()) << status;
    }
  }
  static TurnPlan PlanOf(Namespace& ns, std::span<const BlockKey> keys,
                         std::uint64_t engine_tokens = 0) {
    auto plan = ns.Plan({.keys = keys, .token_count = kTokens, .engine_tokens = engine_tokens});
    EXPECT_TRUE(plan.ok()) << plan.status();
    return *std::move(plan);
  }
  static TurnCosts CostsOf(Namespace& ns) { return PlanOf(ns, {}).costs; }
  // Stored, and measured: prefill by report, RAM by fetches.
  std::vector<BlockKey> Measured(Namespace& ns, double prefill_ms_per_token) {
    const auto keys = Keys(ns, 1, kBlocks);
    EXPECT_TRUE(Store(ns, keys).ok());
    ReportPrefills(ns, prefill_ms_per_token);
    for (int i = 0; i < 8; ++i) EXPECT_EQ(Fetch(ns, keys), AllOk(kBlocks));
    EXPECT_TRUE(Eventually([&] {
      const TurnCosts costs = CostsOf(ns);
      return costs.prefill.samples == 8 && costs.of(Tier::kRam).measured;
    }));
    return keys;
  }
};

TEST_F(PlanTest, WithoutMeasurementsAllThatIsCachedIsFetchedAndNoCallIsMade) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, kBlocks);
  ASSERT_TRUE(Store(*ns, std::span(keys).first(20)).ok());
  const TurnPlan plan = PlanOf(*ns, keys, 40);
  EXPECT_FALSE(plan.measured);
  EXPECT_EQ(plan.first_block, 2U);
  EXPECT_EQ(plan.fetch_blocks, 18U);
  ASSERT_EQ(plan.ranges.size(), 2U);
  EXPECT_EQ(plan.ranges[0].begin_token, 40U);
  EXPECT_EQ(plan.ranges[0].end_token, 320U);
  EXPECT_EQ(plan.ranges[0].tier, Tier::kRam);
  EXPECT_TRUE(plan.ranges[0].fetch);
  EXPECT_EQ(plan.ranges[0].fetch_ms, std::nullopt);
  EXPECT_EQ(plan.ranges[1].end_token, kTokens);
  EXPECT_EQ(plan.total_ms, std::nullopt);
  EXPECT_EQ(daemon_.calls("Match"), 0U);
}

// As an engine's scheduler, which computes and fetches nothing.
TEST_F(PlanTest, WhoOnlyPlansLearnsWhatOthersMeasureMeanwhile) {
  const auto scheduler = Connect();
  const auto planned = Open(*scheduler);
  const auto worker = Connect();
  const auto keys = Measured(*Open(*worker), 1);
  EXPECT_TRUE(Eventually([&] { return PlanOf(*planned, keys).measured; }));
}

TEST_F(PlanTest, BadRequestsNameTheField) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 4);
  const auto message = [&](const PlanRequest& request) {
    const absl::Status status = ns->Plan(request).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(message({.keys = keys, .token_count = 63}), StartsWith("keys: got 4"));
  EXPECT_THAT(message({.keys = keys, .token_count = 64, .engine_tokens = 65}),
              StartsWith("engine_tokens: got 65"));
  EXPECT_THAT(message({.keys = keys, .token_count = UINT64_MAX}), StartsWith("token_count: got"));
  const auto refused = [&](const PrefillTiming& timing) {
    const absl::Status status = ns->ReportPrefill(timing);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refused({0, 512, milliseconds(0)}), HasSubstr("timing.duration in ms: got 0"));
  EXPECT_THAT(refused({0, 512, milliseconds(-1)}), HasSubstr("timing.duration in ms: got -1"));
  EXPECT_THAT(refused({0, 512, std::chrono::duration<double>(std::nan(""))}),
              HasSubstr("timing.duration in ms: got"));
  EXPECT_THAT(refused({512, 512, milliseconds(1)}), HasSubstr("timing.end_token"));
  EXPECT_EQ(daemon_.calls("ReportTimings"), 0U);
}

TEST_F(PlanTest, FetchesMeasureThemselvesAndAnotherClientPlansWithIt) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Measured(*ns, 1000);
  const TurnPlan plan = PlanOf(*ns, keys);
  EXPECT_EQ(plan.fetch_blocks, kBlocks);
  EXPECT_FALSE(plan.probe);
  EXPECT_GT(*plan.ranges[0].fetch_ms, 0);
  EXPECT_NEAR(*plan.recompute_all_ms, kTokens * 1000.0, kTokens * 50.0);
  EXPECT_LT(*plan.total_ms, *plan.recompute_all_ms);

  const auto other = Connect();
  const auto same = Open(*other);
  const TurnPlan first = PlanOf(*same, keys);
  EXPECT_TRUE(first.measured);
  EXPECT_EQ(first.fetch_blocks, kBlocks);
  EXPECT_EQ(first.costs.prefill.samples, 8U);
  // Once the last sample is told.
  EXPECT_TRUE(
      Eventually([&] { return *PlanOf(*same, keys).total_ms == *PlanOf(*ns, keys).total_ms; }));
  EXPECT_EQ(CostsOf(*Open(*other, "another model")).prefill.samples, 0U);
}

TEST_F(PlanTest, WhatIsQuickerToComputeIsNotFetchedButProbedNowAndThen) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Measured(*ns, 1e-5);
  for (int i = 1; i < 32; ++i) {
    const TurnPlan plan = PlanOf(*ns, keys);
    ASSERT_EQ(plan.fetch_blocks, 0U) << i;
    ASSERT_EQ(plan.ranges[0].tier, Tier::kRam);
    ASSERT_FALSE(plan.ranges[0].fetch);
    ASSERT_EQ(*plan.total_ms, *plan.recompute_all_ms);
  }
  const TurnPlan probe = PlanOf(*ns, keys);
  EXPECT_TRUE(probe.probe);
  EXPECT_EQ(probe.fetch_blocks, kBlocks);
  EXPECT_EQ(PlanOf(*ns, keys).fetch_blocks, 0U);
}

TEST_F(PlanTest, MissesAndTinyFetchesAreNoSamples) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, kBlocks);
  ASSERT_TRUE(Store(*ns, std::span(keys).first(kBlocks - 1)).ok());
  Fetch(*ns, keys);
  Fetch(*ns, std::span(keys).first(8));
  ReportPrefills(*ns, 1);
  ASSERT_TRUE(Eventually([&] { return CostsOf(*ns).prefill.measured; }));
  EXPECT_EQ(CostsOf(*ns).of(Tier::kRam).samples, 0U);
}

// A daemon that hangs: what is reported meanwhile waits for it, the caller does not.
TEST_F(PlanTest, ADaemonThatDoesNotAnswerHoldsUpNobody) {
  const auto client = Connect();
  const auto ns = Open(*client);
  daemon_.LoseNextAnswer("ReportTimings", false);
  ReportPrefills(*ns, 1, 1);
  ASSERT_TRUE(Eventually([&] { return daemon_.calls("ReportTimings") == 1; }));
  ReportPrefills(*ns, 1, 8);
  EXPECT_TRUE(Eventually([&] { return CostsOf(*ns).prefill.samples == 8; }));
}

TEST(TurnTimingsTest, WhatWaitsIsBoundedAndTheRestIsDropped) {
  client::TurnTimings timings;
  EXPECT_TRUE(timings.Add(PrefillSample{0, 512, 5}));
  for (int i = 0; i < 300; ++i) EXPECT_FALSE(timings.Add(PrefillSample{0, 512, 5}));
  EXPECT_FALSE(timings.Add(TransferSample{Tier::kRam, 4096, 5}));
  const auto report = timings.Take();
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->request.prefills_size(), static_cast<int>(TurnSamples::kMax));
  EXPECT_EQ(report->request.transfers_size(), 0);
  EXPECT_FALSE(timings.Take().has_value());
  EXPECT_TRUE(timings.Add(TransferSample{Tier::kRam, 4096, 5}));
}

// A daemon that is mistaken, or is none: what makes no sense is not planned with.
TEST(TurnTimingsTest, EstimatesThatMakeNoSenseAreNotTaken) {
  client::TurnTimings timings;
  v1::TurnCosts costs;
  costs.mutable_prefill()->set_measured(true);
  costs.mutable_prefill()->set_ms_per_token(std::nan(""));
  v1::TransferCost* transfer = costs.add_transfers();
  transfer->set_tier(v1::TIER_RAM);
  transfer->set_measured(true);
  transfer->set_ms_per_byte(-1);
  *costs.add_transfers() = *transfer;
  costs.mutable_transfers(1)->set_tier(static_cast<v1::Tier>(77));
  timings.Told(costs);
  EXPECT_FALSE(timings.Costs(false).prefill.measured);
  EXPECT_FALSE(timings.Costs(false).of(Tier::kRam).measured);
}

TEST_F(PlanTest, WhatWasKnownOutlivesTheDaemonAndIsPlannedWith) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Measured(*ns, 1);
  daemon_.Stop();
  EXPECT_TRUE(Eventually([&] { return !client->connection().attached; }));
  ReportPrefills(*ns, 1);
  const TurnPlan away = PlanOf(*ns, keys);
  EXPECT_EQ(away.fetch_blocks, 0U);
  EXPECT_EQ(away.ranges.size(), 1U);
  EXPECT_NEAR(*away.total_ms, kTokens, 0.05 * kTokens);
  daemon_.Start();
  ASSERT_TRUE(Eventually([&] { return client->connection().attached; }));
  ASSERT_TRUE(Store(*ns, keys).ok());
  const TurnPlan back = PlanOf(*ns, keys);
  EXPECT_TRUE(back.measured);
  EXPECT_EQ(back.fetch_blocks, kBlocks);
  EXPECT_EQ(back.costs.of(Tier::kRam).ms_per_byte, away.costs.of(Tier::kRam).ms_per_byte);
}

// Bytes in messages cost otherwise than shared memory: both are planned with what is theirs.
TEST_F(PlanTest, FetchesByMessagesAreTheClientsOwnAffair) {
  ClientOptions options;
  options.force_bytes_plane = true;
  const auto client = Connect(options);
  const auto ns = Open(*client);
  Measured(*ns, 1);
  EXPECT_TRUE(CostsOf(*ns).of(Tier::kRam).measured);
  const auto local = Connect();
  const TurnCosts costs = CostsOf(*Open(*local));
  EXPECT_TRUE(costs.prefill.measured);
  EXPECT_EQ(costs.of(Tier::kRam).samples, 0U);
}

// The last turn of a worker counts, too.
TEST_F(PlanTest, AClientThatEndsTellsWhatItHas) {
  const auto keeper = Connect();
  const auto kept = Open(*keeper);
  {
    const auto client = Connect();
    ReportPrefills(*Open(*client), 1);
  }
  const auto late = Connect();
  EXPECT_EQ(CostsOf(*Open(*late)).prefill.samples, 8U);
}

class TransferSamplerTest : public testing::Test {
 protected:
  void Add(std::vector<Tier> tiers, std::uint64_t bytes, int ms) {
    sampler_.Add(tiers, bytes, milliseconds(ms));
  }
  client::TransferSampler sampler_;
};

TEST_F(TransferSamplerTest, OnlyWhatCameFromOneTierIsASample) {
  constexpr std::uint64_t kBytes = 1 << 20;
  Add({Tier::kRam, Tier::kRam}, kBytes, 1);
  Add({Tier::kRam}, kBytes, 2);  // goes on
  Add({Tier::kRam, Tier::kNvme}, kBytes, 3);
  Add({Tier::kNvme}, kBytes, 4);
  Add({Tier::kNvme, Tier::kNone}, kBytes, 5);
  Add({Tier::kNvme}, 4096, 6);
  Add({Tier::kRam}, kBytes, 7);
  Add({Tier::kHbm}, kBytes, 8);
  Add({}, 0, 9);
  const std::vector<TransferSample> samples = sampler_.Take();
  ASSERT_EQ(samples.size(), 3U);
  EXPECT_EQ(samples[0].tier, Tier::kRam);
  EXPECT_EQ(samples[0].bytes, 2 * kBytes);
  EXPECT_DOUBLE_EQ(samples[0].ms, 3);
  EXPECT_EQ(samples[1].tier, Tier::kNvme);
  EXPECT_EQ(samples[1].bytes, kBytes);
  EXPECT_DOUBLE_EQ(samples[1].ms, 4);
  EXPECT_EQ(samples[2].tier, Tier::kRam);
  EXPECT_DOUBLE_EQ(samples[2].ms, 7);
  EXPECT_TRUE(sampler_.Take().empty());
}

}  // namespace
}  // namespace kavern
