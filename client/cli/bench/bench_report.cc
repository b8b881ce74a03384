#include "client/cli/bench/bench_report.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/copy_and_checksum.h"
#include "client/cli/text_output.h"
#include "client/version.h"

namespace kavern::cli {
namespace {

std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown";
}

nlohmann::json MachineJson() {
  struct utsname system {};
  uname(&system);
  return {{"cpu", ProcessorName()},
          {"cpus", std::thread::hardware_concurrency()},
          {"memory_bytes", static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                               static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE))},
          {"kernel", system.release},
          {"copy_kernel", std::string(CopyKernelName(BestCopyKernel()))}};
}

std::string TargetText(const BenchRow& row) {
  if (!row.target.has_value()) return "";
  return (row.at_least ? ">= " : "<= ") +
         FormatFixed(*row.target, row.reference_name.empty() ? 0 : 2);
}

}  // namespace

double Median(std::vector<double> samples) {
  if (samples.empty()) return 0;
  const std::size_t middle = samples.size() / 2;
  std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(middle),
                   samples.end());
  return samples[middle];
}

BenchRow RowOf(const std::string& name, const std::string& unit, const Pairs& pairs,
               const std::string& reference_name) {
  BenchRow row;
  row.name = name;
  row.unit = unit;
  row.value = Median(pairs.values);
  row.reference_name = reference_name;
  row.reference = Median(pairs.references);
  std::vector<double> ratios;
  for (std::size_t i = 0; i < pairs.values.size(); ++i) {
    ratios.push_back(pairs.values[i] / pairs.references[i]);
  }
  row.ratio = Median(ratios);
  row.ratio_min = *std::min_element(ratios.begin(), ratios.end());
  row.ratio_max = *std::max_element(ratios.begin(), ratios.end());
  return row;
}

nlohmann::json ReportJson(const std::vector<BenchRow>& rows) {
  nlohmann::json list = nlohmann::json::array();
  for (const BenchRow& row : rows) {
    nlohmann::json object = {{"name", row.name},     {"unit", row.unit},
                             {"value", row.value},   {"reference_name", nullptr},
                             {"reference", nullptr}, {"ratio", nullptr},
                             {"ratio_min", nullptr}, {"ratio_max", nullptr},
                             {"target", nullptr},    {"met", nullptr}};
    if (!row.reference_name.empty()) {
      object["reference_name"] = row.reference_name;
      object["reference"] = row.reference;
      object["ratio"] = row.ratio;
      object["ratio_min"] = row.ratio_min;
      object["ratio_max"] = row.ratio_max;
    }
    if (row.target.has_value()) {
      object["target"] = *row.target;
      object["met"] = row.Met();
    }
    list.push_back(std::move(object));
  }
  return {{"version", KAVERN_VERSION},
          {"commit", KAVERN_COMMIT},
          {"machine", MachineJson()},
          {"rows", std::move(list)}};
}

std::string ReportText(const std::vector<BenchRow>& rows) {
  const nlohmann::json machine = MachineJson();
  std::string text = std::string("kavern ") + KAVERN_VERSION + " (" + KAVERN_COMMIT + ") on " +
                     machine["cpu"].get<std::string>() + ", " +
                     std::to_string(machine["cpus"].get<unsigned>()) + " processors, copy kernel " +
                     machine["copy_kernel"].get<std::string>() + "\n\n";
  TextTable table({"row", "value", "unit", "reference", "is", "ratio", "spread", "target", "met"});
  for (const BenchRow& row : rows) {
    const bool referenced = !row.reference_name.empty();
    table.AddRow(
        {row.name, FormatFixed(row.value, 2), row.unit,
         referenced ? FormatFixed(row.reference, 2) : "", row.reference_name,
         referenced ? FormatFixed(row.ratio, 2) : "",
         referenced ? FormatFixed(row.ratio_min, 2) + "-" + FormatFixed(row.ratio_max, 2) : "",
         TargetText(row), row.target.has_value() ? (row.Met() ? "yes" : "NO") : ""});
  }
  return text + table.ToString();
}

}  // namespace kavern::cli
