#include "client/cli/bench/fio.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "base/units.h"

extern char** environ;

namespace kavern::cli {
namespace {

using nlohmann::json;

// fio's memory in huge pages, as the RAM tier's is, where the kernel gives any: out of small ones a
// large read is many segments, and a disk may do half of what it can.
constexpr char kHugePages[] = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1";

std::vector<char*> FioEnvironment(std::string& huge_pages) {
  std::vector<char*> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!absl::StartsWith(*variable, "GLIBC_TUNABLES=")) variables.push_back(*variable);
  }
  variables.push_back(huge_pages.data());
  variables.push_back(nullptr);
  return variables;
}

// What the program prints to stdout.
absl::StatusOr<std::string> OutputOf(std::vector<std::string> words) {
  int ends[2] = {-1, -1};
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, writer.get(), STDOUT_FILENO);
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  std::string huge_pages = kHugePages;
  const std::vector<char*> environment = FioEnvironment(huge_pages);
  pid_t pid = 0;
  const int error =
      posix_spawnp(&pid, arguments[0], &actions, nullptr, arguments.data(), environment.data());
  posix_spawn_file_actions_destroy(&actions);
  if (error == ENOENT) {
    return absl::NotFoundError("fio, the reference, is not installed: apt-get install fio");
  }
  if (error != 0) return ErrnoStatus(error, words[0]);
  writer.Reset();

  std::string output;
  std::array<char, 65536> piece{};
  for (;;) {
    const ssize_t got = read(reader.get(), piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    output.append(piece.data(), static_cast<std::size_t>(got));
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return absl::InternalError(absl::StrCat("fio failed: ", output.substr(0, 500)));
  }
  return output;
}

std::vector<std::string> JobWords(const FioJob& job, std::size_t index) {
  std::vector<std::string> words = {
      absl::StrCat("--name=job", index),      absl::StrCat("--rw=", job.write ? "write" : "read"),
      absl::StrCat("--bs=", job.block_bytes), absl::StrCat("--iodepth=", job.depth),
      absl::StrCat("--offset=", job.offset),  absl::StrCat("--size=", job.bytes),
  };
  if (job.write) {
    words.emplace_back("--end_fsync=1");
    if (job.writes_per_flush > 0) {
      words.push_back(absl::StrCat("--fdatasync=", job.writes_per_flush));
    }
  }
  return words;
}

}  // namespace

absl::StatusOr<std::vector<FioResult>> RunFio(const std::string& file,
                                              std::span<const FioJob> jobs) {
  std::vector<std::string> words = {"fio", "--output-format=json"};
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    // Options hold for the job that they follow.
    const std::vector<std::string> job = JobWords(jobs[i], i);
    words.insert(words.end(), job.begin(), job.end());
    words.insert(words.end(), {absl::StrCat("--filename=", file), "--ioengine=io_uring",
                               "--direct=1", "--allow_file_create=0"});
  }
  KAVERN_ASSIGN_OR_RETURN(const std::string output, OutputOf(std::move(words)));
  const json report = json::parse(output.substr(std::min(output.find('{'), output.size())), nullptr,
                                  /*allow_exceptions=*/false);
  if (report.is_discarded() || !report.contains("jobs") || report["jobs"].size() != jobs.size()) {
    return absl::InternalError(absl::StrCat("fio printed: ", output.substr(0, 500)));
  }
  std::vector<FioResult> results;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const json& job = report["jobs"][i];
    const json& side = job[jobs[i].write ? "write" : "read"];
    const double seconds = side.value("runtime", 0.0) / 1e3;
    const double cpu = (job.value("usr_cpu", 0.0) + job.value("sys_cpu", 0.0)) / 100;
    if (seconds <= 0 || side.value("io_bytes", std::uint64_t{0}) != jobs[i].bytes) {
      return absl::InternalError(absl::StrCat("fio moved less than it was to: ", side.dump()));
    }
    results.push_back(
        {static_cast<double>(jobs[i].bytes) / seconds, cpu * job.value("job_runtime", 0.0) / 1e3});
  }
  return results;
}

absl::Status PrepareFioFile(const std::string& file, std::uint64_t bytes) {
  return OutputOf({"fio", "--name=prepare", absl::StrCat("--filename=", file), "--rw=write",
                   absl::StrCat("--bs=", kMiB), "--iodepth=32", "--ioengine=io_uring", "--direct=1",
                   "--refill_buffers", "--end_fsync=1", absl::StrCat("--size=", bytes)})
      .status();
}

}  // namespace kavern::cli
