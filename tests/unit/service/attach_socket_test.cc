#include "service/session/attach_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/service/attach_test_client.h"

namespace kavern::service {
namespace {

class AttachSocketTest : public ::testing::Test {
 protected:
  AttachSocketTest() {
    std::string name = "/tmp/kavern-socket-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) ::abort();
    directory_ = name;
    path_ = name + "/s.attach";
  }
  ~AttachSocketTest() override { std::filesystem::remove_all(directory_); }

  std::string directory_;
  std::string path_;
};

TEST_F(AttachSocketTest, TheModeIsExactWhateverTheUmask) {
  const mode_t former = ::umask(0777);
  auto listening = ListeningSocket::Create(path_, 0660, "");
  ::umask(former);
  ASSERT_TRUE(listening.ok()) << listening.status();
  struct stat found {};
  ASSERT_EQ(::stat(path_.c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 07777, 0660u);
  listening->Close();
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(AttachSocketTest, WhatADeadDaemonLeftIsReplaced) {
  {
    // A bound socket whose process died without unlinking it.
    const UniqueFd dead(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, path_.size());
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ASSERT_TRUE(std::filesystem::exists(path_));
  auto listening = ListeningSocket::Create(path_, 0600, "");
  ASSERT_TRUE(listening.ok()) << listening.status();
  EXPECT_TRUE(AttachTestClient().Connect(path_));
}

TEST_F(AttachSocketTest, ASocketThatSomebodyListensOnIsLeftAlone) {
  auto first = ListeningSocket::Create(path_, 0600, "");
  ASSERT_TRUE(first.ok());
  EXPECT_TRUE(absl::IsAlreadyExists(ListeningSocket::Create(path_, 0600, "").status()));
  EXPECT_TRUE(AttachTestClient().Connect(path_));
}

TEST_F(AttachSocketTest, AFileThatIsNoSocketIsLeftAlone) {
  std::ofstream(path_) << "precious";
  EXPECT_TRUE(absl::IsAlreadyExists(ListeningSocket::Create(path_, 0600, "").status()));
  EXPECT_EQ(std::filesystem::file_size(path_), 8u);
}

// Eight daemons start on one stale socket at once. Exactly one may have it, and must still be
// reachable.
TEST_F(AttachSocketTest, ADirectoryThatIsNotThereIsNamed) {
  const absl::Status status = ListeningSocket::Create(path_ + ".none/socket", 0600, "").status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("the directory " + path_ + ".none does not exist"));
}

TEST_F(AttachSocketTest, OfManyThatStartAtOnceExactlyOneListens) {
  for (int round = 0; round < 20; ++round) {
    std::vector<ListeningSocket> sockets(8);
    std::vector<std::thread> threads;
    threads.reserve(sockets.size());
    for (ListeningSocket& socket : sockets) {
      threads.emplace_back([&] {
        auto created = ListeningSocket::Create(path_, 0600, "");
        if (created.ok()) socket = *std::move(created);
      });
    }
    for (std::thread& thread : threads) thread.join();
    int listening = 0;
    for (const ListeningSocket& socket : sockets) listening += socket.open() ? 1 : 0;
    EXPECT_EQ(listening, 1);
    EXPECT_TRUE(AttachTestClient().Connect(path_));
  }
}

TEST_F(AttachSocketTest, UnknownGroupAndOverlongPathAreRefusedWithoutATrace) {
  EXPECT_TRUE(
      absl::IsInvalidArgument(ListeningSocket::Create(path_, 0600, "no-such-group-here").status()));
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_TRUE(absl::IsInvalidArgument(
      ListeningSocket::Create("/" + std::string(200, 'x'), 0600, "").status()));
}

// A connected child that exits: both ways to its pidfd must tell, the one by socket and the one by
// number.
TEST_F(AttachSocketTest, BothKindsOfPidfdTellOfTheExit) {
  auto listening = ListeningSocket::Create(path_, 0600, "");
  ASSERT_TRUE(listening.ok());
  int hold[2];
  ASSERT_EQ(::pipe2(hold, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(hold[1]);
    AttachTestClient client;
    char byte = 0;
    const bool ok = client.Connect(path_) && ::read(hold[0], &byte, 1) == 0;
    ::_exit(ok ? 0 : 1);
  }
  ::close(hold[0]);
  pollfd incoming{listening->fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&incoming, 1, 20'000), 1);
  const UniqueFd accepted(::accept4(listening->fd(), nullptr, nullptr, SOCK_CLOEXEC));
  const auto peer = GetPeerCredentials(accepted.get());
  ASSERT_TRUE(peer.ok());
  EXPECT_EQ(peer->pid, child);
  const auto by_socket = OpenPeerPidfd(accepted.get(), *peer);
  const auto by_number = OpenPidfd(peer->pid);
  ASSERT_TRUE(by_socket.ok()) << by_socket.status();
  ASSERT_TRUE(by_number.ok()) << by_number.status();
  pollfd exits[2] = {{by_socket->get(), POLLIN, 0}, {by_number->get(), POLLIN, 0}};
  EXPECT_EQ(::poll(exits, 2, 0), 0) << "the child is alive";
  ::close(hold[1]);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(::poll(exits, 2, 20'000), 2);
}

TEST_F(AttachSocketTest, AProcessThatCannotBeSeenCannotBeWatched) {
  EXPECT_TRUE(absl::IsFailedPrecondition(OpenPidfd(0).status()));
}

}  // namespace
}  // namespace kavern::service
