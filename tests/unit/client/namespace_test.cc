// Store, match and fetch through the public interface.
#include <algorithm>

#include "base/copy_and_checksum.h"
#include "tests/fakes/temp_directory.h"
#include "tests/unit/client/client_fixture.h"
#include "tiers/nvme/disk_format.h"

namespace kavern {
namespace {

using NamespaceTest = ClientTest;

TEST_F(NamespaceTest, WhatWasStoredIsMatchedWithoutACallAndComesBack) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 20);
  EXPECT_EQ(ns->Match(keys), 0U);
  ASSERT_TRUE(Store(*ns, keys).ok());
  EXPECT_EQ(ns->Match(keys), keys.size());
  EXPECT_EQ(ns->Match(std::span(keys).first(7)), 7U);
  EXPECT_EQ(ns->Match(Keys(*ns, 2, 20)), 0U);
  EXPECT_EQ(ns->Match({}), 0U);
  EXPECT_EQ(daemon_.calls("Match"), 0U);
  EXPECT_EQ(Fetch(*ns, keys), AllOk(keys.size()));
  EXPECT_TRUE(Eventually([&] { return daemon_.leased_bytes() == 0; }));
}

// The lease of a fetch is over when the call returns, for a caller that counts on it.
TEST_F(NamespaceTest, AFetchCanWaitForItsRelease) {
  ClientOptions options;
  options.release_in_background = false;
  const auto client = Connect(options);
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 20);
  ASSERT_TRUE(Store(*ns, keys).ok());
  EXPECT_EQ(Fetch(*ns, keys), AllOk(keys.size()));
  EXPECT_EQ(daemon_.leased_bytes(), 0U);
}

// More than the session may have under lease at a time: it comes and goes in parts, and none of it
// is lost.
TEST_F(NamespaceTest, WhatIsTooMuchAtATimeComesInParts) {
  InProcessDaemon daemon(4 << 20, 256 << 10, /*lease_bytes_max=*/8 * kPartBytes);
  ClientOptions options;
  options.release_in_background = false;
  const auto client = daemon.Connect(options);
  ASSERT_TRUE(client->WaitUntilAttached(std::chrono::seconds(20)).ok());
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 20);
  const auto stored = Store(*ns, keys);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->outcomes, std::vector<StoreOutcome>(20, StoreOutcome::kStored));
  EXPECT_EQ(daemon.calls("BeginStore"), 10U);
  EXPECT_EQ(Fetch(*ns, keys), AllOk(keys.size()));
  EXPECT_EQ(daemon.calls("Fetch"), 10U);
}

// Back-pressure: another try would add to what it is about.
TEST_F(NamespaceTest, AFetchThatIsRefusedIsNotTriedAgain) {
  ClientOptions options;
  options.release_in_background = false;
  const auto client = Connect(options);
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 5);
  ASSERT_TRUE(Store(*ns, keys).ok());
  daemon_.FailNext("Fetch", absl::ResourceExhaustedError("256 calls are in progress"));
  EXPECT_EQ(Fetch(*ns, keys),
            std::vector<absl::StatusCode>(5, absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(daemon_.calls("Fetch"), 1U);
}

TEST_F(NamespaceTest, AnotherClientFindsWhatThisOneStored) {
  const auto first = Connect();
  const auto keys = Keys(*Open(*first), 1, 20);
  ASSERT_TRUE(Store(*Open(*first), keys).ok());
  const auto second = Connect();
  const auto ns = Open(*second);
  EXPECT_EQ(ns->Match(keys), keys.size());
  EXPECT_EQ(Fetch(*ns, keys), AllOk(keys.size()));
}

TEST_F(NamespaceTest, AStoreIsSplitIntoRequestsAndStaysOneChain) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 30);
  ASSERT_TRUE(Store(*ns, std::span(keys).first(10)).ok());
  ASSERT_TRUE(Store(*ns, std::span(keys).subspan(10), keys[9]).ok());
  const auto again = Store(*ns, keys);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->outcomes, std::vector<StoreOutcome>(30, StoreOutcome::kExists));
  EXPECT_EQ(again->stored_bytes, 0U);
  EXPECT_EQ(ns->Match(keys), keys.size());
}

// Pieces are what an engine has: a layer here, a layer there.
TEST_F(NamespaceTest, PiecesAreGatheredAndScatteredInOrder) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 2);
  std::vector<std::vector<std::byte>> payloads = {Payload(keys[0]), Payload(keys[1])};
  std::vector<ConstBuffer> sources;
  for (const auto& payload : payloads) {
    sources.push_back(std::span(payload).first(1000));
    sources.push_back(std::span(payload).subspan(1000, 96));
    sources.push_back(std::span(payload).subspan(1096));
  }
  ASSERT_TRUE(ns->Store({.keys = keys}, sources).ok());
  std::vector<std::byte> back(2 * kPartBytes);
  std::vector<MutableBuffer> targets;
  for (std::size_t part = 0; part < 2; ++part) {
    const MutableBuffer whole = std::span(back).subspan(part * kPartBytes, kPartBytes);
    targets.push_back(whole.first(4000));
    targets.push_back(whole.subspan(4000));
  }
  const auto fetched = ns->FetchInto({.keys = keys}, targets);
  ASSERT_TRUE(fetched.ok() && fetched->all_ok());
  EXPECT_TRUE(std::equal(back.begin(), back.begin() + kPartBytes, payloads[0].begin()));
  EXPECT_TRUE(std::equal(back.begin() + kPartBytes, back.end(), payloads[1].begin()));
}

TEST_F(NamespaceTest, BuffersOfTheWrongSizeAreRefusedBeforeAnyCall) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 2);
  std::vector<std::byte> memory(kPartBytes);
  const std::vector<ConstBuffer> short_by_one = {memory, ConstBuffer(memory).first(kPartBytes - 1)};
  EXPECT_TRUE(absl::IsInvalidArgument(ns->Store({.keys = keys}, short_by_one).status()));
  const std::vector<ConstBuffer> too_few = {memory};
  EXPECT_TRUE(absl::IsInvalidArgument(ns->Store({.keys = keys}, too_few).status()));
  const std::vector<ConstBuffer> both = {memory, memory};
  EXPECT_TRUE(absl::IsInvalidArgument(ns->Store({.keys = keys, .shard = 1}, both).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ns->Store({.keys = keys, .group = 9}, both).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ns->Store({}, {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ns->Fetch({.keys = keys, .shard = 1}).status()));
  EXPECT_EQ(daemon_.calls("BeginStore") + daemon_.calls("Fetch"), 0U);
}

// Somebody scribbles over shared memory that the daemon has published.
TEST_F(NamespaceTest, DamagedBytesAreDataLossThenAMiss) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 3);
  auto lease = ns->BeginStore({.keys = keys});
  ASSERT_TRUE(lease.ok());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const std::vector<std::byte> payload = Payload(keys[i]);
    const ConstBuffer piece(payload);
    ASSERT_TRUE(lease->Fill(i, {&piece, 1}).ok());
  }
  const MutableBuffer shared = lease->bytes(1);
  ASSERT_TRUE(lease->Commit().ok());
  shared[77] ^= std::byte{1};
  EXPECT_THAT(Fetch(*ns, keys),
              testing::ElementsAre(absl::StatusCode::kOk, absl::StatusCode::kDataLoss,
                                   absl::StatusCode::kOk));
  EXPECT_TRUE(Eventually([&] { return ns->Match(keys) == 1; }));
  EXPECT_EQ(Fetch(*ns, keys)[1], absl::StatusCode::kNotFound);
  EXPECT_EQ(daemon_.store().GetCounters().damaged_blocks, 1U);
  // Stored again, the chain is whole.
  ASSERT_TRUE(Store(*ns, std::span(keys).subspan(1), keys[0]).ok());
  EXPECT_EQ(Fetch(*ns, keys), AllOk(3));
}

TEST_F(NamespaceTest, TheBytesPlaneStoresAndFetchesTheSameBlocks) {
  ClientOptions options;
  options.force_bytes_plane = true;
  const auto remote = Connect(options);
  const auto local = Connect();
  const auto by_bytes = Open(*remote);
  const auto by_memory = Open(*local);
  const auto keys = Keys(*by_bytes, 1, 10);
  const auto by_message = Store(*by_bytes, std::span(keys).first(5));
  ASSERT_TRUE(by_message.ok()) << by_message.status();
  ASSERT_TRUE(Store(*by_memory, std::span(keys).subspan(5), keys[4]).ok());
  EXPECT_EQ(Fetch(*by_bytes, keys), AllOk(10));
  EXPECT_EQ(Fetch(*by_memory, keys), AllOk(10));
  EXPECT_GT(daemon_.calls("PutBlocks"), 0U);
  EXPECT_GT(daemon_.calls("GetBlocks"), 0U);
}

TEST_F(NamespaceTest, MissesStandBetweenHits) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 4);
  ASSERT_TRUE(Store(*ns, std::span(keys).first(2)).ok());
  const auto other = Keys(*ns, 2, 1);
  const std::vector<BlockKey> mixed = {keys[0], other[0], keys[1], keys[3]};
  EXPECT_THAT(Fetch(*ns, mixed),
              testing::ElementsAre(absl::StatusCode::kOk, absl::StatusCode::kNotFound,
                                   absl::StatusCode::kOk, absl::StatusCode::kNotFound));
}

// Copies run in four threads, several callers at a time, on one client.
TEST_F(NamespaceTest, ManyThreadsShareOneClient) {
  ClientOptions options;
  options.copy_threads = 4;
  const auto client = Connect(options);
  const auto ns = Open(*client);
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint32_t round = 0; round < 30; ++round) {
        const auto keys = Keys(*ns, t * 100 + round % 10, 24);
        EXPECT_TRUE(Store(*ns, keys).ok());
        ns->Match(keys);
        Fetch(*ns, keys);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(Eventually([&] { return daemon_.leased_bytes() == 0; }));
  EXPECT_GT(daemon_.store().GetCounters().fetch_hit_blocks, 0U);
}

TEST_F(NamespaceTest, AConversationIsToldAndDescribed) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 4);
  ASSERT_TRUE(Store(*ns, keys).ok());
  EXPECT_EQ(ns->conversation_limits().priority_max, 100U);
  EXPECT_EQ(ns->conversation_limits().ttl_max, std::chrono::hours(24));
  EXPECT_EQ(ns->conversation_limits().ttl_default, std::chrono::hours(1));
  const auto terms = ns->UpdateConversation({.name = "chat",
                                             .leaf = keys[3],
                                             .token_count = 64,
                                             .priority = 60,
                                             .ttl = std::chrono::hours(100)});
  ASSERT_TRUE(terms.ok()) << terms.status();
  EXPECT_EQ(terms->priority, 60U);
  EXPECT_EQ(terms->ttl, std::chrono::hours(24));
  EXPECT_EQ(terms->updates, 1U);
  const auto info = ns->DescribeConversation("chat");
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->leaf, keys[3]);
  EXPECT_EQ(info->leaf_tier, Tier::kRam);
  EXPECT_EQ(info->token_count, 64U);
  EXPECT_EQ(info->priority, 60U);
  EXPECT_TRUE(absl::IsNotFound(ns->DescribeConversation("another").status()));
  EXPECT_TRUE(absl::IsNotFound(
      ns->UpdateConversation({.name = "c", .leaf = Keys(*ns, 2, 1)[0], .token_count = 16})
          .status()));
}

// A restarted daemon knows none, and can be told again.
TEST_F(NamespaceTest, AConversationIsToldAgainAfterARestart) {
  const auto client = Connect();
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 1);
  ASSERT_TRUE(Store(*ns, keys).ok());
  const ConversationUpdate update = {.name = "chat", .leaf = keys[0], .token_count = 16};
  ASSERT_TRUE(ns->UpdateConversation(update).ok());
  daemon_.Stop();
  EXPECT_TRUE(absl::IsUnavailable(ns->UpdateConversation(update).status()));
  daemon_.Start();
  EXPECT_TRUE(Eventually([&] { return Store(*ns, keys).ok(); }));
  EXPECT_TRUE(absl::IsNotFound(ns->DescribeConversation("chat").status()));
  const auto terms = ns->UpdateConversation(update);
  ASSERT_TRUE(terms.ok()) << terms.status();
  EXPECT_EQ(terms->updates, 1U);
}

// Blocks that another client stored in a lower class, and that nothing has written to the disk yet.
class StrictNamespaceTest : public ClientTest {
 protected:
  void OnEviction(tiers::TieredStoreOptions& options) {
    tiers::TieredStoreOptions::Disk disk;
    disk.store.segment_bytes = std::uint64_t{128} * 1024;
    disk.store.devices = {
        {directory_.path() / "disk", tiers::disk::kSegmentsOffset + 8 * disk.store.segment_bytes}};
    disk.store.catalog_path = directory_.path() / "catalog";
    disk.write_back = tiers::WriteBackMode::kOnEviction;
    options.disk = disk;
  }

  TempDirectory directory_;
  InProcessDaemon with_disk_{4 << 20, 256 << 10, UINT64_MAX,
                             [this](tiers::TieredStoreOptions& options) { OnEviction(options); }};
};

class StrictPlaneTest : public StrictNamespaceTest, public testing::WithParamInterface<bool> {};

TEST_P(StrictPlaneTest, AStrictStoreOfBlocksThatExistMakesThemDurable) {
  ClientOptions options;
  options.force_bytes_plane = GetParam();
  const auto writer = with_disk_.Connect();
  const auto client = with_disk_.Connect(options);
  ASSERT_TRUE(writer->WaitUntilAttached(std::chrono::seconds(20)).ok());
  ASSERT_TRUE(client->WaitUntilAttached(std::chrono::seconds(20)).ok());
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 5);
  ASSERT_TRUE(Store(*Open(*writer), keys).ok());
  EXPECT_EQ(with_disk_.store().GetStatus().disk.blocks, 0U);
  const auto stored = Store(*ns, keys, {}, Durability::kStrict);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->outcomes, std::vector<StoreOutcome>(5, StoreOutcome::kExists));
  EXPECT_EQ(stored->durable_blocks, 5U);
  EXPECT_EQ(stored->not_durable_reason, "");
  EXPECT_EQ(with_disk_.store().GetStatus().disk.blocks, 5U);
  EXPECT_EQ(with_disk_.leased_bytes(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Planes, StrictPlaneTest, testing::Bool());

TEST_F(StrictNamespaceTest, ALeaseOfBlocksThatExistIsCommitted) {
  const auto client = with_disk_.Connect();
  ASSERT_TRUE(client->WaitUntilAttached(std::chrono::seconds(20)).ok());
  const auto ns = Open(*client);
  const auto keys = Keys(*ns, 1, 3);
  ASSERT_TRUE(Store(*ns, keys).ok());
  auto lease = ns->BeginStore({.keys = keys, .durability = Durability::kStrict});
  ASSERT_TRUE(lease.ok()) << lease.status();
  const absl::Status committed = lease->Commit();
  ASSERT_TRUE(committed.ok()) << committed;
  EXPECT_EQ(lease->durable_blocks(), 3U);
  EXPECT_EQ(lease->not_durable_reason(), "");
  EXPECT_TRUE(absl::IsFailedPrecondition(lease->Commit())) << "it ended with its commit";
  // Nobody waits for anything else.
  lease = ns->BeginStore({.keys = keys});
  ASSERT_TRUE(lease.ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(lease->Commit()));
  EXPECT_EQ(lease->durable_blocks(), 0U);
}

}  // namespace
}  // namespace kavern
