// The directory of a catalog before RocksDB opens it: whose it is, and that nobody else has it.
//
// A mark of ours lies beside RocksDB's files and says whose they are, also where these are damaged:
// only what bears it is ever thrown away.
#ifndef KAVERN_TIERS_NVME_CATALOG_DIRECTORY_H_
#define KAVERN_TIERS_NVME_CATALOG_DIRECTORY_H_

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiers/nvme/disk_format.h"

namespace rocksdb {
class Env;
class FileLock;
class Status;
}  // namespace rocksdb

namespace kavern::tiers {

// What RocksDB says, as ours. DataLoss: damage of what is there. FailedPrecondition: another has it
// open. PermissionDenied and ResourceExhausted (no space) are for a person to set right. All else,
// like I/O errors and a file system that is read-only, says nothing of what is there: Internal.
absl::Status CatalogStatus(const rocksdb::Status& status);

// Not thread-safe.
class CatalogDirectory {
 public:
  // What of a catalog lies in `path`: a mark or a file of RocksDB's. Looks only.
  static absl::StatusOr<bool> IsThere(const std::string& path, rocksdb::Env* env);
  // Makes the directory where there is none. It is locked, as RocksDB locks it, until this object's
  // end; another that has it is waited for that long.
  static absl::StatusOr<std::unique_ptr<CatalogDirectory>> Lock(const std::string& path,
                                                                rocksdb::Env* env,
                                                                std::chrono::milliseconds patience);
  ~CatalogDirectory();
  CatalogDirectory(const CatalogDirectory&) = delete;
  CatalogDirectory& operator=(const CatalogDirectory&) = delete;

  // The store that the mark names; nullopt: there is no mark, or it is damaged.
  absl::StatusOr<std::optional<disk::Uuid>> ReadMark() const;
  // Durable when it returns.
  absl::Status Mark(const disk::Uuid& store);
  absl::StatusOr<bool> HasDatabase() const;
  // Whether RocksDB would take what is there for a database.
  bool HasCurrent() const;
  // Deletes the database, and leaves the mark. First what makes it a database: a crash in the midst
  // of the rest must not leave one that opens and lacks half.
  absl::Status Empty();

 private:
  CatalogDirectory(std::string path, rocksdb::Env* env, rocksdb::FileLock* lock);

  const std::string path_;
  rocksdb::Env* const env_;
  rocksdb::FileLock* const lock_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_CATALOG_DIRECTORY_H_
