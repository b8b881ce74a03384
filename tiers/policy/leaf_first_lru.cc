#include "tiers/policy/leaf_first_lru.h"

#include <algorithm>

namespace kavern::tiers {
namespace {

constexpr unsigned kClassShift = 56;
constexpr UseSequence kSequenceMax = (UseSequence{1} << kClassShift) - 1;
constexpr UseSequence kCandidateBit = UseSequence{1} << 63;

EvictionClass ClassIn(UseSequence entry) {
  return static_cast<EvictionClass>((entry & ~kCandidateBit) >> kClassShift);
}

UseSequence RankOf(EvictionClass eviction_class, UseSequence sequence) {
  return UseSequence{eviction_class} << kClassShift | std::min(sequence, kSequenceMax);
}

}  // namespace

UseSequence& LeafFirstLru::EntryOf(BlockId id) {
  if (id >= entries_.size()) entries_.resize(id + 1);
  return entries_[id];
}

void LeafFirstLru::SetRank(BlockId id, UseSequence rank) {
  UseSequence& entry = EntryOf(id);
  const UseSequence candidate_bit = entry & kCandidateBit;
  if (candidate_bit != 0) {
    candidates_.erase({entry & ~kCandidateBit, id});
    candidates_.insert({rank, id});
  }
  entry = rank | candidate_bit;
}

void LeafFirstLru::Touch(BlockId id, UseSequence sequence) {
  // Also of a block that is not tracked yet.
  const EvictionClass before = ClassIn(EntryOf(id));
  SetRank(id, RankOf(before == kEndedClass ? kPlainClass : before, sequence));
}

void LeafFirstLru::Remove(BlockId id) {
  SetCandidate(id, false);
  if (id < entries_.size()) entries_[id] = 0;
}

void LeafFirstLru::SetCandidate(BlockId id, bool candidate) {
  UseSequence& entry = EntryOf(id);
  if (((entry & kCandidateBit) != 0) == candidate) return;
  const UseSequence rank = entry & ~kCandidateBit;
  if (candidate) {
    candidates_.insert({rank, id});
    entry = rank | kCandidateBit;
  } else {
    candidates_.erase({rank, id});
    entry = rank;
  }
}

void LeafFirstLru::SetClass(BlockId id, EvictionClass eviction_class) {
  SetRank(id, RankOf(eviction_class, LastUse(id)));
}

EvictionClass LeafFirstLru::ClassOf(BlockId id) const {
  return id < entries_.size() ? ClassIn(entries_[id]) : kEndedClass;
}

std::optional<EvictionPolicy::Choice> LeafFirstLru::Victim() const {
  if (candidates_.empty()) return std::nullopt;
  const Candidate& lowest = *candidates_.begin();
  return Choice{lowest.id, lowest.rank & kSequenceMax};
}

std::optional<EvictionPolicy::Choice> LeafFirstLru::Oldest() const {
  std::optional<Choice> oldest;
  // The first of each class that there is: few, and each a search.
  for (auto it = candidates_.begin(); it != candidates_.end();) {
    const UseSequence last_use = it->rank & kSequenceMax;
    if (!oldest.has_value() || last_use < oldest->last_use) oldest = Choice{it->id, last_use};
    it = candidates_.upper_bound({it->rank | kSequenceMax, kNoBlock});
  }
  return oldest;
}

UseSequence LeafFirstLru::LastUse(BlockId id) const {
  return id < entries_.size() ? entries_[id] & kSequenceMax : 0;
}

std::uint64_t LeafFirstLru::MemoryBytes() const {
  // A B-tree of 16-byte values keeps its nodes at least half full, with little beside the values.
  constexpr std::uint64_t kBytesPerCandidate = 24;
  return entries_.capacity() * sizeof(UseSequence) + candidates_.size() * kBytesPerCandidate;
}

}  // namespace kavern::tiers
