#include "tiers/nvme/disk_store.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/copy_and_checksum.h"

namespace kavern::tiers {
namespace {

bool HoldsPayload(const disk::SlotHeader& header, const DiskPart& part,
                  std::span<const std::byte> payload) {
  const std::uint64_t bytes = part.payload_bytes == 0 ? header.payload_bytes : part.payload_bytes;
  return header.payload_crc == part.checksum && bytes == header.payload_bytes &&
         bytes <= payload.size() &&
         Crc32c(payload.first(bytes), PartChecksumSeed(part.key, part.part)) == part.checksum;
}

}  // namespace

std::uint64_t DiskStore::OffsetOf(const DiskPlace& place) const {
  return disk::SlotOffset(options_.segment_bytes, place.segment.segment, place.slot_bytes,
                          place.position);
}

void DiskStore::WriteSegment(const DiskIndex::NewSegment& segment, Done done) {
  {
    MutexLock lock(mu_);
    const auto [found, is_first] = headers_.try_emplace(segment.id);
    Header& header = found->second;
    const bool under_way = !is_first && header.status.ok();
    if (under_way && header.epoch == segment.epoch) return;
    header.epoch = segment.epoch;
    header.status = absl::OkStatus();
    // Two at a time could land in either order.
    header.begin = nullptr;
    if (under_way) {
      header.begin = [this, segment, done = std::move(done)] { BeginHeader(segment, done); };
      return;
    }
  }
  BeginHeader(segment, std::move(done));
}

void DiskStore::BeginHeader(const DiskIndex::NewSegment& segment, Done done) {
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
    SubmitOwned(device, std::move(write));
    return;
  }
  DiskIo discard;
  discard.op = DiskIo::Op::kDiscard;
  discard.priority = IoPriority::kWriteBack;
  discard.offset = offset;
  discard.discard_bytes = options_.segment_bytes;
  // Whether it knows how to or not: the header voids what was there.
  discard.done = [this, device, write](const absl::Status&) { SubmitOwned(device, write); };
  SubmitOwned(device, std::move(discard));
}

void DiskStore::EndHeader(SegmentId id, std::uint64_t epoch, const absl::Status& status) {
  std::vector<Written> failed;
  std::function<void()> next;
  {
    MutexLock lock(mu_);
    const auto found = headers_.find(id);
    Header& header = found->second;
    if (header.epoch != epoch) {
      next = std::exchange(header.begin, nullptr);
    } else {
      std::vector<Written> held = std::move(header.held);
      if (status.ok()) {
        headers_.erase(found);
        for (Written& part : held) AddWrittenLocked(std::move(part));
      } else {
        header = {epoch, status, {}, nullptr};
        failed = std::move(held);
      }
    }
  }
  if (next) next();
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

void DiskStore::Write(const PartWrite& write, Done written, Done durable, Done given_up) {
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
                         .done = std::move(done),
                         .given_up = std::move(given_up)});
}

void DiskStore::Read(const DiskPlace& place, const DiskPart& part, std::span<std::byte> payload,
                     Done done, const DiskReadOptions& options) {
  auto page = std::make_shared<DiskPages>(1);
  const std::uint64_t offset = OffsetOf(place);
  auto check = [this, page, offset, place, part, payload,
                done = std::move(done)](absl::Status status) {
    if (!status.ok()) {
      const bool as_asked = absl::IsCancelled(status) || absl::IsDeadlineExceeded(status);
      read_failures_ += as_asked ? 0 : 1;
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
                                       .done = std::move(check),
                                       .given_up = options.given_up});
}

void DiskStore::Purge(const NamespaceFingerprint& fingerprint, std::span<const DiskPlace> places,
                      Done done) {
  // In one line with what is written: the next owner of a place may be there before the purge is.
  Forget(places);
  MutexLock lock(mu_);
  // A number of its own, so that a list that has the last purge has all of them.
  purges_.push_back({fingerprint, ++sequence_, std::move(done)});
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
  io.done = Counted(std::move(io.done));
  devices_.Submit(device, std::move(io));
}

void DiskStore::SubmitOwned(std::uint32_t device, DiskIo io) {
  io.done = Counted(std::move(io.done));
  devices_.SubmitOwned(device, std::move(io));
}

std::function<void(absl::Status)> DiskStore::Counted(std::function<void(absl::Status)> done) {
  {
    MutexLock lock(mu_);
    ++io_under_way_;
  }
  return [this, done = std::move(done)](absl::Status status) {
    done(std::move(status));
    MutexLock lock(mu_);
    --io_under_way_;
    changed_.NotifyAll();
  };
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

std::string DiskStore::catalog_failure() const {
  const std::shared_ptr<Catalog> present = catalog();
  return present == nullptr ? "" : present->failure();
}

std::string_view DiskStore::method() const {
  for (const DeviceFacts& device : devices_.facts()) {
    if (!device.method.empty() && device.method != "io_uring") return "threads";
  }
  return "io_uring";
}

DiskStore::Counters DiskStore::counters() const {
  return {read_bytes_, written_bytes_, read_failures_, write_failures_, damaged_parts_, flushes_};
}

}  // namespace kavern::tiers
