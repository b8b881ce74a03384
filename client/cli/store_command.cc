// kavern store: kavernd knows the format, so it looks.
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"

namespace kavern::cli {
namespace {

namespace fs = std::filesystem;

// Where a build and an install put it; empty: not there.
std::string KaverndBesideThis() {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (error) return "";
  for (const fs::path& candidate :
       {self.parent_path() / "kavernd", self.parent_path().parent_path() / "sbin" / "kavernd"}) {
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return "";
}

}  // namespace

int RunStore(const GlobalOptions& global, const StoreOptions& options, const std::string& what) {
  std::vector<std::string> words = {"kavernd"};
  if (!options.config.empty()) words.insert(words.end(), {"--config", options.config});
  for (const std::string& setting : options.overrides) {
    words.insert(words.end(), {"--set", setting});
  }
  words.insert(words.end(), {"store", what});
  if (global.json) words.emplace_back("--json");
  if (what == "verify") {
    words.insert(words.end(), {"--damage-max", std::to_string(options.damage_max)});
  }
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);

  const std::string beside = KaverndBesideThis();
  if (beside.empty()) {
    execvp("kavernd", arguments.data());
  } else {
    execv(beside.c_str(), arguments.data());
  }
  return Fail(absl::NotFoundError(absl::StrCat(
      "cannot run ", beside.empty() ? "kavernd (not beside kavern, nor in PATH)" : beside, ": ",
      std::strerror(errno))));
}

}  // namespace kavern::cli
