// The client's end of the attach socket, as raw as a hostile client has it.
#ifndef KAVERN_TESTS_UNIT_SERVICE_ATTACH_TEST_CLIENT_H_
#define KAVERN_TESTS_UNIT_SERVICE_ATTACH_TEST_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "proto/kavern/v1/shm_layout.h"

namespace kavern::service {

// Polls `condition` until it holds; false after `seconds`. For what other threads and processes do.
bool Eventually(const std::function<bool()>& condition, int seconds = 20);

struct TestPacket {
  bool end_of_file = false;
  shm::AttachType type{};
  std::vector<std::byte> body;
  UniqueFd fd;

  template <typename Body>
  Body As() const {
    Body value{};
    if (body.size() == sizeof(value)) std::memcpy(&value, body.data(), sizeof(value));
    return value;
  }
};

// Not thread-safe. Makes system calls only, so that a forked child may use it.
class AttachTestClient {
 public:
  // False: refused by the kernel.
  bool Connect(const std::string& path);
  bool SendRaw(std::span<const std::byte> packet, int passed_fd = -1);
  bool SendHello(const std::string& tenant = "", const std::string& name = "test");
  bool SendUnmapped(std::uint64_t region_id);
  // Waits up to 20 s; nullopt then.
  std::optional<TestPacket> Receive();
  // Connects and says hello; the welcome, or nullopt for anything else.
  std::optional<shm::WelcomeBody> Attach(const std::string& path, const std::string& tenant = "");
  // The next packet of this type, skipping others; nullopt at end of file.
  std::optional<TestPacket> ReceiveType(shm::AttachType type);
  void Close() { socket_.Reset(); }
  int fd() const { return socket_.get(); }

 private:
  UniqueFd socket_;
};

// A child process that attaches and does as it is told; killed and reaped at the latest with this
// object.
class ForkedClient {
 public:
  // Runs as `uid` if given (needs root).
  ForkedClient(const std::string& path, const std::string& tenant,
               std::optional<unsigned> uid = std::nullopt);
  ~ForkedClient();

  // The welcome that the child got; nullopt: it was rejected (then `reject_code()`), or could not
  // connect.
  const std::optional<shm::WelcomeBody>& welcome() const { return welcome_; }
  int reject_code() const { return reject_code_; }
  int pid() const { return pid_; }

  // Each returns once the child has done it.
  void CloseSocket();
  // A grandchild that inherits the socket and stays until this object goes; returns its pid.
  int ForkHolder();
  // SIGKILL, and waits for the exit.
  void Kill();

 private:
  char Command(char command);

  int pid_ = -1;
  int holder_pid_ = -1;
  UniqueFd commands_;
  UniqueFd answers_;
  std::optional<shm::WelcomeBody> welcome_;
  int reject_code_ = 0;
};

}  // namespace kavern::service

#endif  // KAVERN_TESTS_UNIT_SERVICE_ATTACH_TEST_CLIENT_H_
