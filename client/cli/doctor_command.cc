// kavern doctor.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "base/units.h"
#include "client/admin_client.h"
#include "client/cli/commands.h"
#include "client/cli/doctor/checks.h"
#include "client/cli/doctor/machine_facts.h"
#include "proto/kavern/v1/shm_layout.h"

namespace kavern::cli {
namespace {

// Whether the socket is there but not for this user.
bool Forbidden(const std::string& address) {
  absl::string_view path = address;
  if (!absl::ConsumePrefix(&path, "unix://")) return false;
  return access((std::string(path) + shm::kAttachSuffix).c_str(), W_OK) != 0 && errno == EACCES;
}

// Asks the daemon; its pid goes to `pid`, 0 where it did not answer.
MachineFacts::Daemon AskDaemon(const GlobalOptions& global, std::uint64_t* pid) {
  MachineFacts::Daemon daemon;
  daemon.address = global.address;
  *pid = 0;
  const auto refused = [&](const absl::Status& status) {
    daemon.error = std::string(status.message());
    // Nobody listens, or there is no socket; anything else is a daemon that does not do its work.
    daemon.absent = absl::IsUnavailable(status) && !Forbidden(global.address);
    return daemon;
  };
  const auto admin = client::AdminClient::Connect(global.address, global.tenant, global.deadline);
  if (!admin.ok()) return refused(admin.status());
  const auto status = (*admin)->GetStatus();
  if (!status.ok()) return refused(status.status());
  daemon.version = status->version();
  daemon.ready = status->ready();
  daemon.degraded.assign(status->degraded().begin(), status->degraded().end());
  *pid = status->pid();
  return daemon;
}

void PrintText(const std::vector<Check>& checks) {
  for (const Check& check : checks) {
    std::fputs(
        absl::StrFormat("%-4s  %-13s  %s\n", CheckResultName(check.result), check.name, check.found)
            .c_str(),
        stdout);
    std::fputs(absl::StrFormat("%21swhy: %s\n", "", check.matters).c_str(), stdout);
    if (!check.advice.empty()) {
      std::fputs(absl::StrFormat("%21sdo:  %s\n", "", check.advice).c_str(), stdout);
    }
  }
}

void PrintJson(const std::vector<Check>& checks) {
  nlohmann::json rows = nlohmann::json::array();
  for (const Check& check : checks) {
    rows.push_back({{"name", check.name},
                    {"result", CheckResultName(check.result)},
                    {"found", check.found},
                    {"matters", check.matters},
                    {"advice", check.advice}});
  }
  std::fputs((nlohmann::json{{"checks", rows}}.dump(2) + "\n").c_str(), stdout);
}

}  // namespace

int RunDoctor(const GlobalOptions& global, const DoctorOptions& options) {
  std::uint64_t daemon_pid = 0;
  const MachineFacts::Daemon daemon = AskDaemon(global, &daemon_pid);
  MachineFacts facts = ReadMachineFacts("", options.directory, daemon_pid);
  facts.disk.chosen = options.directory_chosen;
  if (options.measure_disk && facts.disk.error.empty()) {
    const bool terminal = isatty(STDERR_FILENO) != 0 && !global.json;
    if (terminal) std::fprintf(stderr, "measuring %s ...", options.directory.c_str());
    facts.disk.speed = MeasureDiskSpeed(options.directory);
    if (terminal) std::fputs("\r\x1b[K", stderr);
  }
  facts.daemon = daemon;
  const std::vector<Check> checks = JudgeMachine(facts, options.ram_bytes);
  if (global.json) {
    PrintJson(checks);
  } else {
    PrintText(checks);
  }
  const bool failed = std::any_of(checks.begin(), checks.end(), [](const Check& check) {
    return check.result == CheckResult::kFail;
  });
  return failed ? kExitFailed : kExitOk;
}

}  // namespace kavern::cli
