// What the store hands out: a share in a namespace, a right to read, a right to write.
//
// All are move-only and give back what they hold when they are destroyed; none may outlive the
// store. One object is used by one thread at a time; different objects from any threads.
#ifndef KAVERN_TIERS_LEASES_H_
#define KAVERN_TIERS_LEASES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/block_key.h"
#include "base/namespace_spec.h"
#include "tiers/index/block_index.h"
#include "tiers/nvme/disk_store.h"
#include "tiers/ram/region.h"

namespace kavern::tiers {

class NamespaceStore;
class TieredStore;

// A share in an open namespace: keeps it from being forgotten while it is empty.
class NamespaceRef {
 public:
  NamespaceRef() = default;
  NamespaceRef(NamespaceRef&& other) noexcept { *this = std::move(other); }
  NamespaceRef& operator=(NamespaceRef&& other) noexcept;
  ~NamespaceRef() { Reset(); }

  bool valid() const { return store_ != nullptr; }
  void Reset();
  const NamespaceFingerprint& fingerprint() const;
  const NamespaceSpec& spec() const;
  const std::string& tenant() const;

 private:
  friend class TieredStore;
  TieredStore* store_ = nullptr;
  std::shared_ptr<NamespaceStore> ns_;  // shared with the store's table; dies with the last of both
};

// Pins the parts that it names, wherever they are. A block that is dropped meanwhile keeps its
// bytes in place until the lease ends (P4).
class ReadLease {
 public:
  struct Part {
    std::uint32_t index;  // into the request's keys
    Extent extent;
    std::uint32_t checksum;
    bool from_disk = false;  // it was read for this lease
  };

  ReadLease() = default;
  ReadLease(ReadLease&& other) noexcept { *this = std::move(other); }
  ReadLease& operator=(ReadLease&& other) noexcept;
  ~ReadLease() { Reset(); }

  bool empty() const { return parts_.empty(); }
  std::span<const Part> parts() const { return parts_; }
  std::uint64_t bytes() const { return parts_.size() * slot_bytes_; }  // of slots pinned
  // Takes over what `more` pins: another part of the same fetch.
  void Append(ReadLease more);
  void Reset();

 private:
  friend class TieredStore;
  struct Pinned {
    BlockRef block;
    SlotId slot;
  };
  TieredStore* store_ = nullptr;
  std::shared_ptr<NamespaceStore> ns_;
  std::uint32_t group_ = 0;
  std::uint64_t slot_bytes_ = 0;
  std::vector<Part> parts_;
  std::vector<Pinned> pinned_;  // parallel to parts_
};

// Extents to fill, one per granted block, in request order. Destroying it gives back what was not
// committed.
class WriteLease {
 public:
  WriteLease() = default;
  WriteLease(WriteLease&& other) noexcept { *this = std::move(other); }
  WriteLease& operator=(WriteLease&& other) noexcept;
  ~WriteLease() { Reset(); }

  bool empty() const { return grants_.empty(); }
  std::size_t size() const { return grants_.size(); }
  Extent extent(std::size_t i) const { return grants_[i].extent; }
  const BlockKey& key(std::size_t i) const { return grants_[i].key; }
  // A strict store of blocks that exist, which are durable with its first commit: that is to be
  // made also where there is no extent.
  bool has_existing() const { return !existing_.empty(); }
  std::uint32_t part() const { return part_; }  // KvLayout::PartIndex: what seeds the checksums
  // Of slots still held: what is committed is held no more.
  std::uint64_t bytes() const { return (grants_.size() - done_) * slot_bytes_; }
  void Reset();

 private:
  friend class TieredStore;
  struct Grant {
    BlockKey key;
    BlockRef block;
    SlotId slot;
    Extent extent;
    bool done = false;  // committed
  };
  TieredStore* store_ = nullptr;
  std::shared_ptr<NamespaceStore> ns_;
  std::uint32_t part_ = 0;
  DiskDurability durability_ = DiskDurability::kBatch;
  std::uint64_t slot_bytes_ = 0;
  std::size_t done_ = 0;
  std::vector<Grant> grants_;
  std::vector<BlockKey> existing_;  // of a strict lease, until its first commit
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_LEASES_H_
