// What does not work as configured while the daemon serves: sentences for people, names for
// metrics.
#ifndef KAVERN_SERVICE_DEGRADED_H_
#define KAVERN_SERVICE_DEGRADED_H_

#include <span>
#include <string>
#include <vector>

#include "service/config.h"
#include "tiers/store_status.h"

namespace kavern::service {

struct Degradation {
  std::string what;    // which feature, of which device: the same for as long as it lasts
  std::string detail;  // why, and how far; its numbers move

  std::string Sentence() const { return what + ": " + detail; }
};

// Out of facts alone: it asks nobody.
std::vector<Degradation> Degradations(const DaemonConfig& config, const tiers::StoreStatus& status);

// Those of `these` that `others` do not name: what has begun since, or ended.
std::vector<Degradation> NotAmong(std::span<const Degradation> these,
                                  std::span<const Degradation> others);

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_DEGRADED_H_
