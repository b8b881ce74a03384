// Devices of the NVMe tier that fail, are missing or are empty when the store starts: the others go
// on, nothing is written over what may be back, and what was deleted stays so.

#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "tests/unit/tiers/disk_failure_fixture.h"
#include "tiers/nvme/purge_list.h"

namespace kavern::tiers {
namespace {

using std::string_literals::operator""s;
using testing::HasSubstr;

using DiskStartTest = DiskFailureFixture;

TEST_F(DiskStartTest, ADeviceThatCannotBeOpenedIsOutAndTheOthersGoOn) {
  StartWithDisks();
  const std::vector<BlockKey> before = StoreBlocks(Open(SpecOf("m")), 1, 60);
  Restart(false, true);
  ExpectOut(1);
  const NamespaceRef ns = Open(SpecOf("m"));
  const std::size_t left = Verified(ns, before);
  EXPECT_GT(left, 0U);
  EXPECT_LT(left, 60U);
  const std::vector<BlockKey> after = StoreBlocks(ns, 200, 40);
  EXPECT_EQ(Verified(ns, after), 40U);
  ExpectSound();
}

TEST_F(DiskStartTest, WhatADeviceHeldIsBackWhenItIs) {
  StartWithDisks();
  const std::vector<BlockKey> before = StoreBlocks(Open(SpecOf("m")), 1, 60);
  Restart(false, true);
  ExpectOut(1);
  // Again on the other device, where it was out: the later write counts.
  StoreBlocks(Open(SpecOf("m")), 200, 20);
  for (const BlockKey& key : before) {
    const NamespaceRef ns = Open(SpecOf("m"));
    if (!IsCached(ns, key)) Store(ns, Root(ns), {&key, 1});
    store_->Quiesce();
  }
  Restart(false, false);
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_EQ(Verified(ns, before), 60U);
  EXPECT_EQ(Verified(ns, KeysOf(200, 20)), 20U);
  EXPECT_TRUE(store_->GetStatus().disk.devices[1].healthy);
  store_->Quiesce();
  ExpectSound();
}

TEST_F(DiskStartTest, ADeviceWhoseSuperblockCannotBeReadIsOutAndNotWritten) {
  StartWithDisks();
  const std::vector<BlockKey> before = StoreBlocks(Open(SpecOf("m")), 1, 60);
  store_.reset();
  faults_[1].reads = true;
  const int written = faults_[1].written;
  StartWithDisks();
  store_->Quiesce();
  ExpectOut(1);
  StoreBlocks(Open(SpecOf("m")), 200, 20);
  EXPECT_EQ(faults_[1].written, written);
  faults_[1].reads = false;
  Restart(false, false);
  EXPECT_EQ(Verified(Open(SpecOf("m")), before), 60U);
}

TEST_F(DiskStartTest, WhatWasDeletedWhileADeviceWasOutStaysDeleted) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 60);
  Restart(false, true);
  EXPECT_TRUE(store_->Purge(Open(SpecOf("m")).fingerprint()).ok());
  Restart(false, false);
  EXPECT_EQ(store_->GetStatus().disk.failure, "");
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 0U);
  // The device that was out has the list by now, and can be served alone.
  Restart(true, false);
  ExpectOut(0);
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 0U);
}

TEST_F(DiskStartTest, ADeviceThatMissedADeleteIsNotServedAlone) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 60);
  Restart(false, true);
  EXPECT_TRUE(store_->Purge(Open(SpecOf("m")).fingerprint()).ok());
  const int written = faults_[1].written;
  Restart(true, false);
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 0U);
  ExpectOnlyRam("deleted that nothing else knows of");
  EXPECT_EQ(faults_[1].written, written);
  Restart(false, false);
  EXPECT_EQ(store_->GetStatus().disk.failure, "");
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 0U);
}

TEST_F(DiskStartTest, WithoutTheCatalogADeviceIsNotServedAlone) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 60);
  store_.reset();
  std::filesystem::remove_all(directory_.path() / "catalog");
  Restart(true, false);
  ExpectOnlyRam("catalog");
  Restart(false, false);
  EXPECT_NE(store_->GetStatus().disk.recovered_from_headers, "");
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 60U);
}

TEST_F(DiskStartTest, WhenEveryDeviceFailsAtTheStartRamServes) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 60);
  Restart(true, true);
  ExpectOnlyRam("Input/output error");
  Restart(false, false);
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 60U);
}

TEST_F(DiskStartTest, AStoreIsNotMadeWhileADeviceFails) {
  faults_[1].opens = true;
  StartWithDisks();
  store_->Quiesce();
  ExpectOnlyRam("cannot be made");
  EXPECT_EQ(faults_[0].written, 0);
  Restart(false, false);
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_EQ(Verified(ns, StoreBlocks(ns, 1, 60)), 60U);
}

// A file system that is not mounted: its file is not made on the one below.
TEST_F(DiskStartTest, AFileThatIsGoneIsNotMadeBesideOthersThatHoldBlocks) {
  StartWithDisks();
  const std::vector<BlockKey> before = StoreBlocks(Open(SpecOf("m")), 1, 60);
  store_.reset();
  const auto file = directory_.path() / "disk1";
  const auto elsewhere = directory_.path() / "unmounted";
  std::filesystem::rename(file, elsewhere);
  Restart(false, false);
  EXPECT_FALSE(std::filesystem::exists(file));
  const DiskStatus disk = store_->GetStatus().disk;
  EXPECT_TRUE(disk.devices[0].healthy);
  EXPECT_FALSE(disk.devices[1].healthy);
  EXPECT_THAT(disk.devices[1].last_error, HasSubstr("disk1: No such file or directory"));
  const std::size_t left = Verified(Open(SpecOf("m")), before);
  EXPECT_GT(left, 0U);
  EXPECT_LT(left, 60U);
  store_.reset();
  std::filesystem::rename(elsewhere, file);
  Restart(false, false);
  EXPECT_TRUE(store_->GetStatus().disk.devices[1].healthy);
  EXPECT_EQ(Verified(Open(SpecOf("m")), before), 60U);
}

// `touch`ed below a mount point, say.
TEST_F(DiskStartTest, AnEmptyFileIsNotGrownBesideOthersThatHoldBlocks) {
  StartWithDisks();
  const std::vector<BlockKey> before = StoreBlocks(Open(SpecOf("m")), 1, 60);
  store_.reset();
  std::filesystem::resize_file(directory_.path() / "disk1", 0);
  Restart(false, false);
  EXPECT_EQ(std::filesystem::file_size(directory_.path() / "disk1"), 0U);
  EXPECT_THAT(store_->GetStatus().disk.devices[1].last_error, HasSubstr("is an empty file. Mount"));
  EXPECT_GT(Verified(Open(SpecOf("m")), before), 0U);
}

// A disk that was replaced, or a file that stands where another file system was.
TEST_F(DiskStartTest, AnEmptyDeviceBesideOthersThatHoldBlocksIsOutAndStaysEmpty) {
  StartWithDisks();
  const std::vector<BlockKey> before = StoreBlocks(Open(SpecOf("m")), 1, 60);
  store_.reset();
  const auto file = directory_.path() / "disk1";
  const auto bytes = std::filesystem::file_size(file);
  std::filesystem::remove(file);
  std::ofstream(file).close();
  std::filesystem::resize_file(file, bytes);
  const int written = faults_[1].written;
  Restart(false, false);
  EXPECT_EQ(faults_[1].written, written);
  const DiskStatus disk = store_->GetStatus().disk;
  EXPECT_FALSE(disk.devices[1].healthy);
  EXPECT_THAT(disk.devices[1].last_error, HasSubstr("is empty, while the store's other devices"));
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_GT(Verified(ns, before), 0U);
  EXPECT_EQ(Verified(ns, StoreBlocks(ns, 200, 20)), 20U);
}

// A mistake of the configuration, not a disk that fails: RAM alone would hide it.
TEST_F(DiskStartTest, AStoreThatCannotBeMadeIsRefused) {
  std::filesystem::create_directory(directory_.path() / "catalog");
  DiskStoreOptions options;
  options.devices = {{directory_.path() / "no such directory" / "disk",
                      disk::kSegmentsOffset + 4 * kSegmentBytes}};
  options.segment_bytes = kSegmentBytes;
  options.catalog_path = directory_.path() / "catalog";
  const absl::Status refused = DiskStore::Open(options).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(refused.message(), HasSubstr("no such directory/disk"));
  EXPECT_THAT(refused.message(), HasSubstr("the file cannot be made"));
}

// A crash between the first and the second device of a new store: its catalog, which is made last,
// is not there yet.
TEST_F(DiskStartTest, AStoreThatWasBegunAndHoldsNothingIsMadeWhole) {
  StartWithDisks();
  store_.reset();
  std::filesystem::remove(directory_.path() / "disk1");
  std::filesystem::remove_all(directory_.path() / "catalog");
  Restart(false, false);
  EXPECT_TRUE(store_->GetStatus().disk.devices[1].healthy);
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_EQ(Verified(ns, StoreBlocks(ns, 1, 60)), 60U);
}

// The same, in the midst of making the second: its list of purges is there, its superblock is not.
TEST_F(DiskStartTest, ADeviceWhoseMakingWasBegunIsMadeWhole) {
  StartWithDisks();
  store_.reset();
  {
    std::fstream file(directory_.path() / "disk1", std::ios::in | std::ios::out | std::ios::binary);
    file << std::string(disk::kSuperblockPages * kDiskPage, '\0');
  }
  std::filesystem::remove_all(directory_.path() / "catalog");
  Restart(false, false);
  EXPECT_TRUE(store_->GetStatus().disk.devices[1].healthy);
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_EQ(Verified(ns, StoreBlocks(ns, 1, 60)), 60U);
}

// Of one file system that is not mounted, which had every device: the catalog, elsewhere, tells.
TEST_F(DiskStartTest, NothingIsMadeWhereTheCatalogSaysThatThereIsAStore) {
  StartWithDisks();
  const std::vector<BlockKey> deleted = StoreBlocks(Open(SpecOf("deleted")), 100, 20);
  EXPECT_TRUE(store_->Purge(Open(SpecOf("deleted")).fingerprint()).ok());
  Restart(false, false);
  const std::vector<BlockKey> kept = StoreBlocks(Open(SpecOf("m")), 1, 60);
  store_.reset();
  const std::filesystem::path directory = directory_.path();
  for (const char* name : {"disk0", "disk1"}) {
    std::filesystem::rename(directory / name, directory / (std::string("unmounted-") + name));
  }
  // Also where a crash or a flipped bit left a catalog that does not open.
  for (const bool damaged : {false, true}) {
    if (damaged) std::filesystem::remove(directory / "catalog" / "CURRENT");
    Restart(false, false);
    ExpectOnlyRam("says that there is a store");
    EXPECT_THAT(store_->GetStatus().disk.failure,
                HasSubstr("Mount what is not mounted; or, to begin anew, remove"));
    store_.reset();
    for (const char* name : {"disk0", "disk1"}) {
      EXPECT_FALSE(std::filesystem::exists(directory / name));
    }
  }
  for (const char* name : {"disk0", "disk1"}) {
    std::filesystem::rename(directory / (std::string("unmounted-") + name), directory / name);
  }
  Restart(false, false);
  EXPECT_EQ(store_->GetStatus().disk.failure, "");
  EXPECT_EQ(Verified(Open(SpecOf("m")), kept), 60U);
  EXPECT_EQ(Verified(Open(SpecOf("deleted")), deleted), 0U);
}

// The device that is there may be the one that was never used.
TEST_F(DiskStartTest, ADeviceThatIsGoneIsNotMadeBesideOneThatHoldsNothing) {
  StartWithDisks();
  store_.reset();
  std::filesystem::rename(directory_.path() / "disk1", directory_.path() / "unmounted");
  Restart(false, false);
  EXPECT_FALSE(std::filesystem::exists(directory_.path() / "disk1"));
  const DiskStatus disk = store_->GetStatus().disk;
  EXPECT_TRUE(disk.devices[0].healthy);
  EXPECT_FALSE(disk.devices[1].healthy);
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_EQ(Verified(ns, StoreBlocks(ns, 1, 20)), 20U);
}

TEST_F(DiskStartTest, EmptyDevicesAreOutWhereTheCatalogSaysThatThereIsAStore) {
  StartWithDisks();
  store_.reset();
  for (const char* name : {"disk0", "disk1"}) {
    const auto file = directory_.path() / name;
    const auto bytes = std::filesystem::file_size(file);
    std::filesystem::remove(file);
    std::ofstream(file).close();
    std::filesystem::resize_file(file, bytes);
  }
  const int written = faults_[0].written + faults_[1].written;
  Restart(false, false);
  ExpectOnlyRam("is empty, while the catalog, ");
  EXPECT_EQ(faults_[0].written + faults_[1].written, written);
  store_.reset();
  std::filesystem::remove_all(directory_.path() / "catalog");
  Restart(false, false);
  const NamespaceRef ns = Open(SpecOf("m"));
  EXPECT_EQ(Verified(ns, StoreBlocks(ns, 1, 60)), 60U);
}

// A disk that is gone, or a link to one.
TEST_F(DiskStartTest, NoFileIsMadeBelowDev) {
  const std::string disk = "/dev/kavern-no-such-disk";
  const auto link = directory_.path() / "link";
  std::filesystem::create_symlink(disk, link);
  for (const std::string& path : {disk, "/dev/../dev/kavern-no-such-disk"s, link.string()}) {
    DiskStoreOptions options;
    options.devices = {{path, disk::kSegmentsOffset + 4 * kSegmentBytes}};
    options.segment_bytes = kSegmentBytes;
    options.catalog_path = directory_.path() / "catalog";
    const absl::Status refused = DiskStore::Open(options).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
    EXPECT_THAT(refused.message(), HasSubstr(path));
    EXPECT_FALSE(std::filesystem::exists(disk));
  }
}

// ---- The list of what was deleted ----

// The first device alone knows of a delete; the second was out, and is back.
class DiskPurgesTest : public DiskFailureFixture {
 protected:
  void SetUp() override {
    StartWithDisks();
    keys_ = StoreBlocks(Open(SpecOf("m")), 1, 60);
    Restart(false, true);
    EXPECT_TRUE(store_->Purge(Open(SpecOf("m")).fingerprint()).ok());
    fingerprint_ = Open(SpecOf("m")).fingerprint();
    store_.reset();
  }
  // A byte of a page of its list, in both copies; again, and it is as it was.
  void FlipOfList(std::uint64_t page) {
    std::fstream file(directory_.path() / "disk0", std::ios::in | std::ios::out | std::ios::binary);
    for (const std::uint64_t copy : {0, 1}) {
      const auto at = static_cast<std::streamoff>(
          disk::kPurgePagesOffset + (copy * disk::kPurgePages + page) * kDiskPage + 100);
      file.seekg(at);
      const int byte = file.get();
      file.seekp(at);
      file.put(static_cast<char>(byte ^ 1));
    }
    ASSERT_TRUE(file.good());
  }
  void ExpectOnlyRamAndNothingWritten(const std::string& why) {
    const int written = faults_[0].written + faults_[1].written;
    Restart(false, false);
    ExpectOnlyRam(why);
    EXPECT_EQ(Verified(Open(SpecOf("m")), keys_), 0U);
    EXPECT_EQ(faults_[0].written + faults_[1].written, written) << "the evidence is gone";
    store_.reset();
  }
  void ExpectDeleted() {
    Restart(false, false);
    EXPECT_EQ(store_->GetStatus().disk.failure, "");
    EXPECT_EQ(Verified(Open(SpecOf("m")), keys_), 0U);
  }

  std::vector<BlockKey> keys_;
  NamespaceFingerprint fingerprint_;
};

TEST_F(DiskPurgesTest, AStalePageOfOneDeviceDoesNotHideADamagedOneOfAnother) {
  FlipOfList(0);
  ExpectOnlyRamAndNothingWritten("disk0 is damaged in both copies");
  FlipOfList(0);
  ExpectDeleted();
  // Mended: the second device has it too by now.
  store_.reset();
  FlipOfList(0);
  ExpectDeleted();
}

// The last delete is on a page that is whole, and one before it on the page that is not.
TEST_F(DiskPurgesTest, ALaterPageDoesNotHideADamagedOne) {
  const auto path = directory_.path() / "disk0";
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  std::vector<std::byte> pages(disk::kSegmentsOffset);
  file.read(reinterpret_cast<char*>(pages.data()), static_cast<std::streamsize>(pages.size()));
  const std::span<std::byte> front(pages);
  PurgeList list;
  list.Merge(*disk::ParsePurgePage(front.subspan(disk::kPurgePagesOffset, kDiskPage)));
  ASSERT_EQ(list.size(), 1U);
  for (std::uint8_t n = 1; n <= disk::PurgePage::kEntries; ++n) {
    NamespaceFingerprint other;
    other.bytes.fill(n);
    list.Add(other, n);
  }
  constexpr std::uint64_t kCopyBytes = disk::kPurgePages * kDiskPage;
  for (const std::uint64_t copy : {0, 1}) {
    list.Write(disk::ParseSuperblock(front)->store,
               front.subspan(disk::kPurgePagesOffset + copy * kCopyBytes, kCopyBytes));
  }
  file.seekp(0);
  file.write(reinterpret_cast<const char*>(pages.data()),
             static_cast<std::streamsize>(pages.size()));
  file.close();
  FlipOfList(0);
  ExpectOnlyRamAndNothingWritten("disk0 is damaged in both copies");
  FlipOfList(0);
  ExpectDeleted();
}

TEST_F(DiskPurgesTest, WithoutTheCatalogADamagedPageIsNotFilledByAnotherDevices) {
  FlipOfList(0);
  std::filesystem::remove_all(directory_.path() / "catalog");
  ExpectOnlyRamAndNothingWritten("without the catalog nobody knows");
  FlipOfList(0);
  ExpectDeleted();
}

// ---- A segment's header ----

TEST_F(DiskStartTest, ASegmentHeaderThatFailsToBeReadAtFirstCostsNothing) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 60);
  store_.reset();
  faults_[0].bad_page = disk::SegmentOffset(kSegmentBytes, 0);
  faults_[0].bad_tries = 2;
  StartWithDisks();
  store_->Quiesce();
  EXPECT_EQ(faults_[0].bad_failed, 2);
  EXPECT_EQ(store_->GetStatus().disk.unreadable_segments, 0U);
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 60U);
}

TEST_F(DiskStartTest, ASegmentWhoseHeaderCannotBeReadIsSetAsideUntilItCan) {
  StartWithDisks();
  const std::vector<BlockKey> keys = StoreBlocks(Open(SpecOf("m")), 1, 60);
  store_.reset();
  faults_[0].bad_page = disk::SegmentOffset(kSegmentBytes, 0);
  faults_[0].bad_tries = 1000000;
  StartWithDisks();
  store_->Quiesce();
  EXPECT_EQ(store_->GetStatus().disk.unreadable_segments, 1U);
  EXPECT_TRUE(store_->GetStatus().disk.devices[0].healthy);
  EXPECT_EQ(Verified(Open(SpecOf("m")), keys), 45U);
  // More than the rest of the disks holds: what is set aside is not taken for it.
  const int failed = faults_[0].bad_failed;
  StoreBlocks(Open(SpecOf("m")), 1000, 240);
  EXPECT_EQ(faults_[0].bad_failed, failed);
  EXPECT_EQ(store_->GetStatus().disk.blocks, (2 * kSegments - 1) * 15);
  ExpectSound();
  faults_[0].bad_tries = 0;
  Restart(false, false);
  EXPECT_EQ(store_->GetStatus().disk.unreadable_segments, 0U);
  EXPECT_EQ(store_->GetStatus().disk.blocks, 2 * kSegments * 15);
}

}  // namespace
}  // namespace kavern::tiers
