#include "service/config.h"

#include <fstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "proto/kavern/v1/shm_layout.h"
#include "tiers/policy/eviction_policy.h"

namespace kavern::service {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;

constexpr std::uint64_t kConfigFileBytesMax = kMiB;
// A slot's number has 32 bits and a slot at least 4 KiB, so one namespace could not use much more.
constexpr std::uint64_t kRamBytesMax = 8 * kTiB;
// sun_path holds 108 bytes with its NUL; the attach socket's suffix must fit too.
constexpr std::size_t kSocketPathBytesMax = 107 - (sizeof(shm::kAttachSuffix) - 1);

absl::Status CheckSocketPath(const std::string& path) {
  if (path.empty() || path.front() != '/' || path.size() > kSocketPathBytesMax ||
      path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("an absolute path of at most ", kSocketPathBytesMax, " bytes"));
  }
  return absl::OkStatus();
}

// "" or host:port with a loopback host and a port from 0 (any free one) to 65535.
absl::Status CheckLoopbackAddress(const std::string& address) {
  if (address.empty()) return absl::OkStatus();
  constexpr char kExpected[] = "\"\" or a loopback address such as 127.0.0.1:7420 or [::1]:7420";
  const std::size_t colon = address.rfind(':');
  if (colon == std::string::npos) return absl::InvalidArgumentError(kExpected);
  const std::string host = address.substr(0, colon);
  const std::string port = address.substr(colon + 1);
  std::uint32_t number = 0;
  if ((host != "127.0.0.1" && host != "[::1]" && host != "localhost") ||
      port.find_first_not_of("0123456789") != std::string::npos ||
      !absl::SimpleAtoi(port, &number) || number > 65535) {
    return absl::InvalidArgumentError(kExpected);
  }
  return absl::OkStatus();
}

std::vector<ConfigEntry> TenantEntries(TenantRule& rule) {
  return {
      {"name", ConfigEntry::Text{&rule.name, nullptr},
       "Tenant name: 1 to 63 letters, digits, dots, dashes, underscores."},
      {"uids", ConfigEntry::CountList{&rule.uids, 0, 0xfffffffe},
       "User ids whose processes act for this tenant."},
      {"gids", ConfigEntry::CountList{&rule.gids, 0, 0xfffffffe},
       "Primary group ids whose processes act for this tenant."},
  };
}

std::vector<ConfigEntry> ListenEntries(DaemonConfig::Listen& listen) {
  return {
      {"listen.socket", ConfigEntry::Text{&listen.socket, CheckSocketPath},
       "Unix socket of the gRPC control plane. The attach socket lies beside it, with the suffix "
       ".attach."},
      {"listen.socket_mode", ConfigEntry::Mode{&listen.socket_mode},
       "Mode of both sockets. Whoever may connect is still identified by its credentials "
       "(tenants)."},
      {"listen.socket_group", ConfigEntry::Text{&listen.socket_group, nullptr},
       "Group that owns both sockets; empty keeps the daemon's own."},
      {"listen.tcp.address", ConfigEntry::Text{&listen.tcp_address, CheckLoopbackAddress},
       "Loopback address for workers that cannot map this node's memory (their bytes travel over "
       "gRPC). Empty: no TCP."},
      {"listen.tcp.tenant", ConfigEntry::Text{&listen.tcp_tenant, nullptr},
       "The one tenant that every TCP caller acts for."},
      {"listen.tcp.insecure", ConfigEntry::Flag{&listen.tcp_insecure},
       "Must be true for TCP without TLS: every process of this machine can then act for the TCP "
       "tenant."},
  };
}

std::vector<ConfigEntry> RamEntries(DaemonConfig::Ram& ram) {
  return {
      {"ram.capacity", ConfigEntry::Bytes{&ram.capacity_bytes, kMiB, kRamBytesMax},
       "Hard cap of the RAM tier: blocks in use, free slots and regions that a client still maps. "
       "A "
       "multiple of ram.region. Refused when it cannot fit the machine or the memory cgroup."},
      {"ram.region", ConfigEntry::Bytes{&ram.region_bytes, 64 * kKiB, 16 * kGiB},
       "Size of one region, the unit in which memory moves between namespaces; a multiple of 4 "
       "KiB, of 2 MiB for huge pages. A block's part must fit into one."},
      {"ram.reserve", ConfigEntry::Bytes{&ram.reserve_bytes, 0, 64 * kTiB},
       "Memory that stays free on the machine and in the cgroup: population waits rather than take "
       "it."},
      {"ram.huge_pages", ConfigEntry::Choice{&ram.huge_pages, {"auto", "off", "hugetlb"}},
       "auto: transparent huge pages where the kernel gives them. hugetlb: from the reserved pool "
       "(vm.nr_hugepages)."},
      {"ram.prepopulate", ConfigEntry::Flag{&ram.prepopulate},
       "Populate the whole tier in the background after start; false: region by region, on "
       "demand."},
  };
}

absl::Status CheckAbsolutePath(const std::string& path) {
  if (path.empty() || path.front() != '/' || path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError("an absolute path");
  }
  return absl::OkStatus();
}

std::vector<ConfigEntry> DeviceEntries(DaemonConfig::NvmeDevice& device) {
  return {
      {"path", ConfigEntry::Text{&device.path, CheckAbsolutePath},
       "A file on ext4 or xfs, made where there is none, or a raw block device."},
      {"capacity", ConfigEntry::Bytes{&device.capacity_bytes, 2 * kMiB, 64 * kTiB},
       "What the tier takes of it, everything included; reserved at start."},
  };
}

std::vector<ConfigEntry> NvmeEntries(DaemonConfig::Nvme& nvme) {
  return {
      {"nvme.devices",
       ConfigEntry::List{[&nvme] { nvme.devices.clear(); },
                         [&nvme] { return DeviceEntries(nvme.devices.emplace_back()); },
                         [&nvme] { return nvme.devices.size(); },
                         [&nvme](std::size_t i) { return DeviceEntries(nvme.devices[i]); }},
       "Disks of the NVMe tier; blocks are spread over them. None: there is no such tier. Their "
       "order, number and capacity belong to what is stored: to change them, remove the files."},
      {"nvme.catalog", ConfigEntry::Text{&nvme.catalog, CheckAbsolutePath},
       "Directory of the catalog (RocksDB). Damaged or missing, it is made anew from the disks."},
      {"nvme.segment", ConfigEntry::Bytes{&nvme.segment_bytes, 64 * kKiB, 16 * kGiB},
       "Unit in which a disk is given to blocks of one size; a multiple of 4 KiB. A block's part "
       "that does not fit into one stays in RAM only."},
      {"nvme.queue_depth", ConfigEntry::Count{&nvme.queue_depth, 1, 1024},
       "Reads and writes that a disk has at a time; reads come first."},
      {"nvme.io", ConfigEntry::Choice{&nvme.io, {"auto", "threads"}},
       "auto: io_uring, or threads where the kernel refuses it. threads: always threads."},
      {"nvme.discard", ConfigEntry::Flag{&nvme.discard},
       "Tell a raw device (TRIM) when a segment of it is put to another use. Of a file the space "
       "stays reserved, so its disk is told nothing."},
      {"nvme.durability", ConfigEntry::Choice{&nvme.durability, {"none", "batch", "strict"}},
       "What a block on disk survives where its store does not say. none: the daemon's death, but "
       "not a power cut. batch: it is flushed every nvme.batch_interval, before it counts as "
       "stored "
       "there. strict: whoever stores waits for that."},
      {"nvme.batch_interval",
       ConfigEntry::Duration{&nvme.batch_interval, milliseconds(1), milliseconds(60000)},
       "How long blocks wait for others to share a flush."},
      {"nvme.write_back", ConfigEntry::Choice{&nvme.write_back, {"eager", "idle", "on_eviction"}},
       "When blocks are written. eager: at once. idle: once nobody has used them for "
       "nvme.write_back_idle. on_eviction: only as much as keeps nvme.clean_percent of RAM "
       "evictable without a loss. Strict stores do not wait."},
      {"nvme.write_back_idle",
       ConfigEntry::Duration{&nvme.write_back_idle, milliseconds(1), milliseconds(86400000)},
       "For nvme.write_back: idle."},
      {"nvme.clean_percent", ConfigEntry::Count{&nvme.clean_percent, 0, 100},
       "Percent of RAM that holds nothing or what is on disk too, in the modes idle and "
       "on_eviction."},
      {"nvme.write_budget", ConfigEntry::Bytes{&nvme.write_budget_bytes_per_day, 0, 1024 * kTiB},
       "Bytes that may be written a day, all disks together: their endurance. Blocks wait for it "
       "in "
       "RAM, and are lost if RAM evicts them meanwhile. 0: no limit. It outlives the daemon."},
      {"nvme.write_burst", ConfigEntry::Bytes{&nvme.write_burst_bytes, kMiB, 1024 * kTiB},
       "How much of the budget can be saved up while little is written. A larger block is never "
       "written."},
      {"nvme.write_timeout",
       ConfigEntry::Duration{&nvme.write_timeout, milliseconds(10), milliseconds(600000)},
       "How long a strict store waits for the disks; it is answered as not durable then."},
      {"nvme.hang_timeout",
       ConfigEntry::Duration{&nvme.hang_timeout, milliseconds(1000), milliseconds(3600000)},
       "A disk that the kernel has had a request of for longer hangs: it is out of use until the "
       "next start, and the others go on."},
      {"nvme.scrub_rate", ConfigEntry::Bytes{&nvme.scrub_bytes_per_second, 0, kTiB},
       "Bytes a second that are read in the background to find damage before it is asked for. "
       "0: none."},
      {"nvme.write_back_bytes_max", ConfigEntry::Bytes{&nvme.write_back_bytes_max, kMiB, kTiB},
       "RAM that is being written to disk at a time, and cannot be evicted meanwhile."},
      {"nvme.read_timeout",
       ConfigEntry::Duration{&nvme.read_timeout, milliseconds(10), milliseconds(600000)},
       "How long a fetch waits for the disks, unless its own deadline is earlier; what was not "
       "read "
       "by then is answered DEADLINE_EXCEEDED."},
      {"nvme.promotion_bytes_max", ConfigEntry::Bytes{&nvme.promotion_bytes_max, kMiB, kTiB},
       "RAM that is being filled from disk at a time, all fetches and prefetches together; what is "
       "beyond it waits, fetches first."},
      {"nvme.read_ahead_blocks", ConfigEntry::Count{&nvme.read_ahead_blocks, 0, 65536},
       "After a fetch from disk: how many of the blocks that continue its chain are read, too, "
       "into "
       "RAM that is free. 0: none."},
  };
}

std::vector<ConfigEntry> ConversationEntries(DaemonConfig::Conversations& conversations) {
  return {
      {"conversations.priority_max", ConfigEntry::Count{&conversations.priority_max, 0, 100},
       "The highest priority that a conversation gets, whatever it asks for. Of a namespace's "
       "blocks "
       "in RAM those of a lower priority leave first; without a conversation they are at 50."},
      {"conversations.ttl_max",
       ConfigEntry::Duration{&conversations.ttl_max, milliseconds(1000), 24 * 365 * hours(1)},
       "The longest that a conversation keeps its priority without being told anew. Then its "
       "blocks "
       "leave RAM first."},
      {"conversations.ttl_default",
       ConfigEntry::Duration{&conversations.ttl_default, milliseconds(1000), 24 * 365 * hours(1)},
       "The same, of a conversation that says no TTL; at most conversations.ttl_max."},
      {"conversations.count_max", ConfigEntry::Count{&conversations.count_max, 1, 10000000},
       "Conversations known at a time; past it the tenant with the most loses the one that ends "
       "first. Each takes at most about 1 KiB."},
      {"conversations.count_per_tenant_max",
       ConfigEntry::Count{&conversations.count_per_tenant_max, 1, 10000000},
       "The same, of one tenant, which loses its own."},
  };
}

std::vector<ConfigEntry> LimitEntries(DaemonConfig::Limits& limits) {
  using Count = ConfigEntry::Count;
  return {
      {"limits.sessions_max", Count{&limits.sessions_max, 1, 1000000},
       "Attached clients, those in quarantine included."},
      {"limits.namespaces_max", Count{&limits.namespaces_max, 1, 1000000},
       "Namespaces known at a time; idle ones make room."},
      {"limits.namespaces_per_session_max", Count{&limits.namespaces_per_session_max, 1, 1000000},
       "Namespaces that one session may have open."},
      {"limits.keys_per_request_max", Count{&limits.keys_per_request_max, 1, 65536},
       "Block keys in one request."},
      {"limits.message_bytes_max", ConfigEntry::Bytes{&limits.message_bytes_max, 2 * kMiB, kGiB},
       "Largest gRPC message that is accepted. A larger one is refused once it has come, or cut "
       "off by "
       "limits.receive_bytes_max."},
      {"limits.receive_bytes_max", ConfigEntry::Bytes{&limits.receive_bytes_max, 16 * kMiB, kTiB},
       "What gRPC buffers of messages, half received ones too, of all callers; past it calls are "
       "cut "
       "off."},
      {"limits.leases_per_session_max", Count{&limits.leases_per_session_max, 1, 1000000},
       "Leases that one session may hold."},
      {"limits.lease_bytes_per_session_max",
       ConfigEntry::Bytes{&limits.lease_bytes_per_session_max, 0, 64 * kTiB},
       "Memory that one session may hold under lease, quarantine included. 0: half of "
       "ram.capacity."},
      {"limits.inflight_bytes_max", ConfigEntry::Bytes{&limits.inflight_bytes_max, 4 * kMiB, kTiB},
       "Payload bytes of PutBlocks and GetBlocks in the daemon at a time, all sessions."},
      {"limits.incomplete_blocks_max", Count{&limits.incomplete_blocks_max, 1, 100000000},
       "Blocks of one namespace of which some but not all parts are stored."},
      {"limits.incomplete_age_max",
       ConfigEntry::Duration{&limits.incomplete_age_max, milliseconds(100), hours(24)},
       "How long such a block waits for its other parts before it is dropped."},
      {"limits.handshakes_max", Count{&limits.handshakes_max, 1, 65536},
       "Attach connections that have not said hello yet."},
      {"limits.hello_timeout",
       ConfigEntry::Duration{&limits.hello_timeout, milliseconds(10), hours(1)},
       "How long an attach connection may take to say hello."},
      {"limits.queued_messages_per_session_max",
       Count{&limits.queued_messages_per_session_max, 16, 1000000},
       "Attach messages that a client has not read; past it the session is ended."},
      {"limits.concurrent_calls_max", Count{&limits.concurrent_calls_max, 1, 1000000},
       "Calls in progress; more are refused with RESOURCE_EXHAUSTED."},
  };
}

// A mistake that no single entry can see, "key: what is wrong". It stands where the key does, else
// where the list's item does that lacks it, else at the name of the file.
std::string Whole(const ConfigPlaces& places, std::string_view text) {
  std::string path(text.substr(0, text.find_first_of(": ")));
  auto place = places.find(path);
  while (place == places.end()) {
    path.resize(path.find('.') == std::string::npos ? 0 : path.rfind('.'));
    place = places.find(path);
  }
  return absl::StrCat(place->second, ": ", std::string(text));
}

std::vector<std::string> CheckWhole(const DaemonConfig& config, const ConfigPlaces& places) {
  std::vector<std::string> mistakes;
  const DaemonConfig::Ram& ram = config.ram;
  if (ram.region_bytes % 4096 != 0) {
    mistakes.push_back(Whole(places, absl::StrCat("ram.region: got ", ram.region_bytes,
                                                  " bytes, expected a multiple of 4 KiB")));
  } else if (ram.capacity_bytes < ram.region_bytes || ram.capacity_bytes % ram.region_bytes != 0) {
    mistakes.push_back(Whole(
        places,
        absl::StrCat("ram.capacity: got ", FormatBytes(ram.capacity_bytes),
                     ", expected a multiple of ram.region, ", FormatBytes(ram.region_bytes))));
  }
  if (ram.huge_pages == "hugetlb" && ram.region_bytes % (2 * kMiB) != 0) {
    mistakes.push_back(
        Whole(places, "ram.region: expected a multiple of 2 MiB with ram.huge_pages: hugetlb"));
  }
  const DaemonConfig::Nvme& nvme = config.nvme;
  if (nvme.segment_bytes % 4096 != 0) {
    mistakes.push_back(Whole(places, absl::StrCat("nvme.segment: got ", nvme.segment_bytes,
                                                  " bytes, expected a multiple of 4 KiB")));
  }
  for (std::size_t i = 0; i < nvme.devices.size(); ++i) {
    const std::string where = absl::StrCat("nvme.devices[", i, "]");
    if (nvme.devices[i].path.empty()) {
      mistakes.push_back(Whole(places, where + ".path: expected an absolute path"));
    }
    if (nvme.devices[i].capacity_bytes < kMiB + nvme.segment_bytes) {
      mistakes.push_back(Whole(places, absl::StrCat(where, ".capacity: got ",
                                                    FormatBytes(nvme.devices[i].capacity_bytes),
                                                    ", expected at least 1 MiB and nvme.segment, ",
                                                    FormatBytes(kMiB + nvme.segment_bytes))));
    }
  }
  const DaemonConfig::Listen& listen = config.listen;
  if (!listen.tcp_address.empty()) {
    if (!listen.tcp_insecure) {
      mistakes.push_back(Whole(places,
                               "listen.tcp.insecure: expected true, because this version has no "
                               "TLS and listen.tcp.address is set"));
    }
    if (listen.tcp_tenant.empty()) {
      mistakes.push_back(Whole(places,
                               "listen.tcp.tenant: expected a tenant's name, because "
                               "listen.tcp.address is set"));
    } else if (absl::Status status = CheckTenantName(listen.tcp_tenant); !status.ok()) {
      mistakes.push_back(
          Whole(places, absl::StrCat("listen.tcp.tenant: ", std::string(status.message()))));
    }
  }
  if (auto tenants = TenantMap::Create(config.tenants, config.operator_uids, 0); !tenants.ok()) {
    mistakes.push_back(Whole(places, std::string(tenants.status().message())));
  }
  return mistakes;
}

// "a.b=c" as YAML that nests as deep as the key: the table then treats it as it does a file.
absl::StatusOr<std::string> OverrideYaml(const std::string& override) {
  const std::size_t equals = override.find('=');
  if (equals == std::string::npos || equals == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--set: got \"", override, "\", expected key=value, as in ram.capacity=8GiB"));
  }
  std::string yaml;
  std::string indent;
  for (const absl::string_view word : absl::StrSplit(override.substr(0, equals), '.')) {
    absl::StrAppend(&yaml, yaml.empty() ? "" : "\n", indent, word, ":");
    indent += "  ";
  }
  const std::string value = override.substr(equals + 1);
  absl::StrAppend(&yaml, " ", value.empty() ? "\"\"" : value, "\n");
  return yaml;
}

}  // namespace

ConfigTable MakeConfigTable(DaemonConfig& config) {
  std::vector<ConfigEntry> entries = ListenEntries(config.listen);
  entries.push_back({"http.address", ConfigEntry::Text{&config.http.address, CheckLoopbackAddress},
                     "Loopback address of /metrics, /healthz and /readyz. Empty: off."});
  entries.push_back(
      {"log.level",
       ConfigEntry::Choice{&config.log.level, {"trace", "debug", "info", "warning", "error"}},
       "Least severe message that is logged, to stderr."});
  entries.push_back({"log.format", ConfigEntry::Choice{&config.log.format, {"text", "json"}},
                     "One line of text or one JSON object per message."});
  for (ConfigEntry& entry : RamEntries(config.ram)) entries.push_back(std::move(entry));
  for (ConfigEntry& entry : NvmeEntries(config.nvme)) entries.push_back(std::move(entry));
  entries.push_back(
      {"eviction.policy",
       ConfigEntry::Choice{&config.eviction.policy, tiers::KnownEvictionPolicies()},
       "Which block leaves a full tier. lru: the least recently used one that no cached block "
       "continues."});
  for (ConfigEntry& entry : ConversationEntries(config.conversations)) {
    entries.push_back(std::move(entry));
  }
  entries.push_back(
      {"tenants",
       ConfigEntry::List{[&config] { config.tenants.clear(); },
                         [&config] { return TenantEntries(config.tenants.emplace_back()); },
                         [&config] { return config.tenants.size(); },
                         [&config](std::size_t i) { return TenantEntries(config.tenants[i]); }},
       "Who acts for which tenant, by the credentials of the connecting process. Without this, the "
       "daemon's own user is tenant \"default\" and everybody else is refused."});
  entries.push_back({"operators.uids", ConfigEntry::CountList{&config.operator_uids, 0, 0xfffffffe},
                     "User ids that may see and administer the whole node, beside root and the "
                     "daemon's own."});
  for (ConfigEntry& entry : LimitEntries(config.limits)) entries.push_back(std::move(entry));
  entries.push_back({"shutdown.drain",
                     ConfigEntry::Duration{&config.drain_timeout, milliseconds(0), hours(1)},
                     "After SIGTERM: how long calls in progress and leases may take to end."});
  return ConfigTable(std::move(entries));
}

absl::StatusOr<DaemonConfig> ParseDaemonConfig(std::string_view yaml, std::string_view file_name,
                                               const ConfigOverrides& overrides) {
  DaemonConfig config;
  const ConfigTable table = MakeConfigTable(config);
  ConfigPlaces places = {{"", std::string(file_name)}};
  KAVERN_RETURN_IF_ERROR(table.Parse(yaml, file_name, &places));
  for (const std::string& override : overrides) {
    KAVERN_ASSIGN_OR_RETURN(const std::string override_yaml, OverrideYaml(override));
    KAVERN_RETURN_IF_ERROR(table.Parse(override_yaml, "--set " + override, &places));
  }
  const std::vector<std::string> mistakes = CheckWhole(config, places);
  if (!mistakes.empty()) return absl::InvalidArgumentError(absl::StrJoin(mistakes, "\n"));
  if (config.limits.lease_bytes_per_session_max == 0) {
    config.limits.lease_bytes_per_session_max = config.ram.capacity_bytes / 2;
  }
  return config;
}

absl::StatusOr<DaemonConfig> LoadDaemonConfig(const std::string& path,
                                              const ConfigOverrides& overrides) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened for reading"));
  std::string text(kConfigFileBytesMax + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(file.gcount()));
  // A directory opens, and then has nothing to read.
  if (file.bad()) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  if (text.size() > kConfigFileBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": larger than ", FormatBytes(kConfigFileBytesMax)));
  }
  return ParseDaemonConfig(text, path, overrides);
}

}  // namespace kavern::service
