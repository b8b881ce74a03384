// What the storage engine tells about itself: plain numbers for metrics, admin calls and tests.
#ifndef KAVERN_TIERS_STORE_STATUS_H_
#define KAVERN_TIERS_STORE_STATUS_H_

#include <cstdint>
#include <string>

#include "base/block_key.h"
#include "base/namespace_spec.h"
#include "tiers/ram/region_pool.h"

namespace kavern::tiers {

struct NamespaceStatus {
  NamespaceFingerprint fingerprint;
  std::string tenant;
  NamespaceSpec spec;
  std::uint64_t blocks = 0;             // visible
  std::uint64_t incomplete_blocks = 0;  // some parts committed, but not all
  std::uint64_t regions = 0;
  std::uint64_t slots = 0;
  std::uint64_t slots_used = 0;
  std::uint64_t refs = 0;
  std::uint64_t fetch_hit_blocks = 0;
  std::uint64_t fetch_miss_blocks = 0;
  bool directory_degraded = false;  // its directory lacks blocks: clients see misses that are none
};

// Since the store was made; monotonic.
struct StoreCounters {
  std::uint64_t store_blocks = 0;  // parts committed
  std::uint64_t store_bytes = 0;
  std::uint64_t store_exists_blocks = 0;
  std::uint64_t store_declined_blocks = 0;
  std::uint64_t store_raced_blocks = 0;  // commits that another writer had made first
  std::uint64_t fetch_hit_blocks = 0;
  std::uint64_t fetch_miss_blocks = 0;
  std::uint64_t fetch_bytes = 0;
  std::uint64_t evicted_blocks = 0;
  std::uint64_t damaged_blocks = 0;
  std::uint64_t orphaned_blocks = 0;
  std::uint64_t expired_blocks = 0;      // incomplete for too long
  std::uint64_t directory_failures = 0;  // segments that could not be made or announced
  std::uint64_t regions_rebalanced = 0;
};

struct StoreStatus {
  RegionPool::Status pool;
  std::uint64_t assigned_bytes = 0;  // of regions that a namespace owns
  std::uint64_t used_bytes = 0;      // of slots that hold or are reserved for a part
  std::uint64_t leased_bytes = 0;    // of slots under a read or write lease
  std::uint64_t index_bytes = 0;     // memory of indices and policies
  std::uint64_t directory_bytes = 0;
  std::uint64_t namespaces = 0;
  std::uint64_t namespaces_degraded = 0;  // whose directory lacks blocks
  std::uint64_t blocks = 0;

  // Of regions given up that a session still maps. Its terms are read at different moments: never
  // below nothing.
  std::uint64_t RetiredBytes() const {
    const std::uint64_t in_order = pool.ready_bytes + pool.making_bytes + assigned_bytes;
    return pool.existing_bytes > in_order ? pool.existing_bytes - in_order : 0;
  }
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_STORE_STATUS_H_
