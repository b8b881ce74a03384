// kavern: the command line.
#include "CLI/CLI.hpp"
#include "client/cli/command.h"

namespace kavern::cli {
namespace {

int Main(int argc, char** argv) {
  CLI::App app("kavern: look at, measure and exercise a Kavern daemon.", "kavern");
  GlobalOptions global;
  Runner run;
  BuildCommandLine(app, global, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return run ? run() : kExitUsage;
}

}  // namespace
}  // namespace kavern::cli

int main(int argc, char** argv) {
  return kavern::cli::Main(argc, argv);
}
