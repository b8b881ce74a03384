// What was deleted by its user: which namespaces, and up to which write.
//
// Not thread-safe. Does no I/O: it reads and fills the pages that DiskStore keeps on every device.
#ifndef KAVERN_TIERS_NVME_PURGE_LIST_H_
#define KAVERN_TIERS_NVME_PURGE_LIST_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/container/flat_hash_map.h"
#include "base/block_key.h"
#include "tiers/nvme/disk_format.h"

namespace kavern::tiers {

class PurgeList {
 public:
  static constexpr std::size_t kEntriesMax = disk::kPurgePages * disk::PurgePage::kEntries;

  // Everything of the namespace with a sequence up to this one is void. Where the list is full, its
  // oldest quarter becomes one entry that voids whatever was written before them, of every
  // namespace: a cache may forget what it has, not what was deleted.
  void Add(const NamespaceFingerprint& fingerprint, std::uint64_t sequence);
  bool IsVoid(const NamespaceFingerprint& fingerprint, std::uint64_t sequence) const;

  // The union of what is known and what the page says.
  void Merge(const disk::PurgePage& page);
  // Fills `pages`, disk::kPurgePages of them, in order of sequence: what is added changes only the
  // last page, or what is behind the place of a former entry.
  void Write(const disk::Uuid& store, std::span<std::byte> pages) const;

  // The greatest of all; 0: the list is empty.
  std::uint64_t last_sequence() const;
  std::size_t size() const { return sequences_.size(); }

 private:
  void Shorten();

  // The fingerprint of zeros, which no namespace has, stands for all of them.
  absl::flat_hash_map<NamespaceFingerprint, std::uint64_t> sequences_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_PURGE_LIST_H_
