#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "client/cli/command_line.h"

namespace kavern::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

// A small command line with everything that a shell could trip over.
class SmallApp {
 public:
  SmallApp() : app_("A program.", "prog") {
    app_.fallthrough();
    app_.add_option("-a,--address", text_, "Where it's listening: a \\ \"path\"");
    app_.add_flag("--json", flag_, "JSON");
    CLI::App* trace = app_.add_subcommand("trace", "Traces & such");
    CLI::App* generate = trace->add_subcommand("generate", "Writes $one; `two`");
    generate->add_option("--kind", text_, "Which kind")->check(CLI::IsMember({"chat", "agents"}));
    CLI::App* show = app_.add_subcommand("show", "Shows");
    show->add_option("what", text_, "What to show")->check(CLI::IsMember({"all", "none"}));
  }

  CompletionCommand Root() const { return DescribeCommands(app_); }

 private:
  CLI::App app_;
  std::string text_;
  bool flag_ = false;
};

std::string WriteTemporary(const std::string& text) {
  std::string path = (std::filesystem::temp_directory_path() / "kavern-complete-XXXXXX").string();
  const int fd = mkstemp(path.data());
  EXPECT_GE(fd, 0);
  close(fd);
  std::ofstream(path) << text;
  return path;
}

// What bash prints for `program`, a bash text.
std::string Bash(const std::string& program) {
  const std::string path = WriteTemporary(program);
  FILE* const pipe = popen(("bash " + path + " 2>&1").c_str(), "r");
  std::string output;
  std::array<char, 4096> piece{};
  while (const std::size_t n = fread(piece.data(), 1, piece.size(), pipe)) {
    output.append(piece.data(), n);
  }
  EXPECT_EQ(pclose(pipe), 0) << output;
  std::filesystem::remove(path);
  return output;
}

// What bash offers for the last of `words`.
std::vector<std::string> Offered(const std::string& script, const std::vector<std::string>& words) {
  std::string program = script + "COMP_WORDS=(";
  for (const std::string& word : words) program += "'" + word + "' ";
  program += ")\nCOMP_CWORD=" + std::to_string(words.size() - 1) +
             "\n_prog_completion\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n";
  std::vector<std::string> offered;
  std::istringstream lines(Bash(program));
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty()) offered.push_back(line);
  }
  return offered;
}

void ForEach(const CompletionCommand& command,
             const std::function<void(const CompletionCommand&)>& visit) {
  visit(command);
  for (const CompletionCommand& child : command.children) ForEach(child, visit);
}

TEST(Completion, DescribesTheTreeWithTheOptionsThatFallThrough) {
  const CompletionCommand root = SmallApp().Root();
  ASSERT_EQ(root.children.size(), 2u);
  const CompletionCommand& generate = root.children[0].children.at(0);
  EXPECT_THAT(generate.path, ElementsAre("trace", "generate"));
  std::vector<std::string> names;
  for (const CompletionOption& option : generate.options) {
    names.insert(names.end(), option.names.begin(), option.names.end());
    if (option.names[0] == "--kind") {
      EXPECT_THAT(option.choices, ElementsAre("chat", "agents"));
    }
    EXPECT_EQ(option.takes_value, option.names[0] == "--kind" || option.names[0] == "-a");
  }
  EXPECT_THAT(names, UnorderedElementsAre("-h", "--help", "--kind", "-a", "--address", "--json"));
  EXPECT_THAT(root.children[1].argument_choices, ElementsAre("all", "none"));
}

TEST(Completion, BashOffersWhatMayFollow) {
  const std::string script = BashCompletion("prog", SmallApp().Root());
  EXPECT_THAT(Offered(script, {"prog", ""}), ElementsAre("trace", "show"));
  EXPECT_THAT(Offered(script, {"prog", "tr"}), ElementsAre("trace"));
  EXPECT_THAT(Offered(script, {"prog", "trace", ""}), ElementsAre("generate"));
  EXPECT_THAT(Offered(script, {"prog", "trace", "generate", "--k"}), ElementsAre("--kind"));
  EXPECT_THAT(Offered(script, {"prog", "trace", "generate", "--j"}), ElementsAre("--json"));
  EXPECT_THAT(Offered(script, {"prog", "trace", "generate", "--kind", ""}),
              ElementsAre("chat", "agents"));
  EXPECT_THAT(Offered(script, {"prog", "show", ""}), ElementsAre("all", "none"));
  EXPECT_THAT(Offered(script, {"prog", "show", "--k"}), ElementsAre());
}

TEST(Completion, BashTakesAnOptionsValueForNoCommand) {
  // "show" is the value of --address; the command is still to come.
  const std::string script = BashCompletion("prog", SmallApp().Root());
  EXPECT_THAT(Offered(script, {"prog", "--address", "show", ""}), ElementsAre("trace", "show"));
  EXPECT_THAT(Offered(script, {"prog", "--address", "=", "show", ""}),
              ElementsAre("trace", "show"));
  EXPECT_THAT(Offered(script, {"prog", "--json", "show", ""}), ElementsAre("all", "none"));
  EXPECT_THAT(Offered(script, {"prog", "--address", ""}), ElementsAre()) << "bash offers files";
}

TEST(Completion, DescriptionsCannotBreakOutOfTheirQuotes) {
  const CompletionCommand root = SmallApp().Root();
  EXPECT_THAT(ZshCompletion("prog", root),
              HasSubstr("'--address:Where it'\\''s listening: a \\ \"path\"'"));
  EXPECT_THAT(FishCompletion("prog", root),
              HasSubstr("-d 'Where it\\'s listening: a \\\\ \"path\"'"));
}

// The command line of the program itself.
class RealApp {
 public:
  RealApp() : app_("kavern", "kavern") { BuildCommandLine(app_, global_, run_); }

  std::string Completion(const std::string& shell) {
    app_.parse("completion " + shell);
    ::testing::internal::CaptureStdout();
    EXPECT_EQ(run_(), kExitOk);
    return ::testing::internal::GetCapturedStdout();
  }
  CompletionCommand Root() const { return DescribeCommands(app_); }

 private:
  CLI::App app_;
  GlobalOptions global_;
  Runner run_;
};

class RealCompletion : public ::testing::TestWithParam<const char*> {};

TEST_P(RealCompletion, HasEverySubcommandOptionAndDescription) {
  RealApp app;
  const std::string script = app.Completion(GetParam());
  const bool fish = std::string(GetParam()) == "fish";
  const bool describes = std::string(GetParam()) != "bash";
  int options = 0;
  ForEach(app.Root(), [&](const CompletionCommand& command) {
    if (!command.path.empty()) {
      std::string path;
      for (const std::string& word : command.path) path += (path.empty() ? "" : " ") + word;
      EXPECT_THAT(script, HasSubstr("'" + path + "'"));
    }
    for (const CompletionOption& option : command.options) {
      for (const std::string& name : option.names) {
        ++options;
        const std::string bare = name.substr(name.find_first_not_of('-'));
        EXPECT_THAT(script, HasSubstr(fish ? "'" + bare + "'" : name));
      }
      if (describes) {
        EXPECT_NE(option.description, "") << option.names[0];
      }
    }
  });
  EXPECT_GT(options, 30);
}

INSTANTIATE_TEST_SUITE_P(Shells, RealCompletion, ::testing::Values("bash", "zsh", "fish"));

TEST(Completion, BashAcceptsTheRealScript) {
  EXPECT_EQ(Bash("set -eu\n" + RealApp().Completion("bash")), "");
}

TEST(Completion, AnUnknownShellIsRefused) {
  EXPECT_THROW(RealApp().Completion("tcsh"), CLI::ParseError);
}

}  // namespace
}  // namespace kavern::cli
