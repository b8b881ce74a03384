#include "absl/strings/str_cat.h"
#include "tiers/namespace_store.h"

namespace kavern::tiers {

absl::Status NamespaceStore::Audit() const {
  const auto internal = [this](const std::string& what) {
    return absl::InternalError(absl::StrCat("namespace ", fingerprint_.ToHex(), ": ", what));
  };
  if (const std::string wrong = index_.Audit(); !wrong.empty()) return internal(wrong);
  if (const std::string wrong = directory_.Audit(indices()); !wrong.empty()) return internal(wrong);
  if (const std::string wrong = AuditClasses(); !wrong.empty()) return internal(wrong);

  std::uint64_t owned_by_blocks = 0;
  if (const std::string wrong = AuditParts(layout().PartCount(), &owned_by_blocks);
      !wrong.empty()) {
    return internal(wrong);
  }
  std::uint64_t pins = 0;
  std::uint64_t owned_slots = 0;
  for (std::uint32_t group = 0; group < groups_.size(); ++group) {
    const GroupSlots& slots = groups_[group];
    if (const std::string wrong = slots.Audit(&pins); !wrong.empty()) {
      return internal(absl::StrCat("group ", group, ": ", wrong));
    }
    for (const RegionOrdinal ordinal : slots.RegionsByUse()) {
      for (const SlotId slot : slots.SlotsInUse(ordinal)) {
        owned_slots += slots.OwnerOf(slot).block != kNoBlock ? 1 : 0;
      }
    }
  }
  if (owned_slots != owned_by_blocks) {
    return internal(absl::StrCat(owned_slots, " slots have an owner, ", owned_by_blocks,
                                 " parts are committed"));
  }
  if (pins != read_pins_ + write_pins_ + move_pins_) {
    return internal(absl::StrCat(pins, " pins on slots, leases and moves hold ",
                                 read_pins_ + write_pins_ + move_pins_));
  }
  if (HasEmptyMemory() && region_count() > 0 && refs == 0) {
    return internal("empty, yet it owns regions");
  }
  if (index_.size() > 0 && PendingCount() == 0 && pins == 0 && !OldestUse().has_value()) {
    return internal("it has blocks that nobody uses, yet none can be evicted");
  }
  return absl::OkStatus();
}

std::string NamespaceStore::AuditClasses() const {
  const std::vector<BlockId> anchors = shared_.conversations.AnchorsOf(fingerprint_);
  std::uint64_t named = 0;
  for (const BlockId id : index_.AllBlocks()) named += IsNamedClass(index_.ClassOf(id)) ? 1 : 0;
  if (named != anchors.size()) {
    return absl::StrCat(named, " blocks have the class of a conversation, ", anchors.size(),
                        " anchor one");
  }
  for (const BlockId id : anchors) {
    const auto priority = shared_.conversations.PriorityAt(fingerprint_, id);
    if (!priority.has_value() || index_.ClassOf(id) != ClassOfPriority(*priority)) {
      return absl::StrCat(index_.KeyOf(id).ToHex(), " has another class than its conversations");
    }
  }
  return "";
}

std::string NamespaceStore::AuditParts(std::uint32_t part_count, std::uint64_t* owned) const {
  for (const BlockId id : index_.AllBlocks()) {
    const auto parts = index_.PartsOf(id);
    for (std::uint32_t part = 0; part < part_count; ++part) {
      const SlotId slot = parts[part].slot;
      if (slot == kNoSlot) continue;
      const GroupSlots& slots = groups_[GroupOf(part)];
      if (slots.RegionAt(slot / slots.slots_per_region()) == nullptr) {
        return absl::StrCat(index_.KeyOf(id).ToHex(), " part ", part, " is in no region");
      }
      const GroupSlots::Owner owner = slots.OwnerOf(slot);
      if (owner.block != id || owner.part != part) {
        return absl::StrCat("slot ", slot, " of ", index_.KeyOf(id).ToHex(), " part ", part,
                            " has another owner");
      }
      ++*owned;
    }
  }
  return "";
}

}  // namespace kavern::tiers
