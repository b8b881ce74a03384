// kavern replay.
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/units.h"
#include "client/cli/commands.h"
#include "client/cli/replay/replay_run.h"
#include "client/cli/text_output.h"

namespace kavern::cli {
namespace {

double Ratio(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

nlohmann::json Latency(const std::vector<double>& samples) {
  return {{"samples", samples.size()},
          {"p50_seconds", Percentile(samples, 0.50)},
          {"p99_seconds", Percentile(samples, 0.99)}};
}

nlohmann::json ReportJson(const ReplayCommandOptions& options, const ReplayResult& result) {
  const ReplayStats& stats = result.stats;
  const NamespaceSpec& spec = options.replay.layout.spec;
  nlohmann::json report = {
      {"trace", options.file},
      {"model", spec.model},
      {"block_bytes", spec.layout.BlockBytes()},
      {"tokens_per_block", spec.layout.tokens_per_block},
      {"deterministic", options.replay.deterministic},
      {"workers", options.replay.workers},
      {"processes", options.replay.processes},
      {"tenants", std::max<std::size_t>(1, options.replay.tenants.size())},
      {"wall_seconds", result.wall_seconds},
      {"requests", stats.requests},
      {"blocks", stats.blocks},
      {"hit_blocks", stats.hit_blocks},
      {"hit_ratio_blocks",
       Ratio(static_cast<double>(stats.hit_blocks), static_cast<double>(stats.blocks))},
      {"hit_blocks_by_tier",
       {{"hbm", stats.hbm_hit_blocks},
        {"ram", stats.ram_hit_blocks},
        {"nvme", stats.nvme_hit_blocks}}},
      {"tokens", stats.tokens},
      {"hit_tokens", stats.hit_tokens},
      {"hit_ratio_tokens",
       Ratio(static_cast<double>(stats.hit_tokens), static_cast<double>(stats.tokens))},
      {"stored_bytes", stats.stored_bytes},
      {"fetched_bytes", stats.fetched_bytes},
      {"store_bytes_per_second",
       Ratio(static_cast<double>(stats.stored_bytes), result.store_seconds)},
      {"fetch_bytes_per_second",
       Ratio(static_cast<double>(stats.fetched_bytes), result.fetch_seconds)},
      {"match", Latency(stats.match_seconds)},
      {"fetch", Latency(stats.fetch_seconds)},
      {"store", Latency(stats.store_seconds)},
      {"verified_bytes", stats.verified_bytes},
      {"wrong_bytes", stats.wrong_bytes},
      {"exists_blocks", stats.exists_blocks},
      {"declined_blocks", stats.declined_blocks},
      {"lost_blocks", stats.lost_blocks},
      {"damaged_blocks", stats.damaged_blocks},
      {"lost_parents", stats.lost_parents},
      {"unavailable_calls", stats.unavailable_calls},
      {"failed_calls", stats.failed_calls},
      {"first_failure", stats.first_failure},
      {"restarts", stats.restarts},
      {"away_seconds", stats.away_seconds},
      {"recovered_parts", result.recovered_parts},
      {"recovery_seconds", result.recovery_seconds},
      {"blocks_after_restart", stats.blocks_after},
      {"hit_blocks_after_restart", stats.hit_blocks_after},
      {"nvme_hit_blocks_after_restart", stats.nvme_hit_blocks_after},
  };
  report["prefill_seconds_saved"] = options.replay.layout.preset.has_value()
                                        ? nlohmann::json(stats.prefill_seconds_saved)
                                        : nlohmann::json(nullptr);
  return report;
}

std::string LatencyText(const std::vector<double>& samples) {
  return FormatMicros(Percentile(samples, 0.50)) + " / " + FormatMicros(Percentile(samples, 0.99));
}

std::string HitText(std::uint64_t hits, std::uint64_t all) {
  return FormatFixed(100 * Ratio(static_cast<double>(hits), static_cast<double>(all)), 2) +
         " %  (" + FormatCount(hits) + " of " + FormatCount(all) + ")";
}

std::string MovedText(std::uint64_t bytes, double seconds) {
  return FormatBytes(bytes) + " at " + FormatGBps(Ratio(static_cast<double>(bytes), seconds));
}

std::string ReportText(const ReplayCommandOptions& options, const ReplayResult& result) {
  const ReplayStats& stats = result.stats;
  const NamespaceSpec& spec = options.replay.layout.spec;
  std::string text;
  const auto row = [&text](const std::string& name, const std::string& value) {
    text += "  " + name + std::string(name.size() < 24 ? 24 - name.size() : 1, ' ') + value + "\n";
  };
  text += "replay of " + options.file + " in " + FormatFixed(result.wall_seconds, 1) + " s\n";
  row("model", spec.model + ", " + FormatBytes(spec.layout.BlockBytes()) + " a block of " +
                   FormatCount(spec.layout.tokens_per_block) + " tokens");
  row("requests", FormatCount(stats.requests));
  row("hit ratio, blocks", HitText(stats.hit_blocks, stats.blocks));
  row("hits from RAM / NVMe",
      FormatCount(stats.ram_hit_blocks) + " / " + FormatCount(stats.nvme_hit_blocks));
  if (stats.restarts > 0) {
    row("daemon restarts",
        FormatCount(stats.restarts) + ", away for " + FormatFixed(stats.away_seconds, 2) + " s");
    if (result.recovered_parts > 0) {
      row("found on disk", FormatCount(result.recovered_parts) + " blocks' parts, in " +
                               FormatFixed(result.recovery_seconds, 3) + " s");
    }
    row("hit ratio before",
        HitText(stats.hit_blocks - stats.hit_blocks_after, stats.blocks - stats.blocks_after));
    row("hit ratio after", HitText(stats.hit_blocks_after, stats.blocks_after) + ", " +
                               FormatCount(stats.nvme_hit_blocks_after) + " from NVMe");
  }
  row("hit ratio, tokens", HitText(stats.hit_tokens, stats.tokens));
  row("stored", MovedText(stats.stored_bytes, result.store_seconds) + " while storing");
  row("fetched", MovedText(stats.fetched_bytes, result.fetch_seconds) + " while fetching");
  row("match p50 / p99", LatencyText(stats.match_seconds));
  row("fetch p50 / p99", LatencyText(stats.fetch_seconds));
  row("store p50 / p99", LatencyText(stats.store_seconds));
  if (options.replay.layout.preset.has_value()) {
    row("prefill saved",
        FormatFixed(stats.prefill_seconds_saved, 1) + " s of one H100 at half its peak");
  }
  row("bytes verified", FormatCount(stats.verified_bytes));
  row("wrong bytes", FormatCount(stats.wrong_bytes));
  const auto row_if = [&row](const std::string& name, std::uint64_t count) {
    if (count > 0) row(name, FormatCount(count));
  };
  row_if("blocks declined", stats.declined_blocks);
  row_if("blocks lost to eviction", stats.lost_blocks);
  row_if("blocks damaged", stats.damaged_blocks);
  row_if("stores without parent", stats.lost_parents);
  row_if("calls without daemon", stats.unavailable_calls);
  row_if("calls failed", stats.failed_calls);
  if (!stats.first_failure.empty()) row("first failure", stats.first_failure);
  return text;
}

absl::Status CheckOptions(const ReplayCommandOptions& options) {
  const ReplayOptions& replay = options.replay;
  if (replay.deterministic &&
      (replay.workers != 1 || replay.processes != 1 || replay.tenants.size() > 1)) {
    return absl::InvalidArgumentError(
        "--deterministic: expected one worker, one process and one tenant");
  }
  return absl::OkStatus();
}

}  // namespace

int RunReplayCommand(const GlobalOptions& global, ReplayCommandOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return Fail(status);
  auto layout = ChooseLayout(options.layout, kTraceBlockTokens);
  if (!layout.ok()) return Fail(layout.status());
  auto trace = ReadTraceFile(options.file);
  if (!trace.ok()) return Fail(trace.status());
  if (options.limit > 0 && options.limit < trace->size()) trace->resize(options.limit);
  ReplayOptions& replay = options.replay;
  replay.layout = *std::move(layout);
  replay.client.address = global.address;
  replay.client.tenant = global.tenant;
  replay.client.deadline = global.deadline;
  replay.client.release_in_background = !replay.deterministic;
  replay.await_daemon = std::chrono::milliseconds(options.await_daemon_ms);
  replay.show_progress = !global.json;

  const auto result = RunReplay(replay, *trace);
  if (!result.ok()) return Fail(result.status());
  if (global.json) {
    std::cout << ReportJson(options, *result).dump(2) << "\n";
  } else {
    std::cout << ReportText(options, *result);
  }
  if (result->stats.wrong_bytes > 0) {
    std::fprintf(stderr, "kavern: wrong bytes were served\n");
    return kExitFailed;
  }
  return result->stats.failed_calls > 0 ? kExitFailed : kExitOk;
}

}  // namespace kavern::cli
