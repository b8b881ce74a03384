// kavernd's configuration: every setting and limit, once.
#ifndef KAVERN_SERVICE_CONFIG_H_
#define KAVERN_SERVICE_CONFIG_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/config_table.h"
#include "base/units.h"
#include "service/session/tenant_map.h"

namespace kavern::service {

// The values that a member has here are the defaults. service/config.cc holds the table that
// documents, parses, checks and prints them.
struct DaemonConfig {
  struct Listen {
    std::string socket = "/run/kavern/kavern.sock";
    std::uint32_t socket_mode = 0600;
    std::string socket_group;
    std::string tcp_address;  // empty: no TCP
    std::string tcp_tenant;
    bool tcp_insecure = false;  // TCP without TLS, loopback only
  } listen;

  struct Http {
    std::string address = "127.0.0.1:9420";  // empty: off
  } http;

  struct Log {
    std::string level = "info";
    std::string format = "text";  // or json
  } log;

  struct Ram {
    std::uint64_t capacity_bytes = 4 * kGiB;
    std::uint64_t region_bytes = 64 * kMiB;
    std::uint64_t reserve_bytes = kGiB;
    std::string huge_pages = "auto";
    bool prepopulate = true;
  } ram;

  struct NvmeDevice {
    std::string path;
    std::uint64_t capacity_bytes = 0;
  };
  struct Nvme {
    std::vector<NvmeDevice> devices;  // none: there is no NVMe tier
    std::string catalog = "/var/lib/kavern/catalog";
    std::uint64_t segment_bytes = 64 * kMiB;
    std::uint64_t queue_depth = 32;
    std::string io = "auto";
    bool discard = false;
    std::string durability = "batch";
    std::chrono::milliseconds batch_interval{100};
    std::string write_back = "eager";
    std::chrono::milliseconds write_back_idle{10000};
    std::uint64_t clean_percent = 25;
    std::uint64_t write_budget_bytes_per_day = 0;  // 0: no limit
    std::uint64_t write_burst_bytes = 64 * kGiB;
    std::chrono::milliseconds write_timeout{10000};
    std::chrono::milliseconds hang_timeout{30000};
    std::uint64_t scrub_bytes_per_second = 8 * kMiB;  // 0: off
    std::uint64_t write_back_bytes_max = 256 * kMiB;
    std::chrono::milliseconds read_timeout{5000};
    std::uint64_t promotion_bytes_max = 256 * kMiB;
    std::uint64_t read_ahead_blocks = 0;
  } nvme;

  struct Eviction {
    std::string policy = "lru";
  } eviction;

  struct Conversations {
    std::uint64_t priority_max = 100;
    std::chrono::milliseconds ttl_max{std::chrono::hours(24)};
    std::chrono::milliseconds ttl_default{std::chrono::hours(1)};
    std::uint64_t count_max = 65536;
    std::uint64_t count_per_tenant_max = 16384;
  } conversations;

  std::vector<TenantRule> tenants;
  std::vector<std::uint64_t> operator_uids;

  struct Limits {
    std::uint64_t sessions_max = 4096;
    std::uint64_t namespaces_max = 16384;
    std::uint64_t namespaces_per_session_max = 16384;
    std::uint64_t keys_per_request_max = 4096;
    std::uint64_t message_bytes_max = 4 * kMiB;
    std::uint64_t receive_bytes_max = 128 * kMiB;
    std::uint64_t leases_per_session_max = 4096;
    std::uint64_t lease_bytes_per_session_max = 0;  // 0: half of ram.capacity
    std::uint64_t inflight_bytes_max = 256 * kMiB;
    std::uint64_t incomplete_blocks_max = 4096;
    std::chrono::milliseconds incomplete_age_max{60000};
    std::uint64_t handshakes_max = 64;
    std::chrono::milliseconds hello_timeout{5000};
    std::uint64_t queued_messages_per_session_max = 4096;
    std::uint64_t concurrent_calls_max = 1024;
  } limits;

  std::chrono::milliseconds drain_timeout{10000};
};

// The table over `config`, which must outlive it.
ConfigTable MakeConfigTable(DaemonConfig& config);

// Parses, then checks what no single entry can (ram.capacity a multiple of ram.region, TCP on
// loopback, TCP needs a tenant, ...). InvalidArgument: one mistake a line, each with file, line and
// column where it has one.
//
// `overrides`, "ram.capacity=8GiB" each, replace what the file says, in order.
using ConfigOverrides = std::vector<std::string>;
absl::StatusOr<DaemonConfig> ParseDaemonConfig(std::string_view yaml, std::string_view file_name,
                                               const ConfigOverrides& overrides = {});
// NotFound when the file cannot be opened.
absl::StatusOr<DaemonConfig> LoadDaemonConfig(const std::string& path,
                                              const ConfigOverrides& overrides = {});

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_CONFIG_H_
