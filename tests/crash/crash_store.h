// A small tiered store with all that crash harnesses ask of it: three namespaces, two devices.
#ifndef KAVERN_TESTS_CRASH_CRASH_STORE_H_
#define KAVERN_TESTS_CRASH_CRASH_STORE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "tests/crash/block_truth.h"
#include "tests/crash/crash_report.h"
#include "tests/fakes/memory_device.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {

// Blocks of namespaces 0 and 1 have one part of 4 KiB, those of 2 one of 4 KiB and one of 8 KiB.
// Disk: 70 slots of 4 KiB, or fewer and some of 8 KiB.
inline constexpr std::uint32_t kCrashNamespaces = 3;
inline constexpr std::uint32_t kCrashDevices = 2;
inline constexpr std::uint64_t kCrashSegmentBytes = std::uint64_t{64} * 1024;
inline constexpr std::uint64_t kCrashSegments = 5;  // of each device
inline constexpr std::uint64_t kCrashDeviceBytes =
    disk::kSegmentsOffset + kCrashSegments * kCrashSegmentBytes;

using OpenDevice =
    std::function<absl::StatusOr<std::unique_ptr<BlockDevice>>(const BlockDeviceOptions&)>;
using DiskImages = std::vector<std::shared_ptr<DiskImage>>;
DiskImages EmptyImages();
// Devices over the images; the paths of DiskStoreOptions end in the device's number.
OpenDevice OpenImages(DiskImages images);
std::uint32_t DeviceNumber(const BlockDeviceOptions& options);

struct CrashStoreOptions {
  std::string directory;  // of the catalog, and of devices that are files
  OpenDevice open = OpenBlockDevice;
  rocksdb::Env* catalog_env = nullptr;
  DiskDurability durability = DiskDurability::kBatch;
  std::uint64_t ram_regions = 8;  // of 64 KiB
  bool io_uring = true;
  int queue_depth = 4;
  std::chrono::milliseconds batch_interval{2};
  std::chrono::milliseconds read_timeout{20000};
};

// Not thread-safe, but for the store itself.
class CrashStore {
 public:
  static absl::StatusOr<std::unique_ptr<CrashStore>> Open(const CrashStoreOptions& options);
  ~CrashStore();

  // The bytes of `version` for all parts of the block, whose parent is the number before it but for
  // every fourth. False: it was there already, or not granted.
  bool Store(const BlockName& name, std::uint64_t version);
  // The same with a strict commit, and waits for its answer.
  struct StrictStore {
    bool stored = false;
    bool durable = false;  // so the store says
  };
  StrictStore StoreStrict(const BlockName& name, std::uint64_t version);
  // Waits until all that was stored is on disk and acknowledged. False: some is not.
  bool WaitDurable() { return store_->WriteBack(std::chrono::seconds(60)); }
  absl::Status Purge(std::uint32_t ns);
  // The blocks that the store says are on disk.
  std::set<BlockName> OnDisk(const std::map<BlockName, std::vector<std::uint64_t>>& of) const;
  // Whether the block is served, whole; what is wrong with it goes into the report.
  bool Read(const BlockName& name, const BlockTruth& truth, CrashReport& report);
  // Reads everything that the store says it has; returns what is served.
  std::set<BlockName> ReadAll(const BlockTruth& truth, CrashReport& report);
  // P5, once all is quiet.
  void CheckSound(CrashReport& report);

  TieredStore& store() { return *store_; }
  const NamespaceRef& ns(std::uint32_t i) const { return namespaces_[i]; }

 private:
  // Keeps the newest directory of each namespace, which says which tiers have a block.
  class Directories final : public StoreEvents {
   public:
    void OnRegionRetired(std::uint64_t /*region_id*/) override {}
    void OnDirectory(const NamespaceFingerprint& fingerprint, std::uint64_t generation,
                     std::uint64_t size_bytes, UniqueFd fd) override;
    void OnDirectoryGone(const NamespaceFingerprint& fingerprint,
                         std::uint64_t generation) override;
    std::uint8_t Tiers(const NamespaceFingerprint& fingerprint, const BlockKey& key) const;

   private:
    struct Newest {
      std::uint64_t generation = 0;
      std::uint64_t size_bytes = 0;
      UniqueFd fd;
      bool gone = false;
    };
    mutable Mutex mu_;
    std::map<NamespaceFingerprint, Newest> newest_ KAVERN_GUARDED_BY(mu_);
  };

  CrashStore() = default;
  bool StoreAs(const BlockName& name, std::uint64_t version,
               std::optional<DiskDurability> durability, const TieredStore::DurableDone& done);

  Directories directories_;
  std::unique_ptr<TieredStore> store_;
  std::vector<NamespaceRef> namespaces_;
};

// Opens, reads all, and checks P1, P2, P3, P5 and P7 of one state. `required` is what must be
// there. Returns what is served.
std::set<BlockName> CheckRecovery(const CrashStoreOptions& options, const BlockTruth& truth,
                                  const std::set<BlockName>& required, const std::string& what,
                                  CrashReport& report);

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_CRASH_CRASH_STORE_H_
