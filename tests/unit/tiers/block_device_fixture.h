// What tests of block devices share: a file that stands for a disk, and requests whose end can be
// waited for.
#ifndef KAVERN_TESTS_UNIT_TIERS_BLOCK_DEVICE_FIXTURE_H_
#define KAVERN_TESTS_UNIT_TIERS_BLOCK_DEVICE_FIXTURE_H_

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/unique_fd.h"
#include "gtest/gtest.h"
#include "tests/fakes/temp_directory.h"
#include "tests/unit/tiers/store_fixture.h"
#include "tiers/nvme/block_device.h"
#include "tiers/nvme/disk_pages.h"

namespace kavern::tiers {

inline constexpr std::uint64_t kFileBytes = 256 * kDiskPage;

inline void Fill(std::span<std::byte> memory, std::uint64_t seed) {
  for (std::size_t i = 0; i < memory.size(); i += sizeof(seed)) {
    const std::uint64_t word = (seed + i) * 0x9e3779b97f4a7c15U;
    std::memcpy(memory.data() + i, &word, sizeof(word));
  }
}
inline bool Holds(std::span<const std::byte> memory, std::uint64_t seed) {
  std::vector<std::byte> expected(memory.size());
  Fill(expected, seed);
  return std::equal(memory.begin(), memory.end(), expected.begin());
}

// One request's end.
class Outcome {
 public:
  std::function<void(absl::Status)> Done() {
    return [this](absl::Status status) { promise_.set_value(std::move(status)); };
  }
  absl::Status Get() { return future_.get(); }
  bool ended() const {
    return future_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }

 private:
  std::promise<absl::Status> promise_;
  std::future<absl::Status> future_ = promise_.get_future();
};

inline DiskIo Read(std::uint64_t offset, std::vector<std::span<std::byte>> pieces) {
  DiskIo io;
  io.offset = offset;
  io.pieces = std::move(pieces);
  return io;
}
inline DiskIo Write(std::uint64_t offset, std::vector<std::span<std::byte>> pieces) {
  DiskIo io = Read(offset, std::move(pieces));
  io.op = DiskIo::Op::kWrite;
  return io;
}
inline DiskIo Flush() {
  DiskIo io;
  io.op = DiskIo::Op::kFlush;
  return io;
}
inline absl::Status RunIo(BlockDevice& device, DiskIo io) {
  Outcome outcome;
  io.done = outcome.Done();
  device.Submit(std::move(io));
  return outcome.Get();
}

// A file that stands for a disk, by the method that is the parameter. Instantiated in
// block_device_test.cc.
class BlockDeviceTest : public testing::TestWithParam<const char*> {
 protected:
  BlockDeviceTest() {
    options_.path = directory_.path() / "disk";
    options_.size_bytes = kFileBytes;
    options_.depth = 4;
    options_.io_uring = std::string(GetParam()) == "io_uring";
    options_.registered_io_min_bytes = kDiskPage;
    options_.clock = &clock_;
  }

  void SetUp() override {
    if (OpenBlockDevice(options_).value()->method() != GetParam()) {
      GTEST_SKIP() << "the kernel refuses io_uring";
    }
  }
  std::unique_ptr<BlockDevice> Open() { return OpenBlockDevice(options_).value(); }
  std::unique_ptr<BlockDevice> OpenOn(UniqueFd file) {
    if (!options_.io_uring) return MakeThreadDevice(std::move(file), options_);
    return MakeUringDevice(std::move(file), options_).value();
  }

  // What it does next waits in the queue until Release().
  void Hold(BlockDevice& device) {
    DiskIo io = Read(0, {held_.all()});
    io.done = [this](const absl::Status&) {
      holds_.set_value();
      released_.get_future().wait();
    };
    device.Submit(std::move(io));
    holds_.get_future().wait();
  }
  void Release() { released_.set_value(); }

  TempDirectory directory_;
  HeldClock clock_;
  BlockDeviceOptions options_;
  DiskPages held_ = DiskPages(1);
  std::promise<void> holds_;
  std::promise<void> released_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_UNIT_TIERS_BLOCK_DEVICE_FIXTURE_H_
