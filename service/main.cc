// kavernd: the daemon's process. Exit codes: 0 a clean end, 1 it could not start or not drain in
// time, 2 bad arguments or configuration; of `kavernd store`, see service/store_command.h.
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "base/lock_checks.h"
#include "base/units.h"
#include "service/config.h"
#include "service/daemon.h"
#include "service/logging.h"
#include "service/store_command.h"
#include "service/version.h"

namespace kavern::service {
namespace {

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

// Blocks the signals that end the daemon in every thread, so that Wait below is the only one to get
// them.
sigset_t BlockEndingSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // A client that goes away in the middle of a write is an error code, not the end.
  signal(SIGPIPE, SIG_IGN);
  return signals;
}

int Serve(const DaemonConfig& config) {
  const sigset_t signals = BlockEndingSignals();
  StartLogging(config.log.level, config.log.format);
  auto daemon = Daemon::Start(config);
  if (!daemon.ok()) {
    spdlog::error("cannot start: {}", std::string(daemon.status().message()));
    StopLogging();
    return kExitFailed;
  }
  int signal_number = 0;
  sigwait(&signals, &signal_number);
  spdlog::info("signal {}: draining for at most {}", signal_number,
               FormatDuration(config.drain_timeout));
  (*daemon)->BeginDrain();
  const bool drained = (*daemon)->WaitUntilDrained(config.drain_timeout);
  if (!drained) spdlog::warn("calls or leases are left after the drain time; ending all the same");
  if (const std::string& left = (*daemon)->io_left(); !left.empty()) {
    spdlog::error("ending without waiting for disks that hang: {}", left);
    (*daemon)->StopServing();
    StopLogging();
    // No destructor frees memory that the kernel may still write to. It has the process, and with
    // it the lock on the disk, until that is over.
    _exit(kExitFailed);
  }
  daemon->reset();
  spdlog::info("ended");
  StopLogging();
  return drained ? kExitOk : kExitFailed;
}

void AddStoreCommands(CLI::App& app, StoreCommand& command) {
  CLI::App* store = app.add_subcommand(
      "store", "Look at the NVMe tier of a daemon that is not running, and change nothing");
  store->require_subcommand(1);
  store->fallthrough();
  store->add_flag("--json", command.json, "Print one JSON object and nothing else");
  const auto add = [&](const char* name, const char* description, StoreCommand::What what) {
    CLI::App* added = store->add_subcommand(name, description);
    added->fallthrough();
    added->callback([&command, what] { command.what = what; });
    return added;
  };
  add("verify", "Read and check every byte that counts", StoreCommand::What::kVerify)
      ->add_option("--damage-max", command.damage_max, "Damaged places to name")
      ->capture_default_str();
  add("stats", "What is stored, by device, slot size and namespace", StoreCommand::What::kStats);
  add("export-catalog", "The catalog, one JSON object a line", StoreCommand::What::kExportCatalog);
}

int Main(int argc, char** argv) {
  CLI::App app("kavernd keeps KV-cache blocks for the inference workers of this node.");
  std::string config_path;
  ConfigOverrides overrides;
  bool check_config = false;
  bool print_config = false;
  app.add_option("-c,--config", config_path, "YAML configuration; without it, the defaults");
  app.add_option("--set", overrides, "key=value in place of what the file says; may be repeated");
  app.add_flag("--check-config", check_config, "Read the configuration, say what is wrong, end");
  app.add_flag("--print-config", print_config,
               "Print the configuration in effect, with every key explained, and end");
  app.set_version_flag("--version", std::string("kavernd ") + KAVERN_VERSION);
  StoreCommand store;
  AddStoreCommands(app, store);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? kExitOk : kExitUsage;
  }

  auto config = config_path.empty() ? ParseDaemonConfig("", "defaults", overrides)
                                    : LoadDaemonConfig(config_path, overrides);
  if (!config.ok()) {
    std::fprintf(stderr, "%s\n", std::string(config.status().message()).c_str());
    return kExitUsage;
  }
  if (print_config) {
    std::fputs(MakeConfigTable(*config).Print().c_str(), stdout);
    return kExitOk;
  }
  if (check_config) {
    std::printf("%s: ok\n", config_path.empty() ? "defaults" : config_path.c_str());
    return kExitOk;
  }
  if (store.what != StoreCommand::What::kNone) return RunStoreCommand(*config, store);
  return Serve(*config);
}

}  // namespace
}  // namespace kavern::service

int main(int argc, char** argv) {
  kavern::StopAbseilLockChecks();
  return kavern::service::Main(argc, argv);
}
