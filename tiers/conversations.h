// Conversations: names that clients give to chains of blocks, and what they say of them.
//
// A pure data structure: no I/O, no thread, no clock, and no block. The store's lock guards it. It
// knows where in RAM a conversation is anchored as a number only: at the block farthest down its
// chain that is still there. Everything above that block stays as long as it does, so the anchor is
// all that eviction must know.
#ifndef KAVERN_TIERS_CONVERSATIONS_H_
#define KAVERN_TIERS_CONVERSATIONS_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "base/clock.h"
#include "tiers/policy/eviction_policy.h"

namespace kavern::tiers {

inline constexpr std::size_t kConversationNameBytesMax = 256;

struct ConversationOptions {
  // What clients ask for is lowered to these.
  std::uint8_t priority_max = kPriorityMax;
  std::chrono::milliseconds ttl_max{std::chrono::hours(24)};
  // Of a conversation that says none.
  std::chrono::milliseconds ttl_default{std::chrono::hours(1)};
  // Conversations known at a time. At either limit the one of the tenant that ends first makes
  // room; at that of the node, of the tenant with the most.
  std::uint64_t count_max = 65536;
  std::uint64_t count_per_tenant_max = 16384;
};

struct ConversationTerms {
  std::uint8_t priority = kPriorityDefault;
  std::chrono::milliseconds ttl{0};
};
// What a client gets of what it asks for; a ttl of 0, and no priority, ask for the defaults.
// InvalidArgument: a priority above 100, a negative ttl.
absl::StatusOr<ConversationTerms> ClampTerms(const ConversationOptions& options,
                                             std::optional<std::uint32_t> priority,
                                             std::chrono::milliseconds ttl);
// InvalidArgument: empty or longer than kConversationNameBytesMax.
absl::Status CheckConversationName(std::string_view name);

struct Conversation {
  NamespaceFingerprint ns;
  std::string name;
  BlockKey leaf;                  // its last block, as it was told
  std::uint64_t token_count = 0;  // up to the end of that
  std::uint8_t priority = kPriorityDefault;
  std::uint64_t updates = 0;
  SteadyTime created;
  SteadyTime updated;
  SteadyTime ends;
  UseSequence told_at = 0;  // the last use of any block when it was told
  // In RAM; kNoBlock: nothing of it is there, or too many others share the block.
  BlockId anchor = kNoBlock;

  std::uint64_t number = 0;  // no other has it
};

class ConversationTable {
 public:
  explicit ConversationTable(ConversationOptions options) : options_(options) {}
  ConversationTable(const ConversationTable&) = delete;
  ConversationTable& operator=(const ConversationTable&) = delete;

  const ConversationOptions& options() const { return options_; }

  // What left a block: its class is to be found out anew.
  struct Left {
    NamespaceFingerprint ns;
    BlockId anchor = kNoBlock;
    bool ended = false;       // by its TTL
    UseSequence told_at = 0;  // as Conversation::told_at
  };

  struct Told {
    BlockKey leaf;
    std::uint64_t token_count = 0;
    ConversationTerms terms;
    SteadyTime now;
    UseSequence last_use = 0;
    BlockId anchor = kNoBlock;
  };
  // Adds the conversation, or changes it; one that has ended begins anew. Appends what left its
  // anchor by that: what this conversation was, and who made room for it.
  const Conversation& Update(const NamespaceFingerprint& ns, const std::string& tenant,
                             std::string_view name, const Told& told, std::vector<Left>* left);
  // nullptr: not known, or ended.
  const Conversation* Find(const NamespaceFingerprint& ns, std::string_view name,
                           SteadyTime now) const;

  // Forgets what has ended, at most `max` of them.
  std::vector<Left> TakeEnded(SteadyTime now, std::size_t max);
  // Forgets all of a namespace, whose blocks are gone.
  void DropNamespace(const NamespaceFingerprint& ns);

  // ---- Anchors ----
  // The highest priority among those anchored at the block; nullopt: there is none.
  std::optional<std::uint8_t> PriorityAt(const NamespaceFingerprint& ns, BlockId block) const;
  // The block leaves, and `parent` (kNoBlock: nothing) is what is left of its conversations.
  void MoveAnchors(const NamespaceFingerprint& ns, BlockId block, BlockId parent);
  std::vector<BlockId> AnchorsOf(const NamespaceFingerprint& ns) const;

  // ---- The whole ----
  std::uint64_t size() const { return count_; }
  std::uint64_t CountIn(const NamespaceFingerprint& ns) const;
  // Since the table was made: those that made room for others.
  std::uint64_t displaced() const { return displaced_; }
  std::uint64_t ended() const { return ended_; }
  std::uint64_t MemoryBytes() const;
  // Recounts; empty when all is well, else what is wrong.
  std::string Audit() const;

 private:
  struct NamespaceTable {
    std::string tenant;
    absl::flat_hash_map<std::string, std::unique_ptr<Conversation>> by_name;
    absl::flat_hash_map<BlockId, std::vector<Conversation*>> anchors;
  };
  // Of a tenant, the first to end first.
  using ByEnd = absl::btree_map<std::pair<SteadyTime, std::uint64_t>, Conversation*>;

  // Moving an anchor takes time in how many share it, with the store's lock held. Past this the
  // least of them (by priority, then by end) has no anchor any more.
  static constexpr std::size_t kPerBlockMax = 64;

  void AddAnchor(NamespaceTable& table, Conversation& conversation, BlockId block);
  static void RemoveAnchor(NamespaceTable& table, Conversation& conversation);
  NamespaceTable& TableOf(const NamespaceFingerprint& ns, const std::string& tenant);
  void MakeRoom(const std::string& tenant, SteadyTime now, std::vector<Left>* left);
  // The conversation is gone after it.
  Left Forget(ByEnd& by_end, Conversation& conversation);

  const ConversationOptions options_;
  absl::flat_hash_map<NamespaceFingerprint, std::unique_ptr<NamespaceTable>> namespaces_;
  absl::flat_hash_map<std::string, ByEnd> tenants_;
  std::uint64_t count_ = 0;
  std::uint64_t last_number_ = 0;
  std::uint64_t displaced_ = 0;
  std::uint64_t ended_ = 0;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_CONVERSATIONS_H_
