#include "tests/unit/service/attach_test_client.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "service/session/attach_messages.h"

namespace kavern::service {
namespace {

// What the child tells first.
struct Report {
  int reject_code = -1;  // 0: welcome
  int holder_pid = -1;
  shm::WelcomeBody welcome{};
};

void Must(bool ok) {
  if (!ok) ::abort();
}

Report AttachAndReport(AttachTestClient& client, const std::string& path,
                       const std::string& tenant) {
  Report report;
  if (!client.Connect(path) || !client.SendHello(tenant)) return report;
  const auto answer = client.Receive();
  if (!answer) return report;
  if (answer->type == shm::AttachType::kWelcome) {
    report.reject_code = 0;
    report.welcome = answer->As<shm::WelcomeBody>();
  } else if (answer->type == shm::AttachType::kReject) {
    report.reject_code = answer->As<shm::RejectBody>().code;
  }
  return report;
}

// Obeys until its parent closes the pipe.
[[noreturn]] void RunChild(int commands, int answers, const std::string& path,
                           const std::string& tenant, std::optional<unsigned> uid) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (uid) Must(::setresgid(*uid, *uid, *uid) == 0 && ::setresuid(*uid, *uid, *uid) == 0);
  AttachTestClient client;
  const Report report = AttachAndReport(client, path, tenant);
  Must(::write(answers, &report, sizeof(report)) == sizeof(report));
  char command = 0;
  while (::read(commands, &command, 1) == 1) {
    int value = 0;
    if (command == 'c') client.Close();
    if (command == 'f') {
      value = ::fork();
      if (value == 0) {
        while (true) ::pause();
      }
    }
    Must(::write(answers, &value, sizeof(value)) == sizeof(value));
  }
  ::_exit(0);
}

}  // namespace

bool Eventually(const std::function<bool()>& condition, int seconds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

bool AttachTestClient::Connect(const std::string& path) {
  socket_ = UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return ::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) ==
         0;
}

bool AttachTestClient::SendRaw(std::span<const std::byte> packet, int passed_fd) {
  iovec data{const_cast<std::byte*>(packet.data()), packet.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (passed_fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    *header = {
        .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    std::memcpy(CMSG_DATA(header), &passed_fd, sizeof(int));
  }
  return ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(packet.size());
}

bool AttachTestClient::SendHello(const std::string& tenant, const std::string& name) {
  shm::HelloBody body{};
  CopyPadded(tenant, body.tenant);
  CopyPadded(name, body.client_name);
  return SendRaw(EncodeAttach(shm::AttachType::kHello, body));
}

bool AttachTestClient::SendUnmapped(std::uint64_t region_id) {
  return SendRaw(EncodeAttach(shm::AttachType::kRegionUnmapped, shm::RegionIdBody{region_id}));
}

std::optional<TestPacket> AttachTestClient::Receive() {
  pollfd waiting{socket_.get(), POLLIN, 0};
  if (::poll(&waiting, 1, 20'000) != 1) return std::nullopt;
  std::array<std::byte, shm::kAttachMessageBytesMax> buffer;
  iovec data{buffer.data(), buffer.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t received = ::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC);
  TestPacket packet;
  packet.end_of_file = received < static_cast<ssize_t>(sizeof(shm::AttachHeader));
  if (packet.end_of_file) return packet;
  shm::AttachHeader header;
  std::memcpy(&header, buffer.data(), sizeof(header));
  packet.type = static_cast<shm::AttachType>(header.type);
  packet.body.assign(buffer.begin() + sizeof(header), buffer.begin() + received);
  const cmsghdr* passed = CMSG_FIRSTHDR(&message);
  if (passed != nullptr && passed->cmsg_type == SCM_RIGHTS) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(passed), sizeof(fd));
    packet.fd = UniqueFd(fd);
  }
  return packet;
}

std::optional<shm::WelcomeBody> AttachTestClient::Attach(const std::string& path,
                                                         const std::string& tenant) {
  if (!Connect(path) || !SendHello(tenant)) return std::nullopt;
  const auto answer = Receive();
  if (!answer || answer->end_of_file || answer->type != shm::AttachType::kWelcome) {
    return std::nullopt;
  }
  return answer->As<shm::WelcomeBody>();
}

std::optional<TestPacket> AttachTestClient::ReceiveType(shm::AttachType type) {
  while (true) {
    auto packet = Receive();
    if (!packet || packet->end_of_file) return std::nullopt;
    if (packet->type == type) return packet;
  }
}

ForkedClient::ForkedClient(const std::string& path, const std::string& tenant,
                           std::optional<unsigned> uid) {
  int commands[2];
  int answers[2];
  Must(::pipe2(commands, O_CLOEXEC) == 0 && ::pipe2(answers, O_CLOEXEC) == 0);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::close(commands[1]);
    ::close(answers[0]);
    RunChild(commands[0], answers[1], path, tenant, uid);
  }
  ::close(commands[0]);
  ::close(answers[1]);
  commands_ = UniqueFd(commands[1]);
  answers_ = UniqueFd(answers[0]);
  Report report;
  Must(::read(answers_.get(), &report, sizeof(report)) == sizeof(report));
  reject_code_ = report.reject_code;
  if (report.reject_code == 0) welcome_ = report.welcome;
}

ForkedClient::~ForkedClient() {
  if (pid_ > 0) Kill();
  if (holder_pid_ > 0) ::kill(holder_pid_, SIGKILL);
}

char ForkedClient::Command(char command) {
  Must(::write(commands_.get(), &command, 1) == 1);
  return command;
}

void ForkedClient::CloseSocket() {
  Command('c');
  int value = 0;
  Must(::read(answers_.get(), &value, sizeof(value)) == sizeof(value));
}

int ForkedClient::ForkHolder() {
  Command('f');
  Must(::read(answers_.get(), &holder_pid_, sizeof(holder_pid_)) == sizeof(holder_pid_));
  return holder_pid_;
}

void ForkedClient::Kill() {
  ::kill(pid_, SIGKILL);
  Must(::waitpid(pid_, nullptr, 0) == pid_);
  pid_ = -1;
}

}  // namespace kavern::service
