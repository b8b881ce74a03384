// Whose a catalog is: what is damaged and ours is thrown away, and what is anybody else's is left
// as it is, whoever has it open.
//
// Says nothing of what is made of a catalog (disk_tier_test), nor of its bits (tests/crash).

#include "tiers/nvme/catalog.h"

#include <fcntl.h>
#include <rocksdb/db.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>

#include "base/unique_fd.h"
#include "gmock/gmock.h"
#include "tests/fakes/fault_file_system.h"
#include "tests/fakes/temp_directory.h"
#include "tests/unit/tiers/disk_fixture.h"

namespace kavern::tiers {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr disk::Uuid kOurs = {1, 2, 3};
constexpr disk::Uuid kOthers = {9, 8, 7};

class CatalogTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Catalog>> Open(const disk::Uuid& store = kOurs) {
    return Catalog::Open(path_, store, files_.env(), std::chrono::milliseconds(0));
  }
  // Complete, and with one number in it.
  void Make() {
    const auto made = Open();
    ASSERT_TRUE(made.ok()) << made.status();
    EXPECT_TRUE((*made)->is_new());
    ASSERT_TRUE((*made)->PutNumber(Catalog::kCompleteNumber, 1).ok());
    ASSERT_TRUE((*made)->PutNumber("answer", 42).ok());
  }
  void ExpectWhole() {
    const auto opened = Open();
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_FALSE((*opened)->is_new());
    EXPECT_EQ(**(*opened)->GetNumber("answer"), 42U);
  }
  void MakeAnotherPrograms() {
    rocksdb::Options options;
    options.create_if_missing = true;
    rocksdb::DB* opened = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open(options, path_, &opened).ok());
    const std::unique_ptr<rocksdb::DB> db(opened);
    ASSERT_TRUE(db->Put({}, "somebody's", "precious").ok());
  }
  static void Damage(const fs::path& file) {
    std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekp(10);
    bytes.put('x');
    ASSERT_TRUE(bytes.good());
  }
  void DamageDatabase() {
    for (const auto& file : fs::directory_iterator(path_)) {
      if (file.path().filename().string().starts_with("MANIFEST-")) Damage(file.path());
    }
  }
  // Every file's bytes, by name; the lock's are none.
  std::map<std::string, std::string> Everything() const {
    std::map<std::string, std::string> files;
    for (const auto& file : fs::directory_iterator(path_)) {
      std::ostringstream text;
      text << std::ifstream(file.path(), std::ios::binary).rdbuf();
      files[file.path().filename()] = text.str();
    }
    files.erase("LOCK");
    return files;
  }
  void ExpectRefusedAndLeftAsItIs(const disk::Uuid& store, const std::string& why) {
    const auto before = Everything();
    const absl::Status refused = Open(store).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
    EXPECT_THAT(refused.message(), HasSubstr("nvme.catalog: " + path_));
    EXPECT_THAT(refused.message(), HasSubstr(why));
    EXPECT_TRUE(Everything() == before) << "something was changed";
  }

  TempDirectory directory_;
  const std::string path_ = directory_.path() / "catalog";
  FaultFileSystem files_;
};

TEST_F(CatalogTest, WhoseItIsIsKnownWithoutOpeningIt) {
  EXPECT_EQ(*Catalog::StoreOf(path_), std::nullopt);
  EXPECT_FALSE(fs::exists(path_)) << "looking made a directory";
  fs::create_directory(path_);
  EXPECT_EQ(*Catalog::StoreOf(path_), std::nullopt);
  Make();
  EXPECT_EQ(*Catalog::StoreOf(path_), kOurs);
  DamageDatabase();
  EXPECT_EQ(*Catalog::StoreOf(path_), kOurs);
}

TEST_F(CatalogTest, ADamagedOneIsThrownAwayAndStaysOurs) {
  Make();
  DamageDatabase();
  EXPECT_TRUE(absl::IsDataLoss(Open().status()));
  ASSERT_TRUE(Catalog::Discard(path_, files_.env()).ok());
  EXPECT_EQ(*Catalog::StoreOf(path_), kOurs);
  Make();
  ExpectWhole();
}

TEST_F(CatalogTest, AnotherProgramsDatabaseIsRefusedAndLeftAsItIs) {
  MakeAnotherPrograms();
  ExpectRefusedAndLeftAsItIs(kOurs, "does not say that it is Kavern's");
  EXPECT_TRUE(absl::IsFailedPrecondition(Catalog::StoreOf(path_).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(Catalog::Discard(path_, files_.env())));
  DamageDatabase();
  ExpectRefusedAndLeftAsItIs(kOurs, "does not say that it is Kavern's");
  fs::remove(path_ + "/CURRENT");
  ExpectRefusedAndLeftAsItIs(kOurs, "does not say that it is Kavern's");
}

TEST_F(CatalogTest, AnotherStoresIsRefusedAndLeftAsItIs) {
  Make();
  ExpectRefusedAndLeftAsItIs(kOthers, "another store");
  DamageDatabase();
  ExpectRefusedAndLeftAsItIs(kOthers, "another store");
}

// Of an earlier version's, which had no mark, or of one whose mark is damaged.
TEST_F(CatalogTest, AMarkThatIsMissingOrDamagedIsMadeAnewWhereTheDatabaseSaysWhoseItIs) {
  for (const bool missing : {true, false}) {
    fs::remove_all(path_);
    Make();
    const std::string mark = path_ + "/KAVERN";
    if (missing) {
      fs::remove(mark);
    } else {
      Damage(mark);
    }
    ExpectRefusedAndLeftAsItIs(kOthers, "another store");
    ExpectWhole();
    DamageDatabase();
    EXPECT_EQ(*Catalog::StoreOf(path_), kOurs);
  }
}

// A crash in the midst of making the mark, before there was a database.
TEST_F(CatalogTest, ATornMarkAloneIsOneThatWasBegun) {
  fs::create_directory(path_);
  std::ofstream(path_ + "/KAVERN") << "KVRN";
  EXPECT_EQ(*Catalog::StoreOf(path_), std::nullopt);
  Make();
  EXPECT_EQ(*Catalog::StoreOf(path_), kOurs);
}

TEST_F(CatalogTest, AFileSystemThatFailsIsNotDamage) {
  Make();
  for (const auto mode : {FaultFileSystem::Mode::kError, FaultFileSystem::Mode::kReadOnly,
                          FaultFileSystem::Mode::kNoSpace}) {
    files_.Set(mode);
    const absl::Status failed = Open().status();
    EXPECT_FALSE(failed.ok());
    EXPECT_FALSE(absl::IsDataLoss(failed)) << failed;
    EXPECT_GT(files_.faults(mode), 0U);
    files_.Set(FaultFileSystem::Mode::kSound);
    ExpectWhole();
  }
}

TEST_F(CatalogTest, MissingPermissionIsNotDamage) {
  Make();
  ASSERT_EQ(chmod(path_.c_str(), 0500), 0);
  // The superuser may do everything.
  const bool superuser = geteuid() == 0;
  if (superuser) {
    ASSERT_EQ(seteuid(65534), 0);
  }
  const absl::Status refused = Open().status();
  if (superuser) {
    ASSERT_EQ(seteuid(0), 0);
  }
  EXPECT_TRUE(absl::IsPermissionDenied(refused)) << refused;
  EXPECT_THAT(refused.message(), HasSubstr("nvme.catalog: " + path_));
  ASSERT_EQ(chmod(path_.c_str(), 0700), 0);
  ExpectWhole();
}

TEST_F(CatalogTest, WhatAnotherProcessHasIsNeitherOpenedNorThrownAway) {
  Make();
  int ready[2];
  int stop[2];
  ASSERT_EQ(pipe2(ready, O_CLOEXEC), 0);
  ASSERT_EQ(pipe2(stop, O_CLOEXEC), 0);
  const std::string lock = path_ + "/LOCK";
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    struct flock whole = {};
    whole.l_type = F_WRLCK;
    whole.l_whence = SEEK_SET;
    const int fd = open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    char byte = fcntl(fd, F_SETLK, &whole) == 0 ? 'y' : 'n';
    if (write(ready[1], &byte, 1) != 1) _exit(1);
    close(stop[1]);
    _exit(read(stop[0], &byte, 1) == 0 ? 0 : 1);
  }
  char locked = 0;
  ASSERT_EQ(read(ready[0], &locked, 1), 1);
  ASSERT_EQ(locked, 'y');
  ExpectRefusedAndLeftAsItIs(kOurs, "another process has it");
  const auto before = Everything();
  EXPECT_TRUE(absl::IsFailedPrecondition(
      Catalog::Discard(path_, files_.env(), std::chrono::milliseconds(0))));
  EXPECT_TRUE(Everything() == before);
  for (const int end : {ready[0], ready[1], stop[0], stop[1]}) close(end);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  ExpectWhole();
}

// A second daemon, with a disk of its own and the first one's catalog.
class SharedCatalogTest : public DiskFixture {
 protected:
  absl::Status OpenSecond(const std::string& catalog) {
    DiskStoreOptions second;
    second.devices = {{directory_.path() / "another", disk_capacity(8)}};
    second.catalog_path = directory_.path() / catalog;
    second.segment_bytes = kSegmentBytes;
    second.lock_patience = std::chrono::milliseconds(0);
    return DiskStore::Open(second).status();
  }
};

TEST_F(SharedCatalogTest, ASecondDaemonIsRefusedAndTheFirstKeepsItsCatalog) {
  StartWithDisk();
  std::vector<BlockKey> keys;
  {
    const NamespaceRef ns = Open(SpecOf("m"));
    keys = StoreChains(ns, 1, 16);
    // Before its disk is made, and with one that it has.
    for (const bool made : {false, true}) {
      if (made) {
        ASSERT_TRUE(OpenSecond("of its own").ok());
      }
      const absl::Status running = OpenSecond("catalog");
      EXPECT_TRUE(absl::IsFailedPrecondition(running)) << running;
      EXPECT_THAT(running.message(), HasSubstr("another process has it"));
    }
    const std::vector<BlockKey> more = StoreChains(ns, 100, 16);
    keys.insert(keys.end(), more.begin(), more.end());
  }
  store_.reset();
  const absl::Status stopped = OpenSecond("catalog");
  EXPECT_TRUE(absl::IsFailedPrecondition(stopped)) << stopped;
  EXPECT_THAT(stopped.message(), HasSubstr("belongs to another store than the devices"));
  StartWithDisk();
  const NamespaceRef ns = Open(SpecOf("m"));
  store_->Quiesce();
  EXPECT_EQ(store_->GetStatus().disk.recovered_from_headers, "");
  EXPECT_EQ(Verified(ns, keys), 32U);
}

}  // namespace
}  // namespace kavern::tiers
