// A daemon that sends what it must not: the client hangs up, and maps nothing of it.
#include "client/attachment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <thread>

#include "gtest/gtest.h"
#include "service/session/attach_messages.h"

namespace kavern::client {
namespace {

// Welcomes one client, then sends it one message.
class RogueDaemon {
 public:
  RogueDaemon() {
    directory_ = std::filesystem::temp_directory_path() / "kavern-rogue-XXXXXX";
    if (mkdtemp(directory_.data()) == nullptr) std::abort();
    listener_ = UniqueFd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    struct sockaddr_un address {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path().c_str(), sizeof(address.sun_path) - 1);
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_.get(), 4), 0);
  }
  ~RogueDaemon() {
    if (server_.joinable()) server_.join();
    std::filesystem::remove_all(directory_);
  }

  std::string path() const { return directory_ + "/attach"; }

  // The client's attachment, after it was sent the message.
  std::shared_ptr<Attachment> AttachAndSend(const service::AttachMessage& message, UniqueFd fd) {
    server_ = std::thread([this, message, shared = std::make_shared<UniqueFd>(std::move(fd))] {
      peer_ = UniqueFd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      char hello[shm::kAttachMessageBytesMax];
      (void)recv(peer_.get(), hello, sizeof(hello), 0);
      shm::WelcomeBody welcome{};
      service::CopyPadded("default", welcome.tenant);
      Send(service::EncodeAttach(shm::AttachType::kWelcome, welcome), -1);
      Send(message, shared->get());
    });
    Attachment::Options options;
    options.socket_path = path();
    options.mapped_bytes = mapped_bytes_;
    auto attachment = Attachment::Connect(options);
    EXPECT_TRUE(attachment.ok()) << attachment.status();
    server_.join();
    return attachment.ok() ? *attachment : nullptr;
  }

  std::uint64_t mapped_bytes() const { return *mapped_bytes_; }

 private:
  void Send(const service::AttachMessage& message, int fd) {
    struct iovec data = {const_cast<std::byte*>(message.data()), message.size()};
    alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    struct msghdr header {};
    header.msg_iov = &data;
    header.msg_iovlen = 1;
    if (fd >= 0) {
      header.msg_control = control;
      header.msg_controllen = sizeof(control);
      struct cmsghdr* rights = CMSG_FIRSTHDR(&header);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(rights), &fd, sizeof(fd));
    }
    EXPECT_GE(sendmsg(peer_.get(), &header, MSG_NOSIGNAL), 0);
  }

  std::string directory_;
  UniqueFd listener_;
  UniqueFd peer_;
  std::thread server_;
  std::shared_ptr<std::atomic<std::uint64_t>> mapped_bytes_ =
      std::make_shared<std::atomic<std::uint64_t>>(0);
};

UniqueFd Memfd(std::size_t size, int seals) {
  UniqueFd fd(memfd_create("rogue", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(size)), 0);
  EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  return fd;
}

constexpr int kRegionSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

service::AttachMessage RegionMessage(std::uint64_t size) {
  return service::EncodeAttach(shm::AttachType::kRegion,
                               shm::RegionBody{.region_id = 1, .size_bytes = size});
}

TEST(AttachmentTest, ASealedRegionIsMapped) {
  RogueDaemon daemon;
  const auto attachment = daemon.AttachAndSend(RegionMessage(65536), Memfd(65536, kRegionSeals));
  const auto region =
      attachment->WaitForRegion(1, Clock::System().Now() + std::chrono::seconds(20));
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ((*region)->Extent(0, 65536).size(), 65536U);
  EXPECT_TRUE((*region)->Extent(1, 65536).empty());
  EXPECT_TRUE((*region)->Extent(~0ULL, 2).empty());
  EXPECT_EQ(daemon.mapped_bytes(), 65536U);
}

// Whoever holds the file could cut it off under the client, which would die of SIGBUS.
TEST(AttachmentTest, ARegionThatCouldShrinkEndsTheAttachment) {
  RogueDaemon daemon;
  const auto attachment =
      daemon.AttachAndSend(RegionMessage(65536), Memfd(65536, F_SEAL_GROW | F_SEAL_SEAL));
  attachment->WaitUntilEnded();
  EXPECT_TRUE(attachment->ended());
  EXPECT_EQ(daemon.mapped_bytes(), 0U);
}

TEST(AttachmentTest, ARegionSmallerThanItIsSaidToBeEndsTheAttachment) {
  RogueDaemon daemon;
  const auto attachment = daemon.AttachAndSend(RegionMessage(65536), Memfd(4096, kRegionSeals));
  attachment->WaitUntilEnded();
  EXPECT_EQ(daemon.mapped_bytes(), 0U);
}

TEST(AttachmentTest, ARegionWithoutADescriptorEndsTheAttachment) {
  RogueDaemon daemon;
  const auto attachment = daemon.AttachAndSend(RegionMessage(65536), UniqueFd());
  attachment->WaitUntilEnded();
  EXPECT_EQ(daemon.mapped_bytes(), 0U);
}

TEST(AttachmentTest, AMessageThatIsNoneEndsTheAttachment) {
  RogueDaemon daemon;
  const service::AttachMessage rubbish(100, std::byte{0x55});
  const auto attachment = daemon.AttachAndSend(rubbish, UniqueFd());
  attachment->WaitUntilEnded();
  EXPECT_TRUE(attachment->ended());
}

// A directory that a client could write is refused as well.
TEST(AttachmentTest, ADirectoryThatCouldBeWrittenEndsTheAttachment) {
  RogueDaemon daemon;
  shm::DirectoryBody body{};
  body.generation = 1;
  body.size_bytes = 8192;
  const auto attachment = daemon.AttachAndSend(
      service::EncodeAttach(shm::AttachType::kDirectory, body), Memfd(8192, kRegionSeals));
  attachment->WaitUntilEnded();
  EXPECT_TRUE(attachment->ended());
}

}  // namespace
}  // namespace kavern::client
