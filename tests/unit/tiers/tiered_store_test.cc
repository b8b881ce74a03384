#include "tiers/tiered_store.h"

#include <algorithm>

#include "gmock/gmock.h"
#include "tests/unit/tiers/store_fixture.h"

namespace kavern::tiers {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TieredStoreTest : public StoreFixture {
 protected:
  absl::Status BeginStatus(const NamespaceRef& ns, const BlockKey& parent,
                           std::vector<BlockKey> keys, std::uint32_t shard = 0,
                           std::uint32_t group = 0) {
    StoreRequest request;
    request.parent = parent;
    request.keys = keys;
    request.shard = shard;
    request.group = group;
    return store_->BeginStore(ns, request).status();
  }
  std::uint64_t UsedBytes() { return store_->GetStatus().used_bytes; }
};

// ---- Storing and reading ----

TEST_F(TieredStoreTest, WhatWasStoredComesBackByteForByte) {
  // A chain of 20 blocks over two regions, stored in one call, fetched with a stranger among the
  // keys.
  Start(4);
  NamespaceRef ns = Open(SpecOf("m"));
  std::vector<BlockKey> keys = KeysOf(0, 20);
  EXPECT_EQ(Store(ns, Root(ns), keys), 20U);
  EXPECT_EQ(store_->Match(ns, keys), 20U);
  keys.insert(keys.begin() + 7, KeyOf(999));
  FetchResult result = Fetch(ns, keys);
  EXPECT_THAT(result.missing, ElementsAre(7));
  ASSERT_EQ(result.lease.parts().size(), 20U);
  EXPECT_TRUE(HoldsPayloads(result, keys));
  EXPECT_EQ(store_->Match(ns, keys), 7U);
}

TEST_F(TieredStoreTest, BlockWithAPartMissingIsInvisible) {
  // One block of two shards and two groups: four parts, committed one by one.
  Start(4);
  NamespaceRef ns = Open(SpecOf("m", 2, 2));
  const std::vector<BlockKey> keys = KeysOf(0, 3);
  for (std::uint32_t shard = 0; shard < 2; ++shard) {
    for (std::uint32_t group = 0; group < 2; ++group) {
      EXPECT_EQ(store_->Match(ns, keys), 0U);
      EXPECT_TRUE(Fetch(ns, keys).lease.empty());
      EXPECT_EQ(Store(ns, Root(ns), keys, shard, group), 3U);
      ExpectSound();
    }
  }
  EXPECT_EQ(store_->Match(ns, keys), 3U);
  for (std::uint32_t shard = 0; shard < 2; ++shard) {
    for (std::uint32_t group = 0; group < 2; ++group) {
      FetchResult result = Fetch(ns, keys, shard, group);
      EXPECT_EQ(result.lease.parts().size(), 3U);
      EXPECT_TRUE(HoldsPayloads(result, keys, shard * 2 + group));
    }
  }
}

TEST_F(TieredStoreTest, TwoWritersOfOneBlockBothSucceedAndOneCopyStays) {
  // Two grants of the same three keys, before either commits.
  Start(2);
  NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(0, 3);
  StoreGrant first = Begin(ns, Root(ns), keys);
  StoreGrant second = Begin(ns, Root(ns), keys);
  ASSERT_EQ(second.lease.size(), 3U);
  EXPECT_NE(first.lease.extent(0).offset, second.lease.extent(0).offset);
  EXPECT_EQ(FillAndCommit(second), 3U);
  EXPECT_EQ(FillAndCommit(first), 3U);
  EXPECT_EQ(store_->GetCounters().store_raced_blocks, 3U);
  EXPECT_EQ(UsedBytes(), 3 * 4096U);
  FetchResult result = Fetch(ns, keys);
  EXPECT_TRUE(HoldsPayloads(result, keys));
  EXPECT_EQ(result.lease.parts()[0].extent.offset, second.lease.extent(0).offset);
  EXPECT_THAT(Begin(ns, Root(ns), keys).outcomes, Each(StoreOutcome::kExists));
}

TEST_F(TieredStoreTest, AbandonedWriteGivesItsSlotsBackAndItsChildrenRelink) {
  // A writer reserves the parent and goes away; another one has stored the child after it
  // meanwhile.
  Start(2);
  NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(0, 2);
  {
    StoreGrant parent = Begin(ns, Root(ns), {keys.data(), 1});
    EXPECT_EQ(Store(ns, keys[0], {&keys[1], 1}), 1U);
    EXPECT_EQ(UsedBytes(), 2 * 4096U);
  }
  EXPECT_EQ(UsedBytes(), 4096U);
  EXPECT_EQ(store_->Match(ns, keys), 0U);
  EXPECT_EQ(store_->GetCounters().orphaned_blocks, 1U);
  EXPECT_EQ(Store(ns, Root(ns), {keys.data(), 1}), 1U);
  EXPECT_EQ(store_->Match(ns, keys), 2U);
}

TEST_F(TieredStoreTest, CommitOutsideTheLeaseOrTwiceIsRefused) {
  Start(2);
  NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(0, 4);
  StoreGrant grant = Begin(ns, Root(ns), keys);
  const std::vector<std::uint32_t> checksums(4);
  const auto commit = [&](std::uint32_t first, std::size_t count) {
    return store_->CommitStore(grant.lease, first, std::span(checksums).first(count));
  };
  EXPECT_EQ(*commit(2, 2), 2U);
  EXPECT_EQ(grant.lease.bytes(), 2 * 4096U);
  EXPECT_EQ(commit(1, 2).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(commit(3, 2).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(commit(UINT32_MAX, 1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->Match(ns, keys), 0U);
  EXPECT_EQ(*commit(0, 2), 2U);
  EXPECT_EQ(store_->Match(ns, keys), 4U);
}

TEST_F(TieredStoreTest, MalformedRequestLeavesNoTrace) {
  // Each request has good keys before the bad part: none of them may be reserved.
  Start(2);
  NamespaceRef ns = Open(SpecOf("m", 2, 1));
  const BlockKey root = Root(ns);
  const auto expect_refused = [&](const absl::Status& status, const char* field) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
    EXPECT_EQ(UsedBytes(), 0U);
    ExpectSound();
  };
  expect_refused(BeginStatus(ns, root, {}), "keys");
  expect_refused(BeginStatus(ns, root, {KeyOf(1), KeyOf(2)}, 2, 0), "shard");
  expect_refused(BeginStatus(ns, root, {KeyOf(1), KeyOf(2)}, 0, 1), "group");
  expect_refused(BeginStatus(ns, root, {KeyOf(1), BlockKey{}}), "keys[1]");
  expect_refused(BeginStatus(ns, root, {KeyOf(1), root}), "keys[1]");
  expect_refused(BeginStatus(ns, root, {KeyOf(1), KeyOf(2), KeyOf(1)}), "keys[2]");
  expect_refused(BeginStatus(ns, KeyOf(9), {KeyOf(1)}), "parent");
  expect_refused(store_->Fetch(ns, {}, 0, 0).status(), "keys");
  const BlockKey key = KeyOf(1);
  expect_refused(store_->Fetch(ns, {&key, 1}, 2, 0).status(), "shard");
}

TEST_F(TieredStoreTest, KeysThatDoNotChainAreRefused) {
  // 0-1-2 is known. 2 after 0, 1 after a new block, and a block after itself are lies.
  Start(2);
  NamespaceRef ns = Open(SpecOf("m"));
  Store(ns, Root(ns), KeysOf(0, 3));
  const std::uint64_t used = UsedBytes();
  const auto expect_lie = [&](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status.ToString();
    EXPECT_EQ(UsedBytes(), used);
  };
  expect_lie(BeginStatus(ns, KeyOf(0), {KeyOf(2)}));
  expect_lie(BeginStatus(ns, Root(ns), {KeyOf(7), KeyOf(1)}));
  expect_lie(BeginStatus(ns, KeyOf(1), {KeyOf(1)}));
}

TEST_F(TieredStoreTest, ParentEvictedAfterTheMatchIsNamed) {
  // One region. The chain's only block is evicted by sixteen others; then its child comes.
  Start(1);
  NamespaceRef ns = Open(SpecOf("m"));
  StoreOne(ns, 0);
  for (std::uint64_t n = 100; n < 116; ++n) StoreOne(ns, n);
  ASSERT_FALSE(IsCached(ns, KeyOf(0)));
  const absl::Status status = BeginStatus(ns, KeyOf(0), {KeyOf(1)});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(
      std::string(status.message()),
      "parent: " + KeyOf(0).ToHex() + " is not cached (any more); store from an earlier block");
}

// ---- Limits ----

TEST_F(TieredStoreTest, StoreWithEverySlotLeasedDeclinesAndRecovers) {
  // One region of 16 blocks, all pinned by one reader.
  Start(1);
  NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(0, 16);
  for (std::uint64_t n = 0; n < 16; ++n) StoreOne(ns, n);
  FetchResult held = Fetch(ns, keys);
  ASSERT_EQ(held.lease.parts().size(), 16U);
  StoreGrant declined = Begin(ns, Root(ns), KeysOf(100, 2));
  EXPECT_THAT(declined.outcomes, Each(StoreOutcome::kDeclined));
  EXPECT_EQ(declined.decline_reason, "ram tier is full of leased blocks");
  EXPECT_TRUE(declined.lease.empty());
  EXPECT_TRUE(HoldsPayloads(held, keys));
  EXPECT_EQ(store_->GetStatus().leased_bytes, 16 * 4096U);
  held.lease.Reset();
  EXPECT_EQ(store_->GetStatus().leased_bytes, 0U);
  EXPECT_EQ(Store(ns, Root(ns), KeysOf(100, 2)), 2U);
  EXPECT_EQ(store_->GetCounters().store_declined_blocks, 2U);
}

TEST_F(TieredStoreTest, ChainLongerThanTheTierIsGrantedAsAPrefix) {
  // 20 blocks into 16 slots: what is being stored may not evict its own ancestors.
  Start(1);
  NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(0, 20);
  StoreGrant grant = Begin(ns, Root(ns), keys);
  EXPECT_EQ(grant.lease.size(), 16U);
  EXPECT_THAT(std::span(grant.outcomes).first(16), Each(StoreOutcome::kGranted));
  EXPECT_THAT(std::span(grant.outcomes).last(4), Each(StoreOutcome::kDeclined));
  EXPECT_EQ(FillAndCommit(grant), 16U);
  grant = Begin(ns, Root(ns), keys);
  EXPECT_TRUE(grant.lease.empty());
  EXPECT_EQ(store_->Match(ns, keys), 16U);
}

TEST_F(TieredStoreTest, LeaseQuotaBoundsGrantsAndFetches) {
  Start(2);
  NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(0, 5);
  StoreRequest request;
  request.parent = Root(ns);
  request.keys = keys;
  request.grant_bytes_max = 3 * 4096 + 100;
  auto grant = store_->BeginStore(ns, request);
  ASSERT_TRUE(grant.ok());
  EXPECT_EQ(grant->lease.size(), 3U);
  EXPECT_THAT(grant->decline_reason, HasSubstr("quota"));
  EXPECT_EQ(FillAndCommit(*grant), 3U);
  EXPECT_EQ(store_->Fetch(ns, keys, 0, 0, 3 * 4096 - 1).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store_->GetStatus().leased_bytes, 0U);
  EXPECT_EQ(store_->Fetch(ns, keys, 0, 0, std::uint64_t{3} * 4096)->lease.bytes(), 3 * 4096U);
}

TEST_F(TieredStoreTest, IncompleteBlocksAreBoundedInNumber) {
  // Two shards; the second one never comes.
  Start(4, [](TieredStoreOptions& options) { options.incomplete_blocks_max = 5; });
  NamespaceRef ns = Open(SpecOf("m", 2, 1));
  const std::vector<BlockKey> keys = KeysOf(0, 8);
  StoreGrant grant = Begin(ns, Root(ns), keys, 0);
  EXPECT_EQ(grant.lease.size(), 5U);
  EXPECT_EQ(grant.decline_reason, "too many incomplete blocks");
  FillAndCommit(grant);
  EXPECT_EQ(Store(ns, Root(ns), keys, 1), 5U);
  EXPECT_EQ(Store(ns, Root(ns), keys, 0), 3U);
}

TEST_F(TieredStoreTest, IncompleteBlocksAreBoundedInAge) {
  // Shard 0 is committed; shard 1 is being written when the block expires.
  Start(4);
  NamespaceRef ns = Open(SpecOf("m", 2, 1));
  const std::vector<BlockKey> keys = KeysOf(0, 2);
  Store(ns, Root(ns), keys, 0);
  StoreGrant late = Begin(ns, Root(ns), keys, 1);
  clock_.Advance(std::chrono::seconds(59));
  store_->Housekeep();
  EXPECT_EQ(store_->GetCounters().expired_blocks, 0U);
  clock_.Advance(std::chrono::seconds(2));
  store_->Housekeep();
  EXPECT_EQ(store_->GetCounters().expired_blocks, 2U);
  EXPECT_EQ(UsedBytes(), 2 * 4096U);  // the late writer's
  EXPECT_EQ(FillAndCommit(late), 0U);
  EXPECT_EQ(UsedBytes(), 0U);
  EXPECT_EQ(store_->Match(ns, keys), 0U);
}

// ---- Eviction ----

TEST_F(TieredStoreTest, EvictionTakesTheOldestLeafNeverAnAncestor) {
  // Chain 0..7 is older than chain 100..107; then 0..7 is used again.
  Start(1);
  NamespaceRef ns = Open(SpecOf("m"));
  Store(ns, Root(ns), KeysOf(0, 8));
  Store(ns, Root(ns), KeysOf(100, 8));
  Fetch(ns, KeysOf(0, 8));
  Store(ns, Root(ns), KeysOf(200, 3));
  EXPECT_EQ(store_->Match(ns, KeysOf(0, 8)), 8U);
  EXPECT_EQ(store_->Match(ns, KeysOf(100, 8)), 5U);
  EXPECT_EQ(store_->GetCounters().evicted_blocks, 3U);
  EXPECT_EQ(store_->GetCounters().orphaned_blocks, 0U);
}

TEST_F(TieredStoreTest, StoreNeverEvictsTheChainThatItContinues) {
  // The chain 0-1 is the oldest; 15 of 16 slots are taken, so storing 2 and 3 after it needs an
  // eviction.
  Start(1);
  NamespaceRef ns = Open(SpecOf("m"));
  Store(ns, Root(ns), KeysOf(0, 2));
  for (std::uint64_t n = 100; n < 113; ++n) StoreOne(ns, n);
  EXPECT_EQ(Store(ns, Root(ns), KeysOf(0, 4)), 2U);
  EXPECT_EQ(store_->Match(ns, KeysOf(0, 4)), 4U);
  EXPECT_FALSE(IsCached(ns, KeyOf(100)));
}

TEST_F(TieredStoreTest, StoreNeverEvictsAnOrphanThatItRelinks) {
  // 1 is an orphan (0 was damaged) and so the next victim; the tier is full. Storing 0-1 needs a
  // slot for 0.
  Start(1);
  NamespaceRef ns = Open(SpecOf("m"));
  Store(ns, Root(ns), KeysOf(0, 2));
  for (std::uint64_t n = 100; n < 114; ++n) StoreOne(ns, n);
  const BlockKey root_block = KeyOf(0);
  Fetch(ns, {&root_block, 1}).lease.parts()[0].extent.bytes()[0] ^= std::byte{1};
  ASSERT_TRUE(*store_->CheckSuspect(ns, root_block, 0, 0));
  StoreOne(ns, 114);
  StoreGrant grant = Begin(ns, Root(ns), KeysOf(0, 2));
  EXPECT_THAT(grant.outcomes, ElementsAre(StoreOutcome::kGranted, StoreOutcome::kExists));
  EXPECT_EQ(FillAndCommit(grant), 1U);
  EXPECT_EQ(store_->Match(ns, KeysOf(0, 2)), 2U);
}

TEST_F(TieredStoreTest, AllPartsOfABlockLeaveTogether) {
  // Blocks of 4 + 8 KiB: one region for each group holds 16 and 8 parts. The ninth block evicts the
  // first.
  Start(2);
  NamespaceRef ns = Open(SpecOf("m", 1, 2));
  for (std::uint64_t n = 0; n < 9; ++n) {
    const BlockKey key = KeyOf(n);
    Store(ns, Root(ns), {&key, 1}, 0, 0);
    EXPECT_EQ(Store(ns, Root(ns), {&key, 1}, 0, 1), 1U);
  }
  EXPECT_FALSE(IsCached(ns, KeyOf(0)));
  EXPECT_EQ(UsedBytes(), 8 * (4096U + 8192U));
}

// ---- Dropping under leases ----

TEST_F(TieredStoreTest, PurgeUnderAReaderKeepsItsBytesUntilItLetsGo) {
  // A reader holds four blocks; the namespace is purged and filled again to the brim.
  Start(1);
  NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(0, 4);
  Store(ns, Root(ns), keys);
  FetchResult held = Fetch(ns, keys);
  EXPECT_EQ(*store_->Purge(ns.fingerprint()), 4U);
  EXPECT_EQ(store_->Match(ns, keys), 0U);
  EXPECT_EQ(Store(ns, Root(ns), KeysOf(100, 16)), 12U);
  EXPECT_TRUE(HoldsPayloads(held, keys));
  ExpectSound();
  held.lease.Reset();
  EXPECT_EQ(UsedBytes(), 12 * 4096U);
  EXPECT_EQ(store_->Purge(NamespaceFingerprint{}).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(TieredStoreTest, PurgeUnderAWriterPublishesNothing) {
  // The purged keys are granted again to somebody else before the first writer commits.
  Start(1);
  NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(0, 3);
  StoreGrant before = Begin(ns, Root(ns), keys);
  EXPECT_EQ(*store_->Purge(ns.fingerprint()), 0U);
  StoreGrant after = Begin(ns, Root(ns), keys);
  EXPECT_EQ(FillAndCommit(before), 0U);
  EXPECT_EQ(store_->Match(ns, keys), 0U);
  EXPECT_EQ(FillAndCommit(after), 3U);
  EXPECT_EQ(store_->Match(ns, keys), 3U);
  EXPECT_EQ(UsedBytes(), 3 * 4096U);
}

TEST_F(TieredStoreTest, DamagedBlockIsDroppedAndItsChildrenRelink) {
  // Somebody writes over block 1 of 0-1-2 while a reader holds it.
  Start(1);
  NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(0, 3);
  Store(ns, Root(ns), keys);
  FetchResult held = Fetch(ns, keys);
  EXPECT_FALSE(*store_->CheckSuspect(ns, keys[1], 0, 0));
  held.lease.parts()[1].extent.bytes()[17] ^= std::byte{4};
  EXPECT_TRUE(*store_->CheckSuspect(ns, keys[1], 0, 0));
  EXPECT_FALSE(*store_->CheckSuspect(ns, keys[1], 0, 0));
  EXPECT_FALSE(*store_->CheckSuspect(ns, keys[0], 0, 0));
  EXPECT_EQ(store_->Match(ns, keys), 1U);
  EXPECT_TRUE(IsCached(ns, keys[2]));
  EXPECT_EQ(store_->GetCounters().damaged_blocks, 1U);
  EXPECT_EQ(store_->GetCounters().orphaned_blocks, 1U);
  StoreGrant grant = Begin(ns, Root(ns), keys);
  ASSERT_EQ(grant.lease.size(), 1U);
  EXPECT_NE(grant.lease.extent(0).offset, held.lease.parts()[1].extent.offset);
  EXPECT_EQ(FillAndCommit(grant), 1U);
  EXPECT_EQ(store_->Match(ns, keys), 3U);
  EXPECT_TRUE(HoldsPayloads(Fetch(ns, keys), keys));
}

TEST_F(TieredStoreTest, CommitWithAWrongChecksumIsFoundOutAndDropped) {
  Start(1);
  NamespaceRef ns = Open(SpecOf("m"));
  const BlockKey key = KeyOf(0);
  StoreGrant grant = Begin(ns, Root(ns), {&key, 1});
  FillPayload(grant.lease.extent(0), key, 0);
  const std::uint32_t wrong = ~ChecksumOf(grant.lease.extent(0), key, 0);
  EXPECT_EQ(*store_->CommitStore(grant.lease, 0, {&wrong, 1}), 1U);
  EXPECT_TRUE(*store_->CheckSuspect(ns, key, 0, 0));
  EXPECT_FALSE(IsCached(ns, key));
  EXPECT_EQ(UsedBytes(), 0U);
}

TEST_F(TieredStoreTest, BlocksThatCallEachOtherParentAreEvictedAllTheSame) {
  // A client that lies: 1 is stored as a child of 0, 0 is damaged, then 0 is stored as a child
  // of 1.
  Start(1);
  NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(0, 2);
  Store(ns, Root(ns), keys);
  Fetch(ns, keys).lease.parts()[0].extent.bytes()[0] ^= std::byte{1};
  ASSERT_TRUE(*store_->CheckSuspect(ns, keys[0], 0, 0));
  EXPECT_EQ(Store(ns, keys[1], {keys.data(), 1}), 1U);
  ExpectSound();
  for (std::uint64_t n = 100; n < 116; ++n) EXPECT_EQ(StoreOne(ns, n), 1U);
  EXPECT_FALSE(IsCached(ns, keys[0]));
  EXPECT_FALSE(IsCached(ns, keys[1]));
}

// ---- Directory and namespaces ----

TEST_F(TieredStoreTest, DirectoryGrowsByASuccessorAndGoesWithTheLastBlock) {
  // 1,000 blocks, four times what the first segment was made for.
  Start(64);
  NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_FALSE(events_.HasDirectory(ns.fingerprint()));
  const std::vector<BlockKey> keys = KeysOf(0, 1000);
  EXPECT_EQ(Store(ns, Root(ns), keys), 1000U);
  std::vector<std::uint64_t> generations = events_.Generations(ns.fingerprint());
  EXPECT_GE(generations.size(), 2U);
  EXPECT_LE(generations.size(), 4U);
  EXPECT_TRUE(std::is_sorted(generations.begin(), generations.end()));
  ExpectSound();  // the directory names all 1,000
  store_->AnnounceDirectory(ns);
  EXPECT_EQ(events_.Generations(ns.fingerprint()).back(), generations.back());
  EXPECT_EQ(events_.Generations(ns.fingerprint()).size(), generations.size() + 1);
  EXPECT_GT(store_->GetStatus().directory_bytes, 0U);
  EXPECT_EQ(*store_->Purge(ns.fingerprint()), 1000U);
  EXPECT_FALSE(events_.HasDirectory(ns.fingerprint()));
  EXPECT_EQ(store_->GetStatus().directory_bytes, 0U);
}

TEST_F(TieredStoreTest, KeysThatCrowdOneBucketStayUnlistedAndTheDirectoryStaysSmall) {
  // 200 keys with equal first 8 bytes: all have the same home bucket, whatever the size of the
  // table.
  Start(16);
  NamespaceRef ns = Open(SpecOf("m"));
  std::vector<BlockKey> keys = KeysOf(0, 200);
  for (BlockKey& key : keys) std::fill_n(key.bytes.begin(), 8, std::uint8_t{7});
  EXPECT_EQ(Store(ns, Root(ns), keys), 200U);
  EXPECT_EQ(store_->Match(ns, keys), 200U);
  EXPECT_TRUE(HoldsPayloads(Fetch(ns, keys), keys));
  EXPECT_EQ(events_.Generations(ns.fingerprint()).size(), 1U);
  EXPECT_EQ(store_->GetStatus().namespaces_degraded, 1U);
}

TEST_F(TieredStoreTest, EmptyNamespaceOwnsNoRegionAndNoDirectory) {
  Start(2);
  NamespaceRef ns = Open(SpecOf("m"));
  const std::vector<BlockKey> keys = KeysOf(0, 20);
  Store(ns, Root(ns), keys);
  FetchResult held = Fetch(ns, keys);
  EXPECT_EQ(store_->GetStatus().assigned_bytes, 2 * kRegionBytes);
  EXPECT_TRUE(store_->Purge(ns.fingerprint()).ok());
  EXPECT_EQ(store_->GetStatus().assigned_bytes, 2 * kRegionBytes);  // the reader's
  EXPECT_TRUE(events_.RetiredRegions().empty());
  held.lease.Reset();
  EXPECT_EQ(store_->GetStatus().assigned_bytes, 0U);
  EXPECT_EQ(events_.RetiredRegions().size(), 2U);
  store_->Quiesce();
  EXPECT_EQ(store_->GetStatus().pool.ready_bytes, 2 * kRegionBytes);
}

TEST_F(TieredStoreTest, TenThousandIdleNamespacesOwnNothing) {
  // 10,000 open namespaces, of which every hundredth stores a block into one of two regions, by
  // turns.
  Start(2);
  std::vector<NamespaceRef> open;
  open.reserve(10000);
  for (int i = 0; i < 10000; ++i) open.push_back(Open(SpecOf("m" + std::to_string(i))));
  EXPECT_EQ(store_->GetStatus().namespaces, 10000U);
  EXPECT_EQ(store_->GetStatus().assigned_bytes, 0U);
  for (std::size_t i = 0; i < open.size(); i += 100) {
    EXPECT_EQ(StoreOne(open[i], i), 1U);
    EXPECT_TRUE(store_->Purge(open[i].fingerprint()).ok());
    store_->Quiesce();
  }
  ExpectSound();
  EXPECT_LT(store_->GetStatus().index_bytes, 10000 * 4096U);
  open.clear();
  EXPECT_EQ(store_->GetStatus().namespaces, 0U);
}

TEST_F(TieredStoreTest, NamespacesAreLimitedAndTheClosedEmptyOnesMakeRoom) {
  Start(2, [](TieredStoreOptions& options) { options.namespaces_max = 2; });
  NamespaceRef kept = Open(SpecOf("kept"));
  StoreOne(kept, 0);
  kept.Reset();
  NamespaceRef second = Open(SpecOf("second"));
  EXPECT_EQ(store_->OpenNamespace("tenant", SpecOf("third")).status().code(),
            absl::StatusCode::kResourceExhausted);
  second.Reset();
  NamespaceRef third = Open(SpecOf("third"));
  kept = NamespaceRef();
  NamespaceRef again = store_->OpenNamespace("tenant", SpecOf("kept")).value();
  EXPECT_TRUE(IsCached(again, KeyOf(0)));
}

TEST_F(TieredStoreTest, TenantsWithEqualSpecsShareNothing) {
  Start(2);
  NamespaceRef ours = Open(SpecOf("m"), "a");
  NamespaceRef theirs = Open(SpecOf("m"), "b");
  EXPECT_NE(ours.fingerprint(), theirs.fingerprint());
  StoreOne(ours, 0);
  EXPECT_FALSE(IsCached(theirs, KeyOf(0)));
  StoreOne(theirs, 0);
  const BlockKey key = KeyOf(0);
  EXPECT_NE(Fetch(ours, {&key, 1}).lease.parts()[0].extent.region,
            Fetch(theirs, {&key, 1}).lease.parts()[0].extent.region);
}

TEST_F(TieredStoreTest, PartLargerThanARegionIsRefused) {
  Start(2);
  NamespaceSpec spec = SpecOf("m");
  spec.layout.groups[0].layer_count = 17;
  EXPECT_EQ(store_->OpenNamespace("tenant", spec).status().code(),
            absl::StatusCode::kInvalidArgument);
  spec.layout.groups[0].layer_count = 16;
  NamespaceRef ns = Open(spec);
  EXPECT_EQ(StoreOne(ns, 0), 1U);
}

TEST_F(TieredStoreTest, UnknownEvictionPolicyIsRefused) {
  TieredStoreOptions options;
  options.ram.region_bytes = options.ram.capacity_bytes = kRegionBytes;
  options.eviction_policy = "lro";
  EXPECT_EQ(TieredStore::Create(options, events_).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kavern::tiers
