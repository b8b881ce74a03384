// What the namespaces of one store have in common. Guarded by the store's lock.
#ifndef KAVERN_TIERS_STORE_SHARED_H_
#define KAVERN_TIERS_STORE_SHARED_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "tiers/conversations.h"
#include "tiers/directory/directory_segment.h"
#include "tiers/nvme/disk_index.h"
#include "tiers/policy/eviction_policy.h"
#include "tiers/ram/region.h"
#include "tiers/store_events.h"
#include "tiers/store_status.h"

namespace kavern::tiers {

struct StoreShared {
  StoreEvents& events;
  DiskIndex* disk = nullptr;  // nullptr: there is no NVMe tier
  ConversationTable conversations;
  StoreCounters counters = {};
  UseSequence last_use = 0;
  std::uint64_t assigned_regions = 0;  // owned by a namespace
  // One count for all namespaces: a namespace that is forgotten and opened again still only counts
  // up.
  std::uint64_t last_directory_generation = 0;

  // Given up, and to be destroyed outside the lock: unmapping takes the kernel milliseconds.
  std::vector<std::shared_ptr<Region>> retired_regions = {};
  std::vector<std::unique_ptr<DirectorySegment>> retired_directories = {};
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_STORE_SHARED_H_
