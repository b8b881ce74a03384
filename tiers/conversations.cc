#include "tiers/conversations.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace kavern::tiers {

absl::StatusOr<ConversationTerms> ClampTerms(const ConversationOptions& options,
                                             std::optional<std::uint32_t> priority,
                                             std::chrono::milliseconds ttl) {
  const std::uint32_t asked_for = priority.value_or(kPriorityDefault);
  if (asked_for > kPriorityMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("priority: got ", asked_for, ", expected 0 to ", int{kPriorityMax}));
  }
  if (ttl.count() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("ttl_ms: got ", ttl.count(), ", expected 0 (the default) or more"));
  }
  ConversationTerms terms;
  terms.priority = std::min(static_cast<std::uint8_t>(asked_for), options.priority_max);
  terms.ttl = std::min(ttl.count() == 0 ? options.ttl_default : ttl, options.ttl_max);
  return terms;
}

absl::Status CheckConversationName(std::string_view name) {
  if (!name.empty() && name.size() <= kConversationNameBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("conversation: got ", name.size(),
                                                 " bytes, expected a name of 1 to ",
                                                 kConversationNameBytesMax));
}

const Conversation* ConversationTable::Find(const NamespaceFingerprint& ns, std::string_view name,
                                            SteadyTime now) const {
  const auto table = namespaces_.find(ns);
  if (table == namespaces_.end()) return nullptr;
  const auto found = table->second->by_name.find(std::string(name));
  if (found == table->second->by_name.end() || found->second->ends <= now) return nullptr;
  return found->second.get();
}

const Conversation& ConversationTable::Update(const NamespaceFingerprint& ns,
                                              const std::string& tenant, std::string_view name,
                                              const Told& told, std::vector<Left>* left) {
  const auto known = namespaces_.find(ns);
  if (known == namespaces_.end() || !known->second->by_name.contains(std::string(name))) {
    MakeRoom(tenant, told.now, left);
  }
  NamespaceTable& table = TableOf(ns, tenant);
  std::unique_ptr<Conversation>& found = table.by_name[std::string(name)];
  if (found == nullptr) {
    found = std::make_unique<Conversation>();
    found->ns = ns;
    found->name = std::string(name);
    found->number = ++last_number_;
    ++count_;
  }
  Conversation& conversation = *found;
  if (conversation.anchor != kNoBlock) {
    left->push_back({ns, conversation.anchor});
    RemoveAnchor(table, conversation);
  }
  ByEnd& by_end = tenants_[tenant];
  by_end.erase({conversation.ends, conversation.number});
  if (conversation.updates == 0 || conversation.ends <= told.now) {
    conversation.created = told.now;
    conversation.updates = 0;
  }
  conversation.leaf = told.leaf;
  conversation.token_count = told.token_count;
  conversation.priority = told.terms.priority;
  ++conversation.updates;
  conversation.updated = told.now;
  conversation.ends = told.now + told.terms.ttl;
  conversation.told_at = told.last_use;
  by_end.emplace(std::pair(conversation.ends, conversation.number), &conversation);
  if (told.anchor != kNoBlock) AddAnchor(table, conversation, told.anchor);
  return conversation;
}

ConversationTable::NamespaceTable& ConversationTable::TableOf(const NamespaceFingerprint& ns,
                                                              const std::string& tenant) {
  std::unique_ptr<NamespaceTable>& table = namespaces_[ns];
  if (table == nullptr) {
    table = std::make_unique<NamespaceTable>();
    table->tenant = tenant;
  }
  return *table;
}

void ConversationTable::MakeRoom(const std::string& tenant, SteadyTime now,
                                 std::vector<Left>* left) {
  ByEnd* from = &tenants_[tenant];
  if (from->size() < options_.count_per_tenant_max) {
    if (count_ < options_.count_max) return;
    // Whoever has the most, so that nobody loses what is theirs to somebody who names a lot.
    for (auto& [name, other] : tenants_) {
      if (other.size() > from->size()) from = &other;
    }
  }
  if (from->empty()) return;  // count_max is at least one: not when it is reached
  const bool ended = from->begin()->first.first <= now;
  left->push_back(Forget(*from, *from->begin()->second));
  left->back().ended = ended;
  ++(ended ? ended_ : displaced_);
}

ConversationTable::Left ConversationTable::Forget(ByEnd& by_end, Conversation& conversation) {
  const Left left = {conversation.ns, conversation.anchor, false, conversation.told_at};
  const auto table = namespaces_.find(conversation.ns);
  RemoveAnchor(*table->second, conversation);
  by_end.erase({conversation.ends, conversation.number});
  table->second->by_name.erase(std::string(conversation.name));
  if (table->second->by_name.empty()) namespaces_.erase(table);
  --count_;
  return left;
}

std::vector<ConversationTable::Left> ConversationTable::TakeEnded(SteadyTime now, std::size_t max) {
  std::vector<Left> left;
  for (auto& [tenant, by_end] : tenants_) {
    while (left.size() < max && !by_end.empty() && by_end.begin()->first.first <= now) {
      left.push_back(Forget(by_end, *by_end.begin()->second));
      left.back().ended = true;
      ++ended_;
    }
  }
  absl::erase_if(tenants_, [](const auto& tenant) { return tenant.second.empty(); });
  return left;
}

void ConversationTable::DropNamespace(const NamespaceFingerprint& ns) {
  const auto table = namespaces_.find(ns);
  if (table == namespaces_.end()) return;
  ByEnd& by_end = tenants_[table->second->tenant];
  for (const auto& [name, conversation] : table->second->by_name) {
    by_end.erase({conversation->ends, conversation->number});
    --count_;
  }
  namespaces_.erase(table);
}

// ---- Anchors ----

void ConversationTable::AddAnchor(NamespaceTable& table, Conversation& conversation,
                                  BlockId block) {
  std::vector<Conversation*>& here = table.anchors[block];
  here.push_back(&conversation);
  conversation.anchor = block;
  if (here.size() <= kPerBlockMax) return;
  const auto least =
      std::min_element(here.begin(), here.end(), [](const Conversation* a, const Conversation* b) {
        return std::tie(a->priority, a->ends, a->number) <
               std::tie(b->priority, b->ends, b->number);
      });
  (*least)->anchor = kNoBlock;
  here.erase(least);
}

void ConversationTable::RemoveAnchor(NamespaceTable& table, Conversation& conversation) {
  const auto here = table.anchors.find(conversation.anchor);
  if (here == table.anchors.end()) return;
  std::erase(here->second, &conversation);
  if (here->second.empty()) table.anchors.erase(here);
  conversation.anchor = kNoBlock;
}

std::optional<std::uint8_t> ConversationTable::PriorityAt(const NamespaceFingerprint& ns,
                                                          BlockId block) const {
  const auto table = namespaces_.find(ns);
  if (table == namespaces_.end()) return std::nullopt;
  const auto here = table->second->anchors.find(block);
  if (here == table->second->anchors.end()) return std::nullopt;
  std::uint8_t highest = 0;
  for (const Conversation* conversation : here->second) {
    highest = std::max(highest, conversation->priority);
  }
  return highest;
}

void ConversationTable::MoveAnchors(const NamespaceFingerprint& ns, BlockId block, BlockId parent) {
  const auto table = namespaces_.find(ns);
  if (table == namespaces_.end()) return;
  const auto here = table->second->anchors.find(block);
  if (here == table->second->anchors.end()) return;
  const std::vector<Conversation*> moved = std::move(here->second);
  table->second->anchors.erase(here);
  for (Conversation* conversation : moved) {
    conversation->anchor = kNoBlock;
    if (parent != kNoBlock) AddAnchor(*table->second, *conversation, parent);
  }
}

std::vector<BlockId> ConversationTable::AnchorsOf(const NamespaceFingerprint& ns) const {
  std::vector<BlockId> blocks;
  const auto table = namespaces_.find(ns);
  if (table == namespaces_.end()) return blocks;
  for (const auto& [block, conversations] : table->second->anchors) blocks.push_back(block);
  return blocks;
}

// ---- The whole ----

std::uint64_t ConversationTable::CountIn(const NamespaceFingerprint& ns) const {
  const auto found = namespaces_.find(ns);
  return found == namespaces_.end() ? 0 : found->second->by_name.size();
}

std::uint64_t ConversationTable::MemoryBytes() const {
  // The longest name twice, the tables' places and what the allocator adds.
  constexpr std::uint64_t kPerConversation =
      sizeof(Conversation) + 2 * (sizeof(std::string) + kConversationNameBytesMax) + 192;
  return count_ * kPerConversation;
}

std::string ConversationTable::Audit() const {
  std::uint64_t named = 0;
  for (const auto& [ns, table] : namespaces_) {
    const auto tenant = tenants_.find(table->tenant);
    if (tenant == tenants_.end()) return "a namespace's tenant has no conversations";
    named += table->by_name.size();
    for (const auto& [name, conversation] : table->by_name) {
      const auto at = tenant->second.find({conversation->ends, conversation->number});
      if (at == tenant->second.end() || at->second != conversation.get()) {
        return absl::StrCat("conversation ", name, " is not where it ends");
      }
      if (conversation->anchor == kNoBlock) continue;
      const auto here = table->anchors.find(conversation->anchor);
      if (here == table->anchors.end() ||
          std::count(here->second.begin(), here->second.end(), conversation.get()) != 1) {
        return absl::StrCat("conversation ", name, " is not at its anchor");
      }
    }
    for (const auto& [block, conversations] : table->anchors) {
      if (conversations.empty()) return "a block anchors nothing";
      for (const Conversation* conversation : conversations) {
        if (conversation->anchor != block) return "an anchor holds another's conversation";
      }
    }
  }
  std::uint64_t ending = 0;
  for (const auto& [tenant, by_end] : tenants_) ending += by_end.size();
  if (named != count_ || ending != count_) return "conversations differ from a recount";
  return "";
}

}  // namespace kavern::tiers
