// kavern: the command line.
#include "base/lock_checks.h"

namespace kavern::cli {
int Main(int argc, char** argv);
}

int main(int argc, char** argv) {
  kavern::StopAbseilLockChecks();
  return kavern::cli::Main(argc, argv);
}
