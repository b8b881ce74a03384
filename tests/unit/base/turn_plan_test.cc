// Plans against every other choice of prefix, and what they say where a cost is not known.
#include "base/turn_plan.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace kavern {
namespace {

constexpr std::uint32_t kBlockTokens = 16;

// 1 KiB a token: 16 KiB a block.
LayerGroup FullGroup(std::uint32_t layers = 1) {
  LayerGroup group;
  group.layer_count = layers;
  group.kv_heads = 1;
  group.head_dim = 512;
  return group;
}

LayerGroup WindowGroup(std::uint32_t window_tokens) {
  LayerGroup group = FullGroup();
  group.kind = LayerGroupKind::kSlidingWindow;
  group.window_tokens = window_tokens;
  return group;
}

KvLayout Layout(std::vector<LayerGroup> groups = {FullGroup()}) {
  KvLayout layout;
  layout.dtype = KvDtype::kInt8;
  layout.tokens_per_block = kBlockTokens;
  layout.groups = std::move(groups);
  EXPECT_TRUE(layout.Validate().ok());
  return layout;
}

// `ms_per_block`: of 16 KiB from each tier.
TurnCosts Costs(double prefill_ms_per_token, double ram_ms_per_block, double nvme_ms_per_block) {
  TurnCosts costs;
  costs.prefill = {1, prefill_ms_per_token, 0, 10, true};
  costs.of(Tier::kRam) = {0.1, ram_ms_per_block / 16384, 10, true};
  costs.of(Tier::kNvme) = {0.5, nvme_ms_per_block / 16384, 10, true};
  return costs;
}

std::vector<Tier> Tiers(std::size_t ram, std::size_t nvme) {
  std::vector<Tier> tiers(ram, Tier::kRam);
  tiers.resize(ram + nvme, Tier::kNvme);
  return tiers;
}

double Sum(const TurnPlan& plan) {
  double ms = 0;
  for (const PlanRange& range : plan.ranges) {
    ms += range.fetch ? *range.fetch_ms : *range.recompute_ms;
  }
  return ms;
}

void ExpectGapless(const TurnPlan& plan, std::uint64_t from, std::uint64_t to) {
  for (const PlanRange& range : plan.ranges) {
    EXPECT_EQ(range.begin_token, from);
    EXPECT_GT(range.end_token, range.begin_token);
    from = range.end_token;
  }
  EXPECT_EQ(from, to);
}

TEST(TurnPlanTest, BlocksOnASlowDiskAreComputedAndThoseInRamFetched) {
  const KvLayout layout = Layout();
  const auto tiers = Tiers(4, 4);
  const TurnPlan plan = PlanTurn({.layout = &layout,
                                  .token_count = 200,
                                  .engine_tokens = 0,
                                  .tiers = tiers,
                                  .costs = Costs(0.1, 0.2, 9)});
  EXPECT_TRUE(plan.measured);
  EXPECT_EQ(plan.first_block, 0U);
  EXPECT_EQ(plan.fetch_blocks, 4U);
  ASSERT_EQ(plan.ranges.size(), 3U);
  EXPECT_TRUE(plan.ranges[0].fetch);
  EXPECT_EQ(plan.ranges[0].tier, Tier::kRam);
  EXPECT_EQ(plan.ranges[0].end_token, 64U);
  EXPECT_NEAR(*plan.ranges[0].fetch_ms, 0.1 + 4 * 0.2, 1e-9);
  EXPECT_NEAR(*plan.ranges[0].recompute_ms, 6.4, 1e-9);
  EXPECT_FALSE(plan.ranges[1].fetch);
  EXPECT_EQ(plan.ranges[1].tier, Tier::kNvme);
  EXPECT_NEAR(*plan.ranges[1].fetch_ms, 0.5 + 4 * 9, 1e-9);
  EXPECT_FALSE(plan.ranges[2].fetch);
  EXPECT_EQ(plan.ranges[2].tier, Tier::kNone);
  EXPECT_EQ(plan.ranges[2].fetch_ms, std::nullopt);
  ExpectGapless(plan, 0, 200);
  EXPECT_NEAR(*plan.total_ms, 0.9 + 1 + 0.1 * (200 - 64), 1e-9);
  EXPECT_NEAR(*plan.recompute_all_ms, 1 + 0.1 * 200, 1e-9);
}

// Tokens late in the prompt are dearer to compute: a prefix that is longer pays where half does
// not.
TEST(TurnPlanTest, ALongPrefixIsFetchedThoughItsFirstHalfWouldNotPay) {
  const KvLayout layout = Layout();
  const auto tiers = Tiers(0, 64);
  TurnCosts costs = Costs(0.01, 0.1, 1);
  costs.prefill.ms_per_square_token = 1e-4;
  const TurnPlan plan = PlanTurn(
      {.layout = &layout, .token_count = 1024, .engine_tokens = 0, .tiers = tiers, .costs = costs});
  EXPECT_EQ(plan.fetch_blocks, 64U);
  EXPECT_GT(costs.of(Tier::kNvme).Ms(std::uint64_t{8} * 16384),
            costs.prefill.Ms(0, 128) - costs.prefill.fixed_ms);
}

TEST(TurnPlanTest, NoOtherPrefixTakesLess) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> cost(0.01, 3);
  for (int round = 0; round < 500; ++round) {
    const KvLayout layout = Layout({FullGroup(1 + round % 3), WindowGroup(1 + random() % 100)});
    std::vector<Tier> tiers;
    for (std::size_t i = random() % 20; i > 0; --i) {
      tiers.push_back(random() % 2 == 0 ? Tier::kRam : Tier::kNvme);
    }
    TurnCosts costs = Costs(cost(random) / 8, cost(random), cost(random));
    costs.prefill.ms_per_square_token = cost(random) * 1e-3;
    const std::uint64_t engine_tokens = random() % 50;
    const std::uint64_t first = engine_tokens / kBlockTokens;
    const std::uint64_t count =
        std::max(engine_tokens, (first + tiers.size()) * kBlockTokens) + random() % 40;
    const TurnPlan plan = PlanTurn({.layout = &layout,
                                    .token_count = count,
                                    .engine_tokens = engine_tokens,
                                    .tiers = tiers,
                                    .costs = costs});
    ExpectGapless(plan, engine_tokens, count);
    ASSERT_TRUE(plan.total_ms.has_value());
    EXPECT_NEAR(Sum(plan), *plan.total_ms, 1e-6);
    // By hand: block by block, group by group.
    for (std::size_t prefix = 0; prefix <= tiers.size(); ++prefix) {
      std::uint64_t bytes[2][kTierCount] = {};  // of each group, which is fetched by itself
      for (std::size_t block = 0; block < prefix; ++block) {
        for (std::uint32_t g = 0; g < 2; ++g) {
          const std::uint64_t reach = layout.groups[g].window_tokens;
          const bool needed = g == 0 || (block + 1) * kBlockTokens + reach > prefix * kBlockTokens;
          if (needed) bytes[g][static_cast<int>(tiers[block])] += layout.PartBytes(g);
        }
      }
      const std::uint64_t from = prefix == 0 ? engine_tokens : (first + prefix) * kBlockTokens;
      double ms = costs.prefill.Ms(from, count);
      for (int tier = 0; tier < kTierCount; ++tier) {
        for (const auto& of_group : bytes) ms += costs.tiers[tier].Ms(of_group[tier]);
      }
      EXPECT_GE(ms, *plan.total_ms - 1e-9) << "prefix " << prefix;
      if (prefix == plan.fetch_blocks) {
        EXPECT_NEAR(ms, *plan.total_ms, 1e-9);
      }
    }
  }
}

// Sixteen blocks of the window's layers would cost more than computing; the last one alone does
// not.
TEST(TurnPlanTest, OfASlidingWindowOnlyWhatItReachesBackToIsFetched) {
  const KvLayout layout = Layout({WindowGroup(kBlockTokens)});
  const auto tiers = Tiers(16, 0);
  const TurnPlan plan = PlanTurn({.layout = &layout,
                                  .token_count = 256,
                                  .engine_tokens = 0,
                                  .tiers = tiers,
                                  .costs = Costs(0.05, 5, 5)});
  EXPECT_EQ(plan.fetch_blocks, 16U);
  EXPECT_NEAR(*plan.total_ms, 0.1 + 5, 1e-9);
}

TEST(TurnPlanTest, WhatTheEngineHasIsNeitherFetchedNorComputed) {
  const KvLayout layout = Layout();
  const auto tiers = Tiers(2, 0);
  // It has half of the third block: that one is fetched whole.
  const TurnPlan plan = PlanTurn({.layout = &layout,
                                  .token_count = 70,
                                  .engine_tokens = 40,
                                  .tiers = tiers,
                                  .costs = Costs(1, 0.2, 9)});
  EXPECT_EQ(plan.first_block, 2U);
  EXPECT_EQ(plan.fetch_blocks, 2U);
  ASSERT_EQ(plan.ranges.size(), 2U);
  EXPECT_EQ(plan.ranges[0].begin_token, 40U);
  EXPECT_EQ(plan.ranges[0].end_token, 64U);
  EXPECT_NEAR(*plan.ranges[0].fetch_ms, 0.1 + 0.4, 1e-9);
  const TurnPlan nothing = PlanTurn(
      {.layout = &layout, .token_count = 64, .engine_tokens = 64, .costs = Costs(1, 0.2, 9)});
  EXPECT_TRUE(nothing.ranges.empty());
  EXPECT_EQ(nothing.total_ms, 0);
}

// A cache that was never measured must not refuse hits, and a number that nobody has is not told.
TEST(TurnPlanTest, WithoutMeasurementsAllIsFetchedAndNoNumberIsTold) {
  const KvLayout layout = Layout();
  const auto tiers = Tiers(2, 2);
  const auto plan_with = [&](const TurnCosts& costs) {
    return PlanTurn({.layout = &layout,
                     .token_count = 100,
                     .engine_tokens = 0,
                     .tiers = tiers,
                     .costs = costs});
  };
  const TurnPlan none = plan_with({});
  EXPECT_FALSE(none.measured);
  EXPECT_EQ(none.fetch_blocks, 4U);
  EXPECT_EQ(none.total_ms, std::nullopt);
  EXPECT_EQ(none.recompute_all_ms, std::nullopt);
  for (const PlanRange& range : none.ranges) {
    EXPECT_EQ(range.fetch_ms, std::nullopt);
    EXPECT_EQ(range.recompute_ms, std::nullopt);
  }

  TurnCosts without_disk = Costs(0.001, 5, 5);
  without_disk.of(Tier::kNvme) = {};
  const TurnPlan disk = plan_with(without_disk);
  EXPECT_FALSE(disk.measured);
  EXPECT_EQ(disk.fetch_blocks, 4U);
  EXPECT_EQ(disk.total_ms, std::nullopt);
  EXPECT_NEAR(*disk.recompute_all_ms, 1 + 0.1, 1e-9);
  EXPECT_TRUE(disk.ranges[0].fetch_ms.has_value());
  EXPECT_EQ(disk.ranges[1].fetch_ms, std::nullopt);

  TurnCosts without_prefill = Costs(0.001, 5, 5);
  without_prefill.prefill = {};
  const TurnPlan prefill = plan_with(without_prefill);
  EXPECT_EQ(prefill.fetch_blocks, 4U);
  EXPECT_EQ(prefill.total_ms, std::nullopt);
}

// What was slow once would otherwise never be fetched, and so never be measured, again.
TEST(TurnPlanTest, AProbeFetchesAllAndSaysSo) {
  const KvLayout layout = Layout();
  const auto tiers = Tiers(0, 4);
  const TurnFacts facts = {.layout = &layout,
                           .token_count = 80,
                           .engine_tokens = 0,
                           .tiers = tiers,
                           .costs = Costs(0.01, 5, 5),
                           .probe = true};
  const TurnPlan probe = PlanTurn(facts);
  EXPECT_TRUE(probe.probe && probe.measured);
  EXPECT_EQ(probe.fetch_blocks, 4U);
  EXPECT_GT(*probe.total_ms, *probe.recompute_all_ms);
  TurnFacts cheap = facts;
  cheap.costs = Costs(1, 0.1, 0.1);
  EXPECT_FALSE(PlanTurn(cheap).probe) << "all is fetched anyway";
}

}  // namespace
}  // namespace kavern
