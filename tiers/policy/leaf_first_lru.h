// The lowest class first, in it the least recently used; leaves only: exact, in O(log candidates)
// per change.
#ifndef KAVERN_TIERS_POLICY_LEAF_FIRST_LRU_H_
#define KAVERN_TIERS_POLICY_LEAF_FIRST_LRU_H_

#include <compare>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/container/btree_set.h"
#include "tiers/policy/eviction_policy.h"

namespace kavern::tiers {

// "Leaves first" is the caller's doing: only blocks without cached children are candidates. A block
// that becomes a leaf takes its place by its own last use, not by the moment it became one.
class LeafFirstLru final : public EvictionPolicy {
 public:
  void Touch(BlockId id, UseSequence sequence) override;
  void Remove(BlockId id) override;
  void SetCandidate(BlockId id, bool candidate) override;
  void SetClass(BlockId id, EvictionClass eviction_class) override;
  EvictionClass ClassOf(BlockId id) const override;
  std::optional<Choice> Victim() const override;
  // In O(classes that there are x log candidates).
  std::optional<Choice> Oldest() const override;
  UseSequence LastUse(BlockId id) const override;
  std::uint64_t MemoryBytes() const override;
  std::string_view name() const override { return "lru"; }

 private:
  // A class above a last use of 56 bits.
  struct Candidate {
    UseSequence rank;
    BlockId id;
    friend auto operator<=>(const Candidate&, const Candidate&) = default;
  };

  UseSequence& EntryOf(BlockId id);
  void SetRank(BlockId id, UseSequence rank);

  // Ranks by block id; the highest bit says that the block is in candidates_. So a class takes no
  // memory of its own. 0: not tracked.
  std::vector<UseSequence> entries_;
  absl::btree_set<Candidate> candidates_;  // the next victim first
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_POLICY_LEAF_FIRST_LRU_H_
