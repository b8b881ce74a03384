// What `kavern store` says of a store at rest, damaged in exactly one place at a time. Two small
// files stand for disks, one slot of 4 KiB a block.
//
// Not checked here: that the daemon serves nothing wrong out of such a store (disk_tier_test.cc).

#include "tiers/nvme/store_inspector.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "gmock/gmock.h"
#include "tests/fakes/temp_directory.h"
#include "tests/unit/tiers/store_fixture.h"

namespace kavern::tiers {
namespace {

namespace fs = std::filesystem;

class StoreInspectorTest : public StoreFixture {
 protected:
  static constexpr std::uint64_t kSegmentBytes = std::uint64_t{128} * 1024;  // 15 slots of 4 KiB
  static constexpr std::uint64_t kBlocks = 40;

  std::string disk(int i) const { return directory_.path() / ("disk" + std::to_string(i)); }
  std::string catalog() const { return directory_.path() / "catalog"; }

  void StartStore() {
    Start(4, [&](TieredStoreOptions& options) {
      TieredStoreOptions::Disk on_disk;
      for (int i = 0; i < 2; ++i) {
        on_disk.store.devices.push_back({disk(i), disk::kSegmentsOffset + 8 * kSegmentBytes});
      }
      on_disk.store.catalog_path = catalog();
      on_disk.store.segment_bytes = kSegmentBytes;
      on_disk.store.queue_depth = 4;
      options.disk = on_disk;
    });
  }
  void StoreBlocks(const std::string& model) {
    const NamespaceRef ns = Open(SpecOf(model));
    fingerprint_ = ns.fingerprint();
    EXPECT_EQ(Store(ns, Root(ns), KeysOf(1, kBlocks)), kBlocks);
    store_->Quiesce();
  }
  // A store at rest with kBlocks blocks.
  void MakeStore() {
    StartStore();
    StoreBlocks("m");
    store_.reset();
  }

  absl::StatusOr<std::unique_ptr<StoreInspector>> Inspect() {
    return StoreInspector::Open({{disk(0), disk(1)}, catalog()});
  }
  StoreVerdict Verify() {
    const auto inspector = Inspect();
    EXPECT_TRUE(inspector.ok()) << inspector.status();
    return inspector.ok() ? (*inspector)->Verify({}) : StoreVerdict();
  }
  std::vector<StoreInspector::Entry> Entries() {
    std::vector<StoreInspector::Entry> entries;
    const auto inspector = Inspect();
    EXPECT_TRUE(inspector.ok()) << inspector.status();
    EXPECT_TRUE(
        (*inspector)
            ->ExportCatalog([&](const StoreInspector::Entry& entry) { entries.push_back(entry); })
            .ok());
    return entries;
  }
  disk::Uuid StoreUuid() {
    return disk::ParseSuperblock(
               std::as_bytes(std::span(Everything().at(disk(0)))).first(kDiskPage))
        ->store;
  }
  void Write(const std::string& path, std::uint64_t offset, const std::string& bytes) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    ASSERT_TRUE(file.good());
  }
  // Writes the part again, into a slot that nobody has used, as a daemon would that had evicted the
  // block meanwhile and had not put another in its place. The catalog says so too.
  void WriteAgain(const StoreInspector::Entry& entry) {
    std::set<std::uint64_t> used;
    for (const StoreInspector::Entry& other : Entries()) {
      if (other.device == entry.device) used.insert(other.header.offset);
    }
    // In the last segment that the device has begun: the epoch is that of its other slots.
    const std::uint64_t stride = 2 * kDiskPage;
    const std::uint64_t last = *used.rbegin();
    disk::SlotHeader header = entry.header;
    for (const StoreInspector::Entry& other : Entries()) {
      if (other.device == entry.device && other.header.offset == last) {
        header.epoch = other.header.epoch;
      }
    }
    header.offset = last + stride;
    ASSERT_EQ((last - disk::kSegmentsOffset) / kSegmentBytes,
              (header.offset + stride - disk::kSegmentsOffset) / kSegmentBytes)
        << "the segment is full";
    header.sequence += 1000;
    disk::Seal(header);
    const std::string path = disk(static_cast<int>(entry.device));
    const std::string payload =
        Everything().at(path).substr(entry.header.offset + kDiskPage, kDiskPage);
    std::string page(kDiskPage, 0);
    disk::WritePage(header, std::as_writable_bytes(std::span(page)));
    Write(path, header.offset, page + payload);
    const auto opened = Catalog::Open(catalog(), StoreUuid());
    ASSERT_TRUE(opened.ok()) << opened.status();
    const Catalog::Change put = {entry.device, header.offset, false, header};
    ASSERT_TRUE((*opened)->Apply({&put, 1}, true).ok());
  }
  void FlipBit(const std::string& path, std::uint64_t offset) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const int byte = file.get();
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(static_cast<char>(byte ^ 1));
    ASSERT_TRUE(file.good());
  }
  // Every file's bytes, by path.
  std::map<std::string, std::string> Everything() const {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(directory_.path())) {
      if (!entry.is_regular_file()) continue;
      std::ostringstream text;
      text << std::ifstream(entry.path(), std::ios::binary).rdbuf();
      files[entry.path()] = text.str();
    }
    return files;
  }

  TempDirectory directory_;
  NamespaceFingerprint fingerprint_;
};

TEST_F(StoreInspectorTest, LookingAtASoundStoreFindsEveryBlockAndChangesNoByte) {
  MakeStore();
  const auto before = Everything();
  const StoreVerdict verdict = Verify();
  EXPECT_TRUE(verdict.sound());
  EXPECT_EQ(verdict.right_parts, kBlocks);
  EXPECT_EQ(verdict.right_bytes, kBlocks * 4096);
  EXPECT_EQ(verdict.unlisted_parts, 0U);
  EXPECT_EQ(verdict.catalog_entries, kBlocks);
  EXPECT_EQ(verdict.void_entries, 0U);
  EXPECT_EQ(verdict.unfinished_parts, 0U);

  const StoreStats stats = (*Inspect())->Stats();
  EXPECT_EQ(stats.namespaces.at(fingerprint_).blocks, kBlocks);
  EXPECT_EQ(stats.namespaces.at(fingerprint_).incomplete_blocks, 0U);
  EXPECT_EQ(stats.namespaces.at(fingerprint_).payload_bytes, kBlocks * 4096);
  EXPECT_EQ(stats.classes.at(4096).used_slots, kBlocks);
  EXPECT_EQ(stats.catalog_entries, kBlocks);
  EXPECT_GT(stats.catalog_bytes, 0U);
  EXPECT_EQ(stats.catalog_damage, "");
  EXPECT_EQ(stats.devices[0].segments + stats.devices[1].segments, 16U);
  EXPECT_EQ(Entries().size(), kBlocks);
  EXPECT_TRUE(before == Everything());
}

TEST_F(StoreInspectorTest, ARunningDaemonsStoreIsRefused) {
  StartStore();
  const auto inspector = Inspect();
  EXPECT_TRUE(absl::IsFailedPrecondition(inspector.status())) << inspector.status();
  EXPECT_THAT(inspector.status().message(), testing::HasSubstr("running daemon"));
}

TEST_F(StoreInspectorTest, OneFlippedBitOfAPayloadOrHeaderNamesExactlyThatPart) {
  for (const std::uint64_t within : {std::uint64_t{20}, kDiskPage + 1234}) {
    MakeStore();
    const StoreInspector::Entry victim = Entries()[17];
    FlipBit(disk(static_cast<int>(victim.device)), victim.header.offset + within);
    const StoreVerdict verdict = Verify();
    EXPECT_FALSE(verdict.sound());
    EXPECT_EQ(verdict.damaged_parts, 1U);
    EXPECT_EQ(verdict.damaged_structures, 0U);
    EXPECT_EQ(verdict.right_parts, kBlocks - 1);
    ASSERT_EQ(verdict.damage.size(), 1U);
    EXPECT_EQ(verdict.damage[0].device, victim.device);
    EXPECT_EQ(verdict.damage[0].offset, victim.header.offset);
    EXPECT_EQ(verdict.damage[0].key, BlockKey{victim.header.key});
    for (const auto& file : fs::directory_iterator(directory_.path())) fs::remove_all(file.path());
  }
}

TEST_F(StoreInspectorTest, ADamagedSegmentHeaderLosesThePartsOfThatSegment) {
  MakeStore();
  std::uint64_t in_segment = 0;
  for (const StoreInspector::Entry& entry : Entries()) {
    in_segment += entry.device == 1 && entry.header.offset < disk::SegmentOffset(kSegmentBytes, 1);
  }
  ASSERT_GT(in_segment, 0U);
  FlipBit(disk(1), disk::SegmentOffset(kSegmentBytes, 0) + 40);
  const StoreVerdict verdict = Verify();
  EXPECT_EQ(verdict.damaged_structures, 1U);
  EXPECT_EQ(verdict.damaged_parts, in_segment);
  EXPECT_EQ(verdict.right_parts, kBlocks - in_segment);
  EXPECT_EQ(verdict.damage.size(), 1 + in_segment);
}

TEST_F(StoreInspectorTest, ADamagedCopyOfASuperblockOrPurgePageIsNamedAndTheOtherIsUsed) {
  MakeStore();
  FlipBit(disk(0), 16);
  FlipBit(disk(1), disk::kPurgePagesOffset + (disk::kPurgePages + 3) * kDiskPage);
  const StoreVerdict verdict = Verify();
  EXPECT_EQ(verdict.damaged_structures, 2U);
  EXPECT_EQ(verdict.damaged_parts, 0U);
  EXPECT_EQ(verdict.right_parts, kBlocks);
  ASSERT_EQ(verdict.damage.size(), 2U);
  EXPECT_EQ(verdict.damage[0].offset, 0U);
  EXPECT_EQ(verdict.damage[1].offset,
            disk::kPurgePagesOffset + (disk::kPurgePages + 3) * kDiskPage);
}

TEST_F(StoreInspectorTest, BothSuperblocksDamagedIsDataLossAndAnEmptyFileIsNoStore) {
  MakeStore();
  FlipBit(disk(0), 16);
  FlipBit(disk(0), kDiskPage + 16);
  EXPECT_TRUE(absl::IsDataLoss(Inspect().status()));
  fs::resize_file(disk(0), 0);
  fs::resize_file(disk(0), 1 << 20);
  EXPECT_TRUE(absl::IsInvalidArgument(Inspect().status()));
  fs::remove(disk(0));
  EXPECT_TRUE(absl::IsNotFound(Inspect().status()));
}

TEST_F(StoreInspectorTest, DevicesInAnotherOrderThanTheyWereMadeInAreRefused) {
  MakeStore();
  const auto swapped = StoreInspector::Open({{disk(1), disk(0)}, catalog()});
  EXPECT_TRUE(absl::IsInvalidArgument(swapped.status())) << swapped.status();
}

TEST_F(StoreInspectorTest, AMissingCatalogIsDamageAndTheHeadersStillTellWhatIsThere) {
  MakeStore();
  fs::remove_all(catalog());
  const StoreVerdict verdict = Verify();
  EXPECT_EQ(verdict.damaged_structures, 1U);
  EXPECT_EQ(verdict.damage[0].device, StoreDamage::kCatalog);
  EXPECT_EQ(verdict.right_parts, kBlocks);
  EXPECT_EQ(verdict.unlisted_parts, kBlocks);
  const StoreStats stats = (*Inspect())->Stats();
  EXPECT_NE(stats.catalog_damage, "");
  EXPECT_EQ(stats.namespaces.at(fingerprint_).blocks, kBlocks);
  EXPECT_FALSE(fs::exists(catalog())) << "looking made a catalog";
}

TEST_F(StoreInspectorTest, ABitOfTheCatalogsLogIsDamage) {
  MakeStore();
  std::string log;
  for (const auto& file : fs::directory_iterator(catalog())) {
    if (file.path().extension() == ".log" && file.file_size() > 0) log = file.path();
  }
  ASSERT_NE(log, "");
  FlipBit(log, 200);
  const StoreVerdict verdict = Verify();
  EXPECT_EQ(verdict.damaged_structures, 1U);
  EXPECT_EQ(verdict.right_parts, kBlocks);
}

TEST_F(StoreInspectorTest, WhatWasPurgedIsVoidAndSound) {
  StartStore();
  StoreBlocks("m");
  ASSERT_TRUE(store_->Purge(fingerprint_).ok());
  store_.reset();
  const StoreVerdict verdict = Verify();
  EXPECT_TRUE(verdict.sound());
  EXPECT_EQ(verdict.right_parts, 0U);
  EXPECT_EQ(verdict.purged_parts, kBlocks);
  const StoreStats stats = (*Inspect())->Stats();
  ASSERT_EQ(stats.purges.size(), 1U);
  EXPECT_EQ(stats.purges[0].fingerprint, fingerprint_);
  EXPECT_EQ(stats.purges[0].writes_since, 0U);
}

// The catalog names both, and both are right; a daemon takes the later one and uses the slot of the
// other for something else.
TEST_F(StoreInspectorTest, OfABlockThatWasWrittenAgainTheFormerPartIsCountedApart) {
  MakeStore();
  const StoreInspector::Entry victim = Entries()[5];
  WriteAgain(victim);
  const StoreVerdict verdict = Verify();
  EXPECT_TRUE(verdict.sound());
  EXPECT_EQ(verdict.right_parts, kBlocks);
  EXPECT_EQ(verdict.right_bytes, kBlocks * 4096);
  EXPECT_EQ(verdict.superseded_parts, 1U);
  EXPECT_EQ(verdict.unlisted_parts, 0U);
  EXPECT_EQ(verdict.catalog_entries, kBlocks + 1);
  EXPECT_EQ(verdict.void_entries, 0U);

  const StoreStats stats = (*Inspect())->Stats();
  const StoreStats::Namespace& counts = stats.namespaces.at(fingerprint_);
  EXPECT_EQ(counts.blocks, kBlocks);
  EXPECT_EQ(counts.incomplete_blocks, 0U);
  EXPECT_EQ(counts.parts, kBlocks);
  EXPECT_EQ(counts.payload_bytes, kBlocks * 4096);
  EXPECT_EQ(counts.superseded_parts, 1U);
  EXPECT_EQ(stats.classes.at(4096).used_slots, kBlocks);

  for (const StoreInspector::Entry& entry : Entries()) {
    EXPECT_EQ(entry.is_void, entry.header == victim.header);
  }
  // A daemon says the same: nothing is lost, and one slot is free.
  StartStore();
  store_->Quiesce();
  EXPECT_EQ(store_->GetStatus().disk.blocks, kBlocks);
  EXPECT_EQ(store_->GetStatus().disk.used_bytes, kBlocks * 4096);
}

TEST_F(StoreInspectorTest, DamageOfASupersededPartLosesNothing) {
  MakeStore();
  const StoreInspector::Entry victim = Entries()[5];
  WriteAgain(victim);
  FlipBit(disk(static_cast<int>(victim.device)), victim.header.offset + kDiskPage + 99);
  StoreVerdict verdict = Verify();
  EXPECT_TRUE(verdict.sound());
  EXPECT_EQ(verdict.superseded_parts, 1U);
  EXPECT_EQ(verdict.right_parts, kBlocks);
  // Nor where the slot holds nothing of the kind any more.
  Write(disk(static_cast<int>(victim.device)), victim.header.offset, std::string(kDiskPage, 0));
  verdict = Verify();
  EXPECT_TRUE(verdict.sound());
  EXPECT_EQ(verdict.superseded_parts, 0U);
  EXPECT_EQ(verdict.void_entries, 1U);
  EXPECT_EQ(verdict.right_parts, kBlocks);
}

TEST_F(StoreInspectorTest, DamageOfThePartThatCountsIsDamageWhateverWasThereBefore) {
  MakeStore();
  const StoreInspector::Entry victim = Entries()[5];
  WriteAgain(victim);
  StoreInspector::Entry again;
  for (const StoreInspector::Entry& entry : Entries()) {
    if (entry.header.key == victim.header.key && !entry.is_void) again = entry;
  }
  ASSERT_NE(again.header.offset, victim.header.offset);
  FlipBit(disk(static_cast<int>(again.device)), again.header.offset + kDiskPage + 99);
  const StoreVerdict verdict = Verify();
  EXPECT_EQ(verdict.damaged_parts, 1U);
  EXPECT_EQ(verdict.superseded_parts, 1U);
  EXPECT_EQ(verdict.right_parts, kBlocks - 1);
  ASSERT_EQ(verdict.damage.size(), 1U);
  EXPECT_EQ(verdict.damage[0].offset, again.header.offset);
}

TEST_F(StoreInspectorTest, WithoutTheCatalogTheHeadersSayWhichWriteCounts) {
  MakeStore();
  WriteAgain(Entries()[5]);
  fs::remove_all(catalog());
  const StoreVerdict verdict = Verify();
  EXPECT_EQ(verdict.superseded_parts, 1U);
  EXPECT_EQ(verdict.right_parts, kBlocks);
  EXPECT_EQ(verdict.unlisted_parts, kBlocks);
  const StoreStats stats = (*Inspect())->Stats();
  EXPECT_EQ(stats.namespaces.at(fingerprint_).blocks, kBlocks);
  EXPECT_EQ(stats.namespaces.at(fingerprint_).superseded_parts, 1U);
}

// A crash between a payload's sectors: no catalog entry, a wrong checksum. Nobody was told that the
// part was stored, so nothing is lost.
TEST_F(StoreInspectorTest, AWriteThatWasCutShortIsVoidAndSound) {
  MakeStore();
  const StoreInspector::Entry victim = Entries()[5];
  {
    const auto opened = Catalog::Open(catalog(), StoreUuid());
    ASSERT_TRUE(opened.ok());
    const Catalog::Change erase = {victim.device, victim.header.offset, true, {}};
    ASSERT_TRUE((*opened)->Apply({&erase, 1}, true).ok());
  }
  FlipBit(disk(static_cast<int>(victim.device)), victim.header.offset + kDiskPage + 99);
  const StoreVerdict verdict = Verify();
  EXPECT_TRUE(verdict.sound());
  EXPECT_EQ(verdict.unfinished_parts, 1U);
  EXPECT_EQ(verdict.right_parts, kBlocks - 1);
}

}  // namespace
}  // namespace kavern::tiers
