// Looks at the NVMe tier of a daemon that is not running, and changes nothing: not a byte of a
// device, not a file of the catalog.
#ifndef KAVERN_TIERS_NVME_STORE_INSPECTOR_H_
#define KAVERN_TIERS_NVME_STORE_INSPECTOR_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "base/unique_fd.h"
#include "tiers/nvme/catalog.h"
#include "tiers/nvme/disk_format.h"
#include "tiers/nvme/live_writes.h"

namespace kavern::tiers {

struct InspectorOptions {
  std::vector<std::string> devices;  // paths, in the order of the configuration
  std::string catalog_path;
  std::size_t damage_listed_max = 1000;  // further damage is counted, not named
};

// One place that is not what it must be.
struct StoreDamage {
  static constexpr std::uint32_t kCatalog = UINT32_MAX;
  std::uint32_t device = 0;  // or kCatalog
  std::uint64_t offset = 0;
  std::string what;
  // Of the part that is lost by it; zero: it is no slot.
  BlockKey key = {};
  std::uint32_t part = 0;
};

// What an inspector knows of a segment that is in use.
struct InspectedSegment {
  std::uint32_t device = 0;
  std::uint32_t segment = 0;
  std::uint64_t slot_bytes = 0;
  std::uint64_t epoch = 0;
};

struct StoreVerdict {
  // Slots.
  std::uint64_t right_parts = 0;  // header and payload are what they must be
  std::uint64_t right_bytes = 0;
  std::uint64_t unlisted_parts = 0;    // of these: not in the catalog; only a rebuild finds them
  std::uint64_t purged_parts = 0;      // deleted by their user: void
  std::uint64_t superseded_parts = 0;  // their block was written again later, and whole: void
  std::uint64_t unfinished_parts = 0;  // a write that a crash cut short, never acknowledged: void
  std::uint64_t unused_slots = 0;      // nothing of the segment's present use
  std::uint64_t damaged_parts = 0;
  // The catalog.
  std::uint64_t catalog_entries = 0;
  // Name a slot that has been written anew, or purged, since, or a former use of its segment: void.
  // Those of superseded parts are not among them.
  std::uint64_t void_entries = 0;
  // Everything else.
  std::uint64_t damaged_structures = 0;  // superblocks, purge pages, segment headers, the catalog
  std::vector<StoreDamage> damage;       // by device and offset; at most damage_listed_max

  bool sound() const { return damaged_parts == 0 && damaged_structures == 0; }
};

struct StoreStats {
  struct Device {
    std::string path;
    std::uint64_t capacity_bytes = 0;  // of its segments
    std::uint64_t segments = 0;
    std::uint64_t free_segments = 0;
  };
  struct SlotClass {
    std::uint64_t segments = 0;
    std::uint64_t slots = 0;
    std::uint64_t used_slots = 0;  // by parts that a daemon takes
  };
  struct Namespace {
    std::uint64_t blocks = 0;  // of which all parts are there
    std::uint64_t incomplete_blocks = 0;
    std::uint64_t parts = 0;  // of these blocks, but for those that are superseded
    std::uint64_t payload_bytes = 0;
    std::uint64_t superseded_parts = 0;  // of a write before the one that counts: void
  };
  struct Purge {
    NamespaceFingerprint fingerprint;
    std::uint64_t sequence = 0;
    std::uint64_t writes_since = 0;  // parts that the store has written after it
  };
  std::string store_hex;  // UUID
  std::uint64_t segment_bytes = 0;
  std::uint64_t last_sequence = 0;
  std::vector<Device> devices;
  std::map<std::uint64_t, SlotClass> classes;  // by slot size
  std::map<NamespaceFingerprint, Namespace> namespaces;
  std::vector<Purge> purges;  // the latest first
  std::uint64_t catalog_entries = 0;
  std::uint64_t catalog_bytes = 0;  // of its files
  std::string catalog_damage;  // then all of this is out of the slots' headers; empty: it is sound
};

// Not thread-safe. Holds shared locks on the devices for as long as it lives: no daemon can start
// on them meanwhile.
class StoreInspector {
 public:
  // FailedPrecondition: a daemon has the devices, or is of another format. InvalidArgument: the
  // devices are no store, or not the ones, or not in the order, that they were configured with.
  // NotFound: a file is missing. DataLoss: both superblocks of a device are damaged.
  static absl::StatusOr<std::unique_ptr<StoreInspector>> Open(InspectorOptions options);
  ~StoreInspector();

  // `done` of `total` bytes have been looked at; called from several threads, one at a time.
  using Progress = std::function<void(std::uint64_t done, std::uint64_t total)>;
  // Reads every slot that a segment in use has.
  StoreVerdict Verify(const Progress& progress);
  // Reads the segments' headers and the catalog; the slots' headers where that is damaged.
  StoreStats Stats();
  // Every entry, by device and offset. `is_void`: a daemon that starts does not take it. DataLoss:
  // the catalog is damaged; what was told until then stands.
  struct Entry {
    std::uint32_t device = 0;
    disk::SlotHeader header;
    bool is_void = false;
  };
  absl::Status ExportCatalog(const std::function<void(const Entry&)>& entry);

 private:
  struct Device {
    std::string path;
    UniqueFd file;
    disk::Superblock superblock = {};
  };
  using Place = std::pair<std::uint32_t, std::uint64_t>;  // device, offset

  explicit StoreInspector(InspectorOptions options) : options_(std::move(options)) {}
  absl::Status OpenDevices();
  absl::Status ReadSuperblocks();
  absl::Status ReadSuperblock(std::uint32_t device);
  void ReadPurges();
  void ReadSegments();
  void NoteDamage(std::uint32_t device, std::uint64_t offset, std::string what);
  // The segment in use that the place lies in, where a slot of it begins; nullptr: none.
  const InspectedSegment* SegmentOf(std::uint32_t device, std::uint64_t offset) const;
  bool IsPurged(const disk::SlotHeader& header) const;
  // Segment, epoch and purges do not speak against it.
  bool IsCurrent(std::uint32_t device, const disk::SlotHeader& header) const;
  // The catalog's entries, as far as it can be read; void are those that are not current. Empty, or
  // why it is of no use.
  std::string ReadCatalog(const std::function<void(const Entry&)>& entry) const;
  // Every current header that a slot of the segment has.
  void ScanHeaders(const InspectedSegment& segment,
                   const std::function<void(const disk::SlotHeader&)>& found) const;
  // All segments in use, by several threads.
  void ForEachSegment(const std::function<void(const InspectedSegment&)>& look) const;
  // Out of the headers, where the catalog is of no use.
  LiveWrites LiveWritesByHeaders() const;
  void CountDevices(StoreStats* stats) const;
  // What there is of each namespace, out of all current headers.
  void CountBlocks(const std::vector<Entry>& current, StoreStats* stats) const;

  const InspectorOptions options_;
  std::vector<Device> devices_;
  std::uint64_t segment_bytes_ = 0;
  std::vector<InspectedSegment> segments_;  // in use
  absl::flat_hash_map<std::pair<std::uint32_t, std::uint32_t>, std::size_t> segment_at_;
  absl::flat_hash_set<std::pair<std::uint32_t, std::uint32_t>> damaged_segments_;
  absl::flat_hash_map<NamespaceFingerprint, std::uint64_t> purged_;
  std::vector<StoreDamage> structures_;  // damaged ones
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_STORE_INSPECTOR_H_
