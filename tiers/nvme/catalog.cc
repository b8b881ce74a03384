#include "tiers/nvme/catalog.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/internal/endian.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "tiers/nvme/catalog_directory.h"
#include "tiers/nvme/catalog_log.h"

namespace kavern::tiers {
namespace {

// Keys begin with a letter: 'I' for whose it is, 'N' for numbers, 'S' for slots.
constexpr char kIdentityKey[] = "I";
constexpr char kNumberPrefix = 'N';
constexpr char kSlotPrefix = 'S';
constexpr std::size_t kSlotKeyBytes = 1 + sizeof(std::uint32_t) + sizeof(std::uint64_t);

using SlotKey = std::array<char, kSlotKeyBytes>;

// Big endian, so that the order of keys is that of the disk.
SlotKey KeyOf(std::uint32_t device, std::uint64_t offset) {
  SlotKey key;
  key[0] = kSlotPrefix;
  absl::big_endian::Store32(key.data() + 1, device);
  absl::big_endian::Store64(key.data() + 5, offset);
  return key;
}

std::string NumberKey(std::string_view name) {
  return kNumberPrefix + std::string(name);
}

rocksdb::Slice SliceOf(const SlotKey& key) {
  return {key.data(), key.size()};
}

rocksdb::Options Tuned(rocksdb::Env* env) {
  rocksdb::Options options;
  if (env != nullptr) options.env = env;
  options.create_if_missing = true;
  // Whatever was written is there, or opening fails: a log that is cut short or has a flipped bit
  // is damage, which the slots' headers mend.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kAbsoluteConsistency;
  options.paranoid_checks = true;
  // Point writes and one scan at start: little memory, and a log that does not grow.
  options.write_buffer_size = 16 * kMiB;
  options.max_write_buffer_number = 2;
  options.max_total_wal_size = 64 * kMiB;
  options.max_open_files = 64;
  options.max_background_jobs = 2;
  options.keep_log_file_num = 2;
  options.max_log_file_size = kMiB;
  options.compression = rocksdb::kNoCompression;  // keys and checksums do not compress
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(8 * kMiB);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

// Where log files are reused, RocksDB takes a record of the former log for the end of the present
// one. We never reuse any, but a single flipped bit in a record's type makes it one of those, and
// all behind it would be lost without a word. So would what follows a record of zeros in its block:
// RocksDB takes that for space that was reserved.
absl::Status CheckLogs(const std::string& path, rocksdb::Env* env) {
  std::vector<std::string> names;
  if (!env->GetChildren(path, &names).ok()) return absl::OkStatus();
  std::vector<char> memory(kLogBlockBytes);
  for (const std::string& name : names) {
    if (!absl::EndsWith(name, ".log")) continue;
    std::unique_ptr<rocksdb::SequentialFile> file;
    // What cannot be read RocksDB will say.
    if (!env->NewSequentialFile(absl::StrCat(path, "/", name), &file, {}).ok()) continue;
    CatalogLogCheck check;
    rocksdb::Slice block;
    while (file->Read(kLogBlockBytes, &block, memory.data()).ok() && !block.empty()) {
      const auto wrong = check.Next(std::as_bytes(std::span(block.data(), block.size())));
      if (!wrong.empty()) return absl::DataLossError(absl::StrCat("catalog: ", name, ": ", wrong));
    }
  }
  return absl::OkStatus();
}

absl::Status AnotherStores(const std::string& path) {
  return absl::FailedPreconditionError(absl::StrCat(
      "nvme.catalog: ", path,
      ": belongs to another store than the devices. Name another directory; or, if that "
      "store is gone, remove it"));
}

rocksdb::Env* OrSystem(rocksdb::Env* env) {
  return env != nullptr ? env : rocksdb::Env::Default();
}

// The identity in the database itself, which must not be changed before it is known.
absl::StatusOr<disk::Uuid> StoreOfDatabase(const std::string& path, rocksdb::Env* env) {
  rocksdb::Options options = Tuned(env);
  options.create_if_missing = false;
  rocksdb::DB* opened = nullptr;
  KAVERN_RETURN_IF_ERROR(CatalogStatus(rocksdb::DB::OpenForReadOnly(options, path, &opened)));
  const std::unique_ptr<rocksdb::DB> db(opened);
  std::string identity;
  KAVERN_RETURN_IF_ERROR(CatalogStatus(db->Get({}, kIdentityKey, &identity)));
  disk::Uuid store;
  if (identity.size() != store.size()) return absl::DataLossError("catalog: its identity is none");
  std::copy(identity.begin(), identity.end(), store.begin());
  return store;
}

absl::StatusOr<std::optional<disk::Uuid>> StoreOfDirectory(const CatalogDirectory& directory,
                                                           const std::string& path,
                                                           rocksdb::Env* env) {
  KAVERN_ASSIGN_OR_RETURN(const auto marked, directory.ReadMark());
  if (marked.has_value()) return marked;
  KAVERN_ASSIGN_OR_RETURN(const bool has_database, directory.HasDatabase());
  if (!has_database) return std::nullopt;
  const auto store = StoreOfDatabase(path, env);
  if (store.ok()) return std::optional(*store);
  if (!absl::IsDataLoss(store.status())) return store.status();
  return absl::FailedPreconditionError(absl::StrCat(
      "nvme.catalog: ", path, ": holds a database that does not say that it is Kavern's (",
      store.status().message(),
      "). Name another directory; or, if it is nobody else's, remove it"));
}

}  // namespace

Catalog::Catalog(std::unique_ptr<rocksdb::DB> db, bool is_new)
    : db_(std::move(db)), is_new_(is_new) {}

Catalog::~Catalog() = default;

absl::StatusOr<std::optional<disk::Uuid>> Catalog::StoreOf(
    const std::string& path, rocksdb::Env* env, std::chrono::milliseconds lock_patience) {
  env = OrSystem(env);
  KAVERN_ASSIGN_OR_RETURN(const bool is_there, CatalogDirectory::IsThere(path, env));
  if (!is_there) return std::nullopt;
  KAVERN_ASSIGN_OR_RETURN(const auto directory, CatalogDirectory::Lock(path, env, lock_patience));
  return StoreOfDirectory(*directory, path, env);
}

absl::Status Catalog::Claim(const std::string& path, const disk::Uuid& store, rocksdb::Env* env,
                            std::chrono::milliseconds lock_patience) {
  KAVERN_ASSIGN_OR_RETURN(const auto directory, CatalogDirectory::Lock(path, env, lock_patience));
  KAVERN_ASSIGN_OR_RETURN(const auto present, StoreOfDirectory(*directory, path, env));
  if (present.has_value() && *present != store) return AnotherStores(path);
  // Before the database: what is damaged later must still say that it is ours. One that an earlier
  // version made has none, and says it by itself as yet.
  KAVERN_ASSIGN_OR_RETURN(const auto marked, directory->ReadMark());
  if (!marked.has_value()) KAVERN_RETURN_IF_ERROR(directory->Mark(store));
  // RocksDB would replay logs that a crash left of a catalog that was discarded.
  return directory->HasCurrent() ? absl::OkStatus() : directory->Empty();
}

absl::StatusOr<std::unique_ptr<Catalog>> Catalog::Open(const std::string& path,
                                                       const disk::Uuid& store, rocksdb::Env* env,
                                                       std::chrono::milliseconds lock_patience) {
  env = OrSystem(env);
  KAVERN_RETURN_IF_ERROR(Claim(path, store, env, lock_patience));
  KAVERN_RETURN_IF_ERROR(CheckLogs(path, env));
  rocksdb::DB* opened = nullptr;
  KAVERN_RETURN_IF_ERROR(CatalogStatus(rocksdb::DB::Open(Tuned(env), path, &opened)));
  std::unique_ptr<rocksdb::DB> db(opened);
  std::string identity;
  const rocksdb::Status got = db->Get({}, kIdentityKey, &identity);
  const std::string expected(store.begin(), store.end());
  if (got.IsNotFound()) {
    const std::unique_ptr<rocksdb::Iterator> any(db->NewIterator({}));
    any->SeekToFirst();
    if (any->Valid()) return absl::DataLossError("catalog: it does not say whose it is");
    rocksdb::WriteOptions durable;
    durable.sync = true;
    KAVERN_RETURN_IF_ERROR(CatalogStatus(db->Put(durable, kIdentityKey, expected)));
    return std::unique_ptr<Catalog>(new Catalog(std::move(db), /*is_new=*/true));
  }
  if (!got.ok()) return CatalogStatus(got);
  if (identity != expected) return AnotherStores(path);
  return Completed(std::unique_ptr<Catalog>(new Catalog(std::move(db), /*is_new=*/false)));
}

absl::StatusOr<std::unique_ptr<Catalog>> Catalog::Completed(std::unique_ptr<Catalog> catalog) {
  KAVERN_ASSIGN_OR_RETURN(const auto complete, catalog->GetNumber(kCompleteNumber));
  if (!complete.has_value()) return absl::DataLossError("catalog: it was never completed");
  return catalog;
}

absl::StatusOr<std::unique_ptr<Catalog>> Catalog::OpenReadOnly(const std::string& path,
                                                               const disk::Uuid& store) {
  rocksdb::Options options = Tuned(nullptr);
  options.create_if_missing = false;
  KAVERN_RETURN_IF_ERROR(CheckLogs(path, options.env));
  rocksdb::DB* opened = nullptr;
  const rocksdb::Status status = rocksdb::DB::OpenForReadOnly(options, path, &opened);
  if (!status.ok()) return absl::DataLossError(absl::StrCat("catalog: ", status.ToString()));
  std::unique_ptr<rocksdb::DB> db(opened);
  std::string identity;
  const rocksdb::Status got = db->Get({}, kIdentityKey, &identity);
  if (!got.ok()) return absl::DataLossError(absl::StrCat("catalog: ", got.ToString()));
  if (identity != std::string(store.begin(), store.end())) {
    return absl::DataLossError("catalog: it belongs to another store");
  }
  return Completed(std::unique_ptr<Catalog>(new Catalog(std::move(db), /*is_new=*/false)));
}

absl::Status Catalog::Discard(const std::string& path, rocksdb::Env* env,
                              std::chrono::milliseconds lock_patience) {
  KAVERN_ASSIGN_OR_RETURN(const auto directory,
                          CatalogDirectory::Lock(path, OrSystem(env), lock_patience));
  KAVERN_ASSIGN_OR_RETURN(const auto marked, directory->ReadMark());
  if (!marked.has_value()) {
    return absl::FailedPreconditionError(
        absl::StrCat("nvme.catalog: ", path, ": its mark is gone, so it is not thrown away"));
  }
  return directory->Empty();
}

absl::Status Catalog::Scan(
    const std::function<void(std::uint32_t device, const disk::SlotHeader&)>& entry) const {
  rocksdb::ReadOptions once;
  once.fill_cache = false;
  once.readahead_size = kMiB;
  const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(once));
  for (it->Seek(rocksdb::Slice(&kSlotPrefix, 1)); it->Valid(); it->Next()) {
    const rocksdb::Slice key = it->key();
    if (key.size() != kSlotKeyBytes || key[0] != kSlotPrefix) {
      return absl::DataLossError("catalog: a key that is none");
    }
    const std::uint32_t device = absl::big_endian::Load32(key.data() + 1);
    const std::uint64_t offset = absl::big_endian::Load64(key.data() + 5);
    const auto header =
        disk::ParseSlot(std::as_bytes(std::span(it->value().data(), it->value().size())));
    if (!header.ok()) return absl::DataLossError(header.status().message());
    if (header->offset != offset) return absl::DataLossError("catalog: an entry of another slot");
    entry(device, *header);
  }
  return CatalogStatus(it->status());
}

absl::Status Catalog::Apply(std::span<const Change> changes, bool sync) {
  if (failed_) return absl::UnavailableError("catalog: a write has failed; restart to go on");
  if (changes.empty()) return sync ? Wrote(CatalogStatus(db_->SyncWAL())) : absl::OkStatus();
  rocksdb::WriteBatch batch;
  for (const Change& change : changes) {
    const SlotKey key = KeyOf(change.device, change.offset);
    if (change.erase) {
      KAVERN_RETURN_IF_ERROR(CatalogStatus(batch.Delete(SliceOf(key))));
    } else {
      const rocksdb::Slice value(reinterpret_cast<const char*>(&change.header),
                                 sizeof(change.header));
      KAVERN_RETURN_IF_ERROR(CatalogStatus(batch.Put(SliceOf(key), value)));
    }
  }
  rocksdb::WriteOptions options;
  options.sync = sync;
  return Wrote(CatalogStatus(db_->Write(options, &batch)));
}

absl::StatusOr<std::optional<std::uint64_t>> Catalog::GetNumber(std::string_view name) const {
  std::string value;
  const rocksdb::Status got = db_->Get({}, NumberKey(name), &value);
  if (got.IsNotFound()) return std::nullopt;
  if (!got.ok()) return CatalogStatus(got);
  if (value.size() != sizeof(std::uint64_t)) {
    return absl::DataLossError(absl::StrCat("catalog: the number ", std::string(name), " is none"));
  }
  return absl::big_endian::Load64(value.data());
}

absl::Status Catalog::PutNumber(std::string_view name, std::uint64_t value) {
  std::array<char, sizeof(value)> bytes;
  absl::big_endian::Store64(bytes.data(), value);
  rocksdb::WriteOptions durable;
  durable.sync = true;
  if (failed_) return absl::UnavailableError("catalog: a write has failed; restart to go on");
  return Wrote(CatalogStatus(
      db_->Put(durable, NumberKey(name), rocksdb::Slice(bytes.data(), bytes.size()))));
}

absl::Status Catalog::Wrote(absl::Status status) {
  if (status.ok()) return status;
  failed_ = true;
  MutexLock lock(mu_);
  if (failure_.empty()) failure_ = std::string(status.message());
  return status;
}

std::string Catalog::failure() const {
  MutexLock lock(mu_);
  return failure_;
}

std::uint64_t Catalog::MemoryBytes() const {
  std::uint64_t bytes = 0;
  for (const std::string& property : {rocksdb::DB::Properties::kCurSizeAllMemTables,
                                      rocksdb::DB::Properties::kEstimateTableReadersMem,
                                      rocksdb::DB::Properties::kBlockCacheUsage}) {
    std::uint64_t part = 0;
    if (db_->GetIntProperty(property, &part)) bytes += part;
  }
  return bytes;
}

}  // namespace kavern::tiers
