// The store's calls on conversations.

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "tiers/namespace_store.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {
namespace {

// Looked at with the lock held.
constexpr std::size_t kEndedAtATime = 256;

}  // namespace

absl::StatusOr<ConversationFacts> TieredStore::UpdateConversation(
    const NamespaceRef& ns, const ConversationUpdate& update) {
  KAVERN_RETURN_IF_ERROR(CheckConversationName(update.name));
  const std::uint64_t block_tokens = ns.ns_->layout().tokens_per_block;
  if (update.token_count == 0 || update.token_count % block_tokens != 0) {
    return absl::InvalidArgumentError(absl::StrCat("token_count: got ", update.token_count,
                                                   ", expected those of whole blocks, of ",
                                                   block_tokens, " tokens each"));
  }
  ConversationTable::Told told;
  KAVERN_ASSIGN_OR_RETURN(told.terms,
                          ClampTerms(options_.conversations, update.priority, update.ttl));
  told.leaf = update.leaf;
  told.token_count = update.token_count;
  told.now = options_.clock->Now();
  MutexLock lock(mu_);
  if (LeafTierLocked(*ns.ns_, update.leaf) == Tier::kNone) {
    return absl::NotFoundError(absl::StrCat("leaf: ", update.leaf.ToHex(),
                                            " is not cached (any more); tell an earlier block"));
  }
  std::vector<ConversationTable::Left> left;
  const Conversation& conversation = ns.ns_->TellConversation(update.name, told, &left);
  ConversationFacts facts = FactsLocked(*ns.ns_, conversation, told.now);
  ++shared_.counters.conversation_updates;
  LeaveAnchorsLocked(left);
  return facts;
}

absl::StatusOr<ConversationFacts> TieredStore::DescribeConversation(const NamespaceRef& ns,
                                                                    std::string_view name) const {
  KAVERN_RETURN_IF_ERROR(CheckConversationName(name));
  const SteadyTime now = options_.clock->Now();
  MutexLock lock(mu_);
  const Conversation* conversation = shared_.conversations.Find(ns.ns_->fingerprint(), name, now);
  if (conversation == nullptr) {
    return absl::NotFoundError("conversation: no such name in this namespace (any more)");
  }
  return FactsLocked(*ns.ns_, *conversation, now);
}

Tier TieredStore::LeafTierLocked(const NamespaceStore& ns, const BlockKey& leaf) const {
  if (ns.FindVisible(leaf) != kNoBlock) return Tier::kRam;
  return ns.IsOnDisk(leaf) ? Tier::kNvme : Tier::kNone;
}

ConversationFacts TieredStore::FactsLocked(const NamespaceStore& ns,
                                           const Conversation& conversation, SteadyTime now) const {
  using std::chrono::duration_cast;
  using std::chrono::milliseconds;
  ConversationFacts facts;
  facts.leaf = conversation.leaf;
  facts.leaf_tier = LeafTierLocked(ns, conversation.leaf);
  facts.token_count = conversation.token_count;
  facts.priority = conversation.priority;
  facts.ttl = duration_cast<milliseconds>(conversation.ends - now);
  facts.updates = conversation.updates;
  facts.age = duration_cast<milliseconds>(now - conversation.created);
  facts.idle = duration_cast<milliseconds>(now - conversation.updated);
  return facts;
}

void TieredStore::LeaveAnchorsLocked(std::span<const ConversationTable::Left> all) {
  for (const ConversationTable::Left& left : all) {
    const auto ns = namespaces_.find(left.ns);
    if (ns != namespaces_.end()) ns->second->LeaveAnchor(left);
  }
}

void TieredStore::EndConversations() {
  const SteadyTime now = options_.clock->Now();
  for (;;) {
    MutexLock lock(mu_);
    const auto left = shared_.conversations.TakeEnded(now, kEndedAtATime);
    LeaveAnchorsLocked(left);
    if (left.size() < kEndedAtATime) return;
  }
}

}  // namespace kavern::tiers
