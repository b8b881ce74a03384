#include "tiers/ram/region.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/sealed_memfd.h"
#include "base/units.h"

namespace kavern::tiers {
namespace {

constexpr std::uint64_t kPage = 4096;

std::shared_ptr<Region> MakeRegion(std::uint64_t size_bytes, std::function<void()> on_destroy = {},
                                   HugePages huge_pages = HugePages::kOff) {
  auto region = Region::Create(7, size_bytes, huge_pages, std::move(on_destroy));
  EXPECT_TRUE(region.ok()) << region.status();
  return region.ok() ? *region : nullptr;
}

// How many pages of a mapping have memory behind them.
std::size_t PagesOf(std::span<std::byte> bytes) {
  std::vector<unsigned char> resident(bytes.size() / kPage);
  EXPECT_EQ(mincore(bytes.data(), bytes.size(), resident.data()), 0);
  return static_cast<std::size_t>(std::count_if(resident.begin(), resident.end(),
                                                [](unsigned char c) { return (c & 1) != 0; }));
}

TEST(Region, IsASealedFileThatItsClientsCanMapAndNobodyCanResize) {
  const auto region = MakeRegion(4 * kPage);
  ASSERT_NE(region, nullptr);
  EXPECT_EQ(region->id(), 7U);
  EXPECT_EQ(region->size_bytes(), 4 * kPage);
  const absl::Status sealed = CheckSealedMemfd(region->fd(), 4 * kPage, MemfdWriters::kEveryone);
  EXPECT_TRUE(sealed.ok()) << sealed;
  EXPECT_EQ(ftruncate(region->fd(), 0), -1);
  EXPECT_EQ(errno, EPERM);

  auto client = Mapping::Map(region->fd(), 4 * kPage, Mapping::Access::kReadWrite);
  ASSERT_TRUE(client.ok()) << client.status();
  client->data()[kPage + 5] = std::byte{99};
  EXPECT_EQ(region->bytes()[kPage + 5], std::byte{99});
}

TEST(Region, IsNamedByItsIdForWhoeverLooksAtTheMapsOfAProcess) {
  const auto region = MakeRegion(kPage);
  ASSERT_NE(region, nullptr);
  std::array<char, 256> target{};
  const std::string link = "/proc/self/fd/" + std::to_string(region->fd());
  ASSERT_GT(readlink(link.c_str(), target.data(), target.size() - 1), 0);
  EXPECT_THAT(std::string(target.data()), ::testing::HasSubstr("kavern-region-7"));
}

TEST(Region, PopulatingPutsZeroedMemoryBehindExactlyWhatWasAsked) {
  const auto region = MakeRegion(64 * kPage);
  ASSERT_NE(region, nullptr);
  EXPECT_EQ(PagesOf(region->bytes()), 0U);
  ASSERT_TRUE(region->Populate(16 * kPage, 8 * kPage).ok());
  EXPECT_EQ(PagesOf(region->bytes()), 8U);
  ASSERT_TRUE(region->Populate(0, 64 * kPage).ok());
  EXPECT_EQ(PagesOf(region->bytes()), 64U);
  const auto bytes = region->bytes();
  EXPECT_TRUE(
      std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST(Region, PopulatingAgainKeepsWhatWasWritten) {
  const auto region = MakeRegion(4 * kPage);
  ASSERT_NE(region, nullptr);
  ASSERT_TRUE(region->Populate(0, 4 * kPage).ok());
  region->bytes()[2 * kPage] = std::byte{5};
  ASSERT_TRUE(region->Populate(0, 4 * kPage).ok());
  EXPECT_EQ(region->bytes()[2 * kPage], std::byte{5});
}

// The share of a session whose client still maps the region is the last one.
TEST(Region, TellsOfItsEndOnceAfterTheLastShareIsGoneAndItsMemoryToo) {
  int ended = 0;
  int fd = -1;
  auto region = MakeRegion(kPage, [&] {
    ++ended;
    EXPECT_EQ(fcntl(fd, F_GETFD), -1) << "the descriptor is still open";
  });
  ASSERT_NE(region, nullptr);
  fd = region->fd();
  std::shared_ptr<Region> session = region;
  region.reset();
  EXPECT_EQ(ended, 0);
  session.reset();
  EXPECT_EQ(ended, 1);
}

// A client that said that it unmapped the region, and did not. What it keeps must cost the daemon
// nothing, or a client could take the machine's memory one region after the other.
TEST(Region, ALyingClientKeepsNeitherTheMemoryNorTheBytes) {
  auto region = MakeRegion(16 * kPage);
  ASSERT_NE(region, nullptr);
  ASSERT_TRUE(region->Populate(0, 16 * kPage).ok());
  region->bytes()[5 * kPage] = std::byte{77};
  auto liar = Mapping::Map(region->fd(), 16 * kPage, Mapping::Access::kReadWrite);
  ASSERT_TRUE(liar.ok()) << liar.status();
  region.reset();
  EXPECT_EQ(PagesOf({liar->data(), liar->size()}), 0U);
  EXPECT_EQ(liar->data()[5 * kPage], std::byte{0});
}

// The daemon ends by SIGTERM while a client holds a lease: nobody reuses the memory, so nobody may
// take it away.
TEST(Region, AtTheEndOfTheProcessClientsKeepWhatTheyHaveMapped) {
  const auto leave = std::make_shared<std::atomic<bool>>(false);
  auto region = Region::Create(1, 4 * kPage, HugePages::kOff, {}, leave);
  ASSERT_TRUE(region.ok()) << region.status();
  (*region)->bytes()[kPage] = std::byte{77};
  auto client = Mapping::Map((*region)->fd(), 4 * kPage, Mapping::Access::kReadOnly);
  ASSERT_TRUE(client.ok()) << client.status();
  *leave = true;
  region->reset();
  EXPECT_EQ(client->data()[kPage], std::byte{77});
}

TEST(Region, ASizeThatCannotBeIsAnError) {
  EXPECT_FALSE(Region::Create(1, UINT64_MAX, HugePages::kOff, {}).ok());
  EXPECT_FALSE(Region::Create(1, std::uint64_t{1} << 62, HugePages::kOff, {}).ok());
}

// A region that could not be made never existed: nobody is told of its end.
TEST(Region, WithoutReservedHugePagesIsAnErrorAndNotACrashAtTheFirstWrite) {
  bool ended = false;
  const auto region = Region::Create(1, kPage, HugePages::kHugetlb, [&ended] { ended = true; });
  EXPECT_FALSE(region.ok());  // not a multiple of a huge page
  EXPECT_FALSE(ended);
}

// Whichever of the two the kernel gives: the memory is there, zeroed, and its pages are counted.
TEST(Region, HugePagesAreNeverMoreThanTheRegion) {
  const auto automatic = MakeRegion(4 * kMiB + kPage, {}, HugePages::kAuto);
  ASSERT_NE(automatic, nullptr);
  ASSERT_TRUE(automatic->Populate(0, automatic->size_bytes()).ok());
  const auto bytes = automatic->bytes();
  EXPECT_EQ(PagesOf(bytes) * kPage, automatic->size_bytes());
  EXPECT_TRUE(
      std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; }));
  const std::uint64_t huge = automatic->huge_page_bytes();
  EXPECT_LE(huge, 4 * kMiB);
  EXPECT_EQ(huge % (2 * kMiB), 0U);

  const auto off = MakeRegion(4 * kMiB);
  ASSERT_NE(off, nullptr);
  ASSERT_TRUE(off->Populate(0, off->size_bytes()).ok());
  EXPECT_EQ(off->huge_page_bytes(), 0U);
}

TEST(Region, PopulatingAgainInHugePagesKeepsWhatWasWrittenAndCountsOnce) {
  const auto region = MakeRegion(4 * kMiB, {}, HugePages::kAuto);
  ASSERT_NE(region, nullptr);
  ASSERT_TRUE(region->Populate(0, 2 * kMiB).ok());
  region->bytes()[kPage] = std::byte{5};
  region->bytes()[3 * kMiB] = std::byte{6};  // one page of a huge page to come
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(region->Populate(0, region->size_bytes()).ok());
  EXPECT_EQ(region->bytes()[kPage], std::byte{5});
  EXPECT_EQ(region->bytes()[3 * kMiB], std::byte{6});
  EXPECT_LE(region->huge_page_bytes(), region->size_bytes());
}

TEST(Extent, IsTheBytesOfItsRegion) {
  const auto region = MakeRegion(4 * kPage);
  ASSERT_NE(region, nullptr);
  const Extent extent{region.get(), kPage, 100};
  EXPECT_EQ(extent.bytes().data(), region->bytes().data() + kPage);
  EXPECT_EQ(extent.bytes().size(), 100U);
}

}  // namespace
}  // namespace kavern::tiers
