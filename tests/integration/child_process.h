// Real processes, as a test's children: started with fork and exec, ended at the latest with their
// object.
#ifndef KAVERN_TESTS_INTEGRATION_CHILD_PROCESS_H_
#define KAVERN_TESTS_INTEGRATION_CHILD_PROCESS_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/unique_fd.h"

namespace kavern {

class ChildProcess {
 public:
  // stdin and stdout are pipes to this process; stderr is shared with it.
  explicit ChildProcess(const std::vector<std::string>& arguments);
  ~ChildProcess();
  ChildProcess(ChildProcess&&) noexcept;
  ChildProcess& operator=(ChildProcess&&) = delete;

  pid_t pid() const { return pid_; }
  // The next line of its stdout; empty at the end of file or after 100 s.
  std::string ReadLine();
  // Everything that it prints until it closes stdout.
  std::string ReadAll();
  void WriteLine(const std::string& line);

  void Signal(int signal_number) const;
  // Waits for its end; the exit status, or 128 + signal.
  int Wait();
  // SIGKILL and Wait.
  void Kill();

 private:
  pid_t pid_ = -1;
  UniqueFd stdin_;
  UniqueFd stdout_;
  std::string unread_;
};

// Runs to the end: exit status and stdout.
struct CommandResult {
  int status = 0;
  std::string output;
};
CommandResult RunCommand(const std::vector<std::string>& arguments);

}  // namespace kavern

#endif  // KAVERN_TESTS_INTEGRATION_CHILD_PROCESS_H_
