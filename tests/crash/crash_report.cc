#include "tests/crash/crash_report.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace kavern::tiers {

void CrashReport::Violated(std::uint64_t& count, const std::string& what) {
  if (Violations() == 0) first_violation = what;
  ++count;
}

void CrashReport::AddFaults(const FaultCounts& counts) {
  for (std::size_t i = 0; i < kDiskFaults; ++i) {
    const auto fault = static_cast<DiskFault>(i);
    if (counts[fault] > 0) faults[std::string(NameOf(fault))] += counts[fault];
  }
}

void CrashReport::Print() const {
  std::string kinds;
  for (const auto& [kind, count] : faults) {
    kinds += (kinds.empty() ? "" : ",") + kind + ":" + std::to_string(count);
  }
  std::vector<double> sorted = recovery_ms;
  std::sort(sorted.begin(), sorted.end());
  const auto at = [&](double share) {
    return sorted.empty()
               ? 0
               : sorted[static_cast<std::size_t>(share * static_cast<double>(sorted.size() - 1))];
  };
  std::printf(
      "%s: operations=%lu faults=%s crashes=%lu acked_checked=%lu acked_lost=%lu "
      "bytes_verified=%lu wrong_bytes=%lu resurrected=%lu leaked_bytes=%lu unrecovered=%lu "
      "recovery_ms_p50=%.1f recovery_ms_p99=%.1f\n",
      harness.c_str(), operations, kinds.c_str(), crashes, acked_checked, acked_lost,
      bytes_verified, wrong_bytes, resurrected, leaked_bytes, unrecovered, at(0.5), at(0.99));
  if (!first_violation.empty()) std::printf("first violation: %s\n", first_violation.c_str());
  std::fflush(stdout);
}

std::uint64_t FromEnvironment(const char* name, std::uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 0);
}

}  // namespace kavern::tiers
