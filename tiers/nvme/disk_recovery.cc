// What a store finds on its devices at start: out of the catalog, or where that is of no use out of
// the slots' headers.

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "tiers/nvme/disk_store.h"

namespace kavern::tiers {
namespace {

// A daemon's parts have greater sequences than any that an earlier one can have written, also where
// the catalog does not know of them: a purge must void those too.
constexpr std::uint64_t kSequencesPerStart = std::uint64_t{1} << 40;
// How often the header of a segment is read before its segment is set aside.
constexpr int kSegmentTries = 4;
// Parts told to the index at a time, with its lock held.
constexpr std::size_t kAdoptAtATime = 1024;

std::uint64_t SegmentKey(SegmentId id) {
  return std::uint64_t{id.device} << 32 | id.segment;
}

}  // namespace

std::vector<DiskIndex::NewSegment> DiskStore::ReadSegments(std::uint32_t device,
                                                           std::vector<SegmentId>* unreadable) {
  const std::uint32_t count = segment_counts()[device];
  std::vector<std::uint64_t> offsets;
  for (std::uint32_t segment = 0; segment < count; ++segment) {
    offsets.push_back(disk::SegmentOffset(options_.segment_bytes, segment));
  }
  const std::shared_ptr<const PagesRead> read = ReadEach(device, offsets);
  std::vector<DiskIndex::NewSegment> found;
  for (std::uint32_t segment = 0; segment < count; ++segment) {
    const DiskPages again(1);
    const bool at_once = read->ends[segment].ok();
    if (!at_once && !ReadAgain(device, offsets[segment], again.all())) {
      unreadable->push_back({device, segment});
      continue;
    }
    const auto header = disk::ParseSegment(at_once ? read->pages.page(segment) : again.all());
    if (header.ok() && header->store == uuid_ && header->device == device &&
        header->segment == segment) {
      found.push_back({{device, segment}, header->slot_bytes, header->epoch});
    }
  }
  return found;
}

std::shared_ptr<const DiskStore::PagesRead> DiskStore::ReadEach(
    std::uint32_t device, std::span<const std::uint64_t> offsets) {
  auto read = std::make_shared<PagesRead>(offsets.size());
  Together all;
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    devices_.SubmitOwned(device,
                         {.op = DiskIo::Op::kRead,
                          .offset = offsets[i],
                          .pieces = {read->pages.page(i)},
                          .done = [read, i, one = all.Another()](const absl::Status& status) {
                            read->ends[i] = status;
                            one(status);
                          }});
  }
  all.Wait().IgnoreError();
  return read;
}

bool DiskStore::ReadAgain(std::uint32_t device, std::uint64_t offset, std::span<std::byte> page) {
  const DiskPages probe(1);
  for (int tries = 1; tries < kSegmentTries; ++tries) {
    // A page that can be read in between tells a bad page from a device that answers nothing, which
    // is out after kFailedReadsMax in a row.
    Run(device, DiskIo::Op::kRead, 0, probe.all()).IgnoreError();
    if (Run(device, DiskIo::Op::kRead, offset, page).ok()) return true;
  }
  return false;
}

absl::StatusOr<DiskStore::Recovery> DiskStore::Recover(
    DiskIndex& index, const std::function<void(const std::function<void()>&)>& locked) {
  if (!open_failure_.ok()) return open_failure_;
  if (devices_.all_out()) return EveryDeviceFailed();
  Recovery recovery;
  std::vector<DiskIndex::NewSegment> found;
  std::vector<SegmentId> unreadable;
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    const auto some = ReadSegments(device, &unreadable);
    found.insert(found.end(), some.begin(), some.end());
  }
  locked([&] {
    // Those of a device that is out are lost with it.
    for (const SegmentId id : unreadable)
      recovery.unreadable_segments += index.SetAside(id) ? 1 : 0;
    for (const DiskIndex::NewSegment& segment : found) {
      if (index.AdoptSegment(segment)) segments_[SegmentKey(segment.id)] = segment;
    }
  });
  std::string why = catalog_damage_;
  if (why.empty() && catalog()->is_new() && !segments_.empty()) why = "the catalog is missing";
  if (why.empty()) {
    why = ScanCatalog(index, locked, &recovery);
    if (!why.empty()) {
      locked([&] { index.ForgetAdopted(); });
      recovery.parts = recovery.void_parts = 0;
      {
        MutexLock lock(mu_);
        catalog_.reset();
      }
      KAVERN_RETURN_IF_ERROR(DiscardCatalog());
      KAVERN_RETURN_IF_ERROR(OpenCatalog(/*may_discard=*/true));
    }
  }
  if (!why.empty()) {
    recovery.from_headers = true;
    recovery.why = why;
    KAVERN_RETURN_IF_ERROR(ScanHeaders(found, index, locked, &recovery));
  }
  locked([&] { index.FinishAdoption(); });
  segments_.clear();
  // First, for the other number says that the catalog is complete: a device that is out may lack
  // any of them.
  if (!devices_.all_healthy()) KAVERN_RETURN_IF_ERROR(NoteLonePurges(purges_at_open_));
  KAVERN_RETURN_IF_ERROR(RaiseSequence(recovery.sequence));
  return recovery;
}

absl::Status DiskStore::RaiseSequence(std::uint64_t known) {
  KAVERN_ASSIGN_OR_RETURN(const auto stored, GetNumber(Catalog::kCompleteNumber));
  sequence_ = std::max({sequence_.load(), known, stored.value_or(0)}) + kSequencesPerStart;
  return PutNumber(Catalog::kCompleteNumber, sequence_);
}

absl::StatusOr<std::optional<std::uint64_t>> DiskStore::GetNumber(std::string_view name) const {
  const std::shared_ptr<Catalog> present = catalog();
  if (present == nullptr) return absl::UnavailableError("there is no catalog");
  return present->GetNumber(name);
}

absl::Status DiskStore::PutNumber(std::string_view name, std::uint64_t value) {
  const std::shared_ptr<Catalog> present = catalog();
  if (present == nullptr) return absl::UnavailableError("there is no catalog");
  return present->PutNumber(name, value);
}

std::string DiskStore::ScanCatalog(DiskIndex& index,
                                   const std::function<void(const std::function<void()>&)>& locked,
                                   Recovery* recovery) {
  std::vector<std::pair<std::uint32_t, disk::SlotHeader>> some;
  const auto tell = [&] {
    locked([&] {
      for (const auto& [device, header] : some) Adopt(device, header, index, recovery);
    });
    some.clear();
  };
  const absl::Status scanned =
      catalog()->Scan([&](std::uint32_t device, const disk::SlotHeader& header) {
        some.emplace_back(device, header);
        if (some.size() == kAdoptAtATime) tell();
      });
  tell();
  return std::string(scanned.message());
}

std::optional<DiskPlace> DiskStore::PlaceOf(std::uint32_t device,
                                            const disk::SlotHeader& header) const {
  if (header.offset < disk::kSegmentsOffset) return std::nullopt;
  const std::uint64_t in_segments = header.offset - disk::kSegmentsOffset;
  const SegmentId id = {device, static_cast<std::uint32_t>(in_segments / options_.segment_bytes)};
  const auto segment = segments_.find(SegmentKey(id));
  if (segment == segments_.end() || segment->second.epoch != header.epoch) return std::nullopt;
  const std::uint64_t stride = segment->second.slot_bytes + kDiskPage;
  const std::uint64_t in_segment = in_segments % options_.segment_bytes;
  if (in_segment < kDiskPage || (in_segment - kDiskPage) % stride != 0) return std::nullopt;
  if (purged_.IsVoid(NamespaceFingerprint{header.fingerprint}, header.sequence)) {
    return std::nullopt;
  }
  return DiskPlace{id, static_cast<std::uint32_t>((in_segment - kDiskPage) / stride),
                   segment->second.slot_bytes, header.epoch};
}

bool DiskStore::Adopt(std::uint32_t device, const disk::SlotHeader& header, DiskIndex& index,
                      Recovery* recovery) {
  recovery->sequence = std::max(recovery->sequence, header.sequence);
  const std::optional<DiskPlace> place = PlaceOf(device, header);
  const DiskPart part = {.fingerprint = NamespaceFingerprint{header.fingerprint},
                         .key = BlockKey{header.key},
                         .parent = BlockKey{header.parent},
                         .part = header.part,
                         .part_count = header.part_count,
                         .payload_bytes = header.payload_bytes,
                         .checksum = header.payload_crc,
                         .sequence = header.sequence};
  const bool adopted = place.has_value() && index.AdoptPart(*place, part);
  ++(adopted ? recovery->parts : recovery->void_parts);
  return place.has_value();
}

absl::Status DiskStore::ScanHeaders(const std::vector<DiskIndex::NewSegment>& segments,
                                    DiskIndex& index,
                                    const std::function<void(const std::function<void()>&)>& locked,
                                    Recovery* recovery) {
  for (const DiskIndex::NewSegment& segment : segments) {
    const std::uint32_t slots = disk::SlotsPerSegment(options_.segment_bytes, segment.slot_bytes);
    std::vector<std::uint64_t> offsets;
    for (std::uint32_t position = 0; position < slots; ++position) {
      offsets.push_back(disk::SlotOffset(options_.segment_bytes, segment.id.segment,
                                         segment.slot_bytes, position));
    }
    const std::shared_ptr<const PagesRead> read = ReadEach(segment.id.device, offsets);
    std::vector<Catalog::Change> changes;
    locked([&] {
      for (std::uint32_t position = 0; position < slots; ++position) {
        if (!read->ends[position].ok()) continue;  // what cannot be read is lost
        const auto header = disk::ParseSlot(read->pages.page(position));
        if (!header.ok()) continue;
        const std::uint64_t offset = offsets[position];
        if (header->offset == offset && Adopt(segment.id.device, *header, index, recovery)) {
          changes.push_back({segment.id.device, offset, false, *header});
        }
      }
    });
    KAVERN_RETURN_IF_ERROR(ApplyToCatalog(changes, false));
  }
  return absl::OkStatus();
}

}  // namespace kavern::tiers
