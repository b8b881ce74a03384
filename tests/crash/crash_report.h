// What a harness did and found, as one line.
#ifndef KAVERN_TESTS_CRASH_CRASH_REPORT_H_
#define KAVERN_TESTS_CRASH_CRASH_REPORT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tests/fakes/fault_device.h"

namespace kavern::tiers {

struct CrashReport {
  std::string harness;
  std::uint64_t operations = 0;
  std::map<std::string, std::uint64_t> faults;  // by kind
  std::uint64_t crashes = 0;                    // states that were recovered from
  std::uint64_t acked_checked = 0;              // blocks that had to be there
  std::uint64_t acked_lost = 0;                 // P2
  std::uint64_t bytes_verified = 0;
  std::uint64_t wrong_bytes = 0;   // P1
  std::uint64_t resurrected = 0;   // P3: blocks that an acknowledged purge had deleted
  std::uint64_t leaked_bytes = 0;  // P5: of slots that no block has
  std::uint64_t unrecovered = 0;   // P7: states that the store did not open from
  std::uint64_t unsound = 0;       // P5: audits that failed
  std::vector<double> recovery_ms;
  std::string first_violation;

  // Sums of what must be 0.
  std::uint64_t Violations() const {
    return acked_lost + wrong_bytes + resurrected + leaked_bytes + unrecovered + unsound;
  }
  void Violated(std::uint64_t& count, const std::string& what);
  void AddFaults(const FaultCounts& counts);
  void Print() const;
};

// A number from the environment: seeds to replay, lengths of long runs.
std::uint64_t FromEnvironment(const char* name, std::uint64_t otherwise);

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_CRASH_CRASH_REPORT_H_
