// Leases: what they hold, and that their end is their end.
#include "base/copy_and_checksum.h"
#include "tests/unit/client/client_fixture.h"

namespace kavern {
namespace {

class LeaseTest : public ClientTest {
 protected:
  LeaseTest() : client_(Connect()), ns_(Open(*client_)), keys_(Keys(*ns_, 1, 4)) {}

  absl::Status Fill(StoreLease& lease, std::size_t i) {
    const std::vector<std::byte> payload = Payload(keys_[i]);
    const ConstBuffer piece(payload);
    return lease.Fill(i, {&piece, 1});
  }

  std::unique_ptr<Client> client_;
  std::shared_ptr<Namespace> ns_;
  std::vector<BlockKey> keys_;
};

TEST_F(LeaseTest, AStoreLeaseThatIsDroppedGivesItsMemoryBack) {
  {
    const auto lease = ns_->BeginStore({.keys = keys_});
    ASSERT_TRUE(lease.ok());
    EXPECT_EQ(daemon_.leased_bytes(), 4 * kPartBytes);
  }
  EXPECT_EQ(daemon_.leased_bytes(), 0U);
  EXPECT_EQ(ns_->Match(keys_), 0U);
}

// The third of four was not filled: a block without its ancestors would be useless.
TEST_F(LeaseTest, ACommitPublishesUpToTheFirstPartThatWasNotFilled) {
  auto lease = ns_->BeginStore({.keys = keys_});
  ASSERT_TRUE(lease.ok());
  for (const std::size_t i : {0, 1, 3}) ASSERT_TRUE(Fill(*lease, i).ok());
  ASSERT_TRUE(lease->Commit().ok());
  EXPECT_EQ(ns_->Match(keys_), 2U);
  EXPECT_EQ(daemon_.leased_bytes(), 0U);
  EXPECT_EQ(Fetch(*ns_, std::span(keys_).first(2)), AllOk(2));
}

TEST_F(LeaseTest, ACommitOfNothingIsRefusedAndFreesTheLease) {
  auto lease = ns_->BeginStore({.keys = keys_});
  ASSERT_TRUE(lease.ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(lease->Commit()));
  EXPECT_EQ(daemon_.leased_bytes(), 0U);
}

// As a GPU copy does it: the bytes come from elsewhere, and the caller has their checksum.
TEST_F(LeaseTest, TheCallerMayWriteAndChecksumItself) {
  auto lease = ns_->BeginStore({.keys = {keys_.data(), 1}});
  ASSERT_TRUE(lease.ok());
  const std::vector<std::byte> payload = Payload(keys_[0]);
  std::memcpy(lease->bytes(0).data(), payload.data(), payload.size());
  ASSERT_TRUE(lease->SetChecksum(0, Crc32c(payload, PartChecksumSeed(keys_[0], 0))).ok());
  ASSERT_TRUE(lease->Commit().ok());
  EXPECT_EQ(Fetch(*ns_, {keys_.data(), 1}), AllOk(1));
}

TEST_F(LeaseTest, AFetchLeaseThatIsDroppedIsReleasedInTheBackground) {
  ASSERT_TRUE(Store(*ns_, keys_).ok());
  {
    const auto lease = ns_->Fetch({.keys = keys_});
    ASSERT_TRUE(lease.ok());
    EXPECT_EQ(daemon_.leased_bytes(), 4 * kPartBytes);
  }
  EXPECT_TRUE(Eventually([&] { return daemon_.leased_bytes() == 0; }));
}

// The bytes of a lease stay while others fill the tier many times over.
TEST_F(LeaseTest, WhatIsLeasedIsNotEvicted) {
  ASSERT_TRUE(Store(*ns_, keys_).ok());
  auto lease = ns_->Fetch({.keys = keys_});
  ASSERT_TRUE(lease.ok());
  for (std::uint32_t chain = 2; chain < 60; ++chain) {
    ASSERT_TRUE(Store(*ns_, Keys(*ns_, chain, 64)).ok());
  }
  EXPECT_GT(daemon_.store().GetCounters().evicted_blocks, 0U);
  std::vector<std::byte> payload(kPartBytes);
  const MutableBuffer piece(payload);
  for (std::size_t i = 0; i < keys_.size(); ++i) {
    ASSERT_TRUE(lease->CopyTo(i, {&piece, 1}).ok());
    EXPECT_EQ(payload, Payload(keys_[i]));
  }
}

TEST_F(LeaseTest, AMovedFromLeaseHoldsNothing) {
  ASSERT_TRUE(Store(*ns_, keys_).ok());
  auto lease = ns_->Fetch({.keys = keys_});
  ASSERT_TRUE(lease.ok());
  FetchLease taken = *std::move(lease);
  EXPECT_EQ(taken.size(), 4U);
  EXPECT_TRUE(taken.Release().ok());
  FetchLease empty;
  EXPECT_EQ(empty.size(), 0U);
  EXPECT_TRUE(empty.bytes(0).empty());
  EXPECT_TRUE(absl::IsFailedPrecondition(empty.Release()));
  StoreLease none;
  EXPECT_TRUE(none.outcomes().empty());
  EXPECT_TRUE(absl::IsFailedPrecondition(none.Commit()));
  EXPECT_EQ(daemon_.leased_bytes(), 0U);
}

TEST_F(LeaseTest, ALeaseThatEndedGivesNoMemory) {
  auto write = ns_->BeginStore({.keys = keys_});
  ASSERT_TRUE(write.ok());
  for (std::size_t i = 0; i < keys_.size(); ++i) ASSERT_TRUE(Fill(*write, i).ok());
  ASSERT_TRUE(write->Commit().ok());
  EXPECT_TRUE(write->bytes(0).empty());
  EXPECT_TRUE(absl::IsFailedPrecondition(Fill(*write, 0)));
  EXPECT_TRUE(absl::IsFailedPrecondition(write->SetChecksum(0, 1)));
  EXPECT_TRUE(absl::IsFailedPrecondition(write->Commit()));
  write->Abort();
  EXPECT_EQ(daemon_.calls("AbortStore"), 0U);

  auto read = ns_->Fetch({.keys = keys_});
  ASSERT_TRUE(read.ok());
  ASSERT_TRUE(read->Release().ok());
  EXPECT_TRUE(read->bytes(0).empty());
  std::vector<std::byte> payload(kPartBytes);
  const MutableBuffer piece(payload);
  EXPECT_TRUE(absl::IsFailedPrecondition(read->CopyTo(0, {&piece, 1})));
  EXPECT_TRUE(absl::IsFailedPrecondition(read->Release()));
  EXPECT_EQ(Fetch(*ns_, keys_), AllOk(4));
}

TEST_F(LeaseTest, PiecesOfTheWrongLengthAreRefusedAndTheLeaseGoesOn) {
  auto write = ns_->BeginStore({.keys = keys_});
  ASSERT_TRUE(write.ok());
  std::vector<std::byte> memory(kPartBytes + 1);
  const ConstBuffer longer(memory);
  EXPECT_TRUE(absl::IsInvalidArgument(write->Fill(0, {&longer, 1})));
  for (std::size_t i = 0; i < keys_.size(); ++i) ASSERT_TRUE(Fill(*write, i).ok());
  ASSERT_TRUE(write->Commit().ok());
  auto read = ns_->Fetch({.keys = keys_});
  ASSERT_TRUE(read.ok());
  const MutableBuffer target(memory);
  EXPECT_TRUE(absl::IsInvalidArgument(read->CopyTo(0, {&target, 1})));
  const MutableBuffer fitting = target.first(kPartBytes);
  EXPECT_TRUE(read->CopyTo(0, {&fitting, 1}).ok());
  EXPECT_FALSE(read->CopyTo(99, {&fitting, 1}).ok());
}

}  // namespace
}  // namespace kavern
