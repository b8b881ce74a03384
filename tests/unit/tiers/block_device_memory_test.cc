// Memory that is registered with a device: it carries the same bytes, and comes and goes under
// load. By threads nothing is registered, and all the same must be true.

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <span>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/unit/tiers/block_device_fixture.h"
#include "tiers/ram/region.h"

namespace kavern::tiers {
namespace {

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

}  // namespace
}  // namespace kavern::tiers
