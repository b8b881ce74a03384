#include "tests/integration/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

namespace kavern {
namespace {

constexpr int kReadTimeoutMs = 100000;

// False: nothing more will come.
bool ReadSome(int fd, std::string* text) {
  struct pollfd wait = {fd, POLLIN, 0};
  if (poll(&wait, 1, kReadTimeoutMs) <= 0) return false;
  char buffer[4096];
  const ssize_t n = read(fd, buffer, sizeof(buffer));
  if (n <= 0) return false;
  text->append(buffer, static_cast<std::size_t>(n));
  return true;
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& arguments) {
  int to_child[2];
  int from_child[2];
  if (pipe2(to_child, O_CLOEXEC) != 0 || pipe2(from_child, O_CLOEXEC) != 0) std::abort();
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(to_child[0], STDIN_FILENO);
    dup2(from_child[1], STDOUT_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  if (pid_ < 0) std::abort();
  close(to_child[0]);
  close(from_child[1]);
  stdin_ = UniqueFd(to_child[1]);
  stdout_ = UniqueFd(from_child[0]);
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      stdin_(std::move(other.stdin_)),
      stdout_(std::move(other.stdout_)),
      unread_(std::move(other.unread_)) {}

ChildProcess::~ChildProcess() {
  Kill();
}

std::string ChildProcess::ReadLine() {
  for (;;) {
    const std::size_t end = unread_.find('\n');
    if (end != std::string::npos) {
      std::string line = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      return line;
    }
    if (!ReadSome(stdout_.get(), &unread_)) return "";
  }
}

std::string ChildProcess::ReadAll() {
  while (ReadSome(stdout_.get(), &unread_)) {
  }
  return std::exchange(unread_, "");
}

void ChildProcess::WriteLine(const std::string& line) {
  const std::string text = line + "\n";
  if (write(stdin_.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    std::abort();
  }
}

void ChildProcess::Signal(int signal_number) const {
  if (pid_ > 0) kill(pid_, signal_number);
}

int ChildProcess::Wait() {
  if (pid_ <= 0) return -1;
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void ChildProcess::Kill() {
  Signal(SIGKILL);
  Wait();
}

CommandResult RunCommand(const std::vector<std::string>& arguments) {
  ChildProcess process(arguments);
  CommandResult result;
  result.output = process.ReadAll();
  result.status = process.Wait();
  return result;
}

}  // namespace kavern
