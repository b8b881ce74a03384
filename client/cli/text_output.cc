#include "client/cli/text_output.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"

namespace kavern::cli {
namespace {

constexpr std::chrono::milliseconds kRedrawInterval(100);
constexpr int kBarCells = 30;

}  // namespace

TextTable::TextTable(std::vector<std::string> header) {
  rows_.push_back(std::move(header));
  AddRule();
}

void TextTable::AddRow(std::vector<std::string> cells) {
  rows_.push_back(std::move(cells));
}

void TextTable::AddRule() {
  rows_.emplace_back();
}

std::string TextTable::ToString() const {
  std::vector<std::size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::size_t total = widths.empty() ? 0 : 2 * (widths.size() - 1);
  for (const std::size_t width : widths) total += width;

  std::string text;
  for (const auto& row : rows_) {
    if (row.empty()) {
      text += std::string(total, '-') + "\n";
      continue;
    }
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - row[i].size(), ' ');
      line += (i == 0 ? row[i] + padding : padding + row[i]) + "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

ProgressBar::ProgressBar(std::string label, std::uint64_t total, bool enabled)
    : label_(std::move(label)),
      total_(std::max<std::uint64_t>(1, total)),
      enabled_(enabled),
      terminal_(isatty(STDERR_FILENO) != 0) {}

ProgressBar::~ProgressBar() {
  Finish();
}

void ProgressBar::Update(std::uint64_t done, const std::string& note) {
  if (!enabled_) return;
  const int percent = static_cast<int>(100 * std::min(done, total_) / total_);
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_) {
    if (percent / 10 > last_percent_ / 10 || last_percent_ < 0) {
      std::fprintf(stderr, "%s %3d %%  %s\n", label_.c_str(), percent, note.c_str());
      last_percent_ = percent;
    }
    return;
  }
  if (percent < 100 && now - last_draw_ < kRedrawInterval) return;
  last_draw_ = now;
  last_percent_ = percent;
  const int filled = kBarCells * percent / 100;
  std::fprintf(stderr, "\r%s [%s%s] %3d %%  %s\x1b[K", label_.c_str(),
               std::string(filled, '#').c_str(), std::string(kBarCells - filled, '.').c_str(),
               percent, note.c_str());
  std::fflush(stderr);
}

void ProgressBar::Finish() {
  if (enabled_ && terminal_ && last_percent_ >= 0) std::fprintf(stderr, "\n");
  enabled_ = false;
}

std::string FormatCount(std::uint64_t value) {
  const std::string digits = std::to_string(value);
  std::string grouped;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) grouped += ',';
    grouped += digits[i];
  }
  return grouped;
}

std::string FormatFixed(double value, int decimals) {
  return absl::StrFormat("%.*f", decimals, value);
}

std::string FormatGBps(double bytes_per_second) {
  return absl::StrFormat("%.2f GB/s", bytes_per_second / 1e9);
}

std::string FormatMicros(double seconds) {
  if (seconds < 1e-3) return absl::StrFormat("%.1f us", seconds * 1e6);
  if (seconds < 1) return absl::StrFormat("%.2f ms", seconds * 1e3);
  return absl::StrFormat("%.2f s", seconds);
}

}  // namespace kavern::cli
