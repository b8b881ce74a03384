// What /metrics says of the store, the sessions and the limits: read at every scrape.
#ifndef KAVERN_SERVICE_NODE_METRICS_H_
#define KAVERN_SERVICE_NODE_METRICS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "prometheus/collectable.h"
#include "prometheus/metric_family.h"
#include "service/degraded.h"
#include "service/session/attach_server.h"
#include "service/session/session_table.h"
#include "tiers/tiered_store.h"

namespace kavern::service {

// A limit's config key and value: every limit is a metric, so that an alert can be a ratio.
using NamedLimit = std::pair<std::string, double>;

// What /metrics says of the store, out of facts alone.
std::vector<prometheus::MetricFamily> StoreMetrics(const tiers::StoreStatus& status,
                                                   const tiers::StoreCounters& counters);
// How many, and each by name.
std::vector<prometheus::MetricFamily> DegradedMetrics(const std::vector<Degradation>& degraded);

// Thread-safe; everything passed in must outlive it.
class NodeMetrics final : public prometheus::Collectable {
 public:
  NodeMetrics(const tiers::TieredStore& store, const SessionTable& sessions,
              const AttachServer& attach, std::vector<NamedLimit> limits,
              std::function<std::vector<Degradation>()> degraded,
              std::function<std::uint64_t()> calls_in_progress);

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const tiers::TieredStore& store_;
  const SessionTable& sessions_;
  const AttachServer& attach_;
  const std::vector<NamedLimit> limits_;
  const std::function<std::vector<Degradation>()> degraded_;
  const std::function<std::uint64_t()> calls_in_progress_;
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_NODE_METRICS_H_
