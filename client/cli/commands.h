// The subcommands of `kavern`: what each is asked, and the function that does it and returns the
// exit code. command_line.cc parses the words that call them.
#ifndef KAVERN_CLIENT_CLI_COMMANDS_H_
#define KAVERN_CLIENT_CLI_COMMANDS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "client/cli/command.h"
#include "client/cli/completion_script.h"
#include "client/cli/layout_options.h"
#include "client/cli/replay/replay_run.h"
#include "client/cli/replay/trace_generator.h"

namespace kavern::cli {

// wait_ms: how long to wait for a daemon that answers and has its RAM tier populated.
int RunStatus(const GlobalOptions& global, std::int64_t wait_ms);
// iterations: screens to show; 0: until q.
int RunTop(const GlobalOptions& global, std::int64_t interval_ms, std::uint64_t iterations);
// purge: the fingerprint in hex of the namespace to forget; empty: list them.
int RunNamespaces(const GlobalOptions& global, const std::string& purge);

struct ReplayCommandOptions {
  std::string file;
  LayoutOptions layout;
  ReplayOptions replay;
  std::uint64_t limit = 0;
  bool as_fast_as_possible = false;
  std::uint32_t await_daemon_ms = 0;
};

int RunReplayCommand(const GlobalOptions& global, ReplayCommandOptions& options);

struct BenchOptions {
  int repetitions = 5;
  bool targets_only = false;
  std::string fio_file;  // then only the NVMe tier is measured; empty: all but that
  std::uint64_t disk_set_bytes = std::uint64_t{1} << 30;
};

int RunBench(const GlobalOptions& global, const BenchOptions& options);

// output: the file to write; "-" is stdout.
int RunGenerate(const GlobalOptions& global, const TraceGeneratorOptions& options,
                const std::string& output);

struct DoctorOptions {
  std::string directory = "/var/tmp";  // on the disk to look at
  bool directory_chosen = false;
  bool measure_disk = true;     // takes a few seconds
  std::uint64_t ram_bytes = 0;  // the ram.capacity that the machine shall carry; 0: not asked
};

int RunDoctor(const GlobalOptions& global, const DoctorOptions& options);

struct StoreOptions {
  std::string config;                  // kavernd's; empty: kavernd says what it expects
  std::vector<std::string> overrides;  // key=value, for kavernd's --set
  std::uint64_t damage_max = 20;
};

// `what`: verify, stats or export-catalog. Becomes kavernd, which does the work: returns only where
// that cannot be started.
int RunStore(const GlobalOptions& global, const StoreOptions& options, const std::string& what);

// shell: bash, zsh or fish. root: all that `program` understands.
int RunCompletion(const GlobalOptions& global, const std::string& program,
                  const CompletionCommand& root, const std::string& shell);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_COMMANDS_H_
