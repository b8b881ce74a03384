// kavern completion.
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "client/cli/commands.h"

namespace kavern::cli {

int RunCompletion(const GlobalOptions& global, const std::string& program,
                  const CompletionCommand& root, const std::string& shell) {
  std::string script;
  if (shell == "bash") {
    script = BashCompletion(program, root);
  } else if (shell == "zsh") {
    script = ZshCompletion(program, root);
  } else {
    script = FishCompletion(program, root);
  }
  if (global.json) {
    script = nlohmann::json{{"shell", shell}, {"script", script}}.dump() + "\n";
  }
  std::fputs(script.c_str(), stdout);
  return kExitOk;
}

}  // namespace kavern::cli
