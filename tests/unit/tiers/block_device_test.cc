// Block devices on files, pipes and a loop device: by io_uring, and by threads.
//
// A device of depth 1 stands still while a callback of it does: that is how what is queued is kept
// there. A pipe stands for a disk that does not answer.

#include "tiers/nvme/block_device.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <future>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "gmock/gmock.h"
#include "tests/fakes/fault_device.h"
#include "tests/fakes/temp_directory.h"
#include "tests/unit/tiers/store_fixture.h"
#include "tiers/nvme/disk_store.h"
#include "tiers/ram/region.h"

namespace kavern::tiers {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint64_t kFileBytes = 256 * kDiskPage;

void Fill(std::span<std::byte> memory, std::uint64_t seed) {
  for (std::size_t i = 0; i < memory.size(); i += sizeof(seed)) {
    const std::uint64_t word = (seed + i) * 0x9e3779b97f4a7c15U;
    std::memcpy(memory.data() + i, &word, sizeof(word));
  }
}
bool Holds(std::span<const std::byte> memory, std::uint64_t seed) {
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

DiskIo Read(std::uint64_t offset, std::vector<std::span<std::byte>> pieces) {
  DiskIo io;
  io.offset = offset;
  io.pieces = std::move(pieces);
  return io;
}
DiskIo Write(std::uint64_t offset, std::vector<std::span<std::byte>> pieces) {
  DiskIo io = Read(offset, std::move(pieces));
  io.op = DiskIo::Op::kWrite;
  return io;
}
DiskIo Flush() {
  DiskIo io;
  io.op = DiskIo::Op::kFlush;
  return io;
}
absl::Status RunIo(BlockDevice& device, DiskIo io) {
  Outcome outcome;
  io.done = outcome.Done();
  device.Submit(std::move(io));
  return outcome.Get();
}

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

class UringDeviceTest : public BlockDeviceTest {};

TEST_P(BlockDeviceTest, WhatIsWrittenInPiecesIsReadInOthers) {
  const auto device = Open();
  const DiskPages out(8);
  Fill(out.all(), 1);
  EXPECT_EQ(device->size_bytes(), kFileBytes);
  ASSERT_TRUE(
      RunIo(*device, Write(5 * kDiskPage, {out.page(0), out.page(1), out.all().subspan(8192)}))
          .ok());
  ASSERT_TRUE(RunIo(*device, Flush()).ok());
  const DiskPages in(8);
  ASSERT_TRUE(
      RunIo(*device, Read(5 * kDiskPage, {in.all().first(7 * kDiskPage), in.page(7)})).ok());
  EXPECT_TRUE(Holds(in.all(), 1));
}

TEST_P(BlockDeviceTest, ADiscardedRangeIsZerosAndKeepsItsSpace) {
  const auto device = Open();
  const DiskPages pages(4);
  Fill(pages.all(), 2);
  ASSERT_TRUE(RunIo(*device, Write(0, {pages.all()})).ok());
  ASSERT_TRUE(RunIo(*device, Flush()).ok());
  struct stat before {};
  ASSERT_EQ(stat(options_.path.c_str(), &before), 0);
  DiskIo discard;
  discard.op = DiskIo::Op::kDiscard;
  discard.offset = kDiskPage;
  discard.discard_bytes = 2 * kDiskPage;
  const absl::Status status = RunIo(*device, std::move(discard));
  if (absl::IsUnimplemented(status)) GTEST_SKIP() << status;
  ASSERT_TRUE(status.ok()) << status;
  const DiskPages in(4);
  ASSERT_TRUE(RunIo(*device, Read(0, {in.all()})).ok());
  EXPECT_EQ(std::memcmp(in.page(0).data(), pages.page(0).data(), kDiskPage), 0);
  EXPECT_EQ(std::memcmp(in.page(3).data(), pages.page(3).data(), kDiskPage), 0);
  for (const std::byte b : in.all().subspan(kDiskPage, 2 * kDiskPage)) {
    ASSERT_EQ(b, std::byte{0});
  }
  struct stat after {};
  ASSERT_EQ(stat(options_.path.c_str(), &after), 0);
  EXPECT_GE(after.st_blocks, before.st_blocks);
  EXPECT_EQ(after.st_size, before.st_size);
}

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

TEST_P(BlockDeviceTest, RegisteredMemoryCarriesTheSameBytes) {
  const auto device = Open();
  const auto region = Region::Create(1, 64 * kDiskPage, HugePages::kOff, nullptr).value();
  ASSERT_TRUE(region->Populate(0, region->size_bytes()).ok());
  device->RegisterMemory(region->bytes());
  const auto payload = region->bytes().subspan(3 * kDiskPage, 16 * kDiskPage);
  const DiskPages header(1);
  Fill(header.all(), 5);
  Fill(payload, 6);
  ASSERT_TRUE(RunIo(*device, Write(kDiskPage, {header.all(), payload})).ok());
  EXPECT_EQ(device->facts().registered_bytes, options_.io_uring ? region->size_bytes() : 0U);
  EXPECT_EQ(device->facts().registration_refusal, "");
  Fill(payload, 0);
  Fill(header.all(), 0);
  ASSERT_TRUE(RunIo(*device, Read(kDiskPage, {header.all(), payload})).ok());
  EXPECT_TRUE(Holds(header.all(), 5));
  EXPECT_TRUE(Holds(payload, 6));
  // Across the end of what is registered, and more pieces than a slot has.
  const DiskPages more(2);
  ASSERT_TRUE(RunIo(*device, Read(kDiskPage, {more.page(0), payload.first(4 * kDiskPage),
                                              more.page(1), payload.subspan(4 * kDiskPage, 4096)}))
                  .ok());
  EXPECT_TRUE(Holds(more.page(0), 5));
  device->UnregisterMemory(region->bytes());
  EXPECT_EQ(device->facts().registered_bytes, 0U);
  ASSERT_TRUE(RunIo(*device, Read(kDiskPage, {header.all(), payload})).ok());
  EXPECT_TRUE(Holds(payload, 6));
}

TEST_P(BlockDeviceTest, SmallPiecesGoWithTheirHeaders) {
  options_.registered_io_min_bytes = 2 * kDiskPage;
  const auto device = Open();
  const auto region = Region::Create(1, 8 * kDiskPage, HugePages::kOff, nullptr).value();
  ASSERT_TRUE(region->Populate(0, region->size_bytes()).ok());
  device->RegisterMemory(region->bytes());
  const DiskPages header(1);
  for (const std::uint64_t pages : {1, 2}) {
    const auto payload = region->bytes().first(pages * kDiskPage);
    Fill(header.all(), 20);
    Fill(payload, 21);
    ASSERT_TRUE(RunIo(*device, Write(0, {header.all(), payload})).ok());
    Fill(payload, 0);
    ASSERT_TRUE(RunIo(*device, Read(0, {header.all(), payload})).ok());
    EXPECT_TRUE(Holds(header.all(), 20));
    EXPECT_TRUE(Holds(payload, 21));
  }
}

TEST_P(BlockDeviceTest, MemoryComesAndGoesUnderLoad) {
  const auto device = Open();
  const auto region = Region::Create(1, 64 * kDiskPage, HugePages::kOff, nullptr).value();
  ASSERT_TRUE(region->Populate(0, region->size_bytes()).ok());
  for (std::uint64_t page = 0; page < 64; ++page) {
    Fill(region->bytes().subspan(page * kDiskPage, kDiskPage), page);
  }
  ASSERT_TRUE(RunIo(*device, Write(0, {region->bytes()})).ok());
  std::atomic<bool> stop = false;
  std::atomic<int> wrong = 0;
  std::vector<std::thread> readers;
  for (std::uint64_t reader = 0; reader < 4; ++reader) {
    readers.emplace_back([&, reader] {
      const DiskPages first(1);
      for (std::uint64_t i = 0; !stop; i = (i + 1) % 15) {
        const std::uint64_t page = reader * 16 + i;
        const auto memory = region->bytes().subspan((page + 1) * kDiskPage, kDiskPage);
        const bool ok = RunIo(*device, Read(page * kDiskPage, {first.all(), memory})).ok();
        if (!ok || !Holds(first.all(), page) || !Holds(memory, page + 1)) ++wrong;
      }
    });
  }
  for (int i = 0; i < 200; ++i) {
    device->RegisterMemory(region->bytes());
    const DiskPages one(1);
    ASSERT_TRUE(RunIo(*device, Read(0, {one.all()})).ok());
    device->UnregisterMemory(region->bytes());
    EXPECT_EQ(device->facts().registered_bytes, 0U);
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(BlockDeviceTest, MemoryThatTheKernelDoesNotRegisterIsReadIntoAnyway) {
  const auto device = Open();
  // The kernel cannot pin what may not be touched.
  void* nothing = mmap(nullptr, kDiskPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(nothing, MAP_FAILED);
  const std::span<std::byte> untouchable(static_cast<std::byte*>(nothing), kDiskPage);
  device->RegisterMemory(untouchable);
  const DiskPages pages(1);
  ASSERT_TRUE(RunIo(*device, Read(0, {pages.all()})).ok());
  EXPECT_EQ(device->facts().registered_bytes, 0U);
  EXPECT_EQ(device->facts().registration_refusal.empty(), !options_.io_uring);
  device->UnregisterMemory(untouchable);
  munmap(nothing, kDiskPage);
}

TEST_P(BlockDeviceTest, AFileThatEndsTooEarlySaysSoByName) {
  const auto device = Open();
  const DiskPages pages(4);
  Fill(pages.all(), 7);
  ASSERT_TRUE(RunIo(*device, Write(0, {pages.all()})).ok());
  ASSERT_EQ(truncate(options_.path.c_str(), 2 * kDiskPage), 0);
  const DiskPages in(4);
  const absl::Status status = RunIo(*device, Read(0, {in.page(0), in.all().subspan(kDiskPage)}));
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(options_.path));
  EXPECT_TRUE(RunIo(*device, Read(0, {in.all().first(2 * kDiskPage)})).ok());
  EXPECT_EQ(std::memcmp(in.all().data(), pages.all().data(), 2 * kDiskPage), 0);
}

TEST_P(BlockDeviceTest, ErrorsNameThePath) {
  Open();
  const auto device =
      OpenOn(UniqueFd(open(options_.path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC)));
  const DiskPages pages(1);
  EXPECT_TRUE(RunIo(*device, Read(0, {pages.all()})).ok());
  const absl::Status status = RunIo(*device, Write(0, {pages.all()}));
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr(options_.path));
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

TEST_P(BlockDeviceTest, ItsEndWaitsForAllThatWasSubmitted) {
  auto device = Open();
  const DiskPages pages(64);
  std::atomic<int> ended = 0;
  for (int i = 0; i < 200; ++i) {
    DiskIo io = Write(static_cast<std::uint64_t>(i) * kDiskPage,
                      {pages.page(static_cast<std::size_t>(i) % 64)});
    io.priority = IoPriority::kScrub;
    io.done = [&ended](const absl::Status& status) { ended += status.ok() ? 1 : 0; };
    device->Submit(std::move(io));
  }
  device.reset();
  EXPECT_EQ(ended, 200);
}

TEST_P(BlockDeviceTest, AFileThatAnotherHasIsWaitedForAsLongAsConfigured) {
  const auto device = Open();
  options_.lock_patience = std::chrono::milliseconds(0);
  const auto second = OpenBlockDevice(options_);
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(options_.path));
}

TEST_P(BlockDeviceTest, AFileOfAnotherSizeIsRefusedBeforeItIsChanged) {
  for (const std::uint64_t bytes : {kDiskPage, kFileBytes - 1, kFileBytes + 1, 2 * kFileBytes}) {
    std::filesystem::resize_file(options_.path, bytes);
    const absl::Status refused = OpenBlockDevice(options_).status();
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr(options_.path));
    EXPECT_THAT(std::string(refused.message()), HasSubstr(std::to_string(bytes) + " bytes"));
    EXPECT_THAT(std::string(refused.message()), HasSubstr(std::to_string(kFileBytes) + " bytes"));
    EXPECT_THAT(std::string(refused.message()), HasSubstr("remove the devices' files"));
    EXPECT_EQ(std::filesystem::file_size(options_.path), bytes);
  }
  std::filesystem::resize_file(options_.path, kFileBytes);
  EXPECT_TRUE(OpenBlockDevice(options_).ok());
}

TEST_P(BlockDeviceTest, AnEmptyFileIsOneThatIsNotMadeYet) {
  std::filesystem::resize_file(options_.path, 0);
  options_.create = false;
  EXPECT_TRUE(absl::IsNotFound(OpenBlockDevice(options_).status()));
  EXPECT_EQ(std::filesystem::file_size(options_.path), 0U);
  options_.create = true;
  EXPECT_TRUE(OpenBlockDevice(options_).ok());
  EXPECT_EQ(std::filesystem::file_size(options_.path), kFileBytes);
}

TEST_P(BlockDeviceTest, WhereItsSpaceCannotBeReservedAFileIsLeftEmpty) {
  std::filesystem::remove(options_.path);
  options_.size_bytes = std::uint64_t{1} << 62;
  const absl::Status refused = OpenBlockDevice(options_).status();
  EXPECT_FALSE(refused.ok());
  EXPECT_THAT(std::string(refused.message()), HasSubstr(options_.path));
  EXPECT_EQ(std::filesystem::file_size(options_.path), 0U);
  options_.size_bytes = kFileBytes;
  EXPECT_TRUE(OpenBlockDevice(options_).ok());
}

// A loop device over a file; invalid where none can be made, `why` says why.
UniqueFd MakeLoop(const std::string& file, std::string* path, std::string* why) {
  const UniqueFd control(open("/dev/loop-control", O_RDWR | O_CLOEXEC));
  const int number = control.valid() ? ioctl(control.get(), LOOP_CTL_GET_FREE) : -1;
  if (number < 0) {
    *why = std::string("/dev/loop-control: ") + std::strerror(errno);
    return {};
  }
  *path = "/dev/loop" + std::to_string(number);
  UniqueFd loop(open(path->c_str(), O_RDWR | O_CLOEXEC));
  const UniqueFd backing(open(file.c_str(), O_RDWR | O_CLOEXEC));
  loop_config config = {};
  config.fd = static_cast<std::uint32_t>(backing.get());
  config.block_size = kDiskPage;
  config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
  if (!loop.valid() || ioctl(loop.get(), LOOP_CONFIGURE, &config) != 0) {
    *why = *path + ": " + std::strerror(errno);
    return {};
  }
  return loop;
}

TEST_P(BlockDeviceTest, ARawBlockDeviceServes) {
  Open();  // makes the file
  std::string path;
  std::string why;
  const UniqueFd loop = MakeLoop(options_.path, &path, &why);
  if (!loop.valid()) GTEST_SKIP() << "no loop device: " << why;
  options_.path = path;
  options_.size_bytes = 2 * kFileBytes;
  const auto too_small = OpenBlockDevice(options_);
  EXPECT_TRUE(absl::IsInvalidArgument(too_small.status())) << too_small.status();
  options_.size_bytes = kFileBytes;
  const auto device = Open();
  const DiskPages pages(8);
  Fill(pages.all(), 8);
  ASSERT_TRUE(RunIo(*device, Write(kDiskPage, {pages.all()})).ok());
  ASSERT_TRUE(RunIo(*device, Flush()).ok());
  DiskIo discard;
  discard.op = DiskIo::Op::kDiscard;
  discard.offset = kDiskPage;
  discard.discard_bytes = kDiskPage;
  const absl::Status discarded = RunIo(*device, std::move(discard));
  EXPECT_TRUE(discarded.ok() || absl::IsUnimplemented(discarded)) << discarded;
  const DiskPages in(8);
  ASSERT_TRUE(RunIo(*device, Read(kDiskPage, {in.all()})).ok());
  EXPECT_EQ(std::memcmp(in.page(1).data(), pages.page(1).data(), 7 * kDiskPage), 0);
  if (discarded.ok()) {
    EXPECT_EQ(in.page(0)[9], std::byte{0});
  }
}

TEST_P(BlockDeviceTest, ABlockDeviceThatAnotherHasIsRefused) {
  Open();  // makes the file
  std::string path;
  std::string why;
  const UniqueFd loop = MakeLoop(options_.path, &path, &why);
  if (!loop.valid()) GTEST_SKIP() << "no loop device: " << why;
  options_.path = path;
  options_.lock_patience = std::chrono::milliseconds(0);
  // As a file system has it that is mounted from it.
  UniqueFd another(open(path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
  ASSERT_TRUE(another.valid());
  const absl::Status refused = OpenBlockDevice(options_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr(path + ": is in use: mounted"));
  another = UniqueFd();
  EXPECT_TRUE(OpenBlockDevice(options_).ok());
}

INSTANTIATE_TEST_SUITE_P(Methods, BlockDeviceTest, testing::Values("io_uring", "threads"),
                         [](const auto& method) { return std::string(method.param); });
INSTANTIATE_TEST_SUITE_P(Methods, UringDeviceTest, testing::Values("io_uring"),
                         [](const auto& method) { return std::string(method.param); });

// ---- A disk that does not answer: only io_uring reads from a pipe as from a disk ----

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
