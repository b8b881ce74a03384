// A store with an NVMe tier: small files in a temporary directory stand for disks. A RAM tier of
// one region (16 blocks) evicts soon, so that what is fetched comes from disk.
#ifndef KAVERN_TESTS_UNIT_TIERS_DISK_FIXTURE_H_
#define KAVERN_TESTS_UNIT_TIERS_DISK_FIXTURE_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tests/fakes/temp_directory.h"
#include "tests/unit/tiers/store_fixture.h"

namespace kavern::tiers {

class DiskFixture : public StoreFixture {
 protected:
  static constexpr std::uint64_t kSegmentBytes = std::uint64_t{128} * 1024;  // 15 slots of 4 KiB

  // `change` may adjust the options.
  void StartWithDisk(std::uint64_t regions = 1, std::uint64_t segments = 16,
                     const std::function<void(TieredStoreOptions&)>& change = {}) {
    Start(regions, [&](TieredStoreOptions& options) {
      TieredStoreOptions::Disk disk;
      for (const char* name : {"disk0", "disk1"}) {
        disk.store.devices.push_back({directory_.path() / name, disk_capacity(segments / 2)});
      }
      disk.store.catalog_path = directory_.path() / "catalog";
      disk.store.segment_bytes = kSegmentBytes;
      disk.store.queue_depth = 4;
      disk.store.io_uring = io_uring_;
      options.disk = disk;
      if (change) change(options);
    });
  }
  static std::uint64_t disk_capacity(std::uint64_t segments) {
    return disk::kSegmentsOffset + segments * kSegmentBytes;
  }
  void Restart(std::uint64_t regions = 1, std::uint64_t segments = 16) {
    store_.reset();
    StartWithDisk(regions, segments);
  }

  FetchEvent FetchThrough(const NamespaceRef& ns, std::span<const BlockKey> keys,
                          std::uint32_t shard = 0, std::uint32_t group = 0) {
    auto event = store_->FetchAll(ns, {.keys = keys, .shard = shard, .group = group});
    EXPECT_TRUE(event.ok()) << event.status();
    return *std::move(event);
  }
  // Number of blocks of the chain that come back right; none comes back wrong.
  std::size_t Verified(const NamespaceRef& ns, std::span<const BlockKey> keys) {
    std::size_t right = 0;
    for (const BlockKey& key : keys) {
      const FetchEvent result = FetchThrough(ns, {&key, 1});
      EXPECT_TRUE(HoldsPayloads(result.lease, {&key, 1}));
      right += result.lease.parts().size();
    }
    return right;
  }
  // Chains of 8 blocks, each of which reaches the disk before the next.
  std::vector<BlockKey> StoreChains(const NamespaceRef& ns, std::uint64_t first,
                                    std::uint64_t count) {
    const std::vector<BlockKey> keys = KeysOf(first, count);
    for (std::uint64_t i = 0; i < count; i += 8) {
      const std::uint64_t n = std::min<std::uint64_t>(8, count - i);
      EXPECT_EQ(Store(ns, Root(ns), std::span(keys).subspan(i, n)), n);
      store_->Quiesce();
    }
    return keys;
  }

  TempDirectory directory_;
  bool io_uring_ = true;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_UNIT_TIERS_DISK_FIXTURE_H_
