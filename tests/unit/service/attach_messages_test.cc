#include "service/session/attach_messages.h"

#include <unistd.h>

#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "service/session/store_news.h"

namespace kavern::service {
namespace {

AttachMessage HelloPacket() {
  shm::HelloBody body{};
  CopyPadded("tenant", body.tenant);
  CopyPadded("name\n\x1b[31m", body.client_name);
  return EncodeAttach(shm::AttachType::kHello, body);
}

template <typename Field>
AttachMessage With(AttachMessage message, std::size_t offset, Field value) {
  std::memcpy(message.data() + offset, &value, sizeof(value));
  return message;
}

bool Refused(const AttachMessage& message) {
  return absl::IsInvalidArgument(DecodeFromClient(message).status());
}

TEST(AttachMessagesTest, HelloComesBackWithoutControlCharacters) {
  const auto message = DecodeFromClient(HelloPacket());
  ASSERT_TRUE(message.ok()) << message.status();
  const Hello& hello = std::get<Hello>(*message);
  EXPECT_EQ(hello.tenant, "tenant");
  EXPECT_EQ(hello.client_name, "name??[31m");
}

TEST(AttachMessagesTest, EveryWayToCutAHelloIsRefused) {
  AttachMessage message = HelloPacket();
  while (!message.empty()) {
    message.pop_back();
    EXPECT_TRUE(Refused(message)) << message.size() << " bytes";
  }
  message = HelloPacket();
  message.push_back(std::byte{0});
  EXPECT_TRUE(Refused(message));
}

TEST(AttachMessagesTest, ForeignHeadersAreRefused) {
  const AttachMessage good = HelloPacket();
  EXPECT_TRUE(Refused(With(good, offsetof(shm::AttachHeader, magic), 1u)));
  EXPECT_TRUE(Refused(With(good, offsetof(shm::AttachHeader, version), std::uint16_t{2})));
  EXPECT_TRUE(Refused(With(good, offsetof(shm::AttachHeader, body_bytes), 0xffffffffu)));
  for (std::uint16_t type = 0; type < 20; ++type) {
    if (type == static_cast<std::uint16_t>(shm::AttachType::kHello)) continue;
    EXPECT_TRUE(Refused(With(good, offsetof(shm::AttachHeader, type), type))) << type;
  }
}

TEST(AttachMessagesTest, TextWithoutItsNulIsRefused) {
  AttachMessage message = HelloPacket();
  std::memset(message.data() + sizeof(shm::AttachHeader), 'x', 64);
  EXPECT_TRUE(Refused(message));
}

TEST(AttachMessagesTest, ALongReasonIsCutAndStaysText) {
  const AttachMessage message = EncodeReject(absl::PermissionDeniedError(std::string(5000, 'x')));
  shm::RejectBody body;
  ASSERT_EQ(message.size(), sizeof(shm::AttachHeader) + sizeof(body));
  std::memcpy(&body, message.data() + sizeof(shm::AttachHeader), sizeof(body));
  EXPECT_EQ(body.code, 7);
  EXPECT_EQ(std::strlen(body.message), sizeof(body.message) - 1);
}

// News of one namespace, again and again: what is queued does not grow, and the last word stands.
TEST(StoreNewsTest, ADirectoryThatChangesAThousandTimesIsOnePieceOfNews) {
  StoreNews news;
  const NamespaceFingerprint fingerprint{};
  for (std::uint64_t generation = 1; generation <= 1000; ++generation) {
    news.Directory(fingerprint, generation, 4096, UniqueFd(::dup(0)));
  }
  news.Directory(fingerprint, 999, 4096, UniqueFd(::dup(0)));  // out of order
  ASSERT_EQ(news.directories().size(), 1u);
  EXPECT_EQ(news.directories().at(fingerprint).generation, 1000u);
  EXPECT_NE(news.directories().at(fingerprint).fd, nullptr);
  news.DirectoryGone(fingerprint, 1000);
  ASSERT_EQ(news.directories().size(), 1u);
  EXPECT_EQ(news.directories().at(fingerprint).fd, nullptr);
}

TEST(StoreNewsTest, ADirectoryWithoutADescriptorIsNoNews) {
  StoreNews news;
  news.Directory({}, 1, 4096, UniqueFd());
  EXPECT_TRUE(news.empty());
}

}  // namespace
}  // namespace kavern::service
