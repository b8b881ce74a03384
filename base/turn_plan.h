// The plan of a turn: which token ranges to fetch from which tier, which to compute, and the
// predicted milliseconds of each. Pure.
#ifndef KAVERN_BASE_TURN_PLAN_H_
#define KAVERN_BASE_TURN_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/kv_layout.h"
#include "base/tier.h"
#include "base/turn_costs.h"

namespace kavern {

// Tokens [begin_token, end_token) of a turn.
struct PlanRange {
  std::uint64_t begin_token = 0;
  std::uint64_t end_token = 0;
  bool fetch = false;       // the recommendation; else compute them
  Tier tier = Tier::kNone;  // where they are cached; kNone: nowhere, they must be computed
  // Predicted; none where there is nothing to fetch, or nobody has measured yet. A fetch is of
  // one layer group: its fixed part is in the first range of its tier in which the group has
  // something that is fetched, or would be; that of a prefill in the turn's last range. So those of
  // what is recommended add up to total_ms.
  std::optional<double> fetch_ms = {};
  std::optional<double> recompute_ms = {};
};

struct TurnPlan {
  // In order and without gaps, from what the engine has itself to the end of the turn.
  std::vector<PlanRange> ranges;
  // Of the turn's blocks, those to fetch: [first_block, first_block + fetch_blocks). A first block
  // that the engine has in part is fetched whole.
  std::size_t first_block = 0;
  std::size_t fetch_blocks = 0;
  // Predicted, of following the plan and of computing all that the engine has not: none where a
  // cost that it takes is not measured.
  std::optional<double> total_ms;
  std::optional<double> recompute_all_ms;
  // Prefill and every tier that has something of the turn were measured. Else all that is cached
  // is recommended: a cache that was never measured must not refuse hits.
  bool measured = true;
  // All that is cached is recommended though it is not cheapest, so that it is measured once more.
  bool probe = false;
  // What it was made of, with the number of samples of each.
  TurnCosts costs;
};

struct TurnFacts {
  const KvLayout* layout = nullptr;  // of the namespace; valid
  std::uint64_t token_count = 0;     // of the turn
  std::uint64_t engine_tokens = 0;   // the first ones, which the engine has itself
  // Of the blocks from engine_tokens / tokens_per_block on, as far as all are cached and full: the
  // fastest tier that has each. No more than the turn's full blocks.
  std::span<const Tier> tiers = {};
  TurnCosts costs;
  bool probe = false;  // recommend all that is cached
};

// An engine can use a loaded prefix only. So the plan is the length of prefix for which fetching it
// and computing the rest take least together, the longest of several.
//
// Bytes are those that one rank fetches, of one shard: all groups; of a sliding window the blocks
// that it reaches back to from the end of the prefix, of a recurrent state the last block. What
// comes from several tiers is taken to come one after the other: FetchInto copies out of RAM while
// the disk is read, so this is what it costs at most.
//
// Takes time and memory in proportion to the blocks.
TurnPlan PlanTurn(const TurnFacts& facts);

}  // namespace kavern

#endif  // KAVERN_BASE_TURN_PLAN_H_
