#include "tiers/nvme/disk_index.h"

#include <algorithm>
#include <utility>

#include "absl/container/btree_set.h"
#include "absl/strings/str_cat.h"
#include "tiers/nvme/disk_format.h"

namespace kavern::tiers {

DiskNamespace::DiskNamespace(const NamespaceFingerprint& whose,
                             std::vector<std::uint64_t> part_slot_bytes,
                             std::unique_ptr<EvictionPolicy> evictions)
    : fingerprint(whose),
      slot_bytes(std::move(part_slot_bytes)),
      policy(std::move(evictions)),
      index(fingerprint.RootKey(), static_cast<std::uint32_t>(slot_bytes.size()), *policy) {}

DiskIndex::DiskIndex(Options options) : options_(std::move(options)) {
  free_.resize(options_.segments.size());
  for (std::size_t device = 0; device < free_.size(); ++device) {
    for (std::uint32_t segment = options_.segments[device]; segment > 0; --segment) {
      free_[device].push_back(segment - 1);
    }
    segment_total_ += options_.segments[device];
  }
  free_segments_ = segment_total_;
}

// ---- Namespaces ----

DiskNamespace* DiskIndex::Find(const NamespaceFingerprint& fingerprint) const {
  const auto found = namespaces_.find(fingerprint);
  return found == namespaces_.end() ? nullptr : found->second.get();
}

DiskNamespace& DiskIndex::Open(const NamespaceFingerprint& fingerprint,
                               std::vector<std::uint64_t> slot_bytes) {
  std::unique_ptr<DiskNamespace>& ns = namespaces_[fingerprint];
  if (ns == nullptr) {
    ns = std::make_unique<DiskNamespace>(fingerprint, std::move(slot_bytes),
                                         MakeEvictionPolicy(options_.eviction_policy));
  }
  return *ns;
}

BlockId DiskIndex::FindBlock(const DiskNamespace* ns, const BlockKey& key) {
  if (ns == nullptr) return kNoBlock;
  const BlockId id = ns->index.Find(key);
  return id != kNoBlock && ns->index.IsVisible(id) ? id : kNoBlock;
}

void DiskIndex::Settle(const NamespaceFingerprint& fingerprint) {
  const auto found = namespaces_.find(fingerprint);
  if (found == namespaces_.end()) return;
  const DiskNamespace& ns = *found->second;
  if (ns.index.size() > 0 || ns.uses > 0) return;
  namespaces_.erase(found);
  // Many may have left at once: blocks of another size are not to wait until these are evicted.
  GiveUpEmptySegments();
}

// ---- Writing ----

DiskSlots& DiskIndex::ClassOf(std::uint64_t slot_bytes) {
  std::unique_ptr<DiskSlots>& slots = classes_[slot_bytes];
  if (slots == nullptr) {
    slots = std::make_unique<DiskSlots>(slot_bytes,
                                        disk::SlotsPerSegment(options_.segment_bytes, slot_bytes));
  }
  return *slots;
}

std::optional<DiskIndex::Reservation> DiskIndex::Reserve(DiskNamespace& ns, const BlockKey& key,
                                                         const BlockKey& parent) {
  Reservation reservation;
  const BlockId parent_id = ns.index.Find(parent);
  if (parent_id != kNoBlock) {
    ns.index.AddLease(parent_id);
    reservation.parent = ns.index.RefOf(parent_id);
  }
  reservation.number = ++last_reservation_;
  ns.writing[key] = reservation.number;
  ++ns.uses;
  for (const std::uint64_t slot_bytes : ns.slot_bytes) {
    const auto slot = ReserveSlot(slot_bytes);
    if (!slot.has_value()) {
      Abort(ns, key, reservation);
      return std::nullopt;
    }
    reservation.slots.push_back(*slot);
    reservation.places.push_back(ClassOf(slot_bytes).PlaceOf(*slot));
  }
  absl::btree_set<SegmentId> named;
  for (const DiskPlace& place : reservation.places) {
    const auto unwritten = unwritten_.find(place.segment);
    if (unwritten != unwritten_.end() && named.insert(place.segment).second) {
      reservation.new_segments.push_back(unwritten->second);
    }
  }
  return reservation;
}

void DiskIndex::SegmentWritten(const NewSegment& segment) {
  const auto found = unwritten_.find(segment.id);
  if (found != unwritten_.end() && found->second.epoch == segment.epoch) unwritten_.erase(found);
}

std::optional<SlotId> DiskIndex::ReserveSlot(std::uint64_t slot_bytes) {
  if (disk::SlotsPerSegment(options_.segment_bytes, slot_bytes) == 0) return std::nullopt;
  DiskSlots& slots = ClassOf(slot_bytes);
  for (;;) {
    if (const auto slot = slots.Reserve(); slot.has_value()) return slot;
    if (AddFreeSegment(slots)) continue;
    // What has been of no use for longest leaves; where that is of another size, a whole segment
    // changes hands.
    const DiskNamespace* oldest = OldestNamespace(0);
    const bool ours = oldest == nullptr ||
                      std::find(oldest->slot_bytes.begin(), oldest->slot_bytes.end(), slot_bytes) !=
                          oldest->slot_bytes.end();
    if (!ours || slots.segment_count() == 0) {
      if (StealSegment(slots)) continue;
    }
    if (!EvictOne(slot_bytes)) return std::nullopt;
  }
}

bool DiskIndex::AddFreeSegment(DiskSlots& slots) {
  std::size_t best = free_.size();
  for (std::size_t device = 0; device < free_.size(); ++device) {
    if (retired_devices_.contains(static_cast<std::uint32_t>(device))) continue;
    if (free_[device].empty()) continue;
    if (best == free_.size() || free_[device].size() > free_[best].size()) best = device;
  }
  if (best == free_.size()) return false;
  const SegmentId id = {static_cast<std::uint32_t>(best), free_[best].back()};
  free_[best].pop_back();
  --free_segments_;
  const std::uint64_t epoch = options_.new_epoch();
  slots.AddSegment(id, epoch);
  unwritten_[id] = {id, slots.slot_bytes(), epoch, given_up_.erase(id) > 0};
  return true;
}

DiskNamespace* DiskIndex::OldestNamespace(std::uint64_t slot_bytes) const {
  DiskNamespace* oldest = nullptr;
  UseSequence oldest_use = 0;
  for (const auto& [fingerprint, ns] : namespaces_) {
    if (slot_bytes != 0 && std::find(ns->slot_bytes.begin(), ns->slot_bytes.end(), slot_bytes) ==
                               ns->slot_bytes.end()) {
      continue;
    }
    const auto victim = ns->policy->Victim();
    if (!victim.has_value()) continue;
    if (oldest == nullptr || victim->last_use < oldest_use) {
      oldest = ns.get();
      oldest_use = victim->last_use;
    }
  }
  return oldest;
}

bool DiskIndex::EvictOne(std::uint64_t slot_bytes) {
  DiskNamespace* ns = OldestNamespace(slot_bytes);
  if (ns == nullptr) return false;
  const auto victim = ns->policy->Victim();
  if (!victim.has_value()) return false;
  Evict(*ns, victim->id);
  return true;
}

void DiskIndex::Evict(DiskNamespace& ns, BlockId id) {
  const BlockKey key = ns.index.KeyOf(id);
  Forget(ns, id);
  options_.on_evicted(ns, key);
}

bool DiskIndex::StealSegment(const DiskSlots& for_class) {
  DiskSlots* donor = nullptr;
  RegionOrdinal ordinal = 0;
  for (const auto& [slot_bytes, slots] : classes_) {
    if (slots.get() == &for_class) continue;
    if (donor != nullptr && slots->segment_count() <= donor->segment_count()) continue;
    const auto emptiest = slots->EmptiestUnpinned();
    if (!emptiest.has_value()) continue;
    donor = slots.get();
    ordinal = *emptiest;
  }
  if (donor == nullptr) return false;
  for (const SlotId slot : donor->SlotsInUse(ordinal)) {
    const DiskSlots::Owner owner = donor->OwnerOf(slot);
    // A block with two parts in the segment went with the first.
    if (owner.block != kNoBlock) Evict(*owner.ns, owner.block);
  }
  GiveUpSegment(*donor, ordinal);
  return true;
}

void DiskIndex::GiveUpSegment(DiskSlots& slots, RegionOrdinal ordinal) {
  const SegmentId id = slots.SegmentAt(ordinal);
  slots.RemoveSegment(ordinal);
  unwritten_.erase(id);
  free_[id.device].push_back(id.segment);
  given_up_.insert(id);
  ++free_segments_;
}

void DiskIndex::GiveUpEmptySegments() {
  // While what is on disk is read, an empty segment is one of which nothing was told yet.
  if (!adopted_.empty()) return;
  for (const auto& [slot_bytes, slots] : classes_) {
    for (const RegionOrdinal ordinal : slots->EmptySegments()) {
      if (!retired_devices_.contains(slots->SegmentAt(ordinal).device)) {
        GiveUpSegment(*slots, ordinal);
      }
    }
  }
}

bool DiskIndex::Commit(DiskNamespace& ns, const BlockKey& key, const BlockKey& parent,
                       const Reservation& reservation, std::span<const std::uint32_t> checksums,
                       UseSequence use) {
  // Whoever purges forgets what is being written; the same key may be on its way again by now.
  const auto writing = ns.writing.find(key);
  const bool wanted = writing != ns.writing.end() && writing->second == reservation.number &&
                      ns.index.Find(key) == kNoBlock && !IsRetired(reservation);
  if (wanted) {
    const BlockId id = ns.index.InsertPending(key, parent);
    for (std::uint32_t part = 0; part < ns.slot_bytes.size(); ++part) {
      ns.index.CommitPart(id, part, {reservation.slots[part], checksums[part]});
      ClassOf(ns.slot_bytes[part]).SetOwner(reservation.slots[part], {&ns, id, part});
    }
    ns.index.Touch(id, use);
  }
  Abort(ns, key, reservation);
  return wanted;
}

void DiskIndex::Abort(DiskNamespace& ns, const BlockKey& key, const Reservation& reservation) {
  const auto writing = ns.writing.find(key);
  if (writing != ns.writing.end() && writing->second == reservation.number) {
    ns.writing.erase(writing);
  }
  --ns.uses;
  for (std::uint32_t part = 0; part < reservation.slots.size(); ++part) {
    ClassOf(ns.slot_bytes[part]).Unpin(reservation.slots[part]);
  }
  if (reservation.parent.id != kNoBlock && ns.index.IsAlive(reservation.parent)) {
    ns.index.DropLease(reservation.parent.id);
  }
  SweepRetired();
}

// ---- Reading ----

DiskIndex::PinnedBlock DiskIndex::Pin(DiskNamespace& ns, BlockId id,
                                      std::span<const std::uint64_t> payload_bytes) {
  PinnedBlock pinned;
  ++ns.uses;
  pinned.block = ns.index.RefOf(id);
  ns.index.AddLease(id);
  const auto parts = ns.index.PartsOf(id);
  const auto part_count = static_cast<std::uint32_t>(parts.size());
  for (std::uint32_t part = 0; part < part_count; ++part) {
    DiskSlots& slots = ClassOf(ns.slot_bytes[part]);
    slots.Pin(parts[part].slot);
    pinned.slots.push_back(parts[part].slot);
    pinned.places.push_back(slots.PlaceOf(parts[part].slot));
    pinned.parts.push_back({.fingerprint = ns.fingerprint,
                            .key = ns.index.KeyOf(id),
                            .parent = ns.index.ParentKeyOf(id),
                            .part = part,
                            .part_count = part_count,
                            .payload_bytes = payload_bytes[part],
                            .checksum = parts[part].checksum});
  }
  return pinned;
}

void DiskIndex::Unpin(DiskNamespace& ns, const PinnedBlock& pinned) {
  --ns.uses;
  for (std::uint32_t part = 0; part < pinned.slots.size(); ++part) {
    ClassOf(ns.slot_bytes[part]).Unpin(pinned.slots[part]);
  }
  if (ns.index.IsAlive(pinned.block)) ns.index.DropLease(pinned.block.id);
  SweepRetired();
}

// ---- All of them, one by one ----

DiskIndex::Found DiskIndex::Next(Cursor* cursor) const {
  for (;;) {
    DiskNamespace* ns = Find(cursor->fingerprint);
    const BlockId block = ns == nullptr ? kNoBlock : ns->index.NextVisible(cursor->next);
    if (block != kNoBlock) {
      cursor->next = block + 1;
      return {ns, block};
    }
    const DiskNamespace* next = nullptr;
    for (const auto& [fingerprint, other] : namespaces_) {
      if (fingerprint.bytes <= cursor->fingerprint.bytes) continue;
      if (next == nullptr || fingerprint.bytes < next->fingerprint.bytes) next = other.get();
    }
    *cursor = {};
    if (next == nullptr) return {};
    cursor->fingerprint = next->fingerprint;
  }
}

// ---- Dropping ----

void DiskIndex::Forget(DiskNamespace& ns, BlockId id) {
  const auto parts = ns.index.PartsOf(id);
  for (std::uint32_t part = 0; part < parts.size(); ++part) {
    if (parts[part].slot != kNoSlot) ClassOf(ns.slot_bytes[part]).Disown(parts[part].slot);
  }
  ns.index.Remove(id);
}

void DiskIndex::Drop(DiskNamespace& ns, BlockId id) {
  Forget(ns, id);
}

std::uint64_t DiskIndex::DropAll(DiskNamespace& ns, std::vector<DiskPlace>* places) {
  const std::uint64_t visible = ns.index.visible_count();
  for (const BlockId id : ns.index.AllBlocks()) {
    const auto parts = ns.index.PartsOf(id);
    for (std::uint32_t part = 0; part < parts.size(); ++part) {
      if (parts[part].slot == kNoSlot) continue;
      places->push_back(ClassOf(ns.slot_bytes[part]).PlaceOf(parts[part].slot));
    }
    Forget(ns, id);
  }
  ns.writing.clear();
  return visible;
}

// ---- Recovery ----

bool DiskIndex::AdoptSegment(const NewSegment& segment) {
  const SegmentId id = segment.id;
  if (id.device >= free_.size() || id.segment >= options_.segments[id.device] ||
      disk::SlotsPerSegment(options_.segment_bytes, segment.slot_bytes) == 0 ||
      adopted_.contains(id) || retired_devices_.contains(id.device)) {
    return false;
  }
  std::vector<std::uint32_t>& free = free_[id.device];
  const auto found = std::lower_bound(free.begin(), free.end(), id.segment, std::greater<>());
  if (found == free.end() || *found != id.segment) return false;
  free.erase(found);
  --free_segments_;
  DiskSlots& slots = ClassOf(segment.slot_bytes);
  adopted_[id] = {&slots, slots.AddSegment(id, segment.epoch), segment.epoch};
  return true;
}

bool DiskIndex::SetAside(SegmentId id) {
  std::vector<std::uint32_t>& free = free_[id.device];
  const auto found = std::lower_bound(free.begin(), free.end(), id.segment, std::greater<>());
  if (found == free.end() || *found != id.segment) return false;
  free.erase(found);
  --free_segments_;
  --segment_total_;
  return true;
}

bool DiskIndex::AdoptPart(const DiskPlace& place, const DiskPart& part) {
  const auto segment = adopted_.find(place.segment);
  if (segment == adopted_.end() || segment->second.epoch != place.epoch ||
      part.payload_bytes > place.slot_bytes ||
      segment->second.slots->slot_bytes() != place.slot_bytes) {
    return false;
  }
  if (part.key.IsZero() || part.key == part.fingerprint.RootKey() || part.key == part.parent) {
    return false;
  }
  DiskNamespace& ns = Open(part.fingerprint, std::vector<std::uint64_t>(part.part_count, 0));
  if (ns.slot_bytes.size() != part.part_count) return false;
  std::uint64_t& slot_bytes = ns.slot_bytes[part.part];
  if (slot_bytes != 0 && slot_bytes != place.slot_bytes) return false;
  BlockId id = ns.index.Find(part.key);
  if (id != kNoBlock && part.sequence != ns.adopted_sequences[id]) {
    // The block was evicted between two writes of it, and its former slots, which others may be
    // overwriting by now, are still named. All parts of one write have one sequence.
    if (part.sequence < ns.adopted_sequences[id]) {
      passed_over_.emplace_back(place, part);
      return false;
    }
    PassOver(ns, id);
    id = kNoBlock;
  }
  if (id != kNoBlock && (ns.index.ParentKeyOf(id) != part.parent ||
                         ns.index.PartsOf(id)[part.part].slot != kNoSlot)) {
    return false;
  }
  const SlotId slot = segment->second.slots->SlotAt(segment->second.ordinal, place.position);
  const bool made = id == kNoBlock;
  if (made) id = ns.index.InsertPending(part.key, part.parent);
  if (!segment->second.slots->Claim(segment->second.ordinal, place.position,
                                    {&ns, id, part.part})) {
    if (made) ns.index.Remove(id);
    return false;
  }
  if (id >= ns.adopted_sequences.size()) ns.adopted_sequences.resize(id + 1);
  ns.adopted_sequences[id] = part.sequence;
  slot_bytes = place.slot_bytes;
  ns.index.CommitPart(id, part.part, {slot, part.checksum});
  ns.index.Touch(id, part.sequence);
  return true;
}

void DiskIndex::PassOver(DiskNamespace& ns, BlockId id) {
  const auto parts = ns.index.PartsOf(id);
  for (std::uint32_t part = 0; part < parts.size(); ++part) {
    if (parts[part].slot == kNoSlot) continue;
    passed_over_.push_back({ClassOf(ns.slot_bytes[part]).PlaceOf(parts[part].slot),
                            {.fingerprint = ns.fingerprint,
                             .key = ns.index.KeyOf(id),
                             .parent = ns.index.ParentKeyOf(id),
                             .part = part,
                             .part_count = static_cast<std::uint32_t>(parts.size()),
                             .payload_bytes = ns.slot_bytes[part],
                             .checksum = parts[part].checksum,
                             .sequence = ns.adopted_sequences[id]}});
  }
  Forget(ns, id);
}

void DiskIndex::ForgetIncomplete() {
  for (const auto& [fingerprint, ns] : namespaces_) {
    if (ns->index.visible_count() == ns->index.size()) continue;
    for (const BlockId id : ns->index.AllBlocks()) {
      if (!ns->index.IsVisible(id)) Forget(*ns, id);
    }
  }
}

void DiskIndex::ForgetAdopted() {
  passed_over_.clear();
  for (const auto& [fingerprint, ns] : namespaces_) {
    for (const BlockId id : ns->index.AllBlocks()) Forget(*ns, id);
  }
}

void DiskIndex::FinishAdoption() {
  // Whoever is not whole makes room for the write before it.
  ForgetIncomplete();
  for (bool any = true; any && !passed_over_.empty();) {
    any = false;
    const auto again = std::exchange(passed_over_, {});
    for (const auto& [place, part] : again) any = AdoptPart(place, part) || any;
    ForgetIncomplete();
  }
  passed_over_ = {};
  adopted_.clear();
  std::vector<NamespaceFingerprint> all;
  for (const auto& [fingerprint, ns] : namespaces_) {
    all.push_back(fingerprint);
    ns->adopted_sequences = {};
  }
  for (const NamespaceFingerprint& fingerprint : all) Settle(fingerprint);
  // Also those of namespaces that left meanwhile.
  GiveUpEmptySegments();
}

// ---- Sums ----

std::uint64_t DiskIndex::block_count() const {
  std::uint64_t count = 0;
  for (const auto& [fingerprint, ns] : namespaces_) count += ns->index.visible_count();
  return count;
}

std::uint64_t DiskIndex::used_bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& [slot_bytes, slots] : classes_) bytes += slots->used_count() * slot_bytes;
  return bytes;
}

std::uint64_t DiskIndex::MemoryBytes() const {
  std::uint64_t bytes = 0;
  for (const auto& [fingerprint, ns] : namespaces_) {
    bytes += sizeof(*ns) + ns->index.MemoryBytes() + ns->policy->MemoryBytes();
  }
  for (const auto& [slot_bytes, slots] : classes_) bytes += slots->MemoryBytes();
  return bytes;
}

std::string DiskIndex::Audit() const {
  std::uint64_t expected = 0;
  for (const auto& [fingerprint, ns] : namespaces_) {
    if (const std::string wrong = ns->index.Audit(); !wrong.empty()) return wrong;
    for (const BlockId id : ns->index.AllBlocks()) {
      const auto parts = ns->index.PartsOf(id);
      for (std::uint32_t part = 0; part < parts.size(); ++part) {
        const auto slots = classes_.find(ns->slot_bytes[part]);
        if (parts[part].slot == kNoSlot || slots == classes_.end()) {
          return absl::StrCat("disk: ", ns->index.KeyOf(id).ToHex(), " lacks a part");
        }
        const DiskSlots::Owner owner = slots->second->OwnerOf(parts[part].slot);
        if (owner.ns != ns.get() || owner.block != id || owner.part != part) {
          return absl::StrCat("disk: a slot of ", ns->index.KeyOf(id).ToHex(), " is another's");
        }
        ++expected;
      }
    }
  }
  std::uint64_t owned = 0;
  std::uint64_t pins = 0;
  std::uint64_t segments = free_segments_;
  for (const auto& [slot_bytes, slots] : classes_) {
    if (std::string wrong = slots->Audit(&owned, &pins); !wrong.empty()) return wrong;
    segments += slots->segment_count();
  }
  if (owned != expected) {
    return absl::StrCat("disk: ", owned, " slots are owned, blocks have ", expected);
  }
  if (segments != segment_total_) {
    return absl::StrCat("disk: ", segments, " segments, expected ", segment_total_);
  }
  return "";
}

}  // namespace kavern::tiers
