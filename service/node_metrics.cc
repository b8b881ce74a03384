#include "service/node_metrics.h"

#include "prometheus/metric_type.h"

namespace kavern::service {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

MetricFamily Family(const char* name, const char* help, MetricType type) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

void AddSample(MetricFamily& family, double value,
               std::vector<prometheus::ClientMetric::Label> labels = {}) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  if (family.type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family.metric.push_back(std::move(metric));
}

MetricFamily Single(const char* name, const char* help, MetricType type, double value) {
  MetricFamily family = Family(name, help, type);
  AddSample(family, value);
  return family;
}

MetricFamily Gauge(const char* name, const char* help, std::uint64_t value) {
  return Single(name, help, MetricType::Gauge, static_cast<double>(value));
}

MetricFamily Counter(const char* name, const char* help, std::uint64_t value) {
  return Single(name, help, MetricType::Counter, static_cast<double>(value));
}

void AddRam(const tiers::StoreStatus& status, std::vector<MetricFamily>& families) {
  const tiers::RegionPool::Status& pool = status.pool;
  families.push_back(
      Gauge("kavern_ram_capacity_bytes", "Hard cap of the RAM tier.", pool.capacity_bytes));
  families.push_back(Gauge("kavern_ram_populated_bytes",
                           "Memory of existing regions: ready, owned by a namespace, or retired.",
                           pool.existing_bytes));
  families.push_back(
      Gauge("kavern_ram_ready_bytes", "Regions that no namespace owns yet.", pool.ready_bytes));
  families.push_back(
      Gauge("kavern_ram_assigned_bytes", "Regions that a namespace owns.", status.assigned_bytes));
  families.push_back(
      Gauge("kavern_ram_retired_bytes",
            "Regions given up that a session still maps; they count against the cap.",
            status.RetiredBytes()));
  families.push_back(
      Gauge("kavern_ram_used_bytes", "Slots that hold or await a part.", status.used_bytes));
  families.push_back(
      Gauge("kavern_ram_leased_bytes", "Slots under a read or write lease.", status.leased_bytes));
  families.push_back(
      Gauge("kavern_ram_huge_page_bytes", "Memory in huge pages.", pool.huge_page_bytes));
  families.push_back(Gauge("kavern_ram_waiting",
                           "1 while population waits for memory; the log says for what.",
                           pool.waiting_for.empty() ? 0 : 1));
  families.push_back(
      Gauge("kavern_index_bytes", "Memory of the block indices and policies.", status.index_bytes));
  families.push_back(
      Gauge("kavern_directory_bytes", "Memory of the directory segments.", status.directory_bytes));
  families.push_back(Gauge("kavern_namespaces", "Namespaces known.", status.namespaces));
  families.push_back(Gauge("kavern_blocks", "Visible blocks.", status.blocks));
}

void AddStoreCounters(const tiers::StoreCounters& counters, std::vector<MetricFamily>& families) {
  families.push_back(
      Counter("kavern_store_blocks_total", "Block parts committed.", counters.store_blocks));
  families.push_back(
      Counter("kavern_store_bytes_total", "Payload bytes committed.", counters.store_bytes));
  families.push_back(Counter("kavern_store_exists_blocks_total",
                             "Stores of a part that was cached already.",
                             counters.store_exists_blocks));
  families.push_back(Counter("kavern_store_declined_blocks_total",
                             "Stores refused by a full tier, a quota or back-pressure.",
                             counters.store_declined_blocks));
  families.push_back(Counter("kavern_store_raced_blocks_total",
                             "Commits that another writer of the same part had made first.",
                             counters.store_raced_blocks));
  families.push_back(Counter("kavern_fetch_hit_blocks_total", "Fetched parts that were there.",
                             counters.fetch_hit_blocks));
  families.push_back(Counter("kavern_fetch_miss_blocks_total", "Fetched parts that were not.",
                             counters.fetch_miss_blocks));
  families.push_back(Counter("kavern_fetch_bytes_total", "Payload bytes handed out for reading.",
                             counters.fetch_bytes));
  families.push_back(
      Counter("kavern_evicted_blocks_total", "Blocks evicted for room.", counters.evicted_blocks));
  families.push_back(Counter("kavern_damaged_blocks_total",
                             "Blocks dropped because their bytes failed their checksum.",
                             counters.damaged_blocks));
  families.push_back(Counter("kavern_orphaned_blocks_total",
                             "Blocks whose parent left before them.", counters.orphaned_blocks));
  families.push_back(Counter("kavern_regions_rebalanced_total",
                             "Regions emptied for another namespace.",
                             counters.regions_rebalanced));
}

}  // namespace

NodeMetrics::NodeMetrics(const tiers::TieredStore& store, const SessionTable& sessions,
                         const AttachServer& attach, std::vector<NamedLimit> limits,
                         std::function<std::vector<std::string>()> degraded,
                         std::function<std::uint64_t()> calls_in_progress)
    : store_(store),
      sessions_(sessions),
      attach_(attach),
      limits_(std::move(limits)),
      degraded_(std::move(degraded)),
      calls_in_progress_(std::move(calls_in_progress)) {}

std::vector<MetricFamily> NodeMetrics::Collect() const {
  std::vector<MetricFamily> families;
  AddRam(store_.GetStatus(), families);
  AddStoreCounters(store_.GetCounters(), families);

  const SessionTable::Totals sessions = sessions_.GetTotals();
  MetricFamily by_state = Family("kavern_sessions",
                                 "Sessions: live, or fenced until their "
                                 "process exits.",
                                 MetricType::Gauge);
  AddSample(by_state, static_cast<double>(sessions.live), {{"state", "live"}});
  AddSample(by_state, static_cast<double>(sessions.fenced), {{"state", "fenced"}});
  families.push_back(std::move(by_state));
  families.push_back(Gauge("kavern_leases", "Leases held by sessions.", sessions.leases));
  families.push_back(Gauge("kavern_quarantined_bytes",
                           "Memory held for fenced sessions whose process lives.",
                           sessions.quarantined_bytes));

  const AttachServer::Counters attach = attach_.GetCounters();
  families.push_back(Counter("kavern_attach_accepted_total", "Sessions begun.", attach.accepted));
  families.push_back(Counter("kavern_attach_rejected_total",
                             "Attach connections refused: credentials, limits, bad hello.",
                             attach.rejected));
  families.push_back(Counter("kavern_attach_fenced_total",
                             "Sessions ended for a malformed message or an unread queue.",
                             attach.fenced_by_protocol));
  families.push_back(Counter("kavern_attach_ended_total", "Sessions freed.", attach.ended));
  families.push_back(
      Counter("kavern_attach_accept_pauses_total",
              "Times that no connection was accepted for want of descriptors or memory.",
              attach.accept_pauses));

  families.push_back(Gauge("kavern_calls_in_progress", "RPCs in progress.", calls_in_progress_()));
  families.push_back(Gauge("kavern_degraded",
                           "How many features do not work as configured; the log names them.",
                           degraded_().size()));
  MetricFamily limits =
      Family("kavern_limit", "Configured limits, by config key.", MetricType::Gauge);
  for (const auto& [name, value] : limits_) AddSample(limits, value, {{"name", name}});
  families.push_back(std::move(limits));
  return families;
}

}  // namespace kavern::service
