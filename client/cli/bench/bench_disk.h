// The NVMe tier against fio: cold fetches, write-back, and both at once.
#ifndef KAVERN_CLIENT_CLI_BENCH_BENCH_DISK_H_
#define KAVERN_CLIENT_CLI_BENCH_BENCH_DISK_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/cli/bench/bench_node.h"
#include "client/cli/bench/bench_report.h"

namespace kavern::cli {

struct DiskBenchOptions {
  // fio's file: on the daemon's disk, as large as a set at least, and fully written, as the
  // daemon's files must be for the comparison to be fair. Made, and removed afterwards, where there
  // is none.
  std::string fio_file;
  std::uint64_t set_bytes = std::uint64_t{1} << 30;  // moved by one pass
  int repetitions = 5;
  bool targets_only = false;
};

// Of the worker's side.
std::uint64_t DiskMemoryBytes(const DiskBenchOptions& options);

// Rows nvme.fetch.*, nvme.write.*, nvme.mixed.* with their CPU seconds per GB. Every fetched byte
// is compared with the pattern that was stored. FailedPrecondition: the daemon has no NVMe tier, is
// not ours to operate, or loses blocks because somebody else uses it. NotFound: there is no fio.
absl::Status BenchDisk(BenchNode& node, const DiskBenchOptions& options, const WorkerMemory& memory,
                       const std::function<void(const std::string&)>& progress,
                       std::vector<BenchRow>* rows);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_BENCH_BENCH_DISK_H_
