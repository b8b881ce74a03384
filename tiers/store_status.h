// What the storage engine tells about itself: plain numbers for metrics, admin calls and tests.
#ifndef KAVERN_TIERS_STORE_STATUS_H_
#define KAVERN_TIERS_STORE_STATUS_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/block_key.h"
#include "base/namespace_spec.h"
#include "base/turn_costs.h"
#include "tiers/nvme/disk_store.h"
#include "tiers/ram/region_pool.h"
#include "tiers/turn_timings.h"

namespace kavern::tiers {

struct NamespaceStatus {
  NamespaceFingerprint fingerprint;
  std::string tenant;
  NamespaceSpec spec;
  std::uint64_t blocks = 0;             // visible in RAM
  std::uint64_t disk_blocks = 0;        // on disk
  std::uint64_t incomplete_blocks = 0;  // some parts committed, but not all
  std::uint64_t regions = 0;
  std::uint64_t slots = 0;
  std::uint64_t slots_used = 0;
  std::uint64_t refs = 0;
  std::uint64_t conversations = 0;
  std::uint64_t fetch_hit_blocks = 0;
  std::uint64_t fetch_miss_blocks = 0;
  TurnCosts costs;
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
  std::uint64_t conversation_updates = 0;
  std::uint64_t conversations_ended = 0;      // by their TTL
  std::uint64_t conversations_displaced = 0;  // forgotten for others
  TurnPredictions predictions;                // of turns' timings that were reported since
  // NVMe tier.
  std::uint64_t disk_stored_blocks = 0;    // written, durable as configured
  std::uint64_t disk_lost_blocks = 0;      // left RAM before they could be written
  std::uint64_t disk_declined_blocks = 0;  // no room, or a failed write
  std::uint64_t disk_evicted_blocks = 0;
  std::uint64_t disk_failed_blocks = 0;  // left with a device that failed
  std::uint64_t budget_save_failures = 0;
  std::uint64_t scrubbed_bytes = 0;
  std::uint64_t scrub_passes = 0;            // over everything on disk
  std::uint64_t scrub_damaged_blocks = 0;    // found by it, and dropped
  std::uint64_t promoted_blocks = 0;         // read back into RAM
  std::uint64_t promotion_failures = 0;      // no memory, a failed read, or too late
  std::uint64_t fetch_disk_blocks = 0;       // of fetch_hit_blocks: read from disk for the fetch
  std::uint64_t fetch_disk_bytes = 0;        // of fetch_bytes, likewise
  std::uint64_t read_ahead_blocks = 0;       // of promoted_blocks: nobody had asked for them
  std::uint64_t read_ahead_used_blocks = 0;  // of these: fetched since, from RAM
};

struct DiskStatus {
  bool configured = false;
  bool recovering = false;  // what is on disk is still being read: nothing is written yet
  std::string recovered_from_headers;     // why the catalog was of no use; empty: it was
  std::string failure;                    // why the tier is out of use; empty: it is not
  std::string catalog_failure;            // why nothing new comes to be on disk; empty: it does
  std::uint64_t unreadable_segments = 0;  // set aside until the next start
  std::string method;                     // "io_uring" or "threads"
  std::uint64_t queue_depth = 0;          // of a device
  std::uint64_t capacity_bytes = 0;
  std::uint64_t used_bytes = 0;
  std::uint64_t blocks = 0;
  std::uint64_t recovered_blocks = 0;
  double recovery_seconds = 0;
  std::uint64_t write_back_blocks = 0;  // waiting to be written, or being written
  std::uint64_t write_back_bytes = 0;
  std::uint64_t write_budget_bytes = UINT64_MAX;  // what may be written now; the default: no limit
  bool waits_for_budget = false;
  std::uint64_t queued_promotions = 0;  // blocks waiting to be read
  std::uint64_t promoting_bytes = 0;    // of RAM that is being filled from disk
  std::uint64_t index_bytes = 0;
  std::uint64_t catalog_bytes = 0;
  DiskStore::Counters io;
  std::vector<DeviceFacts> devices;

  // Of the RAM tier, known to every device: the rest costs more processor time.
  std::uint64_t RegisteredBytes() const;
};

inline std::uint64_t DiskStatus::RegisteredBytes() const {
  std::uint64_t bytes = devices.empty() ? 0 : UINT64_MAX;
  for (const DeviceFacts& device : devices) bytes = std::min(bytes, device.io.registered_bytes);
  return bytes;
}

struct StoreStatus {
  RegionPool::Status pool;
  std::uint64_t assigned_bytes = 0;  // of regions that a namespace owns
  std::uint64_t used_bytes = 0;      // of slots that hold or are reserved for a part
  std::uint64_t leased_bytes = 0;    // of slots under a read or write lease
  std::uint64_t index_bytes = 0;     // memory of indices, policies and conversations
  std::uint64_t directory_bytes = 0;
  std::uint64_t namespaces = 0;
  std::uint64_t namespaces_degraded = 0;  // whose directory lacks blocks
  std::uint64_t blocks = 0;
  std::uint64_t conversations = 0;
  DiskStatus disk;

  // Of regions given up that a session still maps. Its terms are read at different moments: never
  // below nothing.
  std::uint64_t RetiredBytes() const {
    const std::uint64_t in_order = pool.ready_bytes + pool.making_bytes + assigned_bytes;
    return pool.existing_bytes > in_order ? pool.existing_bytes - in_order : 0;
  }
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_STORE_STATUS_H_
