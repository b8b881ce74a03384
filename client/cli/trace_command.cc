// kavern trace generate.
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "client/cli/commands.h"
#include "client/cli/replay/trace_generator.h"

namespace kavern::cli {

int RunGenerate(const GlobalOptions& global, const TraceGeneratorOptions& options,
                const std::string& output) {
  if (absl::Status status = options.Validate(); !status.ok()) return Fail(status);
  const std::vector<TraceRequest> requests = GenerateTrace(options);
  if (output == "-") {
    WriteTrace(requests, std::cout);
    if (!std::cout.flush()) return Fail(absl::InvalidArgumentError("stdout: cannot be written"));
    return kExitOk;
  }
  std::ofstream file(output);
  WriteTrace(requests, file);
  file.close();
  if (!file) return Fail(absl::InvalidArgumentError(output + ": cannot be written"));
  std::uint64_t blocks = 0;
  std::set<std::uint64_t> unique;
  for (const TraceRequest& request : requests) {
    blocks += request.hash_ids.size();
    unique.insert(request.hash_ids.begin(), request.hash_ids.end());
  }
  const nlohmann::json summary = {{"file", output},
                                  {"requests", requests.size()},
                                  {"block_references", blocks},
                                  {"unique_blocks", unique.size()}};
  if (global.json) {
    std::cout << summary.dump() << "\n";
  } else {
    std::cout << output << ": " << requests.size() << " requests, " << blocks
              << " block references, " << unique.size() << " unique blocks\n";
  }
  return kExitOk;
}

}  // namespace kavern::cli
