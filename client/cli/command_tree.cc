// What there is to complete: the tree of commands and options, read from CLI11's own.
#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "client/cli/command_line.h"

namespace kavern::cli {
namespace {

// CLI11 shows a closed set of values as {a,b} at the end of the type's name.
std::vector<std::string> ChoicesOf(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const std::size_t begin = type.find('{');
  const std::size_t end = type.find('}', begin);
  if (begin == std::string::npos || end == std::string::npos) return {};
  return absl::StrSplit(type.substr(begin + 1, end - begin - 1), ',');
}

CompletionOption DescribeOption(const CLI::Option& option) {
  CompletionOption described;
  for (const std::string& name : option.get_snames()) described.names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) described.names.push_back("--" + name);
  described.description = option.get_description();
  described.takes_value = option.get_items_expected_max() > 0;
  if (described.takes_value) described.choices = ChoicesOf(option);
  return described;
}

CompletionCommand Describe(const CLI::App& app, const CompletionCommand* parent) {
  CompletionCommand command;
  if (parent != nullptr) {
    command.path = parent->path;
    command.path.push_back(app.get_name());
  }
  command.description = app.get_description();
  std::set<std::string> names;
  for (const CLI::Option* option : app.get_options({})) {
    if (!option->nonpositional()) {
      for (std::string& choice : ChoicesOf(*option)) {
        command.argument_choices.push_back(std::move(choice));
      }
      continue;
    }
    command.options.push_back(DescribeOption(*option));
    names.insert(command.options.back().names.begin(), command.options.back().names.end());
  }
  if (parent != nullptr && app.get_fallthrough()) {
    for (const CompletionOption& option : parent->options) {
      const bool hidden = std::any_of(option.names.begin(), option.names.end(),
                                      [&](const auto& name) { return names.count(name) != 0; });
      if (!hidden) command.options.push_back(option);
    }
  }
  for (const CLI::App* child : app.get_subcommands({})) {
    command.children.push_back(Describe(*child, &command));
  }
  return command;
}

}  // namespace

CompletionCommand DescribeCommands(const CLI::App& app) {
  return Describe(app, nullptr);
}

}  // namespace kavern::cli
