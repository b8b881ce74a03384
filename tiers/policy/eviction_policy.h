// The seam of eviction: facts in, a victim out. No I/O, no thread, no clock; the caller serializes.
//
// A policy sees blocks of one namespace by the ids of its BlockIndex. It chooses among candidates
// only: blocks that are visible, under no lease and without cached children, so that a block's
// ancestors are never evicted before it.
#ifndef KAVERN_TIERS_POLICY_EVICTION_POLICY_H_
#define KAVERN_TIERS_POLICY_EVICTION_POLICY_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kavern::tiers {

using BlockId = std::uint32_t;
inline constexpr BlockId kNoBlock = 0xffffffff;

// Logical time of a use: greater is more recent. One counter for the whole store, so that
// namespaces can be compared. 0 is older than every use: what orphans get.
using UseSequence = std::uint64_t;

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  // The block was used (inserted, stored, fetched). Starts tracking a block that is not tracked.
  virtual void Touch(BlockId id, UseSequence sequence) = 0;

  // The block left the index. Its id may be used again.
  virtual void Remove(BlockId id) = 0;

  // Whether Victim() may name the block. A tracked block starts as no candidate.
  virtual void SetCandidate(BlockId id, bool candidate) = 0;

  struct Choice {
    BlockId id;
    UseSequence last_use;  // for comparing the victims of several namespaces
  };
  // The candidate to evict next, without removing it; nullopt when there is no candidate.
  virtual std::optional<Choice> Victim() const = 0;

  // The sequence of the block's last Touch.
  virtual UseSequence LastUse(BlockId id) const = 0;

  // Memory that the policy itself takes, bytes.
  virtual std::uint64_t MemoryBytes() const = 0;

  virtual std::string_view name() const = 0;
};

// Names that MakeEvictionPolicy knows: "lru".
std::vector<std::string> KnownEvictionPolicies();
// nullptr for any other name.
std::unique_ptr<EvictionPolicy> MakeEvictionPolicy(std::string_view name);

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_POLICY_EVICTION_POLICY_H_
