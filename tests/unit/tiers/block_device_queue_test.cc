// The order in which a device begins what is queued, and how what is queued ends without having
// been begun: by its deadline, cancelled, refused, given up.
//
// A device of depth 1 stands still while a callback of it does: that is how what is queued is kept
// there.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <future>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "gmock/gmock.h"
#include "tests/fakes/fault_device.h"
#include "tests/unit/tiers/block_device_fixture.h"

namespace kavern::tiers {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class UringDeviceTest : public BlockDeviceTest {};
INSTANTIATE_TEST_SUITE_P(Methods, UringDeviceTest, testing::Values("io_uring"),
                         [](const auto& method) { return std::string(method.param); });

TEST_P(BlockDeviceTest, TheMoreUrgentBeginsFirst) {
  options_.depth = 1;
  const auto device = Open();
  const DiskPages pages(1);
  Hold(*device);
  std::vector<std::string> order;
  std::vector<Outcome> ends(5);
  const auto submit = [&](std::size_t i, const char* name, DiskIo io, IoPriority priority) {
    io.priority = priority;
    io.done = [&order, &ends, i, name](absl::Status status) {
      order.emplace_back(name);
      ends[i].Done()(std::move(status));
    };
    device->Submit(std::move(io));
  };
  submit(0, "scrub", Read(0, {pages.all()}), IoPriority::kScrub);
  submit(1, "write-back", Write(0, {pages.all()}), IoPriority::kWriteBack);
  submit(2, "flush", Flush(), IoPriority::kWriteBack);
  submit(3, "prefetch", Read(0, {pages.all()}), IoPriority::kPrefetch);
  submit(4, "fetch", Read(0, {pages.all()}), IoPriority::kFetch);
  EXPECT_EQ(device->facts().queued, 5U);
  Release();
  for (Outcome& end : ends) EXPECT_TRUE(end.Get().ok());
  EXPECT_THAT(order, ElementsAre("fetch", "prefetch", "flush", "write-back", "scrub"));
}

// Whoever is told verifies a checksum: a disk that ended all it had would wait for that.
// (Of threads each tells and works by itself.)
TEST_P(UringDeviceTest, ItHasItsNextWorkBeforeItTellsOfTheLast) {
  options_.depth = 1;
  const auto device = Open();
  const UniqueFd reader(open(options_.path.c_str(), O_RDONLY | O_CLOEXEC));
  const DiskPages first(1);
  const DiskPages next(1);
  Fill(next.all(), 2);
  Outcome outcome;
  bool written_meanwhile = false;
  Hold(*device);
  DiskIo one = Write(0, {first.all()});
  one.done = [&](const absl::Status&) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!written_meanwhile && std::chrono::steady_clock::now() < give_up) {
      std::vector<std::byte> there(kDiskPage);
      const ssize_t got = pread(reader.get(), there.data(), there.size(), kDiskPage);
      written_meanwhile = got == static_cast<ssize_t>(there.size()) && Holds(there, 2);
    }
  };
  DiskIo other = Write(kDiskPage, {next.all()});
  other.done = outcome.Done();
  device->Submit(std::move(one));
  device->Submit(std::move(other));
  Release();
  ASSERT_TRUE(outcome.Get().ok());
  EXPECT_TRUE(written_meanwhile);
}

TEST_P(BlockDeviceTest, AFlushIsNotStarvedByReads) {
  options_.depth = 1;
  const auto device = Open();
  const DiskPages pages(1);
  Hold(*device);
  std::vector<char> order;
  Outcome flushed;
  std::promise<void> all_read;
  std::size_t reads_left = std::size_t{3} * kPassesMax;
  DiskIo flush = Flush();
  flush.done = [&](absl::Status status) {
    order.push_back('f');
    flushed.Done()(std::move(status));
  };
  device->Submit(std::move(flush));
  for (int i = 0; i < 3 * kPassesMax; ++i) {
    DiskIo io = Read(0, {pages.all()});
    io.done = [&](const absl::Status&) {
      order.push_back('r');
      if (--reads_left == 0) all_read.set_value();
    };
    device->Submit(std::move(io));
  }
  Release();
  EXPECT_TRUE(flushed.Get().ok());
  all_read.get_future().wait();
  EXPECT_EQ(std::find(order.begin(), order.end(), 'f') - order.begin(), kPassesMax);
}

TEST_P(BlockDeviceTest, WhatIsQueuedPastItsDeadlineIsNeverBegun) {
  options_.depth = 1;
  const auto device = Open();
  const DiskPages out(1);
  Fill(out.all(), 3);
  Hold(*device);
  Outcome late;
  Outcome in_time;
  DiskIo io = Write(0, {out.all()});
  io.deadline = clock_.Now() + std::chrono::seconds(1);
  io.done = late.Done();
  device->Submit(std::move(io));
  io = Write(kDiskPage, {out.all()});
  io.deadline = clock_.Now() + std::chrono::seconds(9);
  io.done = in_time.Done();
  device->Submit(std::move(io));
  clock_.Advance(std::chrono::seconds(2));
  Release();
  EXPECT_TRUE(absl::IsDeadlineExceeded(late.Get()));
  EXPECT_TRUE(in_time.Get().ok());
  EXPECT_EQ(device->facts().expired, 1U);
  const DiskPages in(2);
  ASSERT_TRUE(RunIo(*device, Read(0, {in.all()})).ok());
  EXPECT_EQ(in.page(0)[9], std::byte{0});
  EXPECT_TRUE(Holds(in.page(1), 3));
}

// The device of the fault tests, on this one.
TEST_P(BlockDeviceTest, WhatIsReadThroughAFaultDeviceCanBeCancelledThereAndBeneath) {
  options_.depth = 1;
  FaultCounts counts;
  FaultDevice device(Open(), 1, /*cache=*/false, counts);
  const DiskPages in(2);
  Hold(device);
  Outcome beneath;
  DiskIo io = Read(0, {in.page(0)});
  io.token = 5;
  io.done = beneath.Done();
  device.Submit(std::move(io));
  device.Cancel(5);
  Release();
  EXPECT_TRUE(absl::IsCancelled(beneath.Get()));
  EXPECT_EQ(device.facts().cancelled, 1U);
  Outcome stalled;
  device.SetRate(DiskFault::kStall, 1);
  io = Read(0, {in.page(1)});
  io.token = 6;
  io.done = stalled.Done();
  device.Submit(std::move(io));
  device.Cancel(5);
  EXPECT_EQ(device.stalled(), 1U);
  device.Cancel(6);
  EXPECT_TRUE(absl::IsCancelled(stalled.Get()));
  EXPECT_EQ(device.stalled(), 0U);
}

TEST_P(BlockDeviceTest, WhatIsQueuedCanBeCancelled) {
  options_.depth = 1;
  const auto device = Open();
  const DiskPages out(1);
  Fill(out.all(), 4);
  Hold(*device);
  Outcome cancelled;
  Outcome other;
  DiskIo io = Write(0, {out.all()});
  io.token = 5;
  io.done = cancelled.Done();
  device->Submit(std::move(io));
  io = Write(kDiskPage, {out.all()});
  io.token = 6;
  io.done = other.Done();
  device->Submit(std::move(io));
  device->Cancel(5);
  Release();
  EXPECT_TRUE(absl::IsCancelled(cancelled.Get()));
  EXPECT_TRUE(other.Get().ok());
  EXPECT_EQ(device->facts().cancelled, 1U);
  device->Cancel(6);  // ended: nothing to cancel
  const DiskPages in(2);
  ASSERT_TRUE(RunIo(*device, Read(0, {in.all()})).ok());
  EXPECT_EQ(in.page(0)[9], std::byte{0});
  EXPECT_TRUE(Holds(in.page(1), 4));
}

TEST_P(BlockDeviceTest, AFullQueueRefuses) {
  options_.depth = 1;
  options_.queued_io_max = 2;
  const auto device = Open();
  const DiskPages pages(1);
  Hold(*device);
  std::vector<Outcome> ends(3);
  for (Outcome& end : ends) {
    DiskIo io = Read(0, {pages.all()});
    io.done = end.Done();
    device->Submit(std::move(io));
  }
  EXPECT_EQ(device->facts().refused, 1U);
  Release();
  EXPECT_TRUE(ends[0].Get().ok());
  EXPECT_TRUE(ends[1].Get().ok());
  const absl::Status refused = ends[2].Get();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr(options_.path));
}

TEST_P(BlockDeviceTest, WhatIsQueuedWhereItHangsIsCancelled) {
  options_.depth = 1;
  const auto device = Open();
  const DiskPages pages(1);
  Hold(*device);
  while (device->facts().queued > 0) std::this_thread::yield();
  Outcome queued;
  DiskIo io = Write(0, {pages.all()});
  io.done = queued.Done();
  device->Submit(std::move(io));
  device->GiveUp();
  Release();
  EXPECT_TRUE(absl::IsCancelled(queued.Get()));
  EXPECT_EQ(device->facts().first_begun, SteadyTime::max());
}

}  // namespace
}  // namespace kavern::tiers
