// A RAM tier of 64 blocks of 4 KiB, one disk of 240 slots, and a device that can hold writes and
// flushes back, and refuse writes.
#ifndef KAVERN_TESTS_UNIT_TIERS_WRITE_BACK_FIXTURE_H_
#define KAVERN_TESTS_UNIT_TIERS_WRITE_BACK_FIXTURE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "gtest/gtest.h"
#include "tests/fakes/temp_directory.h"
#include "tests/unit/tiers/store_fixture.h"

namespace kavern::tiers {

// What the test asks of the device, and what it saw.
struct WriteGate {
  static constexpr std::uint64_t kSegmentBytes = std::uint64_t{128} * 1024;  // 15 slots

  Mutex mu;
  CondVar changed;
  bool hold_flushes KAVERN_GUARDED_BY(mu) = false;
  bool refuse_writes KAVERN_GUARDED_BY(mu) = false;
  bool hold_next_payload KAVERN_GUARDED_BY(mu) = false;
  std::optional<DiskIo> held_payload KAVERN_GUARDED_BY(mu);
  bool hold_next_header KAVERN_GUARDED_BY(mu) = false;
  std::optional<DiskIo> held_header KAVERN_GUARDED_BY(mu);
  std::uint64_t payloads KAVERN_GUARDED_BY(mu) = 0;  // written, or on their way
  std::uint64_t held KAVERN_GUARDED_BY(mu) = 0;
  std::uint64_t flushes KAVERN_GUARDED_BY(mu) = 0;

  void HoldFlushes(bool hold) {
    MutexLock lock(mu);
    hold_flushes = hold;
    changed.NotifyAll();
  }
  void RefuseWrites() {
    MutexLock lock(mu);
    refuse_writes = true;
  }
  void HoldNextPayload() {
    MutexLock lock(mu);
    hold_next_payload = true;
  }
  // Of a segment.
  void HoldNextHeader() {
    MutexLock lock(mu);
    hold_next_header = true;
  }
  DiskIo TakeHeldHeader() {
    MutexLock lock(mu);
    return *std::exchange(held_header, std::nullopt);
  }
  void WaitForPayloads(std::uint64_t count) {
    MutexLock lock(mu);
    while (payloads < count) changed.Wait(mu);
  }
  // A slot's header and payload are two pieces.
  bool Holds(DiskIo& io) {
    MutexLock lock(mu);
    if (hold_next_header && IsSegmentHeader(io)) {
      hold_next_header = false;
      held_header = std::move(io);
      return true;
    }
    payloads += io.op == DiskIo::Op::kWrite && io.pieces.size() == 2 ? 1 : 0;
    changed.NotifyAll();
    if (!hold_next_payload || io.op != DiskIo::Op::kWrite || io.pieces.size() != 2) return false;
    hold_next_payload = false;
    held_payload = std::move(io);
    changed.NotifyAll();
    return true;
  }
  static bool IsSegmentHeader(const DiskIo& io) {
    return io.op == DiskIo::Op::kWrite && io.offset >= disk::kSegmentsOffset &&
           (io.offset - disk::kSegmentsOffset) % kSegmentBytes == 0;
  }
  void WaitForHeldPayload() {
    MutexLock lock(mu);
    while (!held_payload.has_value()) changed.Wait(mu);
  }
  DiskIo TakeHeldPayload() {
    MutexLock lock(mu);
    return *std::exchange(held_payload, std::nullopt);
  }
  void WaitUntilHeld() {
    MutexLock lock(mu);
    while (held == 0) changed.Wait(mu);
  }
  std::uint64_t Flushes() {
    MutexLock lock(mu);
    return flushes;
  }
  bool Refuses(const DiskIo& io) {
    MutexLock lock(mu);
    return refuse_writes && io.op == DiskIo::Op::kWrite;
  }
  void PassFlush() {
    MutexLock lock(mu);
    ++flushes;
    ++held;
    changed.NotifyAll();
    while (hold_flushes) changed.Wait(mu);
    --held;
  }
};

class GatedDevice final : public BlockDevice {
 public:
  GatedDevice(std::unique_ptr<BlockDevice> below, WriteGate& gate)
      : below_(std::move(below)), gate_(gate) {}
  void Submit(DiskIo io) override {
    if (gate_.Refuses(io)) {
      io.done(absl::InternalError("refused"));
      return;
    }
    if (gate_.Holds(io)) return;
    // Only the committer flushes once the store is open, and it waits for the flush anyway.
    if (io.op == DiskIo::Op::kFlush) gate_.PassFlush();
    below_->Submit(std::move(io));
  }
  std::uint64_t size_bytes() const override { return below_->size_bytes(); }
  std::string_view method() const override { return below_->method(); }

 private:
  const std::unique_ptr<BlockDevice> below_;
  WriteGate& gate_;
};

class WriteBackFixture : public StoreFixture {
 protected:
  static constexpr std::uint64_t kBlockBytes = 4096;
  static constexpr std::uint64_t kSegmentBytes = WriteGate::kSegmentBytes;

  void StartWithDisk(const std::function<void(TieredStoreOptions::Disk&)>& change = {}) {
    Start(4, [&](TieredStoreOptions& options) {
      TieredStoreOptions::Disk disk;
      disk.store.devices = {
          {directory_.path() / "disk", disk::kSegmentsOffset + 16 * kSegmentBytes}};
      disk.store.catalog_path = directory_.path() / "catalog";
      disk.store.segment_bytes = kSegmentBytes;
      disk.store.open =
          [this](const BlockDeviceOptions& device) -> absl::StatusOr<std::unique_ptr<BlockDevice>> {
        auto below = OpenBlockDevice(device);
        if (!below.ok()) return below.status();
        auto gated = std::make_unique<GatedDevice>(*std::move(below), gate_);
        device_ = gated.get();
        return gated;
      };
      if (change) change(disk);
      options.disk = disk;
    });
  }
  // Stores a chain; the future has what the commit says of durability.
  std::future<TieredStore::Durable> StoreChain(const NamespaceRef& ns,
                                               std::span<const BlockKey> keys,
                                               std::optional<DiskDurability> durability = {}) {
    return StoreAbove(ns, Root(ns), keys, durability);
  }
  std::future<TieredStore::Durable> StoreAbove(
      const NamespaceRef& ns, const BlockKey& parent, std::span<const BlockKey> keys,
      std::optional<DiskDurability> durability = DiskDurability::kStrict) {
    StoreRequest request{.parent = parent, .keys = keys};
    request.durability = durability;
    auto grant = store_->BeginStore(ns, request);
    EXPECT_TRUE(grant.ok()) << grant.status();
    std::vector<std::uint32_t> sums;
    for (std::size_t i = 0; i < grant->lease.size(); ++i) {
      FillPayload(grant->lease.extent(i), grant->lease.key(i), grant->lease.part());
      sums.push_back(ChecksumOf(grant->lease.extent(i), grant->lease.key(i), grant->lease.part()));
    }
    auto told = std::make_shared<std::promise<TieredStore::Durable>>();
    const auto published = store_->CommitStore(
        grant->lease, 0, sums,
        [told](TieredStore::Durable durable) { told->set_value(std::move(durable)); });
    EXPECT_TRUE(published.ok()) << published.status();
    EXPECT_EQ(*published, sums.size());
    return told->get_future();
  }
  static bool IsTold(const std::future<TieredStore::Durable>& told) {
    return told.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }
  std::uint64_t BlocksOnDisk() { return store_->GetStatus().disk.blocks; }

  TempDirectory directory_;
  WriteGate gate_;
  GatedDevice* device_ = nullptr;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_UNIT_TIERS_WRITE_BACK_FIXTURE_H_
