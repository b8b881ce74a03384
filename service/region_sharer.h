// Shares the regions of one reply with its session.
#ifndef KAVERN_SERVICE_REGION_SHARER_H_
#define KAVERN_SERVICE_REGION_SHARER_H_

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "service/session/session.h"
#include "tiers/ram/region.h"

namespace kavern::service {

// Each region once, however many extents lie in it. Used by one thread at a time.
class RegionSharer {
 public:
  explicit RegionSharer(Session& session) : session_(session) {}

  // The lease of the extent must be alive: it keeps the region from being given up meanwhile.
  absl::Status Share(const tiers::Extent& extent) {
    if (extent.region == last_) return absl::OkStatus();
    last_ = extent.region;
    if (!shared_.insert(last_).second) return absl::OkStatus();
    return session_.ShareRegion(*last_);
  }

 private:
  Session& session_;
  tiers::Region* last_ = nullptr;  // neighbours are common
  absl::flat_hash_set<tiers::Region*> shared_;
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_REGION_SHARER_H_
