// What is in which slot, in RocksDB: so that a restart need not read the slots' headers.
//
// Never the truth by itself: an entry counts only if its segment's header is of the same use, and
// its payload only if its checksum fits. It may lack what is on disk (then that is a miss). A
// catalog that is damaged is not repaired but thrown away, and made anew from the headers; what is
// another store's or another program's is refused, and left as it is.
#ifndef KAVERN_TIERS_NVME_CATALOG_H_
#define KAVERN_TIERS_NVME_CATALOG_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "tiers/nvme/disk_format.h"

namespace rocksdb {
class DB;
class Env;
}  // namespace rocksdb

namespace kavern::tiers {

// Thread-safe.
class Catalog {
 public:
  static constexpr std::chrono::milliseconds kLockPatience{5000};

  // The store whose catalog is in the directory `path`; nullopt: there is none. A catalog is made
  // after every device of its store: there is such a store then, whatever the catalog holds. Makes
  // nothing. The errors are Open's.
  static absl::StatusOr<std::optional<disk::Uuid>> StoreOf(
      const std::string& path, rocksdb::Env* env = nullptr,
      std::chrono::milliseconds lock_patience = kLockPatience);
  // Opens or makes the catalog in the directory `path`. DataLoss: it is damaged, or was never
  // completed; Discard() it and open it again. FailedPrecondition: it belongs to another store than
  // `store`, another program's database is there, or another process has it for longer than
  // `lock_patience`. PermissionDenied, ResourceExhausted (no space). Otherwise it cannot be read or
  // written, which says nothing of what is there. `env` is the seam for tests, which must outlive
  // it; nullptr: the files of the system.
  static absl::StatusOr<std::unique_ptr<Catalog>> Open(
      const std::string& path, const disk::Uuid& store, rocksdb::Env* env = nullptr,
      std::chrono::milliseconds lock_patience = kLockPatience);
  // The same for looking only: writes nothing, and may only Scan(). DataLoss: it is missing,
  // damaged, or belongs to another store.
  static absl::StatusOr<std::unique_ptr<Catalog>> OpenReadOnly(const std::string& path,
                                                               const disk::Uuid& store);
  // Deletes it, so that whatever a crash leaves of it is not taken for a catalog. Its mark stays:
  // the store still is. The errors are Open's.
  static absl::Status Discard(const std::string& path, rocksdb::Env* env = nullptr,
                              std::chrono::milliseconds lock_patience = kLockPatience);
  ~Catalog();

  // Whether it was made by this Open: what is on disk is not in it.
  bool is_new() const { return is_new_; }

  // Every entry, in order of (device, offset). DataLoss: damaged. An entry that does not parse is
  // one kind of damage.
  absl::Status Scan(
      const std::function<void(std::uint32_t device, const disk::SlotHeader&)>& entry) const;

  struct Change {
    std::uint32_t device = 0;
    std::uint64_t offset = 0;
    bool erase = false;
    disk::SlotHeader header = {};  // unless erased
  };
  // All or none. `sync`: these changes, and all before them, are durable when it returns.
  // After a failure all writes fail, as Unavailable, until the catalog is opened again.
  absl::Status Apply(std::span<const Change> changes, bool sync);

  // Put when all that is on disk is in the catalog. A restart takes one without it for damaged.
  static constexpr std::string_view kCompleteNumber = "sequence";
  // Devices that are out of use, or were, may lack purges up to this sequence.
  static constexpr std::string_view kLonePurgesNumber = "lone_purges";
  // A number that the store keeps beside its slots, durable when Put returns; nullopt: there is
  // none of this name.
  absl::StatusOr<std::optional<std::uint64_t>> GetNumber(std::string_view name) const;
  absl::Status PutNumber(std::string_view name, std::uint64_t value);

  // Why a write failed, since when all do; empty: none has.
  std::string failure() const;
  std::uint64_t MemoryBytes() const;

 private:
  Catalog(std::unique_ptr<rocksdb::DB> db, bool is_new);
  // The directory is this store's from here on, and marked so.
  static absl::Status Claim(const std::string& path, const disk::Uuid& store, rocksdb::Env* env,
                            std::chrono::milliseconds lock_patience);
  // DataLoss unless it is complete.
  static absl::StatusOr<std::unique_ptr<Catalog>> Completed(std::unique_ptr<Catalog> catalog);

  const std::unique_ptr<rocksdb::DB> db_;
  absl::Status Wrote(absl::Status status);

  const bool is_new_;
  // A write has failed. RocksDB takes no more then, and Debian's ends the process where it is asked
  // for a sync.
  std::atomic<bool> failed_ = false;
  mutable Mutex mu_;
  std::string failure_ KAVERN_GUARDED_BY(mu_);
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_CATALOG_H_
