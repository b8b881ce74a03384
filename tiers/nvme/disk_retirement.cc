// The half of DiskIndex that lets go of a device that failed.

#include <algorithm>

#include "tiers/nvme/disk_index.h"

namespace kavern::tiers {

std::uint64_t DiskIndex::RetireDevice(std::uint32_t device) {
  if (device >= free_.size() || !retired_devices_.insert(device).second) return 0;
  free_segments_ -= free_[device].size();
  segment_total_ -= free_[device].size();
  free_[device].clear();
  for (auto segment = adopted_.begin(); segment != adopted_.end();) {
    segment = segment->first.device == device ? adopted_.erase(segment) : std::next(segment);
  }
  for (const auto& [slot_bytes, slots] : classes_) {
    for (const RegionOrdinal ordinal : slots->SegmentsOf(device)) {
      slots->SetDraining(ordinal);
      ++retired_segments_;
    }
  }
  std::uint64_t dropped = 0;
  std::vector<NamespaceFingerprint> all;
  for (const auto& [fingerprint, ns] : namespaces_) {
    all.push_back(fingerprint);
    for (const BlockId id : ns->index.AllBlocks()) {
      if (!HasPartOn(*ns, id, device)) continue;
      dropped += ns->index.IsVisible(id) ? 1 : 0;
      Evict(*ns, id);
    }
  }
  for (const NamespaceFingerprint& fingerprint : all) Settle(fingerprint);
  SweepRetired();
  return dropped;
}

bool DiskIndex::HasPartOn(const DiskNamespace& ns, BlockId id, std::uint32_t device) const {
  const auto parts = ns.index.PartsOf(id);
  for (std::uint32_t part = 0; part < parts.size(); ++part) {
    if (parts[part].slot == kNoSlot) continue;
    const DiskSlots& slots = *classes_.find(ns.slot_bytes[part])->second;
    if (slots.PlaceOf(parts[part].slot).segment.device == device) return true;
  }
  return false;
}

bool DiskIndex::IsRetired(const Reservation& reservation) const {
  return std::any_of(
      reservation.places.begin(), reservation.places.end(),
      [this](const DiskPlace& place) { return retired_devices_.contains(place.segment.device); });
}

void DiskIndex::SweepRetired() {
  if (retired_segments_ == 0) return;
  for (const auto& [slot_bytes, slots] : classes_) {
    for (const std::uint32_t device : retired_devices_) {
      for (const RegionOrdinal ordinal : slots->SegmentsOf(device)) {
        if (!slots->SlotsInUse(ordinal).empty()) continue;
        slots->RemoveSegment(ordinal);
        --retired_segments_;
        --segment_total_;
      }
    }
  }
}

}  // namespace kavern::tiers
