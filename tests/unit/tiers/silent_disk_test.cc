// A disk that does not answer before the test does: a pipe, which only io_uring reads from as from
// a disk.

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <thread>
#include <utility>

#include "base/unique_fd.h"
#include "gtest/gtest.h"
#include "tests/unit/tiers/block_device_fixture.h"
#include "tiers/ram/region.h"

namespace kavern::tiers {
namespace {

class SilentDiskTest : public testing::Test {
 protected:
  void SetUp() override {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    UniqueFd reading(ends[0]);
    writing_ = UniqueFd(ends[1]);
    options_.path = "pipe";
    options_.size_bytes = kFileBytes;
    options_.depth = 1;
    options_.registered_io_min_bytes = kDiskPage;
    options_.clock = &clock_;
    auto device = MakeUringDevice(std::move(reading), options_);
    if (absl::IsUnimplemented(device.status())) GTEST_SKIP() << device.status();
    device_ = std::move(device).value();
  }
  void SubmitRead(Outcome& outcome, const DiskPages& pages, SteadyTime deadline,
                  std::uint64_t token = 0) {
    DiskIo io = Read(0, {pages.all()});
    io.deadline = deadline;
    io.token = token;
    io.done = outcome.Done();
    device_->Submit(std::move(io));
  }
  void WaitUntilInFlight() {
    while (device_->facts().in_flight == 0 || device_->facts().queued > 0) {
      std::this_thread::yield();
    }
  }
  void Answer(std::span<const std::byte> bytes) {
    ASSERT_EQ(write(writing_.get(), bytes.data(), bytes.size()),
              static_cast<ssize_t>(bytes.size()));
  }

  HeldClock clock_;
  BlockDeviceOptions options_;
  UniqueFd writing_;
  std::unique_ptr<BlockDevice> device_;
};

TEST_F(SilentDiskTest, AReadThatEndsEarlyGoesOnWhereItEnded) {
  const DiskPages pages(4);
  const DiskPages answer(4);
  Fill(answer.all(), 9);
  Outcome outcome;
  DiskIo io = Read(0, {pages.page(0), pages.all().subspan(kDiskPage)});
  io.done = outcome.Done();
  device_->Submit(std::move(io));
  // The kernel takes what there is as a whole read: it has taken the first when there is room.
  Answer(answer.all().first(kDiskPage + 512));
  int waiting = 1;
  while (waiting != 0) ASSERT_EQ(ioctl(writing_.get(), FIONREAD, &waiting), 0);
  EXPECT_FALSE(outcome.ended());
  Answer(answer.all().subspan(kDiskPage + 512));
  EXPECT_TRUE(outcome.Get().ok());
  EXPECT_TRUE(Holds(pages.all(), 9));
}

TEST_F(SilentDiskTest, WhatTheKernelHasIsNotAnsweredBeforeTheKernelAnswers) {
  const DiskPages pages(1);
  const DiskPages other(1);
  Outcome begun;
  Outcome queued;
  const SteadyTime deadline = clock_.Now() + std::chrono::seconds(1);
  SubmitRead(begun, pages, deadline);
  WaitUntilInFlight();
  SubmitRead(queued, other, deadline);
  clock_.Advance(std::chrono::seconds(2));
  device_->Cancel(99);  // looks at the clock
  // What is queued is told although the only place in flight is taken.
  EXPECT_TRUE(absl::IsDeadlineExceeded(queued.Get()));
  EXPECT_FALSE(begun.ended());
  const DiskPages answer(1);
  Fill(answer.all(), 10);
  Answer(answer.all());
  EXPECT_TRUE(begun.Get().ok());
  EXPECT_TRUE(Holds(pages.all(), 10));
  EXPECT_EQ(device_->facts().late, 1U);
  EXPECT_EQ(device_->facts().expired, 1U);
}

TEST_F(SilentDiskTest, ADeadlineWakesTheDeviceByItself) {
  options_.clock = &Clock::System();
  device_.reset();
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  device_ = MakeUringDevice(UniqueFd(ends[0]), options_).value();
  writing_ = UniqueFd(ends[1]);
  const DiskPages pages(2);
  Outcome begun;
  Outcome queued;
  SubmitRead(begun, pages, SteadyTime::max());
  SubmitRead(queued, pages, Clock::System().Now() + std::chrono::milliseconds(5));
  EXPECT_TRUE(absl::IsDeadlineExceeded(queued.Get()));
  EXPECT_FALSE(begun.ended());
  Answer(pages.all());
  EXPECT_TRUE(begun.Get().ok());
}

TEST_F(SilentDiskTest, WhatTheKernelHasCanBeCancelled) {
  const DiskPages pages(1);
  Outcome begun;
  SubmitRead(begun, pages, SteadyTime::max(), 7);
  WaitUntilInFlight();
  device_->Cancel(8);
  EXPECT_EQ(device_->facts().in_flight, 1U);
  device_->Cancel(7);
  EXPECT_TRUE(absl::IsCancelled(begun.Get()));
  EXPECT_EQ(device_->facts().in_flight, 0U);
  EXPECT_EQ(device_->facts().cancelled, 1U);
}

TEST_F(SilentDiskTest, ADiskThatHangsSaysSinceWhenAndKeepsNobodyWaiting) {
  const auto region = Region::Create(1, 16 * kDiskPage, HugePages::kOff, nullptr).value();
  ASSERT_TRUE(region->Populate(0, region->size_bytes()).ok());
  device_->RegisterMemory(region->bytes());
  const DiskPages pages(1);
  EXPECT_EQ(device_->facts().first_begun, SteadyTime::max());
  Outcome begun;
  Outcome queued;
  const SteadyTime since = clock_.Now();
  DiskIo io = Read(0, {region->bytes().first(kDiskPage)});
  io.done = begun.Done();
  device_->Submit(std::move(io));
  WaitUntilInFlight();
  clock_.Advance(std::chrono::seconds(9));
  SubmitRead(queued, pages, SteadyTime::max());
  EXPECT_EQ(device_->facts().first_begun, since);
  std::thread unregistering([&] { device_->UnregisterMemory(region->bytes()); });
  device_->GiveUp();
  EXPECT_TRUE(absl::IsCancelled(queued.Get()));
  unregistering.join();
  EXPECT_FALSE(begun.ended());
  EXPECT_EQ(device_->facts().in_flight, 1U);
  Answer(pages.all());
  EXPECT_TRUE(begun.Get().ok());
  EXPECT_EQ(device_->facts().first_begun, SteadyTime::max());
}

TEST_F(SilentDiskTest, MemoryInFlightStaysRegisteredUntilItsIoEnds) {
  const auto region = Region::Create(1, 16 * kDiskPage, HugePages::kOff, nullptr).value();
  ASSERT_TRUE(region->Populate(0, region->size_bytes()).ok());
  device_->RegisterMemory(region->bytes());
  Outcome begun;
  DiskIo io = Read(0, {region->bytes().first(kDiskPage)});
  io.done = begun.Done();
  device_->Submit(std::move(io));
  WaitUntilInFlight();
  std::atomic<bool> gone = false;
  std::thread unregistering([&] {
    device_->UnregisterMemory(region->bytes());
    gone = true;
  });
  const DiskPages answer(1);
  Fill(answer.all(), 11);
  EXPECT_FALSE(gone);
  EXPECT_EQ(device_->facts().registered_bytes, region->size_bytes());
  Answer(answer.all());
  EXPECT_TRUE(begun.Get().ok());
  unregistering.join();
  EXPECT_TRUE(gone);
  EXPECT_EQ(device_->facts().registered_bytes, 0U);
  EXPECT_TRUE(Holds(region->bytes().first(kDiskPage), 11));
}

}  // namespace
}  // namespace kavern::tiers
