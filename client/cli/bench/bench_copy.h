// Store and fetch against memcpy of the same blocks.
#ifndef KAVERN_CLIENT_CLI_BENCH_BENCH_COPY_H_
#define KAVERN_CLIENT_CLI_BENCH_BENCH_COPY_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "client/cli/bench/bench_node.h"
#include "client/cli/bench/bench_report.h"

namespace kavern::cli {

struct CopyCase {
  std::uint64_t block_bytes;
  std::size_t batch;        // blocks per call
  std::uint64_t set_bytes;  // one pass goes through this much
  bool targeted;            // DESIGN's targets are for this case
};

// All cases of one block size follow one another: changing it empties the namespace.
std::vector<CopyCase> CopyCases();
// What the daemon must have for any of them.
std::uint64_t CopyRoomBytes();
// Of the worker's side.
std::uint64_t CopyMemoryBytes();

// Appends rows ram.fetch.*, ram.store.* and, for some cases, grpc.fetch.*, grpc.store.*. One pass
// of every way to move the bytes makes a repetition, the memcpy among them.
absl::Status BenchCopies(BenchNode& node, const CopyCase& c, int repetitions,
                         const WorkerMemory& memory, std::vector<BenchRow>* rows);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_BENCH_BENCH_COPY_H_
