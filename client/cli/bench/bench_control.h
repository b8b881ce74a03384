// What does not move bytes: calls, matching, keys.
#ifndef KAVERN_CLIENT_CLI_BENCH_BENCH_CONTROL_H_
#define KAVERN_CLIENT_CLI_BENCH_BENCH_CONTROL_H_

#include <vector>

#include "absl/status/status.h"
#include "client/cli/bench/bench_node.h"
#include "client/cli/bench/bench_report.h"

namespace kavern::cli {

// Rows rpc.ping and control.*: against the empty call, in turn with it.
absl::Status BenchCalls(BenchNode& node, int repetitions, const WorkerMemory& memory,
                        std::vector<BenchRow>* rows);
// Rows match.*: nanoseconds a block, without a call.
absl::Status BenchMatch(BenchNode& node, int repetitions, const WorkerMemory& memory,
                        std::vector<BenchRow>* rows);
// Rows keys.*: against libcrypto over the same bytes. Needs no daemon.
void BenchKeys(int repetitions, std::vector<BenchRow>* rows);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_BENCH_BENCH_CONTROL_H_
