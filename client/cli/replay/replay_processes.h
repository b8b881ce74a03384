// The same work in several processes, as the ranks of an engine are.
#ifndef KAVERN_CLIENT_CLI_REPLAY_REPLAY_PROCESSES_H_
#define KAVERN_CLIENT_CLI_REPLAY_REPLAY_PROCESSES_H_

#include <chrono>
#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "client/cli/replay/replay_stats.h"

namespace kavern::cli {

// Calls play(index) in `processes` forked children, and returns the sum of what they count; the
// first failure when one fails or dies. `redraw` runs here, every `interval`. This process must
// have no other threads.
absl::StatusOr<ReplayStats> PlayInProcesses(
    std::uint32_t processes,
    const std::function<absl::StatusOr<ReplayStats>(std::uint32_t index)>& play,
    std::chrono::milliseconds interval, const std::function<void()>& redraw);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_REPLAY_REPLAY_PROCESSES_H_
