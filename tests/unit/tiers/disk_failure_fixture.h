// Two small files that stand for disks, each of which fails as it is told to.
#ifndef KAVERN_TESTS_UNIT_TIERS_DISK_FAILURE_FIXTURE_H_
#define KAVERN_TESTS_UNIT_TIERS_DISK_FAILURE_FIXTURE_H_

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/unique_fd.h"
#include "gmock/gmock.h"
#include "tests/fakes/fault_file_system.h"
#include "tests/fakes/temp_directory.h"
#include "tests/unit/tiers/store_fixture.h"

namespace kavern::tiers {

// What a device is told to do wrong, and what was asked of it.
struct Faults {
  std::atomic<bool> opens = false;
  std::atomic<bool> reads = false;
  // How many more reads and writes of the page at this offset fail, and how many did.
  std::atomic<std::uint64_t> bad_page = UINT64_MAX;
  std::atomic<int> bad_tries = 0;
  std::atomic<int> bad_failed = 0;
  // Reads of slots in these segments fail, or wait for Release().
  std::atomic<std::uint64_t> bad_segment = UINT64_MAX;
  std::atomic<std::uint64_t> held_segment = UINT64_MAX;
  std::atomic<bool> writes = false;
  std::atomic<bool> flushes = false;
  std::atomic<int> failed = 0;
  std::atomic<int> requests = 0;
  std::atomic<int> discards = 0;
  std::atomic<int> written = 0;  // also what failed

  void Hold(std::function<void()> read) {
    MutexLock lock(mu);
    held.push_back(std::move(read));
    changed.NotifyAll();
  }
  void WaitUntilHeld() {
    MutexLock lock(mu);
    while (held.empty()) changed.Wait(mu);
  }
  // What is held goes on, and nothing is held any more.
  void Release() {
    held_segment = UINT64_MAX;
    std::vector<std::function<void()>> released;
    {
      MutexLock lock(mu);
      released.swap(held);
    }
    for (const auto& read : released) read();
  }

  Mutex mu;
  CondVar changed;
  std::vector<std::function<void()>> held KAVERN_GUARDED_BY(mu);
};

class FailingDevice final : public BlockDevice {
 public:
  static constexpr std::uint64_t kSegmentBytes = std::uint64_t{128} * 1024;  // 15 slots of 4 KiB

  FailingDevice(std::unique_ptr<BlockDevice> device, Faults& faults)
      : device_(std::move(device)), faults_(faults) {}

  void Submit(DiskIo io) override {
    ++faults_.requests;
    faults_.discards += io.op == DiskIo::Op::kDiscard ? 1 : 0;
    faults_.written += io.op == DiskIo::Op::kWrite ? 1 : 0;
    const bool bad = io.offset == faults_.bad_page && faults_.bad_tries > 0 &&
                     (io.op == DiskIo::Op::kRead || io.op == DiskIo::Op::kWrite);
    faults_.bad_tries -= bad ? 1 : 0;
    faults_.bad_failed += bad ? 1 : 0;
    if (ReadsSlotOf(io, faults_.held_segment)) {
      faults_.Hold([this, io = std::move(io)] { device_->Submit(io); });
      return;
    }
    const bool fails = bad || ReadsSlotOf(io, faults_.bad_segment) ||
                       (io.op == DiskIo::Op::kRead && faults_.reads) ||
                       (io.op == DiskIo::Op::kWrite && faults_.writes) ||
                       (io.op == DiskIo::Op::kFlush && faults_.flushes);
    if (fails) {
      io.done = [this, done = std::move(io.done)](const absl::Status&) {
        ++faults_.failed;
        done(absl::InternalError("disk1: Input/output error"));
      };
    }
    device_->Submit(std::move(io));
  }
  std::uint64_t size_bytes() const override { return device_->size_bytes(); }
  std::string_view method() const override { return device_->method(); }

 private:
  static bool ReadsSlotOf(const DiskIo& io, std::uint64_t segment) {
    if (segment == UINT64_MAX || io.op != DiskIo::Op::kRead) return false;
    const std::uint64_t header =
        disk::SegmentOffset(kSegmentBytes, static_cast<std::uint32_t>(segment));
    return io.offset > header && io.offset < header + kSegmentBytes;
  }

  const std::unique_ptr<BlockDevice> device_;
  Faults& faults_;
};

class DiskFailureFixture : public StoreFixture {
 protected:
  static constexpr std::uint64_t kSegmentBytes = FailingDevice::kSegmentBytes;
  static constexpr std::uint64_t kSegments = 8;  // of each device

  // Before what it uses: the files and the faults.
  ~DiskFailureFixture() override { store_.reset(); }

  void StartWithDisks(std::uint64_t segments = kSegments, std::uint64_t regions = 1) {
    CreateWithDisks(segments, regions);
    if (store_ != nullptr) store_->Quiesce();
  }
  // Does not wait until what is on disk is read.
  void CreateWithDisks(std::uint64_t segments = kSegments, std::uint64_t regions = 1) {
    Create(regions, [&](TieredStoreOptions& options) {
      TieredStoreOptions::Disk disk;
      for (const char* name : {"disk0", "disk1"}) {
        disk.store.devices.push_back(
            {directory_.path() / name, disk::kSegmentsOffset + segments * kSegmentBytes});
      }
      disk.store.catalog_path = directory_.path() / "catalog";
      disk.store.segment_bytes = kSegmentBytes;
      disk.store.queue_depth = 4;
      disk.store.discard = true;
      disk.store.catalog_env = files_.env();
      disk.store.open =
          [this](const BlockDeviceOptions& device) -> absl::StatusOr<std::unique_ptr<BlockDevice>> {
        Faults& faults = device.path.ends_with("disk0") ? faults_[0] : faults_[1];
        if (faults.opens) {
          ++faults.failed;
          return ErrnoStatus(EIO, device.path);
        }
        auto opened = OpenBlockDevice(device);
        if (!opened.ok()) return opened.status();
        return std::make_unique<FailingDevice>(*std::move(opened), faults);
      };
      options.disk = disk;
    });
  }
  // The faults of each device change between the two.
  void Restart(bool first_fails, bool second_fails) {
    store_.reset();
    faults_[0].opens = first_fails;
    faults_[1].opens = second_fails;
    StartWithDisks();
    store_->Quiesce();
  }
  // Nothing is written any more, RAM serves on, and no delete is acknowledged that a later start
  // would not know of.
  void ExpectOnlyRam(const std::string& why) {
    const DiskStatus disk = store_->GetStatus().disk;
    EXPECT_TRUE(disk.configured);
    EXPECT_THAT(disk.failure, testing::HasSubstr(why));
    EXPECT_EQ(disk.capacity_bytes, 0U);
    for (const DeviceFacts& device : disk.devices) EXPECT_FALSE(device.healthy);
    const NamespaceRef ns = Open(SpecOf("ram"));
    EXPECT_EQ(StoreOne(ns, 9000), 1U);
    EXPECT_EQ(Verified(ns, KeysOf(9000, 1)), 1U);
    EXPECT_TRUE(absl::IsUnavailable(store_->Purge(ns.fingerprint()).status()));
    store_->Quiesce();
    ExpectSound();
  }
  // Single blocks, each of which reached the disks or was given up.
  std::vector<BlockKey> StoreBlocks(const NamespaceRef& ns, std::uint64_t first,
                                    std::uint64_t count) {
    for (std::uint64_t n = first; n < first + count; ++n) {
      EXPECT_EQ(StoreOne(ns, n), 1U);
      store_->Quiesce();
    }
    return KeysOf(first, count);
  }
  // How many come back; every one of them right.
  std::size_t Verified(const NamespaceRef& ns, std::span<const BlockKey> keys) {
    std::size_t right = 0;
    for (const BlockKey& key : keys) {
      const auto result = store_->FetchAll(ns, {.keys = {&key, 1}});
      EXPECT_TRUE(result.ok()) << result.status();
      EXPECT_TRUE(HoldsPayloads(result->lease, {&key, 1}));
      right += result->lease.parts().size();
    }
    return right;
  }
  void ExpectOut(std::uint64_t device) {
    const DiskStatus disk = store_->GetStatus().disk;
    ASSERT_EQ(disk.devices.size(), 2U);
    EXPECT_TRUE(disk.devices[1 - device].healthy);
    EXPECT_FALSE(disk.devices[device].healthy);
    EXPECT_THAT(disk.devices[device].last_error, testing::HasSubstr("Input/output error"));
    EXPECT_EQ(disk.capacity_bytes, kSegments * kSegmentBytes);
    EXPECT_EQ(disk.failure, "");
    EXPECT_GT(faults_[device].failed, 0);
  }

  TempDirectory directory_;
  FaultFileSystem files_;
  Faults faults_[2];
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_UNIT_TIERS_DISK_FAILURE_FIXTURE_H_
