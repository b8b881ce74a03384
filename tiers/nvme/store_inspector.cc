#include "tiers/nvme/store_inspector.h"

#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "tiers/nvme/disk_store.h"
#include "tiers/nvme/segment_check.h"

namespace kavern::tiers {
namespace {

// Segments read at a time: as many reads as keep a disk busy.
constexpr unsigned kReaders = 8;

bool IsZero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

absl::StatusOr<UniqueFd> OpenReadOnly(const std::string& path) {
  UniqueFd file(open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  // Not every file system has direct I/O, and looking needs none.
  if (!file.valid() && errno == EINVAL) file = UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return ErrnoStatus(errno, path);
  if (flock(file.get(), LOCK_SH | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, absl::StrCat(path, ": flock"));
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": a running daemon has it; stop that first"));
  }
  return file;
}

void Merge(StoreVerdict& into, StoreVerdict&& from) {
  into.right_parts += from.right_parts;
  into.right_bytes += from.right_bytes;
  into.unlisted_parts += from.unlisted_parts;
  into.purged_parts += from.purged_parts;
  into.superseded_parts += from.superseded_parts;
  into.unfinished_parts += from.unfinished_parts;
  into.unused_slots += from.unused_slots;
  into.damaged_parts += from.damaged_parts;
  into.void_entries += from.void_entries;
  for (StoreDamage& damage : from.damage) into.damage.push_back(std::move(damage));
}

}  // namespace

StoreInspector::~StoreInspector() = default;

// ---- Opening ----

absl::StatusOr<std::unique_ptr<StoreInspector>> StoreInspector::Open(InspectorOptions options) {
  if (options.devices.empty()) return absl::InvalidArgumentError("devices: none given");
  std::unique_ptr<StoreInspector> inspector(new StoreInspector(std::move(options)));
  KAVERN_RETURN_IF_ERROR(inspector->OpenDevices());
  KAVERN_RETURN_IF_ERROR(inspector->ReadSuperblocks());
  inspector->ReadPurges();
  inspector->ReadSegments();
  return inspector;
}

absl::Status StoreInspector::OpenDevices() {
  for (const std::string& path : options_.devices) {
    KAVERN_ASSIGN_OR_RETURN(UniqueFd file, OpenReadOnly(path));
    devices_.push_back({path, std::move(file)});
  }
  return absl::OkStatus();
}

absl::Status StoreInspector::ReadSuperblocks() {
  for (std::uint32_t i = 0; i < devices_.size(); ++i) {
    KAVERN_RETURN_IF_ERROR(ReadSuperblock(i));
    const disk::Superblock& block = devices_[i].superblock;
    if (block.device != i || block.device_count != devices_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(devices_[i].path, ": is device ", block.device, " of ", block.device_count,
                       ", configured as device ", i, " of ", devices_.size()));
    }
    if (block.store != devices_[0].superblock.store ||
        block.segment_bytes != devices_[0].superblock.segment_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(devices_[i].path, ": belongs to another store than the devices before it"));
    }
  }
  segment_bytes_ = devices_[0].superblock.segment_bytes;
  return absl::OkStatus();
}

absl::Status StoreInspector::ReadSuperblock(std::uint32_t device) {
  Device& opened = devices_[device];
  const DiskPages pages(disk::kSuperblockPages);
  if (absl::Status status = ReadPages(opened.file.get(), 0, pages.all()); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(opened.path, ": no store: ", status.message()));
  }
  bool found = false;
  absl::Status last;
  for (std::size_t copy = 0; copy < disk::kSuperblockPages; ++copy) {
    const auto block = disk::ParseSuperblock(pages.page(copy));
    if (absl::IsFailedPrecondition(block.status())) {
      return absl::FailedPreconditionError(
          absl::StrCat(opened.path, ": ", block.status().message()));
    }
    if (block.ok()) {
      if (!found) opened.superblock = *block;
      found = true;
    } else {
      last = block.status();
      NoteDamage(device, copy * kDiskPage, std::string(last.message()));
    }
  }
  if (found) return absl::OkStatus();
  if (IsZero(pages.all())) {
    return absl::InvalidArgumentError(absl::StrCat(opened.path, ": holds no store yet"));
  }
  return absl::DataLossError(absl::StrCat(opened.path, ": neither superblock can be read (",
                                          last.message(), "): damaged, or no store of Kavern's"));
}

void StoreInspector::ReadPurges() {
  const DiskPages page(1);
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    for (std::uint64_t i = 0; i < 2 * disk::kPurgePages; ++i) {
      const std::uint64_t offset = disk::kPurgePagesOffset + i * kDiskPage;
      absl::Status status = ReadPages(devices_[device].file.get(), offset, page.all());
      if (status.ok()) {
        const auto parsed = disk::ParsePurgePage(page.all());
        status = parsed.status();
        if (parsed.ok() && parsed->store != devices_[0].superblock.store) {
          status = absl::DataLossError("purge page: of another store");
        }
        for (std::uint64_t e = 0; status.ok() && e < parsed->count; ++e) {
          std::uint64_t& sequence = purged_[NamespaceFingerprint{parsed->entries[e].fingerprint}];
          sequence = std::max(sequence, parsed->entries[e].sequence);
        }
      }
      if (!status.ok()) NoteDamage(device, offset, std::string(status.message()));
    }
  }
}

void StoreInspector::ReadSegments() {
  const DiskPages page(1);
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    const std::uint64_t count = devices_[device].superblock.segment_count;
    for (std::uint32_t segment = 0; segment < count; ++segment) {
      const std::uint64_t offset = disk::SegmentOffset(segment_bytes_, segment);
      absl::Status status = ReadPages(devices_[device].file.get(), offset, page.all());
      if (status.ok() && IsZero(page.all())) continue;  // free
      std::optional<disk::SegmentHeader> header;
      if (status.ok()) {
        const auto parsed = disk::ParseSegment(page.all());
        status = parsed.status();
        if (parsed.ok()) header = *parsed;
      }
      if (header.has_value() && (header->store != devices_[0].superblock.store ||
                                 header->device != device || header->segment != segment)) {
        status = absl::DataLossError("segment: its header is another segment's");
      }
      if (!status.ok() || !header.has_value()) {
        NoteDamage(device, offset, std::string(status.message()));
        damaged_segments_.insert({device, segment});
        continue;
      }
      segment_at_[{device, segment}] = segments_.size();
      segments_.push_back({device, segment, header->slot_bytes, header->epoch});
    }
  }
}

void StoreInspector::NoteDamage(std::uint32_t device, std::uint64_t offset, std::string what) {
  structures_.push_back({device, offset, std::move(what)});
}

// ---- What counts ----

const InspectedSegment* StoreInspector::SegmentOf(std::uint32_t device,
                                                  std::uint64_t offset) const {
  if (offset < disk::kSegmentsOffset) return nullptr;
  const std::uint64_t in_segments = offset - disk::kSegmentsOffset;
  const auto found =
      segment_at_.find({device, static_cast<std::uint32_t>(in_segments / segment_bytes_)});
  if (found == segment_at_.end()) return nullptr;
  const InspectedSegment& segment = segments_[found->second];
  const std::uint64_t in_segment = in_segments % segment_bytes_;
  const std::uint64_t stride = segment.slot_bytes + kDiskPage;
  if (in_segment < kDiskPage || (in_segment - kDiskPage) % stride != 0) return nullptr;
  const std::uint64_t position = (in_segment - kDiskPage) / stride;
  return position < disk::SlotsPerSegment(segment_bytes_, segment.slot_bytes) ? &segment : nullptr;
}

bool StoreInspector::IsPurged(const disk::SlotHeader& header) const {
  // The fingerprint of zeros stands for all (purge_list.h).
  for (const NamespaceFingerprint& whose :
       {NamespaceFingerprint{header.fingerprint}, NamespaceFingerprint{}}) {
    const auto purged = purged_.find(whose);
    if (purged != purged_.end() && header.sequence <= purged->second) return true;
  }
  return false;
}

bool StoreInspector::IsCurrent(std::uint32_t device, const disk::SlotHeader& header) const {
  const InspectedSegment* segment = SegmentOf(device, header.offset);
  return segment != nullptr && segment->epoch == header.epoch &&
         header.payload_bytes <= segment->slot_bytes && !IsPurged(header);
}

std::string StoreInspector::ReadCatalog(const std::function<void(const Entry&)>& entry) const {
  const auto catalog = Catalog::OpenReadOnly(options_.catalog_path, devices_[0].superblock.store);
  if (!catalog.ok()) return std::string(catalog.status().message());
  const absl::Status scanned =
      (*catalog)->Scan([&](std::uint32_t device, const disk::SlotHeader& header) {
        entry({device, header, !IsCurrent(device, header)});
      });
  return std::string(scanned.message());
}

void StoreInspector::ScanHeaders(const InspectedSegment& segment,
                                 const std::function<void(const disk::SlotHeader&)>& found) const {
  const DiskPages page(1);
  const std::uint32_t slots = disk::SlotsPerSegment(segment_bytes_, segment.slot_bytes);
  for (std::uint32_t position = 0; position < slots; ++position) {
    const std::uint64_t offset =
        disk::SlotOffset(segment_bytes_, segment.segment, segment.slot_bytes, position);
    if (!ReadPages(devices_[segment.device].file.get(), offset, page.all()).ok()) continue;
    const auto header = disk::ParseSlot(page.all());
    if (header.ok() && header->offset == offset && IsCurrent(segment.device, *header)) {
      found(*header);
    }
  }
}

void StoreInspector::ForEachSegment(
    const std::function<void(const InspectedSegment&)>& look) const {
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < segments_.size(); i = next++) look(segments_[i]);
  };
  std::vector<std::thread> readers;
  for (unsigned i = 0; i < kReaders; ++i) readers.push_back(NamedThread("inspect", work));
  for (std::thread& reader : readers) reader.join();
}

LiveWrites StoreInspector::LiveWritesByHeaders() const {
  LiveWrites live;
  Mutex mu;
  ForEachSegment([&](const InspectedSegment& segment) {
    std::vector<disk::SlotHeader> found;
    ScanHeaders(segment, [&](const disk::SlotHeader& header) { found.push_back(header); });
    MutexLock lock(mu);
    for (const disk::SlotHeader& header : found) live.Add(header);
  });
  return live;
}

// ---- Verify ----

StoreVerdict StoreInspector::Verify(const Progress& progress) {
  StoreVerdict verdict;
  verdict.damage = structures_;
  absl::flat_hash_map<Place, disk::SlotHeader> listed;
  LiveWrites live;
  std::vector<Entry> unreachable;  // in segments whose header is damaged
  const std::string damage = ReadCatalog([&](const Entry& entry) {
    ++verdict.catalog_entries;
    const std::uint64_t offset = entry.header.offset;
    if (!entry.is_void) {
      listed[{entry.device, offset}] = entry.header;
      live.Add(entry.header);
    } else if (offset >= disk::kSegmentsOffset && !IsPurged(entry.header) &&
               damaged_segments_.contains(
                   {entry.device, static_cast<std::uint32_t>((offset - disk::kSegmentsOffset) /
                                                             segment_bytes_)})) {
      unreachable.push_back(entry);
    } else {
      ++verdict.void_entries;
    }
  });
  verdict.damaged_structures = structures_.size();
  if (!damage.empty()) {
    listed.clear();
    live = LiveWritesByHeaders();
    ++verdict.damaged_structures;
    verdict.damage.push_back({StoreDamage::kCatalog, 0, damage});
  }
  for (const Entry& entry : unreachable) {
    if (live.IsSuperseded(entry.header)) {
      ++verdict.superseded_parts;
      continue;
    }
    ++verdict.damaged_parts;
    verdict.damage.push_back({entry.device, entry.header.offset,
                              "slot: its segment's header is damaged", BlockKey{entry.header.key},
                              entry.header.part});
  }

  const std::uint64_t total = segments_.size() * segment_bytes_;
  Mutex mu;
  std::uint64_t done = 0;
  ForEachSegment([&](const InspectedSegment& segment) {
    SegmentCheckInput input;
    input.file = devices_[segment.device].file.get();
    input.segment = segment;
    input.segment_bytes = segment_bytes_;
    input.listed = [&](std::uint64_t offset) {
      const auto found = listed.find({segment.device, offset});
      return found == listed.end() ? nullptr : &found->second;
    };
    input.catalog_is_sound = damage.empty();
    input.is_purged = [this](const disk::SlotHeader& header) { return IsPurged(header); };
    input.is_superseded = [&](const disk::SlotHeader& header) { return live.IsSuperseded(header); };
    input.progress = [&](std::uint64_t bytes) {
      MutexLock lock(mu);
      done += bytes;
      if (progress) progress(done, total);
    };
    StoreVerdict part = CheckSegment(input);
    MutexLock lock(mu);
    Merge(verdict, std::move(part));
  });

  std::sort(verdict.damage.begin(), verdict.damage.end(),
            [](const StoreDamage& a, const StoreDamage& b) {
              return std::pair(a.device, a.offset) < std::pair(b.device, b.offset);
            });
  if (verdict.damage.size() > options_.damage_listed_max) {
    verdict.damage.resize(options_.damage_listed_max);
  }
  return verdict;
}

// ---- Stats and export ----

StoreStats StoreInspector::Stats() {
  StoreStats stats;
  const disk::Uuid& store = devices_[0].superblock.store;
  stats.store_hex =
      absl::BytesToHexString({reinterpret_cast<const char*>(store.data()), store.size()});
  stats.segment_bytes = segment_bytes_;
  CountDevices(&stats);
  for (const auto& [fingerprint, sequence] : purged_) {
    stats.last_sequence = std::max(stats.last_sequence, sequence);
  }

  std::vector<Entry> current;
  stats.catalog_damage = ReadCatalog([&](const Entry& entry) {
    ++stats.catalog_entries;
    stats.last_sequence = std::max(stats.last_sequence, entry.header.sequence);
    if (!entry.is_void) current.push_back(entry);
  });
  if (!stats.catalog_damage.empty()) {
    current.clear();
    for (const InspectedSegment& segment : segments_) {
      ScanHeaders(segment, [&](const disk::SlotHeader& header) {
        current.push_back({segment.device, header, false});
      });
    }
  }
  CountBlocks(current, &stats);

  for (const auto& [fingerprint, sequence] : purged_) {
    stats.purges.push_back({fingerprint, sequence, stats.last_sequence - sequence});
  }
  std::sort(stats.purges.begin(), stats.purges.end(), [](const auto& a, const auto& b) {
    return std::pair(b.sequence, a.fingerprint) < std::pair(a.sequence, b.fingerprint);
  });
  return stats;
}

void StoreInspector::CountBlocks(const std::vector<Entry>& current, StoreStats* stats) const {
  LiveWrites live;
  for (const Entry& entry : current) live.Add(entry.header);
  live.ForEachBlock([&](const NamespaceFingerprint& fingerprint, bool whole) {
    StoreStats::Namespace& counts = stats->namespaces[fingerprint];
    ++(whole ? counts.blocks : counts.incomplete_blocks);
  });
  for (const auto& [device, header, is_void] : current) {
    stats->last_sequence = std::max(stats->last_sequence, header.sequence);
    StoreStats::Namespace& counts = stats->namespaces[NamespaceFingerprint{header.fingerprint}];
    if (live.IsSuperseded(header)) {
      ++counts.superseded_parts;
      continue;
    }
    ++counts.parts;
    counts.payload_bytes += header.payload_bytes;
    ++stats->classes[SegmentOf(device, header.offset)->slot_bytes].used_slots;
  }
}

void StoreInspector::CountDevices(StoreStats* stats) const {
  for (const Device& device : devices_) {
    const std::uint64_t segments = device.superblock.segment_count;
    stats->devices.push_back({device.path, segments * segment_bytes_, segments, segments});
  }
  for (const InspectedSegment& segment : segments_) {
    --stats->devices[segment.device].free_segments;
    StoreStats::SlotClass& slots = stats->classes[segment.slot_bytes];
    ++slots.segments;
    slots.slots += disk::SlotsPerSegment(segment_bytes_, segment.slot_bytes);
  }
  std::error_code ignored;
  for (const auto& file : std::filesystem::directory_iterator(options_.catalog_path, ignored)) {
    const std::uintmax_t bytes = file.file_size(ignored);
    if (!ignored) stats->catalog_bytes += bytes;
  }
}

absl::Status StoreInspector::ExportCatalog(const std::function<void(const Entry&)>& entry) {
  LiveWrites live;
  const std::string damage = ReadCatalog([&](const Entry& one) {
    if (!one.is_void) live.Add(one.header);
  });
  const std::string again = ReadCatalog([&](Entry one) {
    one.is_void = one.is_void || live.IsSuperseded(one.header);
    entry(one);
  });
  if (!damage.empty()) return absl::DataLossError(damage);
  return again.empty() ? absl::OkStatus() : absl::DataLossError(again);
}

}  // namespace kavern::tiers
