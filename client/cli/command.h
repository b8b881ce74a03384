// What every subcommand of `kavern` shares.
#ifndef KAVERN_CLIENT_CLI_COMMAND_H_
#define KAVERN_CLIENT_CLI_COMMAND_H_

#include <chrono>
#include <string>

#include "absl/status/status.h"

namespace kavern::cli {

// Exit codes, documented by `kavern --help` and docs/OPERATIONS.md.
enum ExitCode : int {
  kExitOk = 0,
  kExitFailed = 1,       // the command ran and found what must not be: wrong bytes, a failing check
  kExitUsage = 2,        // arguments or input files are wrong
  kExitUnavailable = 3,  // no daemon at the address, or it went away
  kExitRefused = 4,      // the daemon said no: permission, quota
};

// Options before the subcommand.
struct GlobalOptions {
  std::string address = "unix:///run/kavern/kavern.sock";  // also KAVERN_ADDRESS
  std::string tenant;                                      // also KAVERN_TENANT
  bool json = false;  // one JSON object on stdout, nothing else
  std::chrono::milliseconds deadline{5000};
};

// Prints "kavern: <message>" to stderr, with what to do about it where that is known, and returns
// the exit code that belongs to the status.
int Fail(const absl::Status& status);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_COMMAND_H_
