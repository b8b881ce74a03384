// What is on disk: the blocks of every namespace, the slots that hold their parts, and what leaves
// for what.
//
// Not thread-safe: the store's lock guards it. Does no I/O: it says where to write and read, and is
// told how that ended.
#ifndef KAVERN_TIERS_NVME_DISK_INDEX_H_
#define KAVERN_TIERS_NVME_DISK_INDEX_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "base/block_key.h"
#include "tiers/index/block_index.h"
#include "tiers/nvme/disk_part.h"
#include "tiers/nvme/disk_slots.h"
#include "tiers/policy/eviction_policy.h"

namespace kavern::tiers {

// The blocks of one namespace that are on disk. All parts of a block come and leave together.
struct DiskNamespace {
  DiskNamespace(const NamespaceFingerprint& fingerprint, std::vector<std::uint64_t> slot_bytes,
                std::unique_ptr<EvictionPolicy> policy);

  const NamespaceFingerprint fingerprint;
  std::vector<std::uint64_t>
      slot_bytes;  // by part; 0: not known yet, while what is on disk is read
  const std::unique_ptr<EvictionPolicy> policy;
  BlockIndex index;                                      // BlockPart::slot is a DiskSlotId
  absl::flat_hash_map<BlockKey, std::uint64_t> writing;  // -> number of the reservation
  std::uint64_t uses = 0;                                // reservations and pins: it outlives them
  // While what is on disk is read: by block id, the sequence of the write that was adopted.
  std::vector<std::uint64_t> adopted_sequences;
};

class DiskIndex {
 public:
  struct Options {
    std::vector<std::uint32_t> segments;  // of each device
    std::uint64_t segment_bytes = 0;
    std::string eviction_policy = "lru";
    // A block left to make room. Called while the block is gone from the index already.
    std::function<void(const DiskNamespace&, const BlockKey&)> on_evicted;
    // A number that no segment had before.
    std::function<std::uint64_t()> new_epoch;
  };
  explicit DiskIndex(Options options);
  DiskIndex(const DiskIndex&) = delete;
  DiskIndex& operator=(const DiskIndex&) = delete;

  // ---- Namespaces ----
  // nullptr: nothing of it is on disk, or on its way there.
  DiskNamespace* Find(const NamespaceFingerprint& fingerprint) const;
  DiskNamespace& Open(const NamespaceFingerprint& fingerprint,
                      std::vector<std::uint64_t> slot_bytes);
  // kNoBlock: not there.
  static BlockId FindBlock(const DiskNamespace* ns, const BlockKey& key);

  // ---- Writing ----
  struct NewSegment {
    SegmentId id;
    std::uint64_t slot_bytes = 0;
    std::uint64_t epoch = 0;
    bool used_before = false;  // since the start: what lies there is of no use
  };
  struct Reservation {
    std::vector<DiskPlace> places;  // one per part
    std::vector<SlotId> slots;
    std::vector<NewSegment> new_segments;  // their headers are to be written first
    BlockRef parent;                       // kept from eviction meanwhile
    std::uint64_t number = 0;              // no other has it
  };
  // Room for a block, by eviction where need be; nullopt: there is none (all is pinned, or too
  // large). Ends with Commit or Abort.
  std::optional<Reservation> Reserve(DiskNamespace& ns, const BlockKey& key,
                                     const BlockKey& parent);
  // The block is on disk. False: it was purged meanwhile, was there already, or a device of it is
  // out; its slots are free.
  bool Commit(DiskNamespace& ns, const BlockKey& key, const BlockKey& parent,
              const Reservation& reservation, std::span<const std::uint32_t> checksums,
              UseSequence use);
  void Abort(DiskNamespace& ns, const BlockKey& key, const Reservation& reservation);
  // The segment's header is on disk. Until then every reservation in it names it as new: without
  // its header all that is in a segment is void after a restart.
  void SegmentWritten(const NewSegment& segment);

  // ---- Reading ----
  // Keeps block and slots where they are, until Unpin.
  struct PinnedBlock {
    BlockRef block;
    std::vector<SlotId> slots;
    std::vector<DiskPart> parts;
    std::vector<DiskPlace> places;
  };
  PinnedBlock Pin(DiskNamespace& ns, BlockId id, std::span<const std::uint64_t> payload_bytes);
  void Unpin(DiskNamespace& ns, const PinnedBlock& pinned);
  void Touch(DiskNamespace& ns, BlockId id, UseSequence use) { ns.index.Touch(id, use); }

  // ---- All of them, one by one ----
  // How far a walk has come. Blocks that come or move meanwhile may be met or not.
  struct Cursor {
    NamespaceFingerprint fingerprint;
    BlockId next = 0;
  };
  struct Found {
    DiskNamespace* ns = nullptr;  // nullptr: the walk is over, and the cursor begins anew
    BlockId block = kNoBlock;
  };
  Found Next(Cursor* cursor) const;

  // ---- Dropping ----
  void Drop(DiskNamespace& ns, BlockId id);
  // Forgets the namespace, also what is being written. Returns how many blocks went, and appends
  // where they were.
  std::uint64_t DropAll(DiskNamespace& ns, std::vector<DiskPlace>* places);
  // Forgets it if nothing is left of it. References to it are dead then.
  void Settle(const NamespaceFingerprint& fingerprint);

  // ---- Recovery ----
  // A segment in use before the restart. False: it cannot be.
  bool AdoptSegment(const NewSegment& segment);
  // A segment whose header cannot be read: nobody knows what is in it, so it is neither read nor
  // written. False: it is in use, or its device is out.
  bool SetAside(SegmentId id);
  // A part found on disk. Of several writes of one block the last one that is whole counts.
  // False: there is a later one, or it does not fit what is known.
  bool AdoptPart(const DiskPlace& place, const DiskPart& part);
  // Forgets the parts that were adopted, but not the segments: they are to be told anew.
  void ForgetAdopted();
  // Every part was told: blocks of which not all parts were found are void, and leave, and segments
  // in which there is none are free. Before that nothing may be reserved.
  void FinishAdoption();

  // ---- Losing a device ----
  // Every block with a part there leaves, and is told as evicted; its segments count no more, once
  // what is under way in them has ended, and take nothing new. Returns how many blocks were
  // visible.
  std::uint64_t RetireDevice(std::uint32_t device);
  bool all_retired() const { return retired_devices_.size() == free_.size(); }

  // ---- Sums ----
  std::uint64_t block_count() const;
  std::uint64_t used_bytes() const;
  std::uint64_t segment_count() const { return segment_total_; }
  std::uint64_t segments_in_use() const { return segment_total_ - free_segments_; }
  std::uint64_t MemoryBytes() const;
  // Recounts; empty when all is well.
  std::string Audit() const;

 private:
  DiskSlots& ClassOf(std::uint64_t slot_bytes);
  std::optional<SlotId> ReserveSlot(std::uint64_t slot_bytes);
  bool AddFreeSegment(DiskSlots& slots);
  // The namespace whose victim is the oldest of all; nullptr: nothing can be evicted.
  DiskNamespace* OldestNamespace(std::uint64_t slot_bytes) const;
  bool EvictOne(std::uint64_t slot_bytes);
  // Empties the least used segment of the class that has most of them.
  bool StealSegment(const DiskSlots& for_class);
  // No slot of it is in use: it is free for slots of any size.
  void GiveUpSegment(DiskSlots& slots, RegionOrdinal ordinal);
  // Not before FinishAdoption().
  void GiveUpEmptySegments();
  void Forget(DiskNamespace& ns, BlockId id);
  void PassOver(DiskNamespace& ns, BlockId id);
  void ForgetIncomplete();
  void Evict(DiskNamespace& ns, BlockId id);
  bool HasPartOn(const DiskNamespace& ns, BlockId id, std::uint32_t device) const;
  bool IsRetired(const Reservation& reservation) const;
  // Takes segments of retired devices out of the counts that nobody uses any more.
  void SweepRetired();

  const Options options_;
  absl::flat_hash_map<NamespaceFingerprint, std::unique_ptr<DiskNamespace>> namespaces_;
  absl::btree_map<std::uint64_t, std::unique_ptr<DiskSlots>> classes_;  // by slot size
  // Free segments of each device, the lowest last; the next segment comes from the device that has
  // most, so that they fill alike.
  std::vector<std::vector<std::uint32_t>> free_;
  std::uint64_t free_segments_ = 0;
  std::uint64_t segment_total_ = 0;
  absl::btree_set<SegmentId> given_up_;  // free, and used before
  absl::flat_hash_set<std::uint32_t> retired_devices_;
  std::uint64_t retired_segments_ = 0;                // of them, still in use
  absl::btree_map<SegmentId, NewSegment> unwritten_;  // segments without a header on disk
  std::uint64_t last_reservation_ = 0;
  struct Adopted {
    DiskSlots* slots = nullptr;
    RegionOrdinal ordinal = 0;
    std::uint64_t epoch = 0;
  };
  absl::btree_map<SegmentId, Adopted> adopted_;  // until FinishAdoption()
  // Parts of writes that were followed by others: of use if those turn out not to be whole.
  std::vector<std::pair<DiskPlace, DiskPart>> passed_over_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_DISK_INDEX_H_
