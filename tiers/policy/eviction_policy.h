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

// How soon a block leaves: all of a lower class before any of a higher one, within a class by use.
// From the priorities 0 to 100 of conversations (tiers/conversations.h), and what no conversation
// names between 49 and 50.
using EvictionClass = std::uint8_t;
inline constexpr EvictionClass kEndedClass = 0;  // of conversations that ended; orphans
inline constexpr EvictionClass kPlainClass = 51;
inline constexpr std::uint8_t kPriorityMax = 100;
inline constexpr std::uint8_t kPriorityDefault = 50;
constexpr EvictionClass ClassOfPriority(std::uint8_t priority) {
  return static_cast<EvictionClass>(priority + (priority < kPriorityDefault ? 1 : 2));
}
// Whether a conversation gave it.
constexpr bool IsNamedClass(EvictionClass eviction_class) {
  return eviction_class != kEndedClass && eviction_class != kPlainClass;
}

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  // The block was used (inserted, stored, fetched). Starts tracking a block that is not tracked, in
  // kPlainClass; where kEndedClass ends, for somebody does use it.
  virtual void Touch(BlockId id, UseSequence sequence) = 0;

  // The block left the index. Its id may be used again.
  virtual void Remove(BlockId id) = 0;

  // Whether Victim() may name the block. A tracked block starts as no candidate.
  virtual void SetCandidate(BlockId id, bool candidate) = 0;

  // Of a tracked block.
  virtual void SetClass(BlockId id, EvictionClass eviction_class) = 0;
  virtual EvictionClass ClassOf(BlockId id) const = 0;

  struct Choice {
    BlockId id;
    UseSequence last_use;
  };
  // The candidate to evict next, without removing it; nullopt when there is no candidate.
  virtual std::optional<Choice> Victim() const = 0;

  // The candidate whose last use is the longest ago, whatever its class: for comparing namespaces,
  // among which classes must not count.
  virtual std::optional<Choice> Oldest() const = 0;

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
