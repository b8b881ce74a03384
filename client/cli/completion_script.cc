#include "client/cli/completion_script.h"

#include <algorithm>
#include <functional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace kavern::cli {
namespace {

void ForEach(const CompletionCommand& command,
             const std::function<void(const CompletionCommand&)>& visit) {
  visit(command);
  for (const CompletionCommand& child : command.children) ForEach(child, visit);
}

std::string Path(const CompletionCommand& command) {
  return absl::StrJoin(command.path, " ");
}

// One word for a POSIX shell, bash and zsh.
std::string Quote(const std::string& text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

std::string QuoteForFish(const std::string& text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"'", "\\'"}}), "'");
}

// case patterns "path:--option" of every option for which `wanted` holds, with what comes of them.
std::string OptionCases(const CompletionCommand& root,
                        const std::function<bool(const CompletionOption&)>& wanted,
                        const std::function<std::string(const CompletionOption&)>& action) {
  std::string text;
  ForEach(root, [&](const CompletionCommand& command) {
    for (const CompletionOption& option : command.options) {
      if (!wanted(option)) continue;
      std::vector<std::string> patterns;
      for (const std::string& name : option.names) {
        patterns.push_back(Quote(absl::StrCat(Path(command), ":", name)));
      }
      absl::StrAppend(&text, "    ", absl::StrJoin(patterns, "|"), ") ", action(option), " ;;\n");
    }
  });
  return text;
}

// Cases "path:word" that lead to the path of a subcommand.
std::string PathCases(const CompletionCommand& root) {
  std::string text;
  ForEach(root, [&](const CompletionCommand& command) {
    for (const CompletionCommand& child : command.children) {
      absl::StrAppend(&text, "      ", Quote(absl::StrCat(Path(command), ":", child.path.back())),
                      ") at=", Quote(Path(child)), " ;;\n");
    }
  });
  return text;
}

bool TakesValue(const CompletionOption& option) {
  return option.takes_value;
}
bool HasChoices(const CompletionOption& option) {
  return !option.choices.empty();
}

// Walks the words before the cursor: `at` becomes the path of the command that they name. `skip`
// steps over the value of an option, which is not a command. The rest of the text works in bash and
// zsh.
std::string WalkLoop(const CompletionCommand& root, const std::string& word_count,
                     const std::string& word, const std::string& skip) {
  const auto step = [&](const CompletionOption&) { return absl::StrCat(skip, "; continue"); };
  return absl::StrCat("  while [ $((i + 1)) -lt ", word_count,
                      " ]; do\n    i=$((i + 1))\n    word=", word, "\n    case \"$at:$word\" in\n",
                      OptionCases(root, TakesValue, step), PathCases(root), "    esac\n  done\n");
}

// "name:description" entries of zsh's _describe.
std::string DescribeEntry(const std::string& name, const std::string& description) {
  return Quote(absl::StrCat(absl::StrReplaceAll(name, {{":", "\\:"}}), ":", description));
}

}  // namespace

std::string BashCompletion(const std::string& program, const CompletionCommand& root) {
  std::string words;
  ForEach(root, [&](const CompletionCommand& command) {
    std::vector<std::string> plain = command.argument_choices;
    std::vector<std::string> dashed;
    for (const CompletionCommand& child : command.children) plain.push_back(child.path.back());
    for (const CompletionOption& option : command.options) {
      dashed.insert(dashed.end(), option.names.begin(), option.names.end());
    }
    absl::StrAppend(&words, "    ", Quote(Path(command)),
                    ")\n      plain=", Quote(absl::StrJoin(plain, " ")),
                    "\n      dashed=", Quote(absl::StrJoin(dashed, " ")), "\n      ;;\n");
  });
  const auto choose = [](const CompletionOption& option) {
    return absl::StrCat("COMPREPLY=($(compgen -W ", Quote(absl::StrJoin(option.choices, " ")),
                        " -- \"$current\")); return");
  };
  const std::string function = absl::StrCat("_", program, "_completion");
  return absl::StrCat(
      "# bash completion for ", program, "; made by `", program, " completion bash`.\n", function,
      "() {\n  local current=\"${COMP_WORDS[COMP_CWORD]}\" at='' word='' plain='' dashed=''\n"
      "  local i=0\n  COMPREPLY=()\n",
      WalkLoop(root, "\"$COMP_CWORD\"", "\"${COMP_WORDS[i]}\"",
               // To bash, --option=value is three words.
               "i=$((i + 1)); if [ \"${COMP_WORDS[i]}\" = = ]; then i=$((i + 1)); fi"),
      "  case \"$at:${COMP_WORDS[COMP_CWORD - 1]}\" in\n", OptionCases(root, HasChoices, choose),
      // No reply makes bash offer file names.
      OptionCases(
          root, [](const auto& option) { return option.takes_value && option.choices.empty(); },
          [](const auto&) { return std::string("return"); }),
      "  esac\n  case \"$at\" in\n", words,
      "  esac\n  if [[ $current == -* ]]; then plain=$dashed; fi\n"
      "  COMPREPLY=($(compgen -W \"$plain\" -- \"$current\"))\n}\ncomplete -o default -F ",
      function, " ", program, "\n");
}

std::string ZshCompletion(const std::string& program, const CompletionCommand& root) {
  std::string entries;
  ForEach(root, [&](const CompletionCommand& command) {
    std::string plain;
    std::string dashed;
    for (const std::string& choice : command.argument_choices) {
      absl::StrAppend(&plain, "\n        ", DescribeEntry(choice, "value"));
    }
    for (const CompletionCommand& child : command.children) {
      absl::StrAppend(&plain, "\n        ", DescribeEntry(child.path.back(), child.description));
    }
    for (const CompletionOption& option : command.options) {
      for (const std::string& name : option.names) {
        absl::StrAppend(&dashed, "\n        ", DescribeEntry(name, option.description));
      }
    }
    absl::StrAppend(&entries, "    ", Quote(Path(command)), ")\n      plain=(", plain,
                    ")\n      dashed=(", dashed, ")\n      ;;\n");
  });
  const auto choose = [](const CompletionOption& option) {
    return absl::StrCat("compadd -- ", absl::StrJoin(option.choices, " "), "; return");
  };
  const std::string function = absl::StrCat("_", program);
  return absl::StrCat(
      "#compdef ", program, "\n# zsh completion; made by `", program, " completion zsh`.\n",
      function, "() {\n  local at='' word=''\n  local -a plain dashed\n  local -i i=1\n",
      WalkLoop(root, "\"$CURRENT\"", "\"${words[i]}\"", "i=$((i + 1))"),
      "  case \"$at:${words[CURRENT - 1]}\" in\n", OptionCases(root, HasChoices, choose),
      OptionCases(
          root, [](const auto& option) { return option.takes_value && option.choices.empty(); },
          [](const auto&) { return std::string("_files; return"); }),
      "  esac\n  case \"$at\" in\n", entries,
      "  esac\n  if [[ ${words[CURRENT]} == -* ]]; then\n    _describe -o option dashed\n"
      "  elif (( ${#plain} )); then\n    _describe command plain\n  else\n    _files\n  fi\n}\n"
      "if [ \"$funcstack[1]\" = ",
      Quote(function), " ]; then\n  ", function, " \"$@\"\nelse\n  compdef ", function, " ",
      program, "\nfi\n");
}

std::string FishCompletion(const std::string& program, const CompletionCommand& root) {
  const std::string helper = absl::StrCat("__", program, "_at");
  std::string walk;
  std::string rules;
  ForEach(root, [&](const CompletionCommand& command) {
    for (const CompletionOption& option : command.options) {
      if (!option.takes_value) continue;
      for (const std::string& name : option.names) {
        absl::StrAppend(&walk, "            case ",
                        QuoteForFish(absl::StrCat(Path(command), ":", name)),
                        "\n                set skip 1\n");
      }
    }
    for (const CompletionCommand& child : command.children) {
      absl::StrAppend(&walk, "            case ",
                      QuoteForFish(absl::StrCat(Path(command), ":", child.path.back())),
                      "\n                set at ", QuoteForFish(Path(child)), "\n");
    }
    const std::string rule =
        absl::StrCat("complete -c ", program, " -n ",
                     QuoteForFish(absl::StrCat(helper, " ", Quote(Path(command)))));
    for (const std::string& choice : command.argument_choices) {
      absl::StrAppend(&rules, rule, " -f -a ", QuoteForFish(choice), "\n");
    }
    for (const CompletionCommand& child : command.children) {
      absl::StrAppend(&rules, rule, " -f -a ", QuoteForFish(child.path.back()), " -d ",
                      QuoteForFish(child.description), "\n");
    }
    for (const CompletionOption& option : command.options) {
      absl::StrAppend(&rules, rule);
      for (const std::string& name : option.names) {
        const bool is_long = name.compare(0, 2, "--") == 0;
        absl::StrAppend(&rules, is_long ? " -l " : " -s ",
                        QuoteForFish(name.substr(is_long ? 2 : 1)));
      }
      if (option.takes_value) absl::StrAppend(&rules, " -r");
      if (!option.choices.empty()) {
        absl::StrAppend(&rules, " -f -a ", QuoteForFish(absl::StrJoin(option.choices, " ")));
      }
      absl::StrAppend(&rules, " -d ", QuoteForFish(option.description), "\n");
    }
  });
  return absl::StrCat("# fish completion for ", program, "; made by `", program,
                      " completion fish`.\nfunction ", helper,
                      " --description 'Whether the words so far name this command'\n"
                      "    set -l at ''\n    set -l skip 0\n"
                      "    for word in (commandline -opc)[2..-1]\n"
                      "        if test $skip = 1\n            set skip 0\n            continue\n"
                      "        end\n        switch \"$at:$word\"\n",
                      walk, "        end\n    end\n    test \"$at\" = \"$argv[1]\"\nend\n", rules);
}

}  // namespace kavern::cli
