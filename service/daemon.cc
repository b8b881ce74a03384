#include "service/daemon.h"

#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "proto/kavern/v1/shm_layout.h"
#include "service/call_metrics.h"
#include "service/degraded.h"
#include "service/grpc_server.h"
#include "service/http_server.h"
#include "service/node_metrics.h"
#include "service/request_handlers.h"
#include "service/session/attach_server.h"
#include "service/version.h"
#include "tiers/ram/memory_limits.h"
#include "tiers/tiered_store.h"

namespace kavern::service {
namespace {

constexpr std::chrono::milliseconds kHousekeepingInterval(1000);
constexpr std::chrono::milliseconds kDrainPollInterval(10);
// What a disk that does not hang may take at the end for what it has been asked for.
constexpr std::chrono::milliseconds kEndIoPatience(5000);

tiers::HugePages HugePagesOf(const std::string& name) {
  if (name == "off") return tiers::HugePages::kOff;
  return name == "hugetlb" ? tiers::HugePages::kHugetlb : tiers::HugePages::kAuto;
}

tiers::DiskDurability DurabilityOf(const std::string& name) {
  if (name == "none") return tiers::DiskDurability::kNone;
  return name == "strict" ? tiers::DiskDurability::kStrict : tiers::DiskDurability::kBatch;
}

tiers::WriteBackMode WriteBackModeOf(const std::string& name) {
  if (name == "idle") return tiers::WriteBackMode::kIdle;
  return name == "on_eviction" ? tiers::WriteBackMode::kOnEviction : tiers::WriteBackMode::kEager;
}

tiers::TieredStoreOptions StoreOptions(const DaemonConfig& config) {
  tiers::TieredStoreOptions options;
  options.ram.capacity_bytes = config.ram.capacity_bytes;
  options.ram.region_bytes = config.ram.region_bytes;
  options.ram.reserve_bytes = config.ram.reserve_bytes;
  options.ram.huge_pages = HugePagesOf(config.ram.huge_pages);
  options.ram.prepopulate = config.ram.prepopulate;
  options.eviction_policy = config.eviction.policy;
  options.namespaces_max = config.limits.namespaces_max;
  options.incomplete_blocks_max = config.limits.incomplete_blocks_max;
  options.incomplete_age_max = config.limits.incomplete_age_max;
  options.conversations = {
      .priority_max = static_cast<std::uint8_t>(config.conversations.priority_max),
      .ttl_max = config.conversations.ttl_max,
      .ttl_default = config.conversations.ttl_default,
      .count_max = config.conversations.count_max,
      .count_per_tenant_max = config.conversations.count_per_tenant_max,
  };
  if (config.nvme.devices.empty()) return options;
  tiers::TieredStoreOptions::Disk disk;
  for (const DaemonConfig::NvmeDevice& device : config.nvme.devices) {
    disk.store.devices.push_back({device.path, device.capacity_bytes});
  }
  disk.store.catalog_path = config.nvme.catalog;
  disk.store.segment_bytes = config.nvme.segment_bytes;
  disk.store.queue_depth = static_cast<int>(config.nvme.queue_depth);
  disk.store.io_uring = config.nvme.io == "auto";
  disk.store.discard = config.nvme.discard;
  disk.durability = DurabilityOf(config.nvme.durability);
  disk.write_back = WriteBackModeOf(config.nvme.write_back);
  disk.write_back_idle = config.nvme.write_back_idle;
  disk.clean_percent = static_cast<std::uint32_t>(config.nvme.clean_percent);
  disk.write_budget = {.bytes_per_day = config.nvme.write_budget_bytes_per_day,
                       .burst_bytes = config.nvme.write_burst_bytes};
  disk.write_timeout = config.nvme.write_timeout;
  disk.scrub_bytes_per_second = config.nvme.scrub_bytes_per_second;
  disk.store.batch_interval = config.nvme.batch_interval;
  disk.store.hang_timeout = config.nvme.hang_timeout;
  disk.write_back_bytes_max = config.nvme.write_back_bytes_max;
  disk.read_timeout = config.nvme.read_timeout;
  disk.promotion_bytes_max = config.nvme.promotion_bytes_max;
  disk.read_ahead_blocks = config.nvme.read_ahead_blocks;
  options.disk = std::move(disk);
  return options;
}

AttachServerOptions AttachOptions(const DaemonConfig& config) {
  AttachServerOptions options;
  options.socket_path = config.listen.socket + shm::kAttachSuffix;
  options.socket_mode = config.listen.socket_mode;
  options.socket_group = config.listen.socket_group;
  options.session_limits.leases_max = config.limits.leases_per_session_max;
  options.session_limits.lease_bytes_max = config.limits.lease_bytes_per_session_max;
  options.session_limits.namespaces_max = config.limits.namespaces_per_session_max;
  options.session_limits.queued_messages_max = config.limits.queued_messages_per_session_max;
  options.handshakes_max = config.limits.handshakes_max;
  options.hello_timeout = config.limits.hello_timeout;
  return options;
}

std::vector<NamedLimit> LimitMetrics(const DaemonConfig& config) {
  // Every number of the configuration that limits something, under its own key.
  DaemonConfig copy = config;
  std::vector<NamedLimit> limits;
  const ConfigTable table = MakeConfigTable(copy);
  for (const ConfigEntry& entry : table.entries()) {
    if (const auto* bytes = std::get_if<ConfigEntry::Bytes>(&entry.value)) {
      limits.emplace_back(entry.path, static_cast<double>(*bytes->target));
    } else if (const auto* count = std::get_if<ConfigEntry::Count>(&entry.value)) {
      limits.emplace_back(entry.path, static_cast<double>(*count->target));
    } else if (const auto* time = std::get_if<ConfigEntry::Duration>(&entry.value)) {
      limits.emplace_back(entry.path + "_seconds",
                          std::chrono::duration<double>(*time->target).count());
    }
  }
  return limits;
}

// Sessions, regions and directories are descriptors: take as many as the hard limit allows.
void RaiseDescriptorLimit() {
  struct rlimit limit {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    spdlog::warn("could not raise the limit of open files above {}", limit.rlim_cur);
  }
}

class DaemonImpl final : public Daemon {
 public:
  explicit DaemonImpl(const DaemonConfig& config, TenantMap tenants)
      : config_(config),
        tenants_(std::move(tenants)),
        sessions_(config.limits.sessions_max),
        calls_(registry_, config.limits.concurrent_calls_max) {}

  ~DaemonImpl() override {
    StopServing();
    handlers_.reset();
    store_.reset();
  }

  absl::Status Start() {
    RaiseDescriptorLimit();
    KAVERN_ASSIGN_OR_RETURN(const tiers::MemoryFacts memory, tiers::ReadMemoryFacts());
    KAVERN_RETURN_IF_ERROR(
        tiers::CheckCapacity(memory, config_.ram.capacity_bytes, config_.ram.reserve_bytes));
    KAVERN_ASSIGN_OR_RETURN(attach_,
                            AttachServer::Create(AttachOptions(config_), tenants_, sessions_));
    KAVERN_ASSIGN_OR_RETURN(store_, tiers::TieredStore::Create(StoreOptions(config_), *attach_));

    RequestHandlers::Node node;
    node.version = KAVERN_VERSION;
    node.incarnation.assign(attach_->incarnation().begin(), attach_->incarnation().end());
    node.started = Clock::System().Now();
    node.ready = [this] { return NotReady().empty(); };
    node.degraded = [this] { return Degraded(); };
    RequestLimits limits;
    limits.keys_per_request_max = config_.limits.keys_per_request_max;
    limits.inflight_bytes_max = config_.limits.inflight_bytes_max;
    handlers_ = std::make_unique<RequestHandlers>(*store_, sessions_, limits, std::move(node));

    KAVERN_RETURN_IF_ERROR(StartGrpc());
    attach_->Start();
    KAVERN_RETURN_IF_ERROR(StartHttp());
    housekeeper_ = NamedThread("housekeeping", [this] { HousekeepingLoop(); });
    LogStart(memory);
    return absl::OkStatus();
  }

  void BeginDrain() override {
    if (draining_.exchange(true)) return;
    spdlog::info("draining");
    handlers_->Drain();
    grpc_->SetServing(false);
    attach_->Drain();
  }

  bool WaitUntilDrained(std::chrono::milliseconds timeout) override {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    const bool drained = WaitForCallsAndLeases(deadline);
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    bool written = store_->WriteBack(std::max(left, std::chrono::milliseconds(0)));
    io_left_ = store_->EndIo(kEndIoPatience);
    // What a disk that hangs kept from being committed on the others.
    if (!written && !io_left_.empty()) written = store_->WriteBack(kEndIoPatience);
    if (!written) {
      spdlog::warn("nvme: {} blocks were not written back in time and are lost",
                   store_->GetStatus().disk.write_back_blocks);
    }
    return drained;
  }

  const std::string& io_left() const override { return io_left_; }

  void StopServing() override {
    StopHousekeeping();
    http_.reset();
    if (grpc_) grpc_->Shutdown(std::chrono::milliseconds(0));
    grpc_.reset();
    if (store_) store_->LeaveMemory();
    // Sessions hold leases, leases hold slots: they go before the store.
    if (attach_) attach_->Stop();
    if (tcp_session_) tcp_session_->FreeEverything();
  }

  int http_port() const override { return http_ ? http_->port() : 0; }
  int tcp_port() const override { return grpc_->tcp_port(); }

 private:
  bool WaitForCallsAndLeases(std::chrono::steady_clock::time_point deadline) {
    MutexLock lock(mu_);
    for (;;) {
      if (calls_.in_progress() == 0 && sessions_.GetTotals().leases == 0) return true;
      const auto now = std::chrono::steady_clock::now();
      if (now >= deadline) return false;
      stop_changed_.WaitUntil(mu_, std::min(deadline, now + kDrainPollInterval));
    }
  }

  absl::Status StartGrpc() {
    GrpcServerOptions options;
    options.socket_path = config_.listen.socket;
    options.socket_mode = config_.listen.socket_mode;
    options.socket_group = config_.listen.socket_group;
    options.message_bytes_max = config_.limits.message_bytes_max;
    options.concurrent_calls_max = config_.limits.concurrent_calls_max;
    options.receive_bytes_max = config_.limits.receive_bytes_max;
    options.tcp_address = config_.listen.tcp_address;
    if (!options.tcp_address.empty()) {
      KAVERN_ASSIGN_OR_RETURN(const SessionToken token, RandomToken());
      SessionLimits limits;
      limits.leases_max = config_.limits.leases_per_session_max;
      limits.namespaces_max = config_.limits.namespaces_per_session_max;
      tcp_session_ =
          std::make_shared<Session>(token, config_.listen.tcp_tenant, false, PeerCredentials{},
                                    "tcp", UniqueFd(), limits, Clock::System().Now());
      options.tcp_session = tcp_session_;
    }
    KAVERN_ASSIGN_OR_RETURN(grpc_, GrpcServer::Create(options, *handlers_, sessions_, calls_));
    grpc_->SetServing(true);
    return absl::OkStatus();
  }

  absl::Status StartHttp() {
    if (config_.http.address.empty()) return absl::OkStatus();
    node_metrics_ = std::make_unique<NodeMetrics>(
        *store_, sessions_, *attach_, LimitMetrics(config_), [this] { return Degraded(); },
        [this] { return calls_.in_progress(); });
    HttpServer::Pages pages;
    pages.metrics = [this] {
      auto families = node_metrics_->Collect();
      auto calls = registry_.Collect();
      std::move(calls.begin(), calls.end(), std::back_inserter(families));
      return prometheus::TextSerializer().Serialize(families);
    };
    pages.not_healthy = [] { return std::string(); };
    pages.not_ready = [this] { return NotReady(); };
    KAVERN_ASSIGN_OR_RETURN(http_, HttpServer::Create(config_.http.address, std::move(pages)));
    return absl::OkStatus();
  }

  // Why no traffic should come; empty: it may. A RAM tier that still fills serves what it has.
  std::string NotReady() const { return draining_ ? "draining" : ""; }

  std::vector<Degradation> Degraded() const { return Degradations(config_, store_->GetStatus()); }

  void HousekeepingLoop() {
    std::vector<Degradation> known;
    for (;;) {
      {
        MutexLock lock(mu_);
        if (!stop_) {
          stop_changed_.WaitUntil(mu_, std::chrono::steady_clock::now() + kHousekeepingInterval);
        }
        if (stop_) return;
      }
      store_->Housekeep();
      LogDegraded(&known);
    }
  }

  // Each once when it begins and once when it ends.
  void LogDegraded(std::vector<Degradation>* known) const {
    std::vector<Degradation> now = Degraded();
    for (const Degradation& begun : NotAmong(now, *known)) {
      spdlog::warn("degraded: {}", begun.Sentence());
    }
    for (const Degradation& ended : NotAmong(*known, now)) {
      spdlog::info("no longer degraded: {}", ended.what);
    }
    *known = std::move(now);
  }

  void StopHousekeeping() {
    {
      MutexLock lock(mu_);
      stop_ = true;
      stop_changed_.NotifyAll();
    }
    if (housekeeper_.joinable()) housekeeper_.join();
  }

  void LogStart(const tiers::MemoryFacts& memory) const {
    const auto& incarnation = attach_->incarnation();
    spdlog::info("kavernd {} (pid {}, incarnation {}) serves {}", KAVERN_VERSION, getpid(),
                 absl::BytesToHexString(absl::string_view(
                     reinterpret_cast<const char*>(incarnation.data()), incarnation.size())),
                 config_.listen.socket);
    spdlog::info("ram: {} in regions of {}; the machine has {}, {} available",
                 FormatBytes(config_.ram.capacity_bytes), FormatBytes(config_.ram.region_bytes),
                 FormatBytes(memory.machine_total_bytes),
                 FormatBytes(memory.machine_available_bytes));
    if (tcp_port() != 0) {
      spdlog::warn("tcp: port {} without TLS; every local process acts for tenant {}", tcp_port(),
                   config_.listen.tcp_tenant);
    }
    if (http_port() != 0) spdlog::info("http: metrics and probes on port {}", http_port());
  }

  const DaemonConfig config_;
  const TenantMap tenants_;
  SessionTable sessions_;
  prometheus::Registry registry_;
  CallMetrics calls_;
  std::unique_ptr<AttachServer> attach_;
  std::unique_ptr<tiers::TieredStore> store_;
  std::unique_ptr<RequestHandlers> handlers_;
  std::shared_ptr<Session> tcp_session_;  // shared with the calls in flight on TCP
  std::unique_ptr<GrpcServer> grpc_;
  std::unique_ptr<NodeMetrics> node_metrics_;
  std::unique_ptr<HttpServer> http_;
  std::atomic<bool> draining_ = false;
  std::string io_left_;

  Mutex mu_;
  CondVar stop_changed_;
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  std::thread housekeeper_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const DaemonConfig& config) {
  KAVERN_ASSIGN_OR_RETURN(TenantMap tenants,
                          TenantMap::Create(config.tenants, config.operator_uids, geteuid()));
  auto daemon = std::make_unique<DaemonImpl>(config, std::move(tenants));
  KAVERN_RETURN_IF_ERROR(daemon->Start());
  return daemon;
}

}  // namespace kavern::service
