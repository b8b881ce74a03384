#include "client/cli/replay/replay_processes.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"

namespace kavern::cli {
namespace {

struct Child {
  pid_t pid = -1;
  UniqueFd pipe;  // its answer: JSON until the end of file
  std::string answer;
};

void WriteAll(int fd, const std::string& text) {
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;  // the parent is gone
    done += static_cast<std::size_t>(n);
  }
}

std::string Answer(const absl::StatusOr<ReplayStats>& played) {
  if (played.ok()) return ToJson(*played).dump();
  return nlohmann::json{{"code", static_cast<int>(played.status().code())},
                        {"message", std::string(played.status().message())}}
      .dump();
}

absl::StatusOr<ReplayStats> ParseAnswer(const std::string& answer, int wait_status) {
  const auto object = nlohmann::json::parse(answer, nullptr, false);
  ReplayStats stats;
  if (object.is_object() && FromJson(object, &stats)) return stats;
  if (object.is_object() && object.contains("code") && object.contains("message")) {
    return absl::Status(object["code"].get<absl::StatusCode>(),
                        object["message"].get<std::string>());
  }
  return absl::InternalError(
      absl::StrCat("a replay process ended without an answer, wait status ", wait_status));
}

// Reads what there is. False at the end of file.
bool ReadSome(Child& child) {
  char buffer[65536];
  const ssize_t n = read(child.pipe.get(), buffer, sizeof(buffer));
  if (n > 0) child.answer.append(buffer, static_cast<std::size_t>(n));
  return n > 0 || (n < 0 && errno == EINTR);
}

void CollectAnswers(std::vector<Child>& children, std::chrono::milliseconds interval,
                    const std::function<void()>& redraw) {
  std::size_t open = children.size();
  while (open > 0) {
    std::vector<pollfd> waits;
    for (const Child& child : children) {
      waits.push_back({child.pipe.valid() ? child.pipe.get() : -1, POLLIN, 0});
    }
    poll(waits.data(), waits.size(), static_cast<int>(interval.count()));
    for (std::size_t i = 0; i < children.size(); ++i) {
      if (waits[i].revents == 0 || ReadSome(children[i])) continue;
      children[i].pipe.Reset();
      --open;
    }
    redraw();
  }
}

}  // namespace

absl::StatusOr<ReplayStats> PlayInProcesses(
    std::uint32_t processes,
    const std::function<absl::StatusOr<ReplayStats>(std::uint32_t index)>& play,
    std::chrono::milliseconds interval, const std::function<void()>& redraw) {
  std::vector<Child> children;
  absl::Status failure;
  for (std::uint32_t index = 0; index < processes; ++index) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
      failure = ErrnoStatus(errno, "pipe of a replay process");
      break;
    }
    Child child;
    child.pipe = UniqueFd(ends[0]);
    UniqueFd write_end(ends[1]);
    child.pid = fork();
    if (child.pid == 0) {
      WriteAll(write_end.get(), Answer(play(index)));
      _exit(0);
    }
    if (child.pid < 0) {
      failure = ErrnoStatus(errno, "fork of a replay process");
      break;
    }
    children.push_back(std::move(child));
  }
  CollectAnswers(children, interval, redraw);
  ReplayStats total;
  for (const Child& child : children) {
    int wait_status = 0;
    while (waitpid(child.pid, &wait_status, 0) < 0 && errno == EINTR) {
    }
    const auto stats = ParseAnswer(child.answer, wait_status);
    if (stats.ok()) {
      total.Add(*stats);
    } else if (failure.ok()) {
      failure = stats.status();
    }
  }
  if (!failure.ok()) return failure;
  return total;
}

}  // namespace kavern::cli
