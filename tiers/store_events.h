// What the storage engine tells the outside.
#ifndef KAVERN_TIERS_STORE_EVENTS_H_
#define KAVERN_TIERS_STORE_EVENTS_H_

#include <cstdint>

#include "base/block_key.h"
#include "base/unique_fd.h"

namespace kavern::tiers {

// Called with the store's lock held, from any thread: implementations only put the news into a
// queue of their own, and never call back into the store.
class StoreEvents {
 public:
  virtual ~StoreEvents() = default;
  // The region was emptied and given up. Whoever mapped it should unmap it and drop its share.
  virtual void OnRegionRetired(std::uint64_t region_id) = 0;
  // The namespace has a (new) directory segment; `fd` is a duplicate that the callee owns.
  // Generations only grow: the greater one is the present one.
  virtual void OnDirectory(const NamespaceFingerprint& fingerprint, std::uint64_t generation,
                           std::uint64_t size_bytes, UniqueFd fd) = 0;
  virtual void OnDirectoryGone(const NamespaceFingerprint& fingerprint,
                               std::uint64_t generation) = 0;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_STORE_EVENTS_H_
