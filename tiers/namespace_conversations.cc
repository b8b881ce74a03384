// The half of NamespaceStore that deals in conversations: which class of eviction a block is in.
//
// Only the block that a conversation is anchored at bears its class; its ancestors have a child, so
// they cannot leave before it. When it leaves, its class goes on to its parent.

#include <algorithm>
#include <utility>

#include "tiers/namespace_store.h"

namespace kavern::tiers {

const Conversation& NamespaceStore::TellConversation(std::string_view name,
                                                     ConversationTable::Told told,
                                                     std::vector<ConversationTable::Left>* left) {
  told.anchor = FindVisible(told.leaf);
  told.last_use = shared_.last_use;
  const Conversation& conversation =
      shared_.conversations.Update(fingerprint_, tenant_, name, told, left);
  if (told.anchor != kNoBlock) Reclass(told.anchor);
  return conversation;
}

void NamespaceStore::Reclass(BlockId id) {
  const auto priority = shared_.conversations.PriorityAt(fingerprint_, id);
  index_.SetClass(id, priority.has_value() ? ClassOfPriority(*priority) : kPlainClass);
}

void NamespaceStore::LeaveAnchor(const ConversationTable::Left& left) {
  if (left.anchor == kNoBlock) return;
  Reclass(left.anchor);
  // Where it was used since by somebody else, it is not of the conversation that ended alone.
  const bool was_its_own = policy_->LastUse(left.anchor) <= left.told_at;
  if (left.ended && was_its_own && index_.ClassOf(left.anchor) == kPlainClass) {
    index_.SetClass(left.anchor, kEndedClass);
  }
}

NamespaceStore::Legacy NamespaceStore::TakeLegacy(BlockId id) {
  Legacy legacy;
  legacy.eviction_class = index_.ClassOf(id);
  if (legacy.eviction_class == kPlainClass) return legacy;
  const BlockKey parent = index_.ParentKeyOf(id);
  legacy.parent = parent == fingerprint_.RootKey() ? kNoBlock : FindVisible(parent);
  legacy.last_use = policy_->LastUse(id);
  if (IsNamedClass(legacy.eviction_class)) {
    shared_.conversations.MoveAnchors(fingerprint_, id, legacy.parent);
  }
  return legacy;
}

void NamespaceStore::PassOn(const Legacy& legacy) {
  if (legacy.parent == kNoBlock) return;
  if (IsNamedClass(legacy.eviction_class)) {
    Reclass(legacy.parent);
    return;
  }
  // What has ended leaves as a whole, up to the block that others continue, or have used since: a
  // use of a chain touches it leaf to root, so that its parent's is the next one.
  const bool same_use = policy_->LastUse(legacy.parent) <= legacy.last_use + 1;
  if (legacy.eviction_class == kEndedClass && same_use && !index_.HasChildren(legacy.parent) &&
      index_.ClassOf(legacy.parent) == kPlainClass) {
    index_.SetClass(legacy.parent, kEndedClass);
  }
}

}  // namespace kavern::tiers
