#include "tiers/nvme/purge_list.h"

#include <cstring>
#include <vector>

#include "gtest/gtest.h"

namespace kavern::tiers {
namespace {

constexpr disk::Uuid kStore = {1};

NamespaceFingerprint NameOf(std::uint64_t n) {
  NamespaceFingerprint name;
  std::memcpy(name.bytes.data(), &n, sizeof(n));
  return name;
}

std::vector<std::byte> Written(const PurgeList& list) {
  std::vector<std::byte> pages(disk::kPurgePages * kDiskPage);
  list.Write(kStore, pages);
  return pages;
}

PurgeList ReadBack(std::span<const std::byte> pages) {
  PurgeList list;
  for (std::uint64_t i = 0; i < disk::kPurgePages; ++i) {
    const auto page = disk::ParsePurgePage(pages.subspan(i * kDiskPage, kDiskPage));
    EXPECT_TRUE(page.ok()) << page.status();
    if (page.ok()) list.Merge(*page);
  }
  return list;
}

TEST(PurgeList, VoidsWhatWasWrittenUpToThePurgeAndNothingElse) {
  PurgeList list;
  list.Add(NameOf(1), 10);
  list.Add(NameOf(1), 7);  // an older one changes nothing
  const PurgeList read = ReadBack(Written(list));
  EXPECT_TRUE(read.IsVoid(NameOf(1), 10));
  EXPECT_FALSE(read.IsVoid(NameOf(1), 11));
  EXPECT_FALSE(read.IsVoid(NameOf(2), 1));
  EXPECT_EQ(read.last_sequence(), 10U);
}

// One purge more than fits: the oldest are summed up, and what was deleted stays deleted.
TEST(PurgeList, AFullListForgetsOldBlocksRatherThanDeletions) {
  PurgeList list;
  for (std::uint64_t n = 1; n <= PurgeList::kEntriesMax + 1; ++n) list.Add(NameOf(n), 100 * n);
  EXPECT_LT(list.size(), PurgeList::kEntriesMax);
  const PurgeList read = ReadBack(Written(list));
  for (std::uint64_t n = 1; n <= PurgeList::kEntriesMax + 1; ++n) {
    ASSERT_TRUE(read.IsVoid(NameOf(n), 100 * n)) << n;
  }
  // Blocks of others: those from before the oldest quarter's last purge are the price.
  const NamespaceFingerprint other = NameOf(1 << 20);
  EXPECT_TRUE(read.IsVoid(other, 1));
  EXPECT_FALSE(read.IsVoid(other, 100 * PurgeList::kEntriesMax / 2));
}

// A power cut tears the write of a list: pages that do not change cannot be torn.
TEST(PurgeList, AnotherPurgeChangesOnlyTheLastPage) {
  PurgeList list;
  for (std::uint64_t n = 1; n <= 400; ++n) list.Add(NameOf(n), n);
  const std::vector<std::byte> before = Written(list);
  list.Add(NameOf(401), 401);
  const std::vector<std::byte> after = Written(list);
  for (std::uint64_t i = 0; i < disk::kPurgePages; ++i) {
    const bool same =
        std::memcmp(before.data() + i * kDiskPage, after.data() + i * kDiskPage, kDiskPage) == 0;
    EXPECT_EQ(same, i != 2) << i;
  }
}

// Two copies of different age, of which some pages are left: what either says is void.
TEST(PurgeList, PagesOfTwoGenerationsVoidWhatEitherDoes) {
  PurgeList old_list;
  for (std::uint64_t n = 1; n <= 200; ++n) old_list.Add(NameOf(n), n);
  PurgeList new_list = old_list;
  new_list.Add(NameOf(1), 1000);  // moves to the end
  PurgeList read = ReadBack(Written(old_list));
  const std::vector<std::byte> pages = Written(new_list);
  read.Merge(*disk::ParsePurgePage(std::span(pages).subspan(kDiskPage, kDiskPage)));
  EXPECT_TRUE(read.IsVoid(NameOf(1), 1000));
  for (std::uint64_t n = 2; n <= 200; ++n) EXPECT_TRUE(read.IsVoid(NameOf(n), n));
}

}  // namespace
}  // namespace kavern::tiers
