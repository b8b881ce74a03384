// The I/O of the NVMe tier: devices, the catalog, and the order in which things become durable.
//
// docs/DATA_FORMAT.md says what is on disk, what each crash leaves there, and why that is safe.
#ifndef KAVERN_TIERS_NVME_DISK_STORE_H_
#define KAVERN_TIERS_NVME_DISK_STORE_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "tiers/nvme/block_device.h"
#include "tiers/nvme/catalog.h"
#include "tiers/nvme/disk_devices.h"
#include "tiers/nvme/disk_format.h"
#include "tiers/nvme/disk_index.h"
#include "tiers/nvme/disk_pages.h"
#include "tiers/nvme/disk_part.h"
#include "tiers/nvme/purge_list.h"

namespace kavern::tiers {

// What a block that is on disk survives, from the least.
enum class DiskDurability : std::uint8_t {
  kNone,    // the daemon's death, not the machine's: nothing is flushed for it
  kBatch,   // a power cut: data is flushed, then its catalog entries, every batch_interval
  kStrict,  // the same, and whoever stores waits for it
};

struct DiskStoreOptions {
  struct Device {
    std::string path;
    std::uint64_t capacity_bytes = 0;  // all of it, superblocks included
  };
  std::vector<Device> devices;
  std::string catalog_path;
  std::uint64_t segment_bytes = std::uint64_t{64} << 20;
  int queue_depth = 32;
  bool io_uring = true;
  // Tells a device what a segment that is put to another use held before: DiskIo::Op::kDiscard.
  bool discard = false;
  std::chrono::milliseconds lock_patience{5000};  // BlockDeviceOptions has it; the catalog's too
  const Clock* clock = &Clock::System();          // of deadlines
  // How long parts wait for others to share a flush, unless one of them is kStrict.
  std::chrono::milliseconds batch_interval{100};
  // A device with a request in flight for longer is out of use like one that failed.
  std::chrono::milliseconds hang_timeout{30000};
  // The seams for tests: devices, and the catalog's files (nullptr: those of the system).
  std::function<absl::StatusOr<std::unique_ptr<BlockDevice>>(const BlockDeviceOptions&)> open =
      OpenBlockDevice;
  rocksdb::Env* catalog_env = nullptr;
};

struct DiskReadOptions {
  IoPriority priority = IoPriority::kFetch;
  SteadyTime deadline = SteadyTime::max();  // as DiskIo has it
  std::uint64_t token = 0;                  // for DiskStore::Cancel(); 0: none
  // As DiskIo has it.
  std::function<void(absl::Status)> given_up = nullptr;
};

// Thread-safe. Callbacks run in its threads, or in the call that named them where the device is out
// of use, and must not wait for other I/O of it.
//
// What fails: Unavailable where the device is out, DeadlineExceeded and Cancelled as asked for,
// ResourceExhausted where a device's queue is full, otherwise what the device said.
class DiskStore {
 public:
  using Done = std::function<void(absl::Status)>;

  // Makes what is not there yet. A device that fails (IsDeviceFailure) is out from the beginning,
  // and the others go on; where they cannot go on without it, all are out, and Recover() says why.
  // FailedPrecondition: another process has a device or the catalog, devices of different stores,
  // or of another format, a catalog that is not this store's; InvalidArgument: sizes. Nothing is
  // overwritten then.
  static absl::StatusOr<std::unique_ptr<DiskStore>> Open(DiskStoreOptions options);
  // Everything under way ends first, also on a device that hangs; what is written is committed.
  ~DiskStore();
  // The same, while it can still be called back into. Nothing else may be called afterwards but
  // Forget().
  void Stop();
  // Before the process ends: waits until `deadline` for what was under way when it was called. The
  // devices that have some left then hang. Returns a sentence for each; none: the store can be
  // destroyed. Else memory that was lent to it is the kernel's for an unknown time.
  std::vector<std::string> EndIo(std::chrono::steady_clock::time_point deadline);
  DiskStore(const DiskStore&) = delete;
  DiskStore& operator=(const DiskStore&) = delete;

  // ---- Recovery, once, before anything else ----
  struct Recovery {
    std::uint64_t parts = 0;  // adopted, also those that a later write replaced
    std::uint64_t void_parts =
        0;  // found, but of no use: purged, overwritten, another use of the segment
    std::uint64_t sequence = 0;  // the greatest found
    // Whose header could not be read: set aside until the next start.
    std::uint64_t unreadable_segments = 0;
    bool from_headers = false;  // the catalog was new or damaged
    std::string why;            // if so
  };
  // Tells `index` what is on disk: out of the catalog, or where that is damaged out of every slot's
  // header. Reads are safe before, writes are not. `locked` runs what it is given with the index's
  // lock held. Unavailable: every device is out.
  absl::StatusOr<Recovery> Recover(DiskIndex& index,
                                   const std::function<void(const std::function<void()>&)>& locked);

  // ---- Blocks ----
  // Writes the header of a segment. Its slots may be written from this call on: none of them
  // becomes durable, or is in the catalog, before the header is written; where that fails, neither
  // do they. Waits for the header of the segment's last use, where that is still under way. `done`
  // is not called where the header is under way already, nor where the segment got another use
  // before it could begin.
  void WriteSegment(const DiskIndex::NewSegment& segment, Done done);
  // Whether the segment must be emptied first: then its slots may only be written after `done`.
  bool Empties(const DiskIndex::NewSegment& segment) const {
    return options_.discard && segment.used_before;
  }
  // Writes header and payload; `payload` is whole pages, at least part.payload_bytes, and is the
  // store's until `written`. `durable` follows `written` once the part is as durable as it asks
  // for, and in the catalog; after a failed `written` it is not called. `given_up` is DiskIo's: the
  // payload is the store's still, and a failed `written` follows when it is not any more.
  struct PartWrite {
    DiskPlace place;
    DiskPart part;
    std::span<std::byte> payload;
    DiskDurability durability = DiskDurability::kBatch;
  };
  void Write(const PartWrite& write, Done written, Done durable, Done given_up);
  // Reads and verifies. DataLoss: the payload is not what it must be. NotFound: the slot is another
  // block's by now. part.payload_bytes may be 0: what the slot's header says.
  void Read(const DiskPlace& place, const DiskPart& part, std::span<std::byte> payload, Done done,
            const DiskReadOptions& options = {});
  // Never 0, and never given before.
  std::uint64_t NewToken() { return ++tokens_; }
  void Cancel(std::uint64_t token) { devices_.Cancel(token); }
  // The namespace is deleted: whatever has a sequence from before this call stays void for ever,
  // once `done` is OK. `places`: where it was, to be taken out of the catalog.
  void Purge(const NamespaceFingerprint& fingerprint, std::span<const DiskPlace> places, Done done);

  // Everything that is in the catalog by now is as durable as kBatch when `done` is OK.
  void Sync(Done done);
  // What was at `places` is of no use: out of the catalog, in the background.
  void Forget(std::span<const DiskPlace> places);

  // Numbers kept beside the slots (Catalog). Not before Recover().
  absl::StatusOr<std::optional<std::uint64_t>> GetNumber(std::string_view name) const;
  absl::Status PutNumber(std::string_view name, std::uint64_t value);
  // While somebody waits, batches are not waited for. Calls with true and false come in pairs.
  void Hurry(bool begin);
  // Of the next block that is written: all its parts have it, and no block before it, also in
  // former lives of the store, had one as great. Taken with the index's lock held, so that a purge
  // knows what was before it.
  std::uint64_t NextSequence() { return ++sequence_; }

  // ---- Devices ----
  // Before Recover(). A device that fails is told once, in one of its threads, before the I/O that
  // showed it ends.
  void SetOnDeviceFailed(std::function<void(std::uint32_t)> on_failed) {
    devices_.SetOnFailed(std::move(on_failed));
  }
  // As BlockDevice has them, on every device.
  void RegisterMemory(std::span<std::byte> memory) { devices_.RegisterMemory(memory); }
  void UnregisterMemory(std::span<std::byte> memory) { devices_.UnregisterMemory(memory); }
  std::vector<DeviceFacts> device_facts() const { return devices_.facts(); }
  bool device_healthy(std::uint32_t device) const { return devices_.healthy(device); }

  // ---- Facts ----
  std::vector<std::uint32_t> segment_counts() const;
  std::uint64_t segment_bytes() const { return options_.segment_bytes; }
  std::uint64_t capacity_bytes() const;  // of the devices in use
  // "io_uring", or "threads" where the kernel refuses it on any device.
  std::string_view method() const;
  std::uint64_t catalog_memory_bytes() const;
  // Why the catalog takes nothing until the next start, so that nothing new comes to be on disk;
  // empty: it does.
  std::string catalog_failure() const;
  struct Counters {
    std::uint64_t read_bytes = 0;
    std::uint64_t written_bytes = 0;
    std::uint64_t read_failures = 0;
    std::uint64_t write_failures = 0;
    std::uint64_t damaged_parts = 0;  // read, and not what they must be
    std::uint64_t flushes = 0;
  };
  Counters counters() const;

 private:
  struct Written {
    Catalog::Change change;
    DiskDurability durability = DiskDurability::kNone;
    Done durable;  // empty for deletions
  };

  explicit DiskStore(DiskStoreOptions options);
  absl::Status OpenParts();
  absl::Status OpenDevices();
  absl::StatusOr<std::unique_ptr<BlockDevice>> OpenDevice(std::uint32_t device, bool create);
  // The files that there are not, where there is no store; they are new then. Unavailable where a
  // device fails, beside which no store is made.
  absl::Status MakeAbsent(const std::vector<bool>& is_absent, std::vector<bool>* is_new);
  // Which devices are empty.
  absl::Status ReadSuperblocks(std::vector<bool>* is_new);
  // What shows that there is a store, of which a device that is absent or empty was a part; empty:
  // there is none, or one whose making was begun and not ended.
  absl::StatusOr<std::string> FindStore(const std::vector<bool>& is_new);
  void TakeEmptyOut(const std::string& store, std::vector<bool>* is_new);
  // Why a device that is absent or empty is out, and what a person can do.
  absl::Status HowToGoOn(absl::string_view what) const;
  // Every device is out, and none is touched: what is on them cannot be served as it is.
  void TakeAllOut(const absl::Status& why);
  absl::Status EveryDeviceFailed() const;
  struct FoundPurges {
    // The last that a device knows of whose list is whole: it knows of all before it too.
    std::uint64_t last_of_whole = 0;
    std::string gap;      // the first device that lacks both copies of a page; empty: none does
    bool differ = false;  // the devices' lists, or a page is damaged
  };
  // Reads the lists of all devices; writes none.
  absl::StatusOr<FoundPurges> LoadPurges();
  // Whether the devices that are in use know of every purge.
  absl::Status CheckPurges(const FoundPurges& found);
  std::string WhoMayKnowMore(const FoundPurges& found) const;
  // The devices that are out lack purges up to this one.
  absl::Status NoteLonePurges(std::uint64_t sequence);
  // nullopt: it has none, being empty.
  absl::StatusOr<std::optional<disk::Superblock>> ReadSuperblock(std::uint32_t device);
  // Of a device without a superblock, for the reason `why`. FailedPrecondition: there is something
  // in front of its segments.
  absl::Status CheckEmpty(std::uint32_t device, absl::string_view why);
  absl::Status CheckSuperblock(std::uint32_t device, const disk::Superblock& block);
  // Formatted, and nothing was ever written. False where that cannot be read.
  bool HoldsNothing(std::uint32_t device);
  absl::Status WriteSuperblocks(std::uint32_t device);
  absl::Status FormatDevice(std::uint32_t device);
  // `may_discard`: one that is missing or damaged is made anew.
  absl::Status OpenCatalog(bool may_discard);
  absl::Status DiscardCatalog();

  absl::Status Run(std::uint32_t device, DiskIo::Op op, std::uint64_t offset,
                   std::span<std::byte> memory) {
    return devices_.Run(device, op, offset, memory);
  }
  std::vector<absl::Status> FlushDevices();
  // Reads pages, and where that fails each by itself; what cannot be read is zeros. False: some
  // could not.
  bool ReadPages(std::uint32_t device, std::uint64_t offset, std::span<std::byte> pages);
  // Pages of one device, and how the reading of each has ended: those of a device that hangs are
  // the kernel's still, and nobody looks at what was not read.
  struct PagesRead {
    explicit PagesRead(std::size_t count) : pages(count), ends(count) {}
    const DiskPages pages;
    std::vector<absl::Status> ends;
  };
  std::shared_ptr<const PagesRead> ReadEach(std::uint32_t device,
                                            std::span<const std::uint64_t> offsets);
  // `unreadable`: whose header could not be read in kSegmentTries.
  std::vector<DiskIndex::NewSegment> ReadSegments(std::uint32_t device,
                                                  std::vector<SegmentId>* unreadable);
  bool ReadAgain(std::uint32_t device, std::uint64_t offset, std::span<std::byte> page);
  // Where the part lies; nullopt: it is void.
  std::optional<DiskPlace> PlaceOf(std::uint32_t device, const disk::SlotHeader& header) const;
  // Whether the part is of use, if not at once: of two writes of a block the later one is adopted.
  bool Adopt(std::uint32_t device, const disk::SlotHeader& header, DiskIndex& index,
             Recovery* recovery);
  // Empty: all of the catalog was told. Else what is wrong with it; some was told.
  std::string ScanCatalog(DiskIndex& index,
                          const std::function<void(const std::function<void()>&)>& locked,
                          Recovery* recovery);
  absl::Status ScanHeaders(const std::vector<DiskIndex::NewSegment>& segments, DiskIndex& index,
                           const std::function<void(const std::function<void()>&)>& locked,
                           Recovery* recovery);
  std::uint64_t OffsetOf(const DiskPlace& place) const;

  void SubmitCounted(std::uint32_t device, DiskIo io);
  // DiskDevices::SubmitOwned, counted until `done` is called.
  void SubmitOwned(std::uint32_t device, DiskIo io);
  std::function<void(absl::Status)> Counted(std::function<void(absl::Status)> done);
  void WatchLoop();
  void CommitLoop();
  bool CommitsAtOnce() const KAVERN_REQUIRES(mu_);
  void CommitBatch(std::vector<Written> batch, std::vector<Done> syncs);
  absl::Status RaiseSequence(std::uint64_t known);
  absl::Status WritePurges();
  std::shared_ptr<Catalog> catalog() const;  // nullptr: a damaged one could not be replaced
  absl::Status ApplyToCatalog(std::span<const Catalog::Change> changes, bool sync);

  const DiskStoreOptions options_;
  disk::Uuid uuid_ = {};
  DiskDevices devices_;
  std::string catalog_damage_;
  absl::Status open_failure_;         // why no device is used
  std::uint64_t purges_at_open_ = 0;  // the greatest sequence
  // Slot sizes and epochs of the segments, while Recover() runs.
  absl::flat_hash_map<std::uint64_t, DiskIndex::NewSegment> segments_;

  std::atomic<std::uint64_t> sequence_ = 0;
  std::atomic<std::uint64_t> tokens_ = 0;
  std::atomic<std::uint64_t> read_bytes_ = 0;
  std::atomic<std::uint64_t> written_bytes_ = 0;
  std::atomic<std::uint64_t> read_failures_ = 0;
  std::atomic<std::uint64_t> write_failures_ = 0;
  std::atomic<std::uint64_t> damaged_parts_ = 0;
  std::atomic<std::uint64_t> flushes_ = 0;

  // Of a segment whose header is under way, or could not be written.
  struct Header {
    std::uint64_t epoch = 0;
    absl::Status status;          // not OK: it could not be written
    std::vector<Written> held;    // what was written into the segment meanwhile
    std::function<void()> begin;  // once that of the segment's last use has ended; empty: it has
  };
  void BeginHeader(const DiskIndex::NewSegment& segment, Done done);
  // Written, so that it is for the committer, unless its segment has no header yet.
  void HandOver(const DiskPlace& place, Written written);
  void EndHeader(SegmentId id, std::uint64_t epoch, const absl::Status& status);
  void AddWrittenLocked(Written written) KAVERN_REQUIRES(mu_);

  struct PurgeRequest {
    NamespaceFingerprint fingerprint;
    std::uint64_t sequence = 0;
    Done done;
  };
  mutable Mutex mu_;
  CondVar changed_;
  // Shared with whoever uses it while Recover() puts another one in its place.
  std::shared_ptr<Catalog> catalog_ KAVERN_GUARDED_BY(mu_);
  std::vector<Written> written_ KAVERN_GUARDED_BY(mu_);
  std::uint64_t strict_written_ KAVERN_GUARDED_BY(mu_) = 0;  // of them
  absl::btree_map<SegmentId, Header> headers_ KAVERN_GUARDED_BY(mu_);
  std::vector<Done> syncs_ KAVERN_GUARDED_BY(mu_);
  std::vector<PurgeRequest> purges_ KAVERN_GUARDED_BY(mu_);
  std::uint64_t io_under_way_ KAVERN_GUARDED_BY(mu_) = 0;  // whose callbacks use this object
  std::uint64_t hurries_ KAVERN_GUARDED_BY(mu_) = 0;
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  bool committing_ KAVERN_GUARDED_BY(mu_) = false;  // the committer is at a batch
  std::uint64_t batches_ KAVERN_GUARDED_BY(mu_) = 0;
  CondVar watch_changed_;
  bool stop_watching_ KAVERN_GUARDED_BY(mu_) = false;
  // The committer's own, after Open.
  PurgeList purged_;
  std::thread watcher_;
  std::thread committer_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_DISK_STORE_H_
