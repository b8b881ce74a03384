#include "tiers/nvme/disk_store.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <future>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/copy_and_checksum.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "base/units.h"

namespace kavern::tiers {
namespace {

// Entries of one batch of the catalog.
constexpr std::size_t kBatchMax = 4096;
// A daemon's parts have greater sequences than any that an earlier one can have written, also where
// the catalog does not know of them: a purge must void those too.
constexpr std::uint64_t kSequencesPerStart = std::uint64_t{1} << 40;
// Parts told to the index at a time, with its lock held.
constexpr std::size_t kAdoptAtATime = 1024;

disk::Uuid NewUuid() {
  std::random_device random;
  disk::Uuid uuid;
  for (std::size_t i = 0; i < uuid.size(); i += 4) {
    const std::uint32_t word = random();
    std::memcpy(uuid.data() + i, &word, sizeof(word));
  }
  return uuid;
}

std::uint64_t SegmentKey(SegmentId id) {
  return std::uint64_t{id.device} << 32 | id.segment;
}

bool HoldsPayload(const disk::SlotHeader& header, const DiskPart& part,
                  std::span<const std::byte> payload) {
  const std::uint64_t bytes = part.payload_bytes == 0 ? header.payload_bytes : part.payload_bytes;
  return header.payload_crc == part.checksum && bytes == header.payload_bytes &&
         bytes <= payload.size() &&
         Crc32c(payload.first(bytes), PartChecksumSeed(part.key, part.part)) == part.checksum;
}

}  // namespace

void DiskPages::Free::operator()(std::byte* data) const {
  std::free(data);  // NOLINT(cppcoreguidelines-no-malloc): what aligned_alloc gave
}

DiskPages::DiskPages(std::size_t pages)
    : data_(static_cast<std::byte*>(std::aligned_alloc(kDiskPage, pages * kDiskPage))),
      size_(pages * kDiskPage) {
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_.get(), 0, size_);
}

// ---- Opening ----

DiskStore::DiskStore(DiskStoreOptions options) : options_(std::move(options)) {}

absl::StatusOr<std::unique_ptr<DiskStore>> DiskStore::Open(DiskStoreOptions options) {
  if (options.devices.empty()) return absl::InvalidArgumentError("devices: none given");
  if (options.segment_bytes % kDiskPage != 0 || options.segment_bytes < 2 * kDiskPage) {
    return absl::InvalidArgumentError("segment: expected a multiple of 4 KiB, at least 8 KiB");
  }
  for (const DiskStoreOptions::Device& device : options.devices) {
    if (device.capacity_bytes < disk::kSegmentsOffset + options.segment_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(device.path, ": capacity: got ", FormatBytes(device.capacity_bytes),
                       ", expected at least 1 MiB and a segment, ",
                       FormatBytes(disk::kSegmentsOffset + options.segment_bytes)));
    }
  }
  std::unique_ptr<DiskStore> store(new DiskStore(std::move(options)));
  KAVERN_RETURN_IF_ERROR(store->OpenDevices());
  KAVERN_RETURN_IF_ERROR(store->LoadPurges());
  KAVERN_RETURN_IF_ERROR(store->OpenCatalog());
  store->committer_ = NamedThread("disk-commit", [raw = store.get()] { raw->CommitLoop(); });
  return store;
}

absl::Status DiskStore::OpenDevices() {
  for (const DiskStoreOptions::Device& device : options_.devices) {
    BlockDeviceOptions open;
    open.path = device.path;
    open.size_bytes = device.capacity_bytes / kDiskPage * kDiskPage;
    open.depth = options_.queue_depth;
    open.io_uring = options_.io_uring;
    open.lock_patience = options_.lock_patience;
    open.clock = options_.clock;
    KAVERN_ASSIGN_OR_RETURN(auto opened, options_.open(open));
    devices_.Add(device.path, std::move(opened));
  }
  std::vector<bool> is_new(devices_.size(), false);
  KAVERN_RETURN_IF_ERROR(ReadSuperblocks(&is_new));
  if (uuid_ == disk::Uuid{}) uuid_ = NewUuid();
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    if (is_new[device]) KAVERN_RETURN_IF_ERROR(FormatDevice(device));
  }
  return absl::OkStatus();
}

absl::Status DiskStore::ReadSuperblocks(std::vector<bool>* is_new) {
  bool some_old = false;
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    KAVERN_ASSIGN_OR_RETURN(const auto block, ReadSuperblock(device));
    if (!block.has_value()) {
      (*is_new)[device] = true;
      continue;
    }
    some_old = true;
    KAVERN_RETURN_IF_ERROR(CheckSuperblock(device, *block));
  }
  const bool some_new = std::find(is_new->begin(), is_new->end(), true) != is_new->end();
  if (!some_new || !some_old) return absl::OkStatus();
  // A crash in the midst of making the store leaves such a mixture, with nothing in it.
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    if ((*is_new)[device]) continue;
    KAVERN_ASSIGN_OR_RETURN(const bool nothing, HoldsNothing(device));
    if (!nothing) {
      // Blocks that were striped onto the lost device are found to be missing one by one.
      return absl::FailedPreconditionError(
          "devices: some are empty and some hold a store; remove the others' files to begin anew");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<disk::Superblock>> DiskStore::ReadSuperblock(std::uint32_t device) {
  const std::string& path = options_.devices[device].path;
  const DiskPages pages(disk::kSuperblockPages);
  const bool readable = ReadPages(device, 0, pages.all());
  const auto first = disk::ParseSuperblock(pages.page(0));
  const auto second = disk::ParseSuperblock(pages.page(1));
  const auto& block = first.ok() ? first : second;
  for (const absl::Status& status : {first.status(), second.status()}) {
    if (!block.ok() && absl::IsFailedPrecondition(status)) {
      return absl::FailedPreconditionError(absl::StrCat(path, ": ", status.message()));
    }
  }
  if (block.ok()) {
    // The second fault would find no copy: what damaged the first is mended, as far as it can be.
    const bool mend = !first.ok() || !second.ok();
    if (mend && CheckSuperblock(device, *block).ok()) WriteSuperblocks(device).IgnoreError();
    return std::optional(*block);
  }
  // Only what is empty is taken: somebody else's bytes are not ours to overwrite.
  const auto all = pages.all();
  if (!readable ||
      std::any_of(all.begin(), all.end(), [](std::byte b) { return b != std::byte{0}; })) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, ": holds something that is no store of Kavern's, or is damaged beyond reading (",
        readable ? block.status().message() : "its first pages cannot be read",
        "); remove it, or overwrite its first 8 KiB with zeros"));
  }
  return std::optional<disk::Superblock>();
}

absl::Status DiskStore::CheckSuperblock(std::uint32_t device, const disk::Superblock& block) {
  const std::string& path = options_.devices[device].path;
  if (uuid_ != disk::Uuid{} && block.store != uuid_) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": belongs to another store than the devices before it"));
  }
  uuid_ = block.store;
  if (block.device != device || block.device_count != devices_.size() ||
      block.segment_bytes != options_.segment_bytes ||
      block.segment_count != segment_counts()[device]) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": was device ", block.device, " of ", block.device_count, " with ",
                     block.segment_count, " segments of ", FormatBytes(block.segment_bytes),
                     "; configured is device ", device, " of ", devices_.size(), " with ",
                     segment_counts()[device], " of ", FormatBytes(options_.segment_bytes),
                     ". Remove the devices' files to begin anew"));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> DiskStore::HoldsNothing(std::uint32_t device) {
  const DiskPages pages(2 * disk::kPurgePages);
  KAVERN_RETURN_IF_ERROR(Run(device, DiskIo::Op::kRead, disk::kPurgePagesOffset, pages.all()));
  for (std::uint64_t i = 0; i < 2 * disk::kPurgePages; ++i) {
    const auto page = disk::ParsePurgePage(pages.page(i));
    if (!page.ok() || page->count > 0) return false;
  }
  return ReadSegments(device).empty();
}

absl::Status DiskStore::FormatDevice(std::uint32_t device) {
  // Whatever lay here before is void: no segment has a header until it is used, and a purge list
  // that does not parse would mean damage.
  const std::uint64_t pages = disk::kSegmentsOffset / kDiskPage;
  const DiskPages front(pages);
  disk::PurgePage none = {};
  none.store = uuid_;
  disk::Seal(none);
  const std::uint64_t first = disk::kPurgePagesOffset / kDiskPage;
  for (std::uint64_t i = 0; i < 2 * disk::kPurgePages; ++i) {
    disk::WritePage(none, front.page(first + i));
  }
  KAVERN_RETURN_IF_ERROR(Run(device, DiskIo::Op::kWrite, 0, front.all()));
  const DiskPages zero(1);
  Together headers;
  for (std::uint64_t segment = 0; segment < segment_counts()[device]; ++segment) {
    devices_.Submit(device, {.op = DiskIo::Op::kWrite,
                             .offset = disk::SegmentOffset(options_.segment_bytes, segment),
                             .pieces = {zero.all()},
                             .done = headers.Another()});
  }
  KAVERN_RETURN_IF_ERROR(headers.Wait());
  KAVERN_RETURN_IF_ERROR(Run(device, DiskIo::Op::kFlush, 0, {}));
  // Last: with a superblock the device is a store's.
  return WriteSuperblocks(device);
}

absl::Status DiskStore::WriteSuperblocks(std::uint32_t device) {
  const DiskPages blocks(disk::kSuperblockPages);
  const auto block =
      disk::Superblock::Make(uuid_, device, static_cast<std::uint32_t>(devices_.size()),
                             options_.segment_bytes, segment_counts()[device]);
  for (std::size_t copy = 0; copy < disk::kSuperblockPages; ++copy) {
    disk::WritePage(block, blocks.page(copy));
  }
  KAVERN_RETURN_IF_ERROR(Run(device, DiskIo::Op::kWrite, 0, blocks.all()));
  return Run(device, DiskIo::Op::kFlush, 0, {});
}

absl::Status DiskStore::LoadPurges() {
  const DiskPages pages(2 * disk::kPurgePages);
  std::vector<bool> read(disk::kPurgePages, false);
  bool damaged = false;
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    ReadPages(device, disk::kPurgePagesOffset, pages.all());
    for (std::uint64_t i = 0; i < 2 * disk::kPurgePages; ++i) {
      const auto page = disk::ParsePurgePage(pages.page(i));
      if (!page.ok() || page->store != uuid_) {
        damaged = true;
        continue;
      }
      read[i % disk::kPurgePages] = true;
      purged_.Merge(*page);
    }
  }
  if (std::find(read.begin(), read.end(), false) != read.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat(options_.devices[0].path,
                     ": the list of what was deleted is damaged in every copy; serving what is "
                     "left could bring deleted blocks back. Remove the devices' files to begin "
                     "anew"));
  }
  sequence_ = std::max(sequence_.load(), purged_.last_sequence());
  // The next fault would find fewer copies: mended, as far as that can be.
  if (damaged) WritePurges().IgnoreError();
  return absl::OkStatus();
}

absl::Status DiskStore::OpenCatalog() {
  auto opened = Catalog::Open(options_.catalog_path, uuid_, options_.catalog_env);
  if (absl::IsDataLoss(opened.status())) {
    catalog_damage_ = std::string(opened.status().message());
    KAVERN_RETURN_IF_ERROR(Catalog::Discard(options_.catalog_path, options_.catalog_env));
    opened = Catalog::Open(options_.catalog_path, uuid_, options_.catalog_env);
  }
  if (!opened.ok()) return opened.status();
  MutexLock lock(mu_);
  catalog_ = *std::move(opened);
  return absl::OkStatus();
}

std::shared_ptr<Catalog> DiskStore::catalog() const {
  MutexLock lock(mu_);
  return catalog_;
}

absl::Status DiskStore::ApplyToCatalog(std::span<const Catalog::Change> changes, bool sync) {
  const std::shared_ptr<Catalog> present = catalog();
  if (present == nullptr) return absl::UnavailableError("there is no catalog");
  return present->Apply(changes, sync);
}

DiskStore::~DiskStore() {
  Stop();
}

void DiskStore::Stop() {
  if (!committer_.joinable()) return;
  {
    MutexLock lock(mu_);
    while (io_under_way_ > 0) changed_.Wait(mu_);
    stop_ = true;
    changed_.NotifyAll();
  }
  committer_.join();
}

// ---- Recovery ----

std::vector<DiskIndex::NewSegment> DiskStore::ReadSegments(std::uint32_t device) {
  const std::uint32_t count = segment_counts()[device];
  const DiskPages pages(count);
  Together reads;
  for (std::uint32_t segment = 0; segment < count; ++segment) {
    devices_.Submit(device, {.op = DiskIo::Op::kRead,
                             .offset = disk::SegmentOffset(options_.segment_bytes, segment),
                             .pieces = {pages.page(segment)},
                             .done = reads.Another()});
  }
  // A page that cannot be read stays zero, and its segment is free.
  reads.Wait().IgnoreError();
  std::vector<DiskIndex::NewSegment> found;
  for (std::uint32_t segment = 0; segment < count; ++segment) {
    const auto header = disk::ParseSegment(pages.page(segment));
    if (header.ok() && header->store == uuid_ && header->device == device &&
        header->segment == segment) {
      found.push_back({{device, segment}, header->slot_bytes, header->epoch});
    }
  }
  return found;
}

absl::StatusOr<DiskStore::Recovery> DiskStore::Recover(
    DiskIndex& index, const std::function<void(const std::function<void()>&)>& locked) {
  Recovery recovery;
  std::vector<DiskIndex::NewSegment> found;
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    const auto some = ReadSegments(device);
    found.insert(found.end(), some.begin(), some.end());
  }
  locked([&] {
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
      KAVERN_RETURN_IF_ERROR(Catalog::Discard(options_.catalog_path, options_.catalog_env));
      KAVERN_RETURN_IF_ERROR(OpenCatalog());
    }
  }
  if (!why.empty()) {
    recovery.from_headers = true;
    recovery.why = why;
    KAVERN_RETURN_IF_ERROR(ScanHeaders(found, index, locked, &recovery));
  }
  locked([&] { index.FinishAdoption(); });
  segments_.clear();
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
    const DiskPages pages(slots);
    Together reads;
    for (std::uint32_t position = 0; position < slots; ++position) {
      devices_.Submit(segment.id.device,
                      {.op = DiskIo::Op::kRead,
                       .offset = disk::SlotOffset(options_.segment_bytes, segment.id.segment,
                                                  segment.slot_bytes, position),
                       .pieces = {pages.page(position)},
                       .done = reads.Another()});
    }
    reads.Wait().IgnoreError();  // what cannot be read is lost
    std::vector<Catalog::Change> changes;
    locked([&] {
      for (std::uint32_t position = 0; position < slots; ++position) {
        const auto header = disk::ParseSlot(pages.page(position));
        if (!header.ok()) continue;
        const std::uint64_t offset = disk::SlotOffset(options_.segment_bytes, segment.id.segment,
                                                      segment.slot_bytes, position);
        if (header->offset == offset && Adopt(segment.id.device, *header, index, recovery)) {
          changes.push_back({segment.id.device, offset, false, *header});
        }
      }
    });
    KAVERN_RETURN_IF_ERROR(ApplyToCatalog(changes, false));
  }
  return absl::OkStatus();
}

// ---- Blocks ----

std::uint64_t DiskStore::OffsetOf(const DiskPlace& place) const {
  return disk::SlotOffset(options_.segment_bytes, place.segment.segment, place.slot_bytes,
                          place.position);
}

void DiskStore::WriteSegment(const DiskIndex::NewSegment& segment, Done done) {
  {
    MutexLock lock(mu_);
    const auto found = headers_.find(segment.id);
    const bool under_way = found != headers_.end() && found->second.epoch == segment.epoch &&
                           found->second.status.ok();
    if (under_way) return;
    headers_[segment.id] = {segment.epoch, absl::OkStatus(), {}};
  }
  auto page = std::make_shared<DiskPages>(1);
  disk::WritePage(disk::SegmentHeader::Make(uuid_, segment.id.device, segment.id.segment,
                                            segment.slot_bytes, segment.epoch),
                  page->all());
  const std::uint32_t device = segment.id.device;
  const std::uint64_t offset = disk::SegmentOffset(options_.segment_bytes, segment.id.segment);
  DiskIo write;
  write.op = DiskIo::Op::kWrite;
  write.priority = IoPriority::kWriteBack;
  write.offset = offset;
  write.pieces = {page->all()};
  write.done = [this, page, segment, done = std::move(done)](absl::Status status) {
    EndHeader(segment.id, segment.epoch, status);
    done(std::move(status));
  };
  if (!Empties(segment)) {
    SubmitCounted(device, std::move(write));
    return;
  }
  DiskIo discard;
  discard.op = DiskIo::Op::kDiscard;
  discard.priority = IoPriority::kWriteBack;
  discard.offset = offset;
  discard.discard_bytes = options_.segment_bytes;
  // Whether it knows how to or not: the header voids what was there.
  discard.done = [this, device, write](const absl::Status&) { SubmitCounted(device, write); };
  SubmitCounted(device, std::move(discard));
}

void DiskStore::EndHeader(SegmentId id, std::uint64_t epoch, const absl::Status& status) {
  std::vector<Written> failed;
  {
    MutexLock lock(mu_);
    const auto found = headers_.find(id);
    if (found == headers_.end() || found->second.epoch != epoch) return;
    std::vector<Written> held = std::move(found->second.held);
    if (status.ok()) {
      headers_.erase(found);
      for (Written& part : held) AddWrittenLocked(std::move(part));
    } else {
      found->second = {epoch, status, {}};
      failed = std::move(held);
    }
  }
  write_failures_ += failed.size();
  for (const Written& part : failed) part.durable(status);
}

void DiskStore::HandOver(const DiskPlace& place, Written written) {
  absl::Status failure;
  {
    MutexLock lock(mu_);
    const auto header = headers_.find(place.segment);
    if (header == headers_.end()) {
      AddWrittenLocked(std::move(written));
      return;
    }
    failure = header->second.status;
    if (failure.ok()) {
      header->second.held.push_back(std::move(written));
      return;
    }
  }
  ++write_failures_;
  written.durable(failure);
}

void DiskStore::AddWrittenLocked(Written written) {
  strict_written_ += written.durability == DiskDurability::kStrict ? 1 : 0;
  written_.push_back(std::move(written));
  changed_.NotifyAll();
}

void DiskStore::Write(const PartWrite& write, Done written, Done durable) {
  disk::SlotHeader header = {};
  header.epoch = write.place.epoch;
  header.offset = OffsetOf(write.place);
  header.fingerprint = write.part.fingerprint.bytes;
  header.key = write.part.key.bytes;
  header.parent = write.part.parent.bytes;
  header.part = write.part.part;
  header.part_count = write.part.part_count;
  header.payload_bytes = write.part.payload_bytes;
  header.sequence = write.part.sequence;
  header.payload_crc = write.part.checksum;
  disk::Seal(header);
  auto page = std::make_shared<DiskPages>(1);
  disk::WritePage(header, page->all());
  const std::uint32_t device = write.place.segment.device;
  auto done = [this, page, device, place = write.place, header, written = std::move(written),
               durable = std::move(durable), durability = write.durability,
               bytes = write.payload.size()](absl::Status status) mutable {
    const bool ok = status.ok();
    if (ok) {
      written_bytes_ += bytes;
    } else {
      ++write_failures_;
    }
    written(std::move(status));
    if (!ok) return;
    HandOver(place, {{device, header.offset, false, header}, durability, std::move(durable)});
  };
  SubmitCounted(device, {.op = DiskIo::Op::kWrite,
                         .priority = IoPriority::kWriteBack,
                         .offset = header.offset,
                         .pieces = {page->all(), write.payload},
                         .done = std::move(done)});
}

void DiskStore::Read(const DiskPlace& place, const DiskPart& part, std::span<std::byte> payload,
                     Done done, const DiskReadOptions& options) {
  auto page = std::make_shared<DiskPages>(1);
  const std::uint64_t offset = OffsetOf(place);
  auto check = [this, page, offset, place, part, payload,
                done = std::move(done)](absl::Status status) {
    if (!status.ok()) {
      ++read_failures_;
      done(std::move(status));
      return;
    }
    read_bytes_ += payload.size();
    const auto header = disk::ParseSlot(page->all());
    if (header.ok() && (header->epoch != place.epoch || header->key != part.key.bytes ||
                        header->fingerprint != part.fingerprint.bytes ||
                        header->part != part.part || header->offset != offset)) {
      // After a crash the catalog may name what was being overwritten.
      done(absl::NotFoundError("the slot holds another block by now"));
      return;
    }
    if (!header.ok() || !HoldsPayload(*header, part, payload)) {
      ++damaged_parts_;
      done(absl::DataLossError(absl::StrCat("block ", part.key.ToHex(), " is damaged on disk")));
      return;
    }
    done(absl::OkStatus());
  };
  SubmitCounted(place.segment.device, {.op = DiskIo::Op::kRead,
                                       .priority = options.priority,
                                       .offset = offset,
                                       .pieces = {page->all(), payload},
                                       .deadline = options.deadline,
                                       .token = options.token,
                                       .done = std::move(check)});
}

void DiskStore::Purge(const NamespaceFingerprint& fingerprint, std::span<const DiskPlace> places,
                      Done done) {
  // In one line with what is written: the next owner of a place may be there before the purge is.
  Forget(places);
  MutexLock lock(mu_);
  purges_.push_back({fingerprint, sequence_, std::move(done)});
  changed_.NotifyAll();
}

void DiskStore::Sync(Done done) {
  MutexLock lock(mu_);
  syncs_.push_back(std::move(done));
  changed_.NotifyAll();
}

void DiskStore::Forget(std::span<const DiskPlace> places) {
  MutexLock lock(mu_);
  for (const DiskPlace& place : places) {
    written_.push_back(
        {{place.segment.device, OffsetOf(place), true, {}}, DiskDurability::kNone, nullptr});
  }
  changed_.NotifyAll();
}

void DiskStore::Hurry(bool begin) {
  MutexLock lock(mu_);
  hurries_ += begin ? 1 : -1;
  changed_.NotifyAll();
}

void DiskStore::SubmitCounted(std::uint32_t device, DiskIo io) {
  {
    MutexLock lock(mu_);
    ++io_under_way_;
  }
  io.done = [this, done = std::move(io.done)](absl::Status status) {
    done(std::move(status));
    MutexLock lock(mu_);
    --io_under_way_;
    changed_.NotifyAll();
  };
  devices_.Submit(device, std::move(io));
}

// ---- Committing ----

bool DiskStore::CommitsAtOnce() const {
  return stop_ || hurries_ > 0 || strict_written_ > 0 || !syncs_.empty() || !purges_.empty() ||
         written_.size() >= kBatchMax;
}

void DiskStore::CommitLoop() {
  for (;;) {
    std::vector<Written> batch;
    std::vector<Done> syncs;
    std::vector<PurgeRequest> purges;
    {
      MutexLock lock(mu_);
      while (!stop_ && written_.empty() && syncs_.empty() && purges_.empty()) changed_.Wait(mu_);
      // What comes within the interval shares one flush.
      const auto until = std::chrono::steady_clock::now() + options_.batch_interval;
      while (!CommitsAtOnce() && changed_.WaitUntil(mu_, until)) {
      }
      if (stop_ && written_.empty() && syncs_.empty() && purges_.empty()) return;
      batch.swap(written_);
      strict_written_ = 0;
      syncs.swap(syncs_);
      purges.swap(purges_);
    }
    CommitBatch(std::move(batch), std::move(syncs));
    for (PurgeRequest& purge : purges) {
      purged_.Add(purge.fingerprint, purge.sequence);
      absl::Status status = WritePurges();
      purge.done(std::move(status));
    }
  }
}

void DiskStore::CommitBatch(std::vector<Written> batch, std::vector<Done> syncs) {
  if (batch.empty() && syncs.empty()) return;
  const bool durable =
      !syncs.empty() || std::any_of(batch.begin(), batch.end(), [](const Written& part) {
        return part.durability != DiskDurability::kNone;
      });
  // Syncing the log makes durable whatever is in it, of any class and on any device. This is the
  // only thread that adds to it, so all of that was written before this flush. What a device that
  // is out had there is found to be missing when it is read.
  const std::vector<absl::Status> flushed =
      durable ? FlushDevices() : std::vector<absl::Status>(devices_.size());
  std::vector<Catalog::Change> changes;
  changes.reserve(batch.size());
  for (const Written& part : batch) {
    const Catalog::Change& change = part.change;
    if (change.erase || flushed[change.device].ok()) changes.push_back(change);
  }
  const absl::Status status = ApplyToCatalog(changes, durable);
  for (Written& part : batch) {
    const absl::Status& data = flushed[part.change.device];
    const absl::Status& ended = part.change.erase || data.ok() ? status : data;
    if (!ended.ok()) ++write_failures_;
    if (part.durable != nullptr) part.durable(ended);
  }
  absl::Status synced = status;
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    if (synced.ok() && devices_.healthy(device)) synced = flushed[device];
  }
  for (Done& done : syncs) done(synced);
}

absl::Status DiskStore::WritePurges() {
  const DiskPages pages(disk::kPurgePages);
  purged_.Write(uuid_, pages.all());
  // One copy after the other: a power cut finds one of them whole. Devices that are out have had
  // their chance: what is left of the store knows, and so must at least one.
  for (std::uint64_t copy = 0; copy < 2; ++copy) {
    const std::uint64_t offset = disk::kPurgePagesOffset + copy * disk::kPurgePages * kDiskPage;
    std::vector<absl::Status> statuses(devices_.size());
    for (std::uint32_t device = 0; device < devices_.size(); ++device) {
      statuses[device] = Run(device, DiskIo::Op::kWrite, offset, pages.all());
    }
    const std::vector<absl::Status> flushed = FlushDevices();
    bool some = false;
    for (std::uint32_t device = 0; device < devices_.size(); ++device) {
      if (!devices_.healthy(device)) continue;
      KAVERN_RETURN_IF_ERROR(statuses[device]);
      KAVERN_RETURN_IF_ERROR(flushed[device]);
      some = true;
    }
    if (!some) return absl::UnavailableError("every device is out of use");
  }
  return absl::OkStatus();
}

std::vector<absl::Status> DiskStore::FlushDevices() {
  ++flushes_;
  return devices_.Flush();
}

bool DiskStore::ReadPages(std::uint32_t device, std::uint64_t offset, std::span<std::byte> pages) {
  if (Run(device, DiskIo::Op::kRead, offset, pages).ok()) return true;
  bool all = true;
  for (std::uint64_t at = 0; at < pages.size(); at += kDiskPage) {
    const auto page = pages.subspan(at, kDiskPage);
    if (Run(device, DiskIo::Op::kRead, offset + at, page).ok()) continue;
    std::fill(page.begin(), page.end(), std::byte{0});
    all = false;
  }
  return all;
}

// ---- Facts ----

std::vector<std::uint32_t> DiskStore::segment_counts() const {
  std::vector<std::uint32_t> counts;
  for (const DiskStoreOptions::Device& device : options_.devices) {
    counts.push_back(static_cast<std::uint32_t>((device.capacity_bytes - disk::kSegmentsOffset) /
                                                options_.segment_bytes));
  }
  return counts;
}

std::uint64_t DiskStore::capacity_bytes() const {
  const std::vector<std::uint32_t> counts = segment_counts();
  std::uint64_t bytes = 0;
  for (std::uint32_t device = 0; device < counts.size(); ++device) {
    if (devices_.healthy(device)) bytes += counts[device] * options_.segment_bytes;
  }
  return bytes;
}

std::uint64_t DiskStore::catalog_memory_bytes() const {
  const std::shared_ptr<Catalog> present = catalog();
  return present == nullptr ? 0 : present->MemoryBytes();
}

std::string_view DiskStore::method() const {
  for (const DeviceFacts& device : devices_.facts()) {
    if (device.method != "io_uring") return "threads";
  }
  return "io_uring";
}

DiskStore::Counters DiskStore::counters() const {
  return {read_bytes_, written_bytes_, read_failures_, write_failures_, damaged_parts_, flushes_};
}

}  // namespace kavern::tiers
