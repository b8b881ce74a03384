// Slots and the header of their segment are written at the same time: no slot counts before its
// segment has a header, and none does where it gets none. Says nothing about what a power cut
// leaves of either.

#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "gmock/gmock.h"
#include "tests/unit/tiers/disk_fixture.h"
#include "tiers/nvme/disk_format.h"

namespace kavern::tiers {
namespace {

// What the headers of segments meet, shared by the devices of one test.
class HeaderGate {
 public:
  void Close() {
    MutexLock lock(mu_);
    closed_ = true;
  }
  // What is held goes on, or ends as `status` says.
  void Open(const absl::Status& status = absl::OkStatus()) {
    std::vector<std::pair<BlockDevice*, DiskIo>> held;
    {
      MutexLock lock(mu_);
      closed_ = false;
      held.swap(held_);
    }
    for (auto& [device, io] : held) {
      if (status.ok()) {
        device->Submit(std::move(io));
      } else {
        io.done(status);
      }
    }
  }
  // False: it is open.
  bool Hold(BlockDevice* device, DiskIo& io) {
    MutexLock lock(mu_);
    if (!closed_) return false;
    held_.emplace_back(device, std::move(io));
    return true;
  }
  void CountSlot() {
    MutexLock lock(mu_);
    ++slots_;
    changed_.NotifyAll();
  }
  void AwaitSlots(std::uint64_t count) {
    MutexLock lock(mu_);
    while (slots_ < count) changed_.Wait(mu_);
  }
  std::size_t held() const {
    MutexLock lock(mu_);
    return held_.size();
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;
  bool closed_ KAVERN_GUARDED_BY(mu_) = false;
  std::uint64_t slots_ KAVERN_GUARDED_BY(mu_) = 0;  // written
  std::vector<std::pair<BlockDevice*, DiskIo>> held_ KAVERN_GUARDED_BY(mu_);
};

class GatedDevice final : public BlockDevice {
 public:
  GatedDevice(std::unique_ptr<BlockDevice> device, std::uint64_t segment_bytes, HeaderGate& gate)
      : device_(std::move(device)), segment_bytes_(segment_bytes), gate_(gate) {}

  void Submit(DiskIo io) override {
    if (io.op == DiskIo::Op::kWrite && io.offset >= disk::kSegmentsOffset) {
      const bool header = (io.offset - disk::kSegmentsOffset) % segment_bytes_ == 0;
      if (header && gate_.Hold(device_.get(), io)) return;
      if (!header) {
        io.done = [this, done = std::move(io.done)](absl::Status status) {
          done(std::move(status));
          gate_.CountSlot();
        };
      }
    }
    device_->Submit(std::move(io));
  }
  std::uint64_t size_bytes() const override { return device_->size_bytes(); }
  std::string_view method() const override { return device_->method(); }

 private:
  const std::unique_ptr<BlockDevice> device_;
  const std::uint64_t segment_bytes_;
  HeaderGate& gate_;
};

class SegmentHeaderTest : public DiskFixture {
 protected:
  // One device, so that one header is enough for all.
  void StartGated() {
    StartWithDisk(2, 8, [this](TieredStoreOptions& options) {
      options.disk->store.devices.pop_back();
      options.disk->store.open =
          [this](const BlockDeviceOptions& device) -> absl::StatusOr<std::unique_ptr<BlockDevice>> {
        auto opened = OpenBlockDevice(device);
        if (!opened.ok()) return opened.status();
        return std::make_unique<GatedDevice>(*std::move(opened), kSegmentBytes, gate_);
      };
    });
  }

  HeaderGate gate_;
};

TEST_F(SegmentHeaderTest, NoBlockIsOnDiskBeforeItsSegmentHasAHeader) {
  StartGated();
  NamespaceRef ns = Open(SpecOf("m"));
  gate_.Close();
  for (std::uint64_t n = 1; n <= 3; ++n) ASSERT_EQ(StoreOne(ns, n), 1U);
  gate_.AwaitSlots(3);
  EXPECT_EQ(gate_.held(), 1U) << "each segment's header is written once";
  // The slots are written, and would be committed at once.
  EXPECT_FALSE(store_->WriteBack(std::chrono::milliseconds(50)));
  EXPECT_EQ(store_->GetCounters().disk_stored_blocks, 0U);
  gate_.Open();
  store_->Quiesce();
  EXPECT_EQ(store_->GetCounters().disk_stored_blocks, 3U);
  ns = NamespaceRef();
  store_.reset();
  StartGated();
  EXPECT_EQ(Verified(Open(SpecOf("m")), KeysOf(1, 3)), 3U);
}

TEST_F(SegmentHeaderTest, WithoutAHeaderNothingInTheSegmentCountsAndTheNextWriteTriesAgain) {
  StartGated();
  NamespaceRef ns = Open(SpecOf("m"));
  gate_.Close();
  for (std::uint64_t n = 1; n <= 3; ++n) ASSERT_EQ(StoreOne(ns, n), 1U);
  gate_.AwaitSlots(3);
  // What says nothing about the device: it stays in use.
  gate_.Open(absl::ResourceExhaustedError("the queue is full"));
  store_->Quiesce();
  EXPECT_EQ(store_->GetCounters().disk_stored_blocks, 0U);
  EXPECT_EQ(store_->GetCounters().disk_declined_blocks, 3U);
  EXPECT_EQ(store_->GetStatus().disk.blocks, 0U);
  ASSERT_EQ(StoreOne(ns, 4), 1U);
  store_->Quiesce();
  EXPECT_EQ(store_->GetCounters().disk_stored_blocks, 1U);
  ExpectSound();
  ns = NamespaceRef();
  store_.reset();
  StartGated();
  const NamespaceRef again = Open(SpecOf("m"));
  EXPECT_EQ(Verified(again, KeysOf(1, 3)), 0U);
  EXPECT_EQ(Verified(again, KeysOf(4, 1)), 1U);
}

}  // namespace
}  // namespace kavern::tiers
