// kavern status, top and namespaces: what a daemon says of itself.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "client/admin_client.h"
#include "client/cli/commands.h"
#include "client/cli/text_output.h"
#include "client/wire_convert.h"

namespace kavern::cli {
namespace {

constexpr std::chrono::milliseconds kWaitInterval(50);

using client::AdminClient;
using nlohmann::json;

json NvmeJson(const v1::NvmeStatus& nvme) {
  return {{"capacity_bytes", nvme.capacity_bytes()},
          {"used_bytes", nvme.used_bytes()},
          {"blocks", nvme.blocks()},
          {"recovered_parts", nvme.recovered_blocks()},
          {"recovery_seconds", nvme.recovery_seconds()},
          {"recovering", nvme.recovering()},
          {"recovered_from_headers", nvme.recovered_from_headers()},
          {"write_back_blocks", nvme.write_back_blocks()},
          {"io", nvme.io()},
          {"read_bytes", nvme.read_bytes()},
          {"written_bytes", nvme.written_bytes()},
          {"read_failures", nvme.read_failures()},
          {"write_failures", nvme.write_failures()},
          {"damaged_parts", nvme.damaged_parts()},
          {"flushes", nvme.flushes()},
          {"queue_depth", nvme.queue_depth()},
          {"index_bytes", nvme.index_bytes()},
          {"catalog_bytes", nvme.catalog_bytes()},
          {"write_back_bytes", nvme.write_back_bytes()},
          {"useful_read_bytes", nvme.useful_read_bytes()},
          {"scrubbed_bytes", nvme.scrubbed_bytes()},
          {"scrub_passes", nvme.scrub_passes()},
          {"scrub_damaged_blocks", nvme.scrub_damaged_blocks()}};
}

json StatusJson(const v1::GetStatusResponse& status) {
  const v1::RamStatus& ram = status.ram();
  const v1::Counters& counters = status.counters();
  return {
      {"version", status.version()},
      {"incarnation", absl::BytesToHexString(status.incarnation())},
      {"pid", status.pid()},
      {"uptime_seconds", status.uptime_seconds()},
      {"ready", status.ready()},
      {"draining", status.draining()},
      {"sessions", status.sessions()},
      {"namespaces", status.namespaces()},
      {"conversations", status.conversations()},
      {"leases", status.leases()},
      {"quarantined_bytes", status.quarantined_bytes()},
      {"directory_bytes", status.directory_bytes()},
      {"degraded", std::vector<std::string>(status.degraded().begin(), status.degraded().end())},
      {"ram",
       {{"capacity_bytes", ram.capacity_bytes()},
        {"populated_bytes", ram.populated_bytes()},
        {"assigned_bytes", ram.assigned_bytes()},
        {"used_bytes", ram.used_bytes()},
        {"leased_bytes", ram.leased_bytes()},
        {"retired_bytes", ram.retired_bytes()},
        {"huge_page_bytes", ram.huge_page_bytes()},
        {"region_bytes", ram.region_bytes()},
        {"waiting_for", ram.waiting_for()}}},
      {"nvme", status.has_nvme() ? NvmeJson(status.nvme()) : json(nullptr)},
      {"counters",
       {{"store_blocks", counters.store_blocks()},
        {"store_bytes", counters.store_bytes()},
        {"store_exists_blocks", counters.store_exists_blocks()},
        {"store_declined_blocks", counters.store_declined_blocks()},
        {"store_raced_blocks", counters.store_raced_blocks()},
        {"fetch_hit_blocks", counters.fetch_hit_blocks()},
        {"fetch_miss_blocks", counters.fetch_miss_blocks()},
        {"fetch_bytes", counters.fetch_bytes()},
        {"evicted_blocks", counters.evicted_blocks()},
        {"damaged_blocks", counters.damaged_blocks()},
        {"orphaned_blocks", counters.orphaned_blocks()},
        {"disk_stored_blocks", counters.disk_stored_blocks()},
        {"disk_lost_blocks", counters.disk_lost_blocks()},
        {"disk_declined_blocks", counters.disk_declined_blocks()},
        {"disk_evicted_blocks", counters.disk_evicted_blocks()},
        {"promoted_blocks", counters.promoted_blocks()},
        {"promotion_failures", counters.promotion_failures()},
        {"conversation_updates", counters.conversation_updates()},
        {"conversations_ended", counters.conversations_ended()},
        {"conversations_displaced", counters.conversations_displaced()}}},
  };
}

std::string Percent(std::uint64_t part, std::uint64_t whole) {
  return whole == 0
             ? "-"
             : FormatFixed(100.0 * static_cast<double>(part) / static_cast<double>(whole), 1) +
                   " %";
}

std::string NvmeText(const v1::NvmeStatus& nvme, const v1::Counters& counters) {
  TextTable table({"NVMe tier", absl::StrCat("by ", nvme.io()), "of capacity"});
  table.AddRow({"capacity", FormatBytes(nvme.capacity_bytes()), "100.0 %"});
  table.AddRow({"used by blocks", FormatBytes(nvme.used_bytes()),
                Percent(nvme.used_bytes(), nvme.capacity_bytes())});
  table.AddRow({"written", FormatBytes(nvme.written_bytes()), ""});
  table.AddRow({"read", FormatBytes(nvme.read_bytes()), ""});
  return absl::StrCat(table.ToString(), "\non disk  ", FormatCount(nvme.blocks()), " blocks, ",
                      FormatCount(nvme.write_back_blocks()), " waiting to be written; read back ",
                      FormatCount(counters.promoted_blocks()), ", evicted ",
                      FormatCount(counters.disk_evicted_blocks()),
                      ", lost before they were written ", FormatCount(counters.disk_lost_blocks()),
                      ", damaged ", FormatCount(nvme.damaged_parts()), "\nat start ",
                      FormatCount(nvme.recovered_blocks()), " parts were found on disk in ",
                      FormatFixed(nvme.recovery_seconds(), 3), " s",
                      nvme.recovered_from_headers().empty()
                          ? ""
                          : absl::StrCat(", out of their headers: ", nvme.recovered_from_headers()),
                      "\n\n");
}

std::string StatusText(const v1::GetStatusResponse& status) {
  const v1::RamStatus& ram = status.ram();
  const v1::Counters& counters = status.counters();
  const std::string state = status.draining() ? "draining" : status.ready() ? "ready" : "not ready";
  std::string text = absl::StrCat(
      "kavernd ", status.version(), ", pid ", status.pid(), ", ", state, ", up ",
      FormatDuration(std::chrono::seconds(static_cast<std::int64_t>(status.uptime_seconds()))),
      "\n");
  absl::StrAppend(&text, "sessions ", status.sessions(), ", namespaces ", status.namespaces(),
                  ", leases ", status.leases(), "\n\n");
  TextTable memory({"RAM tier", "bytes", "of capacity"});
  const auto row = [&](const char* name, std::uint64_t bytes) {
    memory.AddRow({name, FormatBytes(bytes), Percent(bytes, ram.capacity_bytes())});
  };
  row("capacity", ram.capacity_bytes());
  row("populated", ram.populated_bytes());
  row("in huge pages", ram.huge_page_bytes());
  row("owned by namespaces", ram.assigned_bytes());
  row("used by blocks", ram.used_bytes());
  row("under lease", ram.leased_bytes());
  row("given up, still mapped", ram.retired_bytes());
  absl::StrAppend(&text, memory.ToString(), "\n");
  if (status.has_nvme()) absl::StrAppend(&text, NvmeText(status.nvme(), counters));

  const std::uint64_t fetched = counters.fetch_hit_blocks() + counters.fetch_miss_blocks();
  absl::StrAppend(&text, "stored   ", FormatCount(counters.store_blocks()), " blocks, ",
                  FormatBytes(counters.store_bytes()), "; ",
                  FormatCount(counters.store_exists_blocks()), " were there, ",
                  FormatCount(counters.store_declined_blocks()), " declined\n");
  absl::StrAppend(&text, "fetched  ", FormatCount(counters.fetch_hit_blocks()), " of ",
                  FormatCount(fetched), " blocks asked for (",
                  Percent(counters.fetch_hit_blocks(), fetched), "), ",
                  FormatBytes(counters.fetch_bytes()), "\n");
  absl::StrAppend(&text, "evicted  ", FormatCount(counters.evicted_blocks()), ", damaged ",
                  FormatCount(counters.damaged_blocks()), ", orphaned ",
                  FormatCount(counters.orphaned_blocks()), "\n");
  absl::StrAppend(&text, "named    ", FormatCount(status.conversations()), " conversations; ",
                  FormatCount(counters.conversations_ended()), " ended, ",
                  FormatCount(counters.conversations_displaced()), " forgotten for others\n");
  for (const std::string& sentence : status.degraded()) {
    absl::StrAppend(&text, "degraded: ", sentence, "\n");
  }
  return text;
}

absl::StatusOr<v1::GetStatusResponse> AskOnce(const GlobalOptions& global,
                                              std::unique_ptr<AdminClient>& admin) {
  if (admin == nullptr) {
    KAVERN_ASSIGN_OR_RETURN(admin,
                            AdminClient::Connect(global.address, global.tenant, global.deadline));
  }
  auto status = admin->GetStatus();
  if (!status.ok()) admin.reset();  // a daemon that restarted knows no old session
  return status;
}

// The daemon's answer; with `wait`, the first one that says its memory is in place.
absl::StatusOr<v1::GetStatusResponse> AskStatus(const GlobalOptions& global,
                                                std::chrono::milliseconds wait) {
  const auto give_up = std::chrono::steady_clock::now() + wait;
  std::unique_ptr<AdminClient> admin;
  for (;;) {
    auto status = AskOnce(global, admin);
    const bool in_place =
        status.ok() && status->ram().populated_bytes() >= status->ram().capacity_bytes();
    if (in_place || wait.count() == 0) return status;
    if (std::chrono::steady_clock::now() >= give_up) {
      if (!status.ok()) return status;
      return absl::DeadlineExceededError(
          absl::StrCat("ram: ", FormatBytes(status->ram().populated_bytes()), " of ",
                       FormatBytes(status->ram().capacity_bytes()), " populated"));
    }
    std::this_thread::sleep_for(kWaitInterval);
  }
}

}  // namespace

int RunStatus(const GlobalOptions& global, std::int64_t wait_ms) {
  const auto status = AskStatus(global, std::chrono::milliseconds(wait_ms));
  if (!status.ok()) return Fail(status.status());
  std::fputs((global.json ? StatusJson(*status).dump(2) + "\n" : StatusText(*status)).c_str(),
             stdout);
  return kExitOk;
}

// What happened between two looks, per second.
std::string RatesText(const v1::Counters& before, const v1::Counters& now, double seconds) {
  const auto rate = [&](std::uint64_t from, std::uint64_t to) {
    return static_cast<double>(to - std::min(from, to)) / seconds;
  };
  const std::uint64_t hits = now.fetch_hit_blocks() - before.fetch_hit_blocks();
  const std::uint64_t misses = now.fetch_miss_blocks() - before.fetch_miss_blocks();
  return absl::StrCat("\nnow      store ",
                      FormatGBps(rate(before.store_bytes(), now.store_bytes())), ", fetch ",
                      FormatGBps(rate(before.fetch_bytes(), now.fetch_bytes())), ", hits ",
                      Percent(hits, hits + misses), ", evictions ",
                      FormatFixed(rate(before.evicted_blocks(), now.evicted_blocks()), 0), "/s\n");
}

// One screen per interval until `iterations` are shown (0: for ever) or q is pressed.
int RunTop(const GlobalOptions& global, std::int64_t interval_ms, std::uint64_t iterations) {
  auto admin = AdminClient::Connect(global.address, global.tenant, global.deadline);
  if (!admin.ok()) return Fail(admin.status());
  const bool terminal = isatty(STDOUT_FILENO) != 0;
  v1::Counters before;
  auto looked = std::chrono::steady_clock::now();
  for (std::uint64_t shown = 0;; ++shown) {
    const auto status = (*admin)->GetStatus();
    if (!status.ok()) return Fail(status.status());
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - looked).count();
    if (global.json) {
      std::printf("%s\n", StatusJson(*status).dump().c_str());
    } else {
      const std::string rates = shown == 0 ? "" : RatesText(before, status->counters(), seconds);
      std::printf("%s%s%s", terminal ? "\x1b[H\x1b[2J" : "", StatusText(*status).c_str(),
                  rates.c_str());
    }
    std::fflush(stdout);
    before = status->counters();
    looked = now;
    if (iterations != 0 && shown + 1 >= iterations) return kExitOk;
    struct pollfd input = {STDIN_FILENO, POLLIN, 0};
    const bool interactive = isatty(STDIN_FILENO) != 0;
    if (poll(&input, interactive ? 1 : 0, static_cast<int>(interval_ms)) > 0) {
      char key = 0;
      if (read(STDIN_FILENO, &key, 1) <= 0 || key == 'q') return kExitOk;
    }
  }
}

std::string LayoutText(const v1::KvLayout& layout) {
  std::uint32_t layers = 0;
  for (const v1::LayerGroup& group : layout.groups()) layers += group.layer_count();
  return absl::StrCat(layers, " layers, ", layout.tokens_per_block(), " tokens");
}

// What is not measured has no numbers, but its samples are told.
json CostsJson(const v1::TurnCosts& costs) {
  const v1::PrefillCost& prefill = costs.prefill();
  json out = {{"prefill", {{"samples", prefill.samples()}, {"measured", prefill.measured()}}}};
  if (prefill.measured()) {
    out["prefill"]["fixed_ms"] = prefill.fixed_ms();
    out["prefill"]["ms_per_token"] = prefill.ms_per_token();
    out["prefill"]["ms_per_square_token"] = prefill.ms_per_square_token();
  }
  for (const v1::TransferCost& cost : costs.transfers()) {
    json& tier = out[std::string(TierName(client::TierOf(cost.tier())))];
    tier = {{"samples", cost.samples()}, {"measured", cost.measured()}};
    if (!cost.measured()) continue;
    tier["fixed_ms"] = cost.fixed_ms();
    tier["ms_per_byte"] = cost.ms_per_byte();
  }
  return out;
}

// One line of a namespace whose workers report timings; else nothing.
std::string CostsText(const std::string& fingerprint, const v1::TurnCosts& costs) {
  constexpr double kTokens = 4096;
  constexpr double kBytes = 256 << 20;
  std::string text;
  const auto add = [&](const std::string& what, std::uint64_t samples, bool measured, double ms) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", what, " ",
                    measured ? absl::StrCat(FormatFixed(ms, 1), " ms") : "not measured", " (",
                    FormatCount(samples), " samples)");
  };
  const v1::PrefillCost& prefill = costs.prefill();
  if (prefill.samples() > 0) {
    add("prefill of 4,096 tokens", prefill.samples(), prefill.measured(),
        prefill.fixed_ms() + prefill.ms_per_token() * kTokens +
            prefill.ms_per_square_token() * kTokens * kTokens);
  }
  for (const v1::TransferCost& cost : costs.transfers()) {
    add(absl::StrCat("256 MiB from ", std::string(TierName(client::TierOf(cost.tier())))),
        cost.samples(), cost.measured(), cost.fixed_ms() + cost.ms_per_byte() * kBytes);
  }
  return text.empty() ? "" : absl::StrCat(fingerprint, "  ", text, "\n");
}

int RunNamespaces(const GlobalOptions& global, const std::string& purge) {
  auto admin = AdminClient::Connect(global.address, global.tenant, global.deadline);
  if (!admin.ok()) return Fail(admin.status());
  if (!purge.empty()) {
    const auto fingerprint = NamespaceFingerprint::FromHex(purge);
    if (!fingerprint.ok()) return Fail(fingerprint.status());
    const auto purged = (*admin)->PurgeNamespace(*fingerprint);
    if (!purged.ok()) return Fail(purged.status());
    std::printf(global.json ? "{\"blocks\": %lu}\n" : "forgot %lu blocks\n",
                static_cast<unsigned long>(purged->blocks()));
    return kExitOk;
  }
  const auto list = (*admin)->ListNamespaces();
  if (!list.ok()) return Fail(list.status());
  json rows = json::array();
  std::string costs;
  TextTable table({"namespace", "tenant", "model", "layout", "blocks", "regions", "slots used",
                   "sessions", "hit"});
  for (const v1::NamespaceStatus& ns : list->namespaces()) {
    const std::string fingerprint = absl::BytesToHexString(ns.fingerprint());
    rows.push_back({{"fingerprint", fingerprint},
                    {"tenant", ns.tenant()},
                    {"model", ns.spec().model()},
                    {"tokens_per_block", ns.spec().layout().tokens_per_block()},
                    {"blocks", ns.blocks()},
                    {"incomplete_blocks", ns.incomplete_blocks()},
                    {"regions", ns.regions()},
                    {"slots", ns.slots()},
                    {"slots_used", ns.slots_used()},
                    {"sessions", ns.sessions()},
                    {"fetch_hit_blocks", ns.fetch_hit_blocks()},
                    {"fetch_miss_blocks", ns.fetch_miss_blocks()},
                    {"costs", CostsJson(ns.costs())}});
    absl::StrAppend(&costs, CostsText(fingerprint, ns.costs()));
    table.AddRow({fingerprint, ns.tenant(), ns.spec().model(), LayoutText(ns.spec().layout()),
                  FormatCount(ns.blocks()), FormatCount(ns.regions()),
                  absl::StrCat(FormatCount(ns.slots_used()), " of ", FormatCount(ns.slots())),
                  FormatCount(ns.sessions()),
                  Percent(ns.fetch_hit_blocks(), ns.fetch_hit_blocks() + ns.fetch_miss_blocks())});
  }
  std::fputs((global.json ? json{{"namespaces", rows}}.dump(2) + "\n"
                          : absl::StrCat(table.ToString(), costs))
                 .c_str(),
             stdout);
  return kExitOk;
}

}  // namespace kavern::cli
