// Plays a trace: tenants, processes, threads, time.
#ifndef KAVERN_CLIENT_CLI_REPLAY_REPLAY_RUN_H_
#define KAVERN_CLIENT_CLI_REPLAY_REPLAY_RUN_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/layout_options.h"
#include "client/cli/replay/replay_stats.h"
#include "client/cli/replay/trace.h"
#include "client/kavern/client.h"

namespace kavern::cli {

struct ReplayOptions {
  ClientOptions client;  // `tenant` is replaced by each of `tenants`
  std::vector<std::string>
      tenants;  // each plays the whole trace; empty: the client's default tenant
  ChosenLayout layout;
  std::uint32_t workers = 1;    // threads of each process and tenant; each is a client of its own
  std::uint32_t processes = 1;  // a request belongs to one of them, by its place in the trace
  double speedup = 0;           // of the trace's time; 0: no waiting
  // One worker, which waits for the daemon's background after every request. Hits are then a
  // function of the trace and the capacity.
  bool deterministic = false;
  // A worker without a daemon waits this long for one before it goes on without; 0: not at all.
  std::chrono::milliseconds await_daemon{0};
  bool show_progress = true;
};

struct ReplayResult {
  ReplayStats stats;
  double wall_seconds = 0;
  double fetch_seconds = 0;  // summed over workers
  double store_seconds = 0;
  // After a restart: what the daemon found on disk, and how long it took.
  std::uint64_t recovered_parts = 0;
  double recovery_seconds = 0;
};

// Unavailable when no daemon answers at the start; one that goes away later costs misses. Must be
// called before the process has other threads when `processes` is above 1.
absl::StatusOr<ReplayResult> RunReplay(const ReplayOptions& options,
                                       const std::vector<TraceRequest>& trace);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_REPLAY_REPLAY_RUN_H_
