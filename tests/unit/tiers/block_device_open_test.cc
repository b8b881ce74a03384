// What may be opened as a device, and what is refused and left as it is: files of another size,
// what another process has, and loop devices as disks.

#include <fcntl.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>

#include "base/unique_fd.h"
#include "gmock/gmock.h"
#include "tests/fakes/loop_device.h"
#include "tests/unit/tiers/block_device_fixture.h"

namespace kavern::tiers {
namespace {

using testing::HasSubstr;

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

TEST_P(BlockDeviceTest, ARawBlockDeviceServes) {
  Open();  // makes the file
  const auto loop = LoopDevice::Over(options_.path);
  if (!loop.ok()) GTEST_SKIP() << "no loop device: " << loop.status();
  options_.path = loop->path();
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
  const auto loop = LoopDevice::Over(options_.path);
  if (!loop.ok()) GTEST_SKIP() << "no loop device: " << loop.status();
  options_.path = loop->path();
  options_.lock_patience = std::chrono::milliseconds(0);
  // As a file system has it that is mounted from it.
  UniqueFd another(open(options_.path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
  ASSERT_TRUE(another.valid());
  const absl::Status refused = OpenBlockDevice(options_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr(options_.path + ": is in use: mounted"));
  another = UniqueFd();
  EXPECT_TRUE(OpenBlockDevice(options_).ok());
}

}  // namespace
}  // namespace kavern::tiers
