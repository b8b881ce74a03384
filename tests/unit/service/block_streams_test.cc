#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "service/request_handlers.h"
#include "tests/unit/service/test_node.h"

namespace kavern::service {
namespace {

using ::testing::HasSubstr;

// One TCP session with one namespace open, and room for 16 parts in flight.
class BlockStreamsTest : public ::testing::Test {
 protected:
  static TestNodeOptions Options() {
    TestNodeOptions options;
    options.request_limits.inflight_bytes_max = 16 * TestNode::kPartBytes;
    return options;
  }

  v1::PutBlocksRequest::Header Header(int first, int count) const {
    v1::PutBlocksRequest::Header header;
    header.set_fingerprint(fingerprint_);
    header.set_keys(TestNode::Keys(first, count));
    for (int number = first; number < first + count; ++number) {
      header.add_checksums(TestNode::Checksum(number, TestNode::Payload(number)));
    }
    return header;
  }
  static std::string Data(int first, int count) {
    std::string data;
    for (int number = first; number < first + count; ++number) data += TestNode::Payload(number);
    return data;
  }
  std::unique_ptr<RequestHandlers::Put> BeginPut(const v1::PutBlocksRequest::Header& header) {
    auto put = node_.handlers().BeginPut(session_, header);
    EXPECT_TRUE(put.ok()) << put.status();
    return put.ok() ? *std::move(put) : nullptr;
  }
  v1::PutBlocksResponse Put(int first, int count, std::size_t piece_bytes) {
    auto put = BeginPut(Header(first, count));
    const std::string data = Data(first, count);
    for (std::size_t at = 0; at < data.size(); at += piece_bytes) {
      EXPECT_TRUE(put->Append(std::string_view(data).substr(at, piece_bytes)).ok());
    }
    v1::PutBlocksResponse response;
    const absl::Status status = put->Finish(&response);
    EXPECT_TRUE(status.ok()) << status;
    return response;
  }
  std::vector<v1::GetBlocksResponse> Get(int first, int count) {
    v1::GetBlocksRequest request;
    request.set_fingerprint(fingerprint_);
    request.set_keys(TestNode::Keys(first, count));
    auto get = node_.handlers().BeginGet(session_, request);
    EXPECT_TRUE(get.ok()) << get.status();
    std::vector<v1::GetBlocksResponse> messages;
    for (v1::GetBlocksResponse message; (*get)->Next(&message); message.Clear()) {
      messages.push_back(message);
    }
    return messages;
  }
  bool Stored(int number) { return Get(number, 1).at(0).code() == 0; }
  void ExpectNothingInFlight() {
    EXPECT_EQ(node_.leased_bytes(), 0u);
    EXPECT_EQ(node_.handlers().inflight_bytes(), 0u);
  }

  TestNode node_{Options()};
  const std::shared_ptr<Session> session_ = node_.TcpSession();
  const std::string fingerprint_ = node_.Open(*session_);
};

TEST_F(BlockStreamsTest, BytesComeBackHoweverTheyWereCut) {
  int first = 0;
  for (const std::size_t piece : {1000u, 4096u, 5000u, 12288u}) {
    EXPECT_EQ(Put(first, 3, piece).outcomes(), std::string({1, 1, 1})) << piece;
    const auto messages = Get(first, 4);
    ASSERT_EQ(messages.size(), 4u);
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(messages[static_cast<std::size_t>(i)].data(), TestNode::Payload(first + i));
      EXPECT_EQ(messages[static_cast<std::size_t>(i)].checksum(),
                TestNode::Checksum(first + i, TestNode::Payload(first + i)));
    }
    EXPECT_EQ(messages[3].code(), 5);
    EXPECT_EQ(messages[3].index(), 3u);
    first += 10;
  }
  ExpectNothingInFlight();
}

// A chain of four of which the first two are stored: their payload in the stream is passed over.
TEST_F(BlockStreamsTest, PayloadOfBlocksThatExistIsSkipped) {
  Put(0, 2, 4096);
  EXPECT_EQ(Put(0, 4, 3000).outcomes(), std::string({2, 2, 1, 1}));
  const auto messages = Get(0, 4);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(messages.at(i).data(), TestNode::Payload(static_cast<int>(i)));
  }
}

TEST_F(BlockStreamsTest, OneWrongChecksumStoresNothingOfTheStream) {
  v1::PutBlocksRequest::Header header = Header(0, 3);
  header.set_checksums(1, header.checksums(1) ^ 1);
  auto put = BeginPut(header);
  ASSERT_TRUE(put->Append(Data(0, 3)).ok());
  v1::PutBlocksResponse response;
  const absl::Status status = put->Finish(&response);
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  BlockKey key;
  std::memcpy(key.bytes.data(), TestNode::Key(1).data(), 16);
  EXPECT_THAT(std::string(status.message()), HasSubstr(key.ToHex()));
  put.reset();
  for (int number = 0; number < 3; ++number) EXPECT_FALSE(Stored(number));
  ExpectNothingInFlight();
}

TEST_F(BlockStreamsTest, TooLittleAndTooMuchDataStoreNothing) {
  v1::PutBlocksResponse response;
  auto put = BeginPut(Header(0, 2));
  ASSERT_TRUE(put->Append(Data(0, 2).substr(1)).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(put->Finish(&response)));
  EXPECT_TRUE(absl::IsInvalidArgument(put->Append("xx")));
  put = BeginPut(Header(0, 2));
  EXPECT_TRUE(absl::IsInvalidArgument(put->Append(std::string((1 << 20) + 1, 'x'))));
  put.reset();
  EXPECT_FALSE(Stored(0));
  ExpectNothingInFlight();
}

TEST_F(BlockStreamsTest, AnAbandonedStreamGivesEverythingBack) {
  auto put = BeginPut(Header(0, 3));
  ASSERT_TRUE(put->Append(Data(0, 2)).ok());
  EXPECT_EQ(node_.leased_bytes(), 3 * TestNode::kPartBytes);
  EXPECT_EQ(node_.handlers().inflight_bytes(), 3 * TestNode::kPartBytes);
  put.reset();
  EXPECT_FALSE(Stored(0));
  ExpectNothingInFlight();
}

TEST_F(BlockStreamsTest, AStreamWhoseSessionEndedStoresNothing) {
  auto put = BeginPut(Header(0, 1));
  ASSERT_TRUE(put->Append(Data(0, 1)).ok());
  session_->FreeEverything();
  v1::PutBlocksResponse response;
  EXPECT_TRUE(absl::IsUnauthenticated(put->Finish(&response)));
}

TEST_F(BlockStreamsTest, PastInflightBytesMaxAStreamIsRefused) {
  auto put = BeginPut(Header(0, 10));
  const absl::Status refused = node_.handlers().BeginPut(session_, Header(20, 7)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("inflight_bytes_max"));
  EXPECT_NE(BeginPut(Header(20, 6)), nullptr);
  put.reset();
  EXPECT_NE(BeginPut(Header(20, 7)), nullptr);
  ExpectNothingInFlight();
}

// Parts of 128 bytes, each in a slot of 4 KiB: what a stream that never ends would pin is what
// counts.
TEST_F(BlockStreamsTest, SmallPartsCountAsTheSlotsThatTheyPin) {
  v1::OpenNamespaceRequest open;
  *open.mutable_spec() = TestNode::Spec("small");
  open.mutable_spec()->mutable_layout()->mutable_groups(0)->set_head_dim(1);
  v1::OpenNamespaceResponse opened;
  ASSERT_TRUE(node_.handlers().OpenNamespace(*session_, open, &opened).ok());
  v1::PutBlocksRequest::Header header = Header(0, 17);
  header.set_fingerprint(opened.fingerprint());
  EXPECT_TRUE(absl::IsResourceExhausted(node_.handlers().BeginPut(session_, header).status()));
  header = Header(0, 16);
  header.set_fingerprint(opened.fingerprint());
  const auto put = BeginPut(header);
  EXPECT_EQ(node_.handlers().inflight_bytes(), 16 * TestNode::kPartBytes);
}

TEST_F(BlockStreamsTest, HeadersOutOfShapeAreNamed) {
  const auto message = [&](const std::function<void(v1::PutBlocksRequest::Header&)>& damage) {
    v1::PutBlocksRequest::Header header = Header(0, 2);
    damage(header);
    const absl::Status status = node_.handlers().BeginPut(session_, header).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(message([](auto& h) { h.add_checksums(1); }), HasSubstr("checksums: got 3"));
  EXPECT_THAT(message([](auto& h) { h.set_shard(4); }), HasSubstr("shard: got 4"));
  EXPECT_THAT(message([](auto& h) { h.set_group(4); }), HasSubstr("group: got 4"));
  v1::PutBlocksRequest::Header durable = Header(0, 2);
  durable.set_durability(v1::DURABILITY_STRICT);
  EXPECT_TRUE(absl::IsInvalidArgument(node_.handlers().BeginPut(session_, durable).status()));
  node_.handlers().Drain();
  EXPECT_TRUE(absl::IsUnavailable(node_.handlers().BeginPut(session_, Header(0, 2)).status()));
}

// One byte of the middle block is flipped in shared memory: it alone is lost, and it is gone
// afterwards.
TEST_F(BlockStreamsTest, ADamagedBlockIsDataLossOnceAndAMissFromThenOn) {
  Put(0, 3, 4096);
  {
    const auto ns = session_->FindNamespace(*ParseFingerprint(fingerprint_));
    const auto keys = ParseKeys(TestNode::Keys(0, 3), 3);
    const auto held = node_.store().Fetch(**ns, *keys, 0, 0);
    held->lease.parts()[1].extent.bytes()[4095] ^= std::byte{1};
  }
  auto messages = Get(0, 3);
  EXPECT_EQ(messages.at(0).data(), TestNode::Payload(0));
  EXPECT_EQ(messages.at(1).code(), 15);
  EXPECT_TRUE(messages.at(1).data().empty());
  EXPECT_EQ(Get(1, 1).at(0).code(), 5);
  EXPECT_EQ(Get(0, 1).at(0).data(), TestNode::Payload(0));
  ExpectNothingInFlight();
}

TEST_F(BlockStreamsTest, NoLeaseIsHeldWhileTheReaderIsSlow) {
  Put(0, 3, 4096);
  v1::GetBlocksRequest request;
  request.set_fingerprint(fingerprint_);
  request.set_keys(TestNode::Keys(0, 3));
  auto get = node_.handlers().BeginGet(session_, request);
  ASSERT_TRUE(get.ok());
  v1::GetBlocksResponse message;
  ASSERT_TRUE((*get)->Next(&message));
  EXPECT_EQ(node_.leased_bytes(), 0u);
  EXPECT_EQ(node_.handlers().inflight_bytes(), TestNode::kPartBytes);
}

}  // namespace
}  // namespace kavern::service
