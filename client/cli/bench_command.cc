// kavern bench.
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "client/cli/bench/bench_control.h"
#include "client/cli/bench/bench_copy.h"
#include "client/cli/commands.h"
#include "client/cli/text_output.h"

namespace kavern::cli {
namespace {

constexpr std::uint64_t kControlBlockBytes = 64 * kKiB;

absl::StatusOr<std::vector<BenchRow>> Measure(const GlobalOptions& global, int repetitions,
                                              bool targets_only) {
  std::vector<CopyCase> cases = CopyCases();
  if (targets_only) std::erase_if(cases, [](const CopyCase& c) { return !c.targeted; });
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

int RunBench(const GlobalOptions& global, int repetitions, bool targets_only) {
  const auto rows = Measure(global, repetitions, targets_only);
  if (!rows.ok()) return Fail(rows.status());
  if (global.json) {
    std::cout << ReportJson(*rows).dump(2) << "\n";
  } else {
    std::cout << ReportText(*rows);
  }
  return kExitOk;
}

}  // namespace kavern::cli
