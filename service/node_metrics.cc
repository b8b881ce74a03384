#include "service/node_metrics.h"

#include <limits>

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
  families.push_back(Gauge("kavern_conversations", "Conversations known.", status.conversations));
}

// How well turns are predicted: whoever plans relies on it.
void AddPredictions(const tiers::TurnPredictions& predictions,
                    std::vector<MetricFamily>& families) {
  MetricFamily family =
      Family("kavern_turn_actual_per_predicted",
             "Reported times of prefills and of fetches by tier, each divided by what had been "
             "predicted of it from the timings before.",
             MetricType::Histogram);
  const auto add = [&](const char* what, const tiers::PredictionRatios& ratios) {
    prometheus::ClientMetric metric;
    metric.label = {{"what", what}};
    std::uint64_t cumulative = 0;
    for (std::size_t i = 0; i < ratios.counts.size(); ++i) {
      cumulative += ratios.counts[i];
      const double bound = i < tiers::PredictionRatios::kBounds.size()
                               ? tiers::PredictionRatios::kBounds[i]
                               : std::numeric_limits<double>::infinity();
      metric.histogram.bucket.push_back({cumulative, bound});
    }
    metric.histogram.sample_count = cumulative;
    metric.histogram.sample_sum = ratios.sum;
    family.metric.push_back(std::move(metric));
  };
  add("prefill", predictions.prefill);
  add("ram", predictions.tiers[static_cast<std::size_t>(Tier::kRam)]);
  add("nvme", predictions.tiers[static_cast<std::size_t>(Tier::kNvme)]);
  families.push_back(std::move(family));
}

// One family for each fact, one sample for each device.
void AddDevices(const tiers::DiskStatus& disk, std::vector<MetricFamily>& families) {
  const auto add = [&](MetricFamily family, auto value) {
    for (const tiers::DeviceFacts& device : disk.devices) {
      AddSample(family, static_cast<double>(value(device)), {{"device", device.path}});
    }
    families.push_back(std::move(family));
  };
  using Facts = tiers::DeviceFacts;
  add(Family("kavern_nvme_device_healthy", "0: the device failed or hangs, and is out of use.",
             MetricType::Gauge),
      [](const Facts& device) { return device.healthy ? 1 : 0; });
  add(Family("kavern_nvme_device_queued", "Requests that wait to be begun.", MetricType::Gauge),
      [](const Facts& device) { return device.io.queued; });
  add(Family("kavern_nvme_device_in_flight", "Requests that the kernel has.", MetricType::Gauge),
      [](const Facts& device) { return device.io.in_flight; });
  add(Family("kavern_nvme_device_late_total", "Requests that ended after their deadline.",
             MetricType::Counter),
      [](const Facts& device) { return device.io.late; });
  add(Family("kavern_nvme_device_expired_total", "Requests not begun by their deadline.",
             MetricType::Counter),
      [](const Facts& device) { return device.io.expired; });
  add(Family("kavern_nvme_device_cancelled_total", "Requests that were cancelled.",
             MetricType::Counter),
      [](const Facts& device) { return device.io.cancelled; });
  add(Family("kavern_nvme_device_refused_total", "Requests for which the queue had no room.",
             MetricType::Counter),
      [](const Facts& device) { return device.io.refused; });
}

void AddDisk(const tiers::DiskStatus& disk, std::vector<MetricFamily>& families) {
  families.push_back(
      Gauge("kavern_nvme_capacity_bytes", "Hard cap of the NVMe tier.", disk.capacity_bytes));
  families.push_back(
      Gauge("kavern_nvme_used_bytes", "Slots that hold or await a part.", disk.used_bytes));
  families.push_back(Gauge("kavern_nvme_blocks", "Blocks on disk.", disk.blocks));
  families.push_back(Gauge("kavern_nvme_write_back_blocks", "Blocks waiting to be written.",
                           disk.write_back_blocks));
  families.push_back(Gauge("kavern_nvme_queued_promotions", "Blocks that wait to be read into RAM.",
                           disk.queued_promotions));
  families.push_back(Gauge("kavern_nvme_promoting_bytes", "RAM that is being filled from disk.",
                           disk.promoting_bytes));
  families.push_back(
      Gauge("kavern_nvme_write_back_bytes", "Of these blocks.", disk.write_back_bytes));
  families.push_back(Gauge("kavern_nvme_waits_for_write_budget",
                           "1 while blocks wait because the write budget is used up.",
                           disk.waits_for_budget ? 1 : 0));
  if (disk.write_budget_bytes != UINT64_MAX) {
    families.push_back(Gauge("kavern_nvme_write_budget_bytes",
                             "What may be written at this moment.", disk.write_budget_bytes));
  }
  families.push_back(
      Gauge("kavern_nvme_index_bytes", "Memory of the disk's index.", disk.index_bytes));
  families.push_back(
      Gauge("kavern_nvme_catalog_bytes", "Memory of the catalog.", disk.catalog_bytes));
  families.push_back(Gauge("kavern_nvme_catalog_healthy",
                           "0: a write to the catalog failed; nothing new is kept on disk.",
                           disk.catalog_failure.empty() ? 1 : 0));
  families.push_back(Gauge("kavern_nvme_unreadable_segments",
                           "Segments whose header could not be read at the start.",
                           disk.unreadable_segments));
  families.push_back(Gauge("kavern_nvme_recovering",
                           "1 while what is on disk is still being read after the start.",
                           disk.recovering ? 1 : 0));
  families.push_back(Single("kavern_nvme_recovery_seconds",
                            "How long what was on disk took to read at start.", MetricType::Gauge,
                            disk.recovery_seconds));
  families.push_back(
      Gauge("kavern_nvme_recovered_parts", "Parts found on disk at start.", disk.recovered_blocks));
  families.push_back(Gauge("kavern_nvme_rebuilt",
                           "1 if the catalog was damaged or missing at start, and was made anew.",
                           disk.recovered_from_headers.empty() ? 0 : 1));
  families.push_back(
      Counter("kavern_nvme_read_bytes_total", "Payload bytes read.", disk.io.read_bytes));
  families.push_back(
      Counter("kavern_nvme_written_bytes_total", "Payload bytes written.", disk.io.written_bytes));
  families.push_back(
      Counter("kavern_nvme_read_failures_total", "Reads that failed.", disk.io.read_failures));
  families.push_back(Counter("kavern_nvme_write_failures_total",
                             "Writes, flushes and catalog entries that failed.",
                             disk.io.write_failures));
  families.push_back(Counter("kavern_nvme_damaged_parts_total",
                             "Parts whose bytes on disk failed their checksum: dropped.",
                             disk.io.damaged_parts));
  families.push_back(Counter("kavern_nvme_flushes_total", "Flushes.", disk.io.flushes));
  families.push_back(
      Gauge("kavern_nvme_registered_bytes",
            "Memory of the RAM tier that is registered with every device's io_uring.",
            disk.RegisteredBytes()));
  AddDevices(disk, families);
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
  families.push_back(Counter("kavern_disk_stored_blocks_total",
                             "Blocks written to the NVMe tier, durable as configured.",
                             counters.disk_stored_blocks));
  families.push_back(Counter("kavern_disk_lost_blocks_total",
                             "Blocks that left RAM before they could be written.",
                             counters.disk_lost_blocks));
  families.push_back(Counter("kavern_disk_declined_blocks_total",
                             "Blocks that found no room on disk, or whose write failed.",
                             counters.disk_declined_blocks));
  families.push_back(Counter("kavern_disk_evicted_blocks_total",
                             "Blocks evicted from disk for room.", counters.disk_evicted_blocks));
  families.push_back(Counter("kavern_scrubbed_bytes_total",
                             "Bytes on disk that were verified in the background.",
                             counters.scrubbed_bytes));
  families.push_back(Counter("kavern_scrub_passes_total", "Times that all of it was verified.",
                             counters.scrub_passes));
  families.push_back(Counter("kavern_scrub_damaged_blocks_total",
                             "Blocks that this found damaged: dropped.",
                             counters.scrub_damaged_blocks));
  families.push_back(Counter("kavern_write_budget_save_failures_total",
                             "Times that the write budget could not be saved for the next daemon.",
                             counters.budget_save_failures));
  families.push_back(Counter("kavern_disk_failed_blocks_total",
                             "Blocks that were lost with a device that failed.",
                             counters.disk_failed_blocks));
  families.push_back(Counter("kavern_promoted_blocks_total", "Blocks read from disk into RAM.",
                             counters.promoted_blocks));
  families.push_back(Counter("kavern_promotion_failures_total",
                             "Blocks on disk that could not be read into RAM, or not in time.",
                             counters.promotion_failures));
  families.push_back(Counter("kavern_fetch_disk_bytes_total",
                             "Payload bytes that were read from disk for a fetch, and fetched.",
                             counters.fetch_disk_bytes));
  families.push_back(Counter("kavern_fetch_disk_blocks_total",
                             "Of the fetched parts that were there: read from disk for it.",
                             counters.fetch_disk_blocks));
  families.push_back(Counter("kavern_read_ahead_blocks_total",
                             "Blocks read from disk because a fetch came near them.",
                             counters.read_ahead_blocks));
  families.push_back(Counter("kavern_read_ahead_used_blocks_total",
                             "Of these: fetched before they left RAM again.",
                             counters.read_ahead_used_blocks));
  families.push_back(Counter("kavern_conversation_updates_total",
                             "Times that a client said what a conversation is.",
                             counters.conversation_updates));
  families.push_back(Counter("kavern_conversations_ended_total", "Conversations whose TTL is over.",
                             counters.conversations_ended));
  families.push_back(Counter("kavern_conversations_displaced_total",
                             "Conversations forgotten because there were too many.",
                             counters.conversations_displaced));
  families.push_back(Counter("kavern_regions_rebalanced_total",
                             "Regions emptied for another namespace.",
                             counters.regions_rebalanced));
}

}  // namespace

std::vector<MetricFamily> StoreMetrics(const tiers::StoreStatus& status,
                                       const tiers::StoreCounters& counters) {
  std::vector<MetricFamily> families;
  AddRam(status, families);
  if (status.disk.configured) {
    AddDisk(status.disk, families);
    // What the tier costs the disks for what it gives; 0 while it has given nothing.
    const auto useful = static_cast<double>(counters.fetch_disk_bytes);
    const auto written = static_cast<double>(status.disk.io.written_bytes);
    families.push_back(Single("kavern_nvme_written_bytes_per_useful_read_byte",
                              "Bytes written for each that was fetched from disk; 0: none was.",
                              MetricType::Gauge, useful > 0 ? written / useful : 0));
  }
  AddStoreCounters(counters, families);
  AddPredictions(counters.predictions, families);
  return families;
}

std::vector<MetricFamily> DegradedMetrics(const std::vector<Degradation>& degraded) {
  MetricFamily features =
      Family("kavern_degraded_feature",
             "1 for each that does not work as configured; the log says why.", MetricType::Gauge);
  for (const Degradation& one : degraded) AddSample(features, 1, {{"what", one.what}});
  return {
      Gauge("kavern_degraded", "How many features do not work as configured; the log names them.",
            degraded.size()),
      std::move(features)};
}

NodeMetrics::NodeMetrics(const tiers::TieredStore& store, const SessionTable& sessions,
                         const AttachServer& attach, std::vector<NamedLimit> limits,
                         std::function<std::vector<Degradation>()> degraded,
                         std::function<std::uint64_t()> calls_in_progress)
    : store_(store),
      sessions_(sessions),
      attach_(attach),
      limits_(std::move(limits)),
      degraded_(std::move(degraded)),
      calls_in_progress_(std::move(calls_in_progress)) {}

std::vector<MetricFamily> NodeMetrics::Collect() const {
  std::vector<MetricFamily> families = StoreMetrics(store_.GetStatus(), store_.GetCounters());

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
  for (MetricFamily& family : DegradedMetrics(degraded_())) families.push_back(std::move(family));
  MetricFamily limits =
      Family("kavern_limit", "Configured limits, by config key.", MetricType::Gauge);
  for (const auto& [name, value] : limits_) AddSample(limits, value, {{"name", name}});
  families.push_back(std::move(limits));
  return families;
}

}  // namespace kavern::service
