// Block devices on files, by io_uring and by threads: what is written is read, what fails says so,
// and the end of a device waits for its I/O.

#include "tiers/nvme/block_device.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "base/unique_fd.h"
#include "gmock/gmock.h"
#include "tests/unit/tiers/block_device_fixture.h"

namespace kavern::tiers {
namespace {

using testing::HasSubstr;

// For the tests of this fixture in all files.
INSTANTIATE_TEST_SUITE_P(Methods, BlockDeviceTest, testing::Values("io_uring", "threads"),
                         [](const auto& method) { return std::string(method.param); });

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

}  // namespace
}  // namespace kavern::tiers
