// What the store told and the attach thread has not delivered yet.
#ifndef KAVERN_SERVICE_SESSION_STORE_NEWS_H_
#define KAVERN_SERVICE_SESSION_STORE_NEWS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/block_key.h"
#include "base/unique_fd.h"

namespace kavern::service {

// The last word on one namespace's directory.
struct DirectoryNews {
  std::uint64_t generation = 0;
  std::uint64_t size_bytes = 0;
  std::shared_ptr<const UniqueFd> fd;  // null: gone. Shared by the messages to all sessions
};

// Bounded by what exists, not by how often it changes: news of one namespace replaces what was said
// before, and a region retires once. Not thread-safe; cheap, so that it can be fed under the
// store's lock.
class StoreNews {
 public:
  void RegionRetired(std::uint64_t region_id) { retired_regions_.push_back(region_id); }
  // Dropped: news of an older generation than was told before, and a directory without a valid `fd`
  // (there is nothing to hand out; clients miss).
  void Directory(const NamespaceFingerprint& fingerprint, std::uint64_t generation,
                 std::uint64_t size_bytes, UniqueFd fd);
  void DirectoryGone(const NamespaceFingerprint& fingerprint, std::uint64_t generation);

  bool empty() const { return retired_regions_.empty() && directories_.empty(); }
  const std::vector<std::uint64_t>& retired_regions() const { return retired_regions_; }
  const absl::flat_hash_map<NamespaceFingerprint, DirectoryNews>& directories() const {
    return directories_;
  }

 private:
  std::vector<std::uint64_t> retired_regions_;
  absl::flat_hash_map<NamespaceFingerprint, DirectoryNews> directories_;
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_SESSION_STORE_NEWS_H_
