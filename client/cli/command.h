// What every subcommand of `kavern` shares.
#ifndef KAVERN_CLIENT_CLI_COMMAND_H_
#define KAVERN_CLIENT_CLI_COMMAND_H_

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
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

// A subcommand adds itself to `app` and sets `run` from its callback; main calls `run` after
// parsing. Everything it captures must live as long as the process's main: Register functions keep
// their options in a shared_ptr that the lambdas hold.
using Runner = std::function<int()>;
using RegisterCommand = void (*)(CLI::App& app, const GlobalOptions& global, Runner& run);

void RegisterStatus(CLI::App& app, const GlobalOptions& global, Runner& run);
void RegisterTop(CLI::App& app, const GlobalOptions& global, Runner& run);
void RegisterNamespaces(CLI::App& app, const GlobalOptions& global, Runner& run);
void RegisterDoctor(CLI::App& app, const GlobalOptions& global, Runner& run);
void RegisterCompletion(CLI::App& app, const GlobalOptions& global, Runner& run);
void RegisterBench(CLI::App& app, const GlobalOptions& global, Runner& run);
void RegisterReplay(CLI::App& app, const GlobalOptions& global, Runner& run);
void RegisterTrace(CLI::App& app, const GlobalOptions& global, Runner& run);

// Global options and every subcommand. All three must live as long as `run` may be called.
void BuildCommandLine(CLI::App& app, GlobalOptions& global, Runner& run);

// Prints "kavern: <message>" to stderr, with what to do about it where that is known, and returns
// the exit code that belongs to the status.
int Fail(const absl::Status& status);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_COMMAND_H_
