// kavern: the command line.
#include <cstdio>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/version.h"

namespace kavern::cli {
namespace {

constexpr char kFooter[] =
    "Exit codes: 0 done; 1 the command found what must not be (wrong bytes, a failing check);\n"
    "2 wrong arguments or input; 3 no daemon at the address; 4 the daemon refused.";

constexpr RegisterCommand kCommands[] = {
    RegisterStatus, RegisterTop,    RegisterNamespaces, RegisterReplay,
    RegisterBench,  RegisterTrace,  RegisterDoctor,     RegisterCompletion,
};

int Main(int argc, char** argv) {
  CLI::App app("kavern: look at, measure and exercise a Kavern daemon.", "kavern");
  GlobalOptions global;
  Runner run;
  std::int64_t deadline_ms = global.deadline.count();
  app.add_option("-a,--address", global.address,
                 "The daemon: unix:///path/to/socket or tcp://127.0.0.1:port")
      ->envname("KAVERN_ADDRESS")
      ->capture_default_str();
  app.add_option("-t,--tenant", global.tenant,
                 "Which of the tenants that this user maps to (default: the first)")
      ->envname("KAVERN_TENANT");
  app.add_option("--deadline-ms", deadline_ms, "Longest wait for one call")->capture_default_str();
  app.add_flag("--json", global.json, "Print one JSON object and nothing else");
  app.set_version_flag("--version", std::string("kavern ") + KAVERN_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  app.footer(kFooter);
  for (const RegisterCommand& command : kCommands) command(app, global, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  global.deadline = std::chrono::milliseconds(deadline_ms);
  return run ? run() : kExitUsage;
}

}  // namespace

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

int main(int argc, char** argv) { return kavern::cli::Main(argc, argv); }
