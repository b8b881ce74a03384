// Tables, numbers and progress for people. JSON output does not come through here.
#ifndef KAVERN_CLIENT_CLI_TEXT_OUTPUT_H_
#define KAVERN_CLIENT_CLI_TEXT_OUTPUT_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace kavern::cli {

// A plain-text table: first column left-aligned, the others right-aligned; columns as wide as their
// widest cell.
class TextTable {
 public:
  explicit TextTable(std::vector<std::string> header);
  void AddRow(std::vector<std::string> cells);
  void AddRule();
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;  // an empty row is a rule
};

// One line on stderr, redrawn in place; prints nothing where stderr is no terminal, but for a line
// every 10 %.
class ProgressBar {
 public:
  ProgressBar(std::string label, std::uint64_t total, bool enabled);
  ~ProgressBar();
  void Update(std::uint64_t done, const std::string& note = "");
  void Finish();

 private:
  std::string label_;
  std::uint64_t total_;
  bool enabled_;
  bool terminal_;
  int last_percent_ = -1;
  std::chrono::steady_clock::time_point last_draw_;
};

std::string FormatCount(std::uint64_t value);         // 1,234,567
std::string FormatFixed(double value, int decimals);  // 12.34
std::string FormatGBps(double bytes_per_second);      // "7.31 GB/s", decimal GB
std::string FormatMicros(double seconds);             // "12.3 us", "4.56 ms", "1.20 s"

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_TEXT_OUTPUT_H_
