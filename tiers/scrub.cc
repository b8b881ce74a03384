// What the scrubber does with the disk half of TieredStore.

#include <memory>
#include <utility>
#include <vector>

#include "tiers/namespace_store.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {

std::uint64_t TieredStore::ScrubNext() {
  DiskNamespace* on_disk = nullptr;
  DiskIndex::PinnedBlock pinned;
  std::vector<std::uint64_t> slot_bytes;
  {
    MutexLock lock(mu_);
    if (disk_recovering_ || !disk_failure_.ok()) return 0;
    const DiskIndex::Found found = disk_index_->Next(&scrubbed_);
    if (found.ns == nullptr) {
      if (disk_index_->block_count() > 0) ++shared_.counters.scrub_passes;
      return 0;
    }
    on_disk = found.ns;
    slot_bytes = on_disk->slot_bytes;
    // How long a payload is, its header says: nobody may have opened the namespace yet.
    const std::vector<std::uint64_t> unknown(slot_bytes.size(), 0);
    pinned = disk_index_->Pin(*on_disk, found.block, unknown);
  }
  std::uint64_t bytes = 0;
  absl::Status wrong;
  for (std::size_t part = 0; part < pinned.parts.size(); ++part) {
    const auto memory = std::make_shared<DiskPages>(slot_bytes[part] / kDiskPage);
    Together read;
    const auto done =
        FirstOf([memory, one = read.Another()](absl::Status status) { one(std::move(status)); });
    disk_store_->Read(pinned.places[part], pinned.parts[part], memory->all(), done,
                      {.priority = IoPriority::kScrub, .given_up = done});
    if (absl::Status status = read.Wait(); !status.ok()) wrong = std::move(status);
    bytes += memory->all().size();
  }
  MutexLock lock(mu_);
  disk_index_->Unpin(*on_disk, pinned);
  shared_.counters.scrubbed_bytes += bytes;
  // What cannot be read now may be readable later.
  const bool damaged = absl::IsDataLoss(wrong) || absl::IsNotFound(wrong);
  if (damaged && on_disk->index.IsAlive(pinned.block)) {
    ++shared_.counters.scrub_damaged_blocks;
    DropDamagedLocked(*on_disk, pinned.block.id);
  }
  disk_index_->Settle(NamespaceFingerprint(on_disk->fingerprint));
  return bytes;
}

void TieredStore::DropDamagedLocked(DiskNamespace& on_disk, BlockId id) {
  const BlockKey key = on_disk.index.KeyOf(id);
  const std::vector<std::uint64_t> unknown(on_disk.slot_bytes.size(), 0);
  const DiskIndex::PinnedBlock last = disk_index_->Pin(on_disk, id, unknown);
  disk_index_->Drop(on_disk, id);
  disk_store_->Forget(last.places);
  disk_index_->Unpin(on_disk, last);
  const auto found = namespaces_.find(on_disk.fingerprint);
  if (found == namespaces_.end()) return;
  const std::shared_ptr<NamespaceStore>& ns = found->second;
  ns->directory().Update(key, ns->indices());
  if (ns->FindVisible(key) != kNoBlock) QueueWriteLocked(ns, key, DiskDurability::kBatch);
}

}  // namespace kavern::tiers
