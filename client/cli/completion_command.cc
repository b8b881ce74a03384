// kavern completion.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "client/cli/command.h"
#include "client/cli/completion_script.h"

namespace kavern::cli {
namespace {

int RunCompletion(const CLI::App& app, const GlobalOptions& global, const std::string& shell) {
  const CompletionCommand root = DescribeCommands(app);
  const std::string& program = app.get_name();
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

}  // namespace

void RegisterCompletion(CLI::App& app, const GlobalOptions& global, Runner& run) {
  CLI::App* command =
      app.add_subcommand("completion", "Print a script that teaches a shell these commands");
  command->footer(
      "bash: source <(kavern completion bash)\n"
      "zsh:  kavern completion zsh > \"${fpath[1]}/_kavern\"\n"
      "fish: kavern completion fish > ~/.config/fish/completions/kavern.fish");
  auto shell = std::make_shared<std::string>();
  command->add_option("shell", *shell, "Which shell")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->callback([&app, &global, &run, shell] {
    run = [&app, &global, shell] { return RunCompletion(app, global, *shell); };
  });
}

}  // namespace kavern::cli
