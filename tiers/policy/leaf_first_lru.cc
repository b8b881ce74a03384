#include "tiers/policy/leaf_first_lru.h"

namespace kavern::tiers {
namespace {

constexpr UseSequence kCandidateBit = UseSequence{1} << 63;

}  // namespace

void LeafFirstLru::Touch(BlockId id, UseSequence sequence) {
  if (id >= last_use_.size()) last_use_.resize(id + 1);
  UseSequence& entry = last_use_[id];
  const bool candidate = (entry & kCandidateBit) != 0;
  if (candidate) {
    candidates_.erase({entry & ~kCandidateBit, id});
    candidates_.insert({sequence, id});
  }
  entry = sequence | (candidate ? kCandidateBit : 0);
}

void LeafFirstLru::Remove(BlockId id) {
  SetCandidate(id, false);
  if (id < last_use_.size()) last_use_[id] = 0;
}

void LeafFirstLru::SetCandidate(BlockId id, bool candidate) {
  if (id >= last_use_.size()) last_use_.resize(id + 1);
  UseSequence& entry = last_use_[id];
  if (((entry & kCandidateBit) != 0) == candidate) return;
  const UseSequence last_use = entry & ~kCandidateBit;
  if (candidate) {
    candidates_.insert({last_use, id});
    entry = last_use | kCandidateBit;
  } else {
    candidates_.erase({last_use, id});
    entry = last_use;
  }
}

std::optional<EvictionPolicy::Choice> LeafFirstLru::Victim() const {
  if (candidates_.empty()) return std::nullopt;
  const Candidate& oldest = *candidates_.begin();
  return Choice{oldest.id, oldest.last_use};
}

UseSequence LeafFirstLru::LastUse(BlockId id) const {
  return id < last_use_.size() ? last_use_[id] & ~kCandidateBit : 0;
}

std::uint64_t LeafFirstLru::MemoryBytes() const {
  // A B-tree of 16-byte values keeps its nodes at least half full, with little beside the values.
  constexpr std::uint64_t kBytesPerCandidate = 24;
  return last_use_.capacity() * sizeof(UseSequence) + candidates_.size() * kBytesPerCandidate;
}

}  // namespace kavern::tiers
