#include "base/turn_plan.h"

#include <algorithm>
#include <array>

namespace kavern {
namespace {

using TierBlocks = std::array<std::uint64_t, kTierCount>;

std::size_t IndexOf(Tier tier) {
  return static_cast<std::size_t>(tier);
}

// How many blocks before the end of a prefix a group's KV reaches back to.
std::size_t BlocksNeeded(const KvLayout& layout, const LayerGroup& group) {
  switch (group.kind) {
    case LayerGroupKind::kSlidingWindow:
      return (std::size_t{group.window_tokens} + layout.tokens_per_block - 1) /
             layout.tokens_per_block;
    case LayerGroupKind::kRecurrentState:
      return 1;
    case LayerGroupKind::kFullAttention:
    case LayerGroupKind::kLatent:
      break;
  }
  return SIZE_MAX;
}

class Planner {
 public:
  explicit Planner(const TurnFacts& facts)
      : facts_(facts), first_block_(facts.engine_tokens / facts.layout->tokens_per_block) {
    counts_.resize(facts.tiers.size() + 1);
    for (std::size_t i = 0; i < facts.tiers.size(); ++i) {
      counts_[i + 1] = counts_[i];
      ++counts_[i + 1][IndexOf(facts.tiers[i])];
    }
    for (std::uint32_t g = 0; g < facts.layout->groups.size(); ++g) {
      groups_.push_back(
          {facts.layout->PartBytes(g), BlocksNeeded(*facts.layout, facts.layout->groups[g])});
    }
  }

  TurnPlan Plan() const {
    const std::size_t cached = facts_.tiers.size();
    TurnPlan plan;
    plan.costs = facts_.costs;
    plan.first_block = first_block_;
    plan.measured = facts_.costs.prefill.measured && TiersMeasured(cached);
    plan.fetch_blocks = plan.measured ? CheapestPrefix() : cached;
    plan.probe = facts_.probe && plan.fetch_blocks < cached;
    if (plan.probe) plan.fetch_blocks = cached;
    AddRanges(&plan);
    const PrefillCost& prefill = facts_.costs.prefill;
    if (prefill.measured) {
      plan.recompute_all_ms = prefill.Ms(facts_.engine_tokens, facts_.token_count);
    }
    const bool computes = EndOf(plan.fetch_blocks) < facts_.token_count;
    if (TiersMeasured(plan.fetch_blocks) && (prefill.measured || !computes)) {
      plan.total_ms = TotalMs(plan.fetch_blocks);
    }
    return plan;
  }

 private:
  struct Group {
    std::uint64_t part_bytes;
    std::size_t blocks_needed;
  };

  // Tokens that are there once `blocks` are fetched.
  std::uint64_t EndOf(std::size_t blocks) const {
    return blocks == 0 ? facts_.engine_tokens
                       : (first_block_ + blocks) * facts_.layout->tokens_per_block;
  }

  bool TiersMeasured(std::size_t blocks) const {
    for (std::size_t tier = 0; tier < kTierCount; ++tier) {
      if (counts_[blocks][tier] > 0 && !facts_.costs.tiers[tier].measured) return false;
    }
    return true;
  }

  // By layer group and tier: whether the fixed part of its fetch is counted.
  using Begun = std::array<std::array<bool, kTierCount>, KvLayout::kGroupsMax>;

  // Of fetching blocks [begin, end), by whoever fetches the first `prefix` blocks. A fetch is of
  // one group, so each has a fixed part of its own.
  double FetchMs(std::size_t begin, std::size_t end, std::size_t prefix, Begun* begun) const {
    double ms = 0;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const Group& group = groups_[g];
      const std::size_t needed_from =
          prefix > group.blocks_needed ? prefix - group.blocks_needed : 0;
      const std::size_t from = std::max(begin, needed_from);
      if (from >= end) continue;
      for (std::size_t tier = 0; tier < kTierCount; ++tier) {
        const std::uint64_t blocks = counts_[end][tier] - counts_[from][tier];
        if (blocks == 0) continue;
        const TransferCost& cost = facts_.costs.tiers[tier];
        ms += cost.Ms(blocks * group.part_bytes) - ((*begun)[g][tier] ? cost.fixed_ms : 0);
        (*begun)[g][tier] = true;
      }
    }
    return ms;
  }

  double TotalMs(std::size_t prefix) const {
    Begun begun{};
    return FetchMs(0, prefix, prefix, &begun) +
           facts_.costs.prefill.Ms(EndOf(prefix), facts_.token_count);
  }

  std::size_t CheapestPrefix() const {
    std::size_t best = 0;
    double best_ms = TotalMs(0);
    for (std::size_t prefix = 1; prefix <= facts_.tiers.size(); ++prefix) {
      const double ms = TotalMs(prefix);
      if (ms > best_ms) continue;
      best = prefix;
      best_ms = ms;
    }
    return best;
  }

  // Runs of one tier, those that are fetched and those that are not.
  void AddRanges(TurnPlan* plan) const {
    const std::size_t cached = facts_.tiers.size();
    Begun begun{};
    for (std::size_t block = 0; block < cached;) {
      const Tier tier = facts_.tiers[block];
      const bool fetch = block < plan->fetch_blocks;
      const std::size_t limit = fetch ? plan->fetch_blocks : cached;
      std::size_t end = block + 1;
      while (end < limit && facts_.tiers[end] == tier) ++end;
      PlanRange range;
      range.begin_token = EndOf(block);
      range.end_token = EndOf(end);
      range.fetch = fetch;
      range.tier = tier;
      if (facts_.costs.of(tier).measured) range.fetch_ms = FetchMs(block, end, limit, &begun);
      plan->ranges.push_back(range);
      block = end;
    }
    if (EndOf(cached) < facts_.token_count) {
      plan->ranges.push_back({.begin_token = EndOf(cached), .end_token = facts_.token_count});
    }
    if (!facts_.costs.prefill.measured) return;
    for (PlanRange& range : plan->ranges) {
      range.recompute_ms =
          facts_.costs.prefill.Ms(range.begin_token, range.end_token) -
          (range.end_token < facts_.token_count ? facts_.costs.prefill.fixed_ms : 0);
    }
  }

  const TurnFacts& facts_;
  const std::size_t first_block_;
  std::vector<TierBlocks> counts_;  // of the blocks before: how many each tier has
  std::vector<Group> groups_;
};

}  // namespace

TurnPlan PlanTurn(const TurnFacts& facts) {
  return Planner(facts).Plan();
}

}  // namespace kavern
