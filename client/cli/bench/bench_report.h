// What `kavern bench` measured: rows with stable names, as a table and as JSON.
#ifndef KAVERN_CLIENT_CLI_BENCH_BENCH_REPORT_H_
#define KAVERN_CLIENT_CLI_BENCH_BENCH_REPORT_H_

#include <optional>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

namespace kavern::cli {

struct BenchRow {
  std::string name;
  std::string unit;
  double value = 0;
  // Measured in the same run, interleaved with the value. Empty: the row has none.
  std::string reference_name;
  double reference = 0;
  double ratio = 0;      // of value to reference: the median over the pairs of one repetition
  double ratio_min = 0;  // and their spread
  double ratio_max = 0;
  // Of the ratio, or of the value where there is no reference.
  std::optional<double> target;
  bool at_least = true;  // the target is a floor; else a ceiling

  double Judged() const { return reference_name.empty() ? value : ratio; }
  // False where there is no target.
  bool Met() const {
    return target.has_value() && (at_least ? Judged() >= *target : Judged() <= *target);
  }
};

// A value and its reference, measured in turn.
struct Pairs {
  std::vector<double> values;
  std::vector<double> references;

  void Add(double value, double reference) {
    values.push_back(value);
    references.push_back(reference);
  }
};

double Median(std::vector<double> samples);
// Value, reference and ratio from pairs; both vectors are not empty.
BenchRow RowOf(const std::string& name, const std::string& unit, const Pairs& pairs,
               const std::string& reference_name);

nlohmann::json ReportJson(const std::vector<BenchRow>& rows);
std::string ReportText(const std::vector<BenchRow>& rows);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_BENCH_BENCH_REPORT_H_
