#include "client/cli/command.h"

#include <cstdint>
#include <cstdio>
#include <string>

#include "client/version.h"

namespace kavern::cli {
namespace {

constexpr char kFooter[] =
    "Exit codes: 0 done; 1 the command found what must not be (wrong bytes, a failing check);\n"
    "2 wrong arguments or input; 3 no daemon at the address; 4 the daemon refused.";

constexpr RegisterCommand kCommands[] = {
    RegisterStatus, RegisterTop,   RegisterNamespaces, RegisterReplay,
    RegisterBench,  RegisterTrace, RegisterDoctor,     RegisterCompletion,
};

}  // namespace

void BuildCommandLine(CLI::App& app, GlobalOptions& global, Runner& run) {
  app.add_option("-a,--address", global.address,
                 "The daemon: unix:///path/to/socket or tcp://127.0.0.1:port")
      ->envname("KAVERN_ADDRESS")
      ->capture_default_str();
  app.add_option("-t,--tenant", global.tenant,
                 "Which of the tenants that this user maps to (default: the first)")
      ->envname("KAVERN_TENANT");
  app.add_option_function<std::int64_t>(
         "--deadline-ms",
         [&global](const std::int64_t& ms) { global.deadline = std::chrono::milliseconds(ms); },
         "Longest wait for one call")
      ->default_str(std::to_string(global.deadline.count()));
  app.add_flag("--json", global.json, "Print one JSON object and nothing else");
  app.set_version_flag("--version", std::string("kavern ") + KAVERN_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  app.footer(kFooter);
  for (const RegisterCommand& command : kCommands) command(app, global, run);
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "kavern: %s\n", std::string(status.message()).c_str());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
      return kExitUsage;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      std::fprintf(stderr, "kavern: is kavernd running, and is --address right?\n");
      return kExitUnavailable;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kResourceExhausted:
      return kExitRefused;
    default:
      return kExitFailed;
  }
}

}  // namespace kavern::cli
