// What tests of the tiered store share: a small store, events that are written down, and payloads
// that say which part of which block they are.
#ifndef KAVERN_TESTS_UNIT_TIERS_STORE_FIXTURE_H_
#define KAVERN_TESTS_UNIT_TIERS_STORE_FIXTURE_H_

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "gtest/gtest.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {

// Key number `n`; neighbours have nothing in common.
BlockKey KeyOf(std::uint64_t n);
std::vector<BlockKey> KeysOf(std::uint64_t first, std::uint64_t count);

// Every 8 bytes derive from key, part and offset.
void FillPayload(const Extent& extent, const BlockKey& key, std::uint32_t part);
bool IsPayload(const Extent& extent, const BlockKey& key, std::uint32_t part);
bool IsZeroed(const Extent& extent);
std::uint32_t ChecksumOf(const Extent& extent, const BlockKey& key, std::uint32_t part);

// One slot of 4 KiB per part of group 0, 8 KiB of group 1.
NamespaceSpec SpecOf(const std::string& model, std::uint32_t shards = 1, std::uint32_t groups = 1);

class HeldClock final : public Clock {
 public:
  SteadyTime Now() const override { return SteadyTime(SteadyDuration(ticks_.load())); }
  double WallSeconds() const override { return 0; }
  void Advance(SteadyDuration by) { ticks_ += by.count(); }

 private:
  std::atomic<SteadyDuration::rep> ticks_ = 1'000'000'000'000;
};

class RecordedEvents final : public StoreEvents {
 public:
  struct Directory {
    std::uint64_t generation = 0;
    UniqueFd fd;
  };

  void OnRegionRetired(std::uint64_t region_id) override;
  void OnDirectory(const NamespaceFingerprint& fingerprint, std::uint64_t generation,
                   std::uint64_t size_bytes, UniqueFd fd) override;
  void OnDirectoryGone(const NamespaceFingerprint& fingerprint, std::uint64_t generation) override;

  std::set<std::uint64_t> RetiredRegions() const;
  // Generations announced, in order.
  std::vector<std::uint64_t> Generations(const NamespaceFingerprint& fingerprint) const;
  // Whether the last news of the namespace's directory is that there is one.
  bool HasDirectory(const NamespaceFingerprint& fingerprint) const;

 private:
  mutable Mutex mu_;
  std::set<std::uint64_t> retired_ KAVERN_GUARDED_BY(mu_);
  std::map<NamespaceFingerprint, std::vector<Directory>> directories_ KAVERN_GUARDED_BY(mu_);
  std::map<NamespaceFingerprint, std::uint64_t> gone_ KAVERN_GUARDED_BY(mu_);
};

// Regions of 16 slots of 4 KiB.
class StoreFixture : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kRegionBytes = 65536;
  static constexpr std::uint64_t kSlotsPerRegion = 16;

  // Makes the store. `change` may adjust the options.
  void Create(std::uint64_t regions, const std::function<void(TieredStoreOptions&)>& change = {});
  // The same, all of its regions ready, and what is on disk read.
  void Start(std::uint64_t regions, const std::function<void(TieredStoreOptions&)>& change = {});
  void TearDown() override;

  NamespaceRef Open(const NamespaceSpec& spec, const std::string& tenant = "tenant");
  StoreGrant Begin(const NamespaceRef& ns, const BlockKey& parent, std::span<const BlockKey> keys,
                   std::uint32_t shard = 0, std::uint32_t group = 0);
  // Writes the payloads of all grants and commits them; returns how many were published.
  std::uint32_t FillAndCommit(StoreGrant& grant);
  // Begin and FillAndCommit in one go; returns how many were granted.
  std::size_t Store(const NamespaceRef& ns, const BlockKey& parent, std::span<const BlockKey> keys,
                    std::uint32_t shard = 0, std::uint32_t group = 0);
  // A chain of one block from the root.
  std::size_t StoreOne(const NamespaceRef& ns, std::uint64_t n);
  FetchResult Fetch(const NamespaceRef& ns, std::span<const BlockKey> keys, std::uint32_t shard = 0,
                    std::uint32_t group = 0);
  bool IsCached(const NamespaceRef& ns, const BlockKey& key);
  // Whether every part that a lease names has the bytes of its key.
  static bool HoldsPayloads(const ReadLease& lease, std::span<const BlockKey> keys,
                            std::uint32_t part = 0);
  static bool HoldsPayloads(const FetchResult& result, std::span<const BlockKey> keys,
                            std::uint32_t part = 0) {
    return HoldsPayloads(result.lease, keys, part);
  }
  static BlockKey Root(const NamespaceRef& ns) { return ns.fingerprint().RootKey(); }
  void ExpectSound();

  HeldClock clock_;
  RecordedEvents events_;
  std::unique_ptr<TieredStore> store_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_UNIT_TIERS_STORE_FIXTURE_H_
