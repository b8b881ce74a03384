// Shell completion, generated from the command line's own definition so that it cannot go stale.
#ifndef KAVERN_CLIENT_CLI_COMPLETION_SCRIPT_H_
#define KAVERN_CLIENT_CLI_COMPLETION_SCRIPT_H_

#include <string>
#include <vector>

namespace kavern::cli {

struct CompletionOption {
  std::vector<std::string> names;  // with their dashes, short ones first: "-a", "--address"
  std::vector<std::string>
      choices;  // what the value may be; empty: anything, a file name is offered
  std::string description;
  bool takes_value = false;
};

// One command and what may follow it.
struct CompletionCommand {
  std::vector<std::string> path;  // words after the program's name; empty: the program itself
  std::string description;
  std::vector<CompletionOption>
      options;  // those of its parents included, where it falls through to them
  std::vector<std::string>
      argument_choices;  // values of its positional arguments, where they are listed
  std::vector<CompletionCommand> children;
};

// Scripts that the shell evaluates. `program` is the name they complete.
std::string BashCompletion(const std::string& program, const CompletionCommand& root);
std::string ZshCompletion(const std::string& program, const CompletionCommand& root);
std::string FishCompletion(const std::string& program, const CompletionCommand& root);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_COMPLETION_SCRIPT_H_
