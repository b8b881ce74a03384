// `kavern doctor`'s judgement: facts in, sentences out. No I/O.
#ifndef KAVERN_CLIENT_CLI_DOCTOR_CHECKS_H_
#define KAVERN_CLIENT_CLI_DOCTOR_CHECKS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "client/cli/doctor/machine_facts.h"

namespace kavern::cli {

// kOk: nothing to do. kWarn: slower, or a part of Kavern that may not be in use will not work.
// kFail: the daemon or its clients will not work.
enum class CheckResult : std::uint8_t { kOk, kWarn, kFail };
const char* CheckResultName(CheckResult result);  // "ok", "warn", "fail"

struct Check {
  std::string name;  // stable: scripts look for it
  CheckResult result = CheckResult::kOk;
  std::string found;
  std::string matters;  // why, whatever the result
  std::string advice;   // what to do, a command where there is one; empty when ok
};

// One check per subject, always the same ones in the same order. `ram_bytes` is the ram.capacity
// that this machine shall carry, 0 when the caller did not say.
std::vector<Check> JudgeMachine(const MachineFacts& facts, std::uint64_t ram_bytes);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_DOCTOR_CHECKS_H_
