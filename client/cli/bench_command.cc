// kavern bench.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "client/cli/bench/bench_control.h"
#include "client/cli/bench/bench_copy.h"
#include "client/cli/bench/bench_disk.h"
#include "client/cli/commands.h"
#include "client/cli/text_output.h"

namespace kavern::cli {
namespace {

constexpr std::uint64_t kControlBlockBytes = 64 * kKiB;
constexpr std::chrono::milliseconds kDiskDeadline(30000);

absl::StatusOr<std::vector<BenchRow>> MeasureDisk(const GlobalOptions& global,
                                                  const BenchOptions& options) {
  DiskBenchOptions disk;
  disk.fio_file = options.fio_file;
  disk.set_bytes = options.disk_set_bytes;
  disk.repetitions = options.repetitions;
  disk.targets_only = options.targets_only;
  KAVERN_ASSIGN_OR_RETURN(const WorkerMemory memory, WorkerMemory::Create(DiskMemoryBytes(disk)));
  // A call may wait for a queue of others at the disk.
  GlobalOptions patient = global;
  patient.deadline = std::max(global.deadline, kDiskDeadline);
  KAVERN_ASSIGN_OR_RETURN(const auto node, BenchNode::Connect(patient));
  std::vector<BenchRow> rows;
  KAVERN_RETURN_IF_ERROR(BenchDisk(
      *node, disk, memory,
      [&](const std::string& what) {
        if (!global.json) std::fprintf(stderr, "bench: %s\n", what.c_str());
      },
      &rows));
  return rows;
}

absl::StatusOr<std::vector<BenchRow>> Measure(const GlobalOptions& global,
                                              const BenchOptions& options) {
  const int repetitions = options.repetitions;
  std::vector<CopyCase> cases = CopyCases();
  if (options.targets_only) std::erase_if(cases, [](const CopyCase& c) { return !c.targeted; });
  ProgressBar bar("bench", cases.size() + 2, !global.json);
  std::vector<BenchRow> rows;
  std::uint64_t done = 0;
  bar.Update(done, "keys and calls");
  BenchKeys(repetitions, &rows);
  KAVERN_ASSIGN_OR_RETURN(const WorkerMemory memory, WorkerMemory::Create(CopyMemoryBytes()));
  KAVERN_ASSIGN_OR_RETURN(const auto node, BenchNode::Connect(global));
  bar.Update(++done, "calls and matches");
  KAVERN_RETURN_IF_ERROR(node->UseBlockBytes(kControlBlockBytes, CopyRoomBytes()));
  KAVERN_RETURN_IF_ERROR(BenchMatch(*node, repetitions, memory, &rows));
  KAVERN_RETURN_IF_ERROR(BenchCalls(*node, repetitions, memory, &rows));
  for (const CopyCase& c : cases) {
    bar.Update(++done,
               absl::StrCat(FormatBytes(c.block_bytes), " blocks, ", c.batch, " at a time"));
    if (node->block_bytes() != c.block_bytes || c.targeted) {
      KAVERN_RETURN_IF_ERROR(node->UseBlockBytes(c.block_bytes, CopyRoomBytes()));
    }
    KAVERN_RETURN_IF_ERROR(BenchCopies(*node, c, repetitions, memory, &rows));
  }
  KAVERN_RETURN_IF_ERROR(node->Forget());
  bar.Update(++done, "done");
  return rows;
}

}  // namespace

int RunBench(const GlobalOptions& global, const BenchOptions& options) {
  const auto rows =
      options.fio_file.empty() ? Measure(global, options) : MeasureDisk(global, options);
  if (!rows.ok()) return Fail(rows.status());
  if (global.json) {
    std::cout << ReportJson(*rows).dump(2) << "\n";
  } else {
    std::cout << ReportText(*rows);
  }
  return kExitOk;
}

}  // namespace kavern::cli
