// The words of the command line. CLI11 is all templates and compiles for long: it is included here
// and by few others.
#ifndef KAVERN_CLIENT_CLI_COMMAND_LINE_H_
#define KAVERN_CLIENT_CLI_COMMAND_LINE_H_

#include <functional>

#include "CLI/CLI.hpp"
#include "client/cli/command.h"
#include "client/cli/completion_script.h"

namespace kavern::cli {

// Set by parsing: does what the subcommand says, and returns the exit code.
using Runner = std::function<int()>;

// Global options and every subcommand. All three must live as long as `run` may be called.
void BuildCommandLine(CLI::App& app, GlobalOptions& global, Runner& run);

// Reads the tree of `app`, which must be complete: every subcommand registered.
CompletionCommand DescribeCommands(const CLI::App& app);

// Parses and runs.
int Main(int argc, char** argv);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_COMMAND_LINE_H_
