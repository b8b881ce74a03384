// Opening and making a store: its devices, its list of purges, its catalog.

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "tiers/nvme/disk_store.h"

namespace kavern::tiers {
namespace {

disk::Uuid NewUuid() {
  std::random_device random;
  disk::Uuid uuid;
  for (std::size_t i = 0; i < uuid.size(); i += 4) {
    const std::uint32_t word = random();
    std::memcpy(uuid.data() + i, &word, sizeof(word));
  }
  return uuid;
}

bool AnyOf(const std::vector<bool>& devices) {
  return std::find(devices.begin(), devices.end(), true) != devices.end();
}

}  // namespace

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
  store->watcher_ = NamedThread("disk-watch", [raw = store.get()] { raw->WatchLoop(); });
  if (absl::Status opened = store->OpenParts(); !opened.ok()) {
    // Without its disks the daemon serves from RAM; a mistake is for a person to set right.
    if (!IsDeviceFailure(opened)) return opened;
    store->TakeAllOut(opened);
  }
  store->committer_ = NamedThread("disk-commit", [raw = store.get()] { raw->CommitLoop(); });
  return store;
}

absl::Status DiskStore::OpenParts() {
  KAVERN_RETURN_IF_ERROR(OpenDevices());
  KAVERN_ASSIGN_OR_RETURN(const FoundPurges found, LoadPurges());
  // With every list whole, each acknowledged delete is on one of the devices, and no catalog is
  // needed to say so.
  const bool may_discard = devices_.all_healthy() && found.gap.empty();
  if (absl::Status opened = OpenCatalog(may_discard); !opened.ok()) {
    if (may_discard || !IsDeviceFailure(opened)) return opened;
    return absl::UnavailableError(
        absl::StrCat("not used while ", WhoMayKnowMore(found),
                     ": without the catalog nobody knows what was deleted: ", opened.message()));
  }
  // Before anything is written: what is mended is no evidence any more.
  KAVERN_RETURN_IF_ERROR(CheckPurges(found));
  // A device that was out lacks what was deleted meanwhile, and the next fault would find fewer
  // copies: mended, as far as that can be. Where it cannot, the device is out again.
  if (found.differ) WritePurges().IgnoreError();
  return devices_.all_out() ? EveryDeviceFailed() : absl::OkStatus();
}

absl::Status DiskStore::EveryDeviceFailed() const {
  return absl::UnavailableError(absl::StrCat("every device failed: ", devices_.first_failure()));
}

void DiskStore::TakeAllOut(const absl::Status& why) {
  open_failure_ = why;
  for (std::uint32_t device = 0; device < devices_.size(); ++device) devices_.TakeOut(device, why);
  MutexLock lock(mu_);
  catalog_.reset();
}

absl::StatusOr<std::unique_ptr<BlockDevice>> DiskStore::OpenDevice(std::uint32_t device,
                                                                   bool create) {
  BlockDeviceOptions open;
  open.path = options_.devices[device].path;
  open.create = create;
  open.size_bytes = options_.devices[device].capacity_bytes / kDiskPage * kDiskPage;
  open.depth = options_.queue_depth;
  open.io_uring = options_.io_uring;
  open.lock_patience = options_.lock_patience;
  open.clock = options_.clock;
  return options_.open(open);
}

absl::Status DiskStore::OpenDevices() {
  // Nothing is made before it is known whether there is a store: where a file system is not
  // mounted, its file would be made on another one.
  std::vector<bool> is_absent(options_.devices.size(), false);
  for (std::uint32_t device = 0; device < options_.devices.size(); ++device) {
    auto opened = OpenDevice(device, /*create=*/false);
    if (opened.ok()) {
      devices_.Add(options_.devices[device].path, *std::move(opened));
    } else if (IsDeviceFailure(opened.status())) {
      is_absent[device] = absl::IsNotFound(opened.status());
      devices_.AddFailed(options_.devices[device].path, is_absent[device]
                                                            ? HowToGoOn(opened.status().message())
                                                            : opened.status());
    } else {
      return opened.status();
    }
  }
  std::vector<bool> is_new(devices_.size(), false);
  KAVERN_RETURN_IF_ERROR(ReadSuperblocks(&is_new));
  if (AnyOf(is_absent) || AnyOf(is_new)) {
    KAVERN_ASSIGN_OR_RETURN(const std::string store, FindStore(is_new));
    if (store.empty()) {
      KAVERN_RETURN_IF_ERROR(MakeAbsent(is_absent, &is_new));
    } else {
      TakeEmptyOut(store, &is_new);
    }
    if (!store.empty() && devices_.all_out()) {
      return absl::UnavailableError(
          absl::StrCat("nothing is made, for ", store, ": ", devices_.first_failure()));
    }
  }
  if (devices_.all_out()) return EveryDeviceFailed();
  if (uuid_ == disk::Uuid{}) uuid_ = NewUuid();
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    if (is_new[device]) KAVERN_RETURN_IF_ERROR(FormatDevice(device));
  }
  return absl::OkStatus();
}

absl::Status DiskStore::MakeAbsent(const std::vector<bool>& is_absent, std::vector<bool>* is_new) {
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    if (is_absent[device] || devices_.healthy(device)) continue;
    // It would find itself with others that hold blocks of another store.
    return absl::UnavailableError(
        absl::StrCat("the store cannot be made while ", devices_.failure(device)));
  }
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    if (!is_absent[device]) continue;
    auto made = OpenDevice(device, /*create=*/true);
    if (!made.ok()) {
      // There is nothing to be served without it: a mistake of the configuration.
      return absl::FailedPreconditionError(
          absl::StrCat(made.status().message(), ": the file cannot be made"));
    }
    devices_.PutIn(device, *std::move(made));
    (*is_new)[device] = true;
  }
  return absl::OkStatus();
}

absl::Status DiskStore::ReadSuperblocks(std::vector<bool>* is_new) {
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    if (!devices_.healthy(device)) continue;
    const auto read = ReadSuperblock(device);
    if (!read.ok() && IsDeviceFailure(read.status())) {
      devices_.TakeOut(device, read.status());
      continue;
    }
    if (!read.ok()) return read.status();
    const std::optional<disk::Superblock>& block = *read;
    (*is_new)[device] = !block.has_value();
    if (block.has_value()) KAVERN_RETURN_IF_ERROR(CheckSuperblock(device, *block));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> DiskStore::FindStore(const std::vector<bool>& is_new) {
  // A crash in the midst of making the store leaves devices that hold nothing beside empty ones.
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    if (!devices_.healthy(device) || is_new[device]) continue;
    if (!HoldsNothing(device)) return "the store's other devices hold blocks";
  }
  // But no catalog yet, which is made after the last device: with one, a device that is not there
  // held its part of the store, and may hold all blocks, and what was deleted of them.
  const auto catalogs =
      Catalog::StoreOf(options_.catalog_path, options_.catalog_env, options_.lock_patience);
  if (!catalogs.ok() && IsDeviceFailure(catalogs.status())) {
    return absl::UnavailableError(
        absl::StrCat("nothing is made while nobody knows whether there is a store: ",
                     catalogs.status().message()));
  }
  if (!catalogs.ok()) return catalogs.status();
  if (!catalogs->has_value()) return "";
  return absl::StrCat("the catalog, ", options_.catalog_path, ", says that there is a store");
}

void DiskStore::TakeEmptyOut(const std::string& store, std::vector<bool>* is_new) {
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    if (!(*is_new)[device]) continue;
    (*is_new)[device] = false;
    devices_.TakeOut(device, HowToGoOn(absl::StrCat(options_.devices[device].path,
                                                    ": is empty, while ", store)));
  }
}

absl::Status DiskStore::HowToGoOn(absl::string_view what) const {
  return absl::UnavailableError(
      absl::StrCat(what,
                   ". Mount what is not mounted; or, to begin anew, remove the other devices' "
                   "files and the catalog, ",
                   options_.catalog_path));
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
  if (!readable) {
    // Whose it is cannot be known, so it is not written to either.
    return absl::UnavailableError(absl::StrCat(
        path, ": its superblock cannot be read: ", devices_.facts()[device].last_error));
  }
  KAVERN_RETURN_IF_ERROR(CheckEmpty(device, block.status().message()));
  return std::optional<disk::Superblock>();
}

absl::Status DiskStore::CheckEmpty(std::uint32_t device, absl::string_view why) {
  // Only what is empty is taken: somebody else's bytes are not ours to overwrite. What lies behind
  // the first MiB is not looked at, for that can be terabytes.
  const std::string& path = options_.devices[device].path;
  const DiskPages front(disk::kSegmentsOffset / kDiskPage);
  if (!ReadPages(device, 0, front.all())) {
    return absl::UnavailableError(absl::StrCat(
        path,
        ": whether its first MiB is empty cannot be read: ", devices_.facts()[device].last_error));
  }
  for (std::uint64_t i = 0; i < disk::kSegmentsOffset / kDiskPage; ++i) {
    const auto page = front.page(i);
    const auto something =
        std::find_if(page.begin(), page.end(), [](std::byte b) { return b != std::byte{0}; });
    if (something == page.end()) continue;
    // A crash in the midst of FormatDevice() leaves these, and no superblock yet.
    const bool of_list =
        i >= disk::kSuperblockPages && i < disk::kSuperblockPages + 2 * disk::kPurgePages;
    const auto purges = disk::ParsePurgePage(page);
    if (of_list && purges.ok() && purges->count == 0) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        path, ": holds something at offset ", i * kDiskPage + (something - page.begin()),
        " that is no store of Kavern's, or is damaged beyond reading (", why,
        "); remove it, or overwrite its first MiB with zeros"));
  }
  return absl::OkStatus();
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

bool DiskStore::HoldsNothing(std::uint32_t device) {
  const DiskPages pages(2 * disk::kPurgePages);
  if (!ReadPages(device, disk::kPurgePagesOffset, pages.all())) return false;
  for (std::uint64_t i = 0; i < 2 * disk::kPurgePages; ++i) {
    const auto page = disk::ParsePurgePage(pages.page(i));
    if (!page.ok() || page->count > 0) return false;
  }
  std::vector<SegmentId> unreadable;
  return ReadSegments(device, &unreadable).empty() && unreadable.empty();
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
  const auto zero = std::make_shared<DiskPages>(1);
  Together headers;
  for (std::uint64_t segment = 0; segment < segment_counts()[device]; ++segment) {
    devices_.SubmitOwned(device, {.op = DiskIo::Op::kWrite,
                                  .offset = disk::SegmentOffset(options_.segment_bytes, segment),
                                  .pieces = {zero->all()},
                                  .done = [zero, one = headers.Another()](absl::Status status) {
                                    one(std::move(status));
                                  }});
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

absl::StatusOr<DiskStore::FoundPurges> DiskStore::LoadPurges() {
  const DiskPages pages(2 * disk::kPurgePages);
  std::vector<bool> read(disk::kPurgePages, false);
  FoundPurges found;
  std::vector<std::uint64_t> known;
  for (std::uint32_t device = 0; device < devices_.size(); ++device) {
    if (!devices_.healthy(device)) continue;
    std::uint64_t last = 0;
    std::vector<bool> here(disk::kPurgePages, false);
    ReadPages(device, disk::kPurgePagesOffset, pages.all());
    for (std::uint64_t i = 0; i < 2 * disk::kPurgePages; ++i) {
      const auto page = disk::ParsePurgePage(pages.page(i));
      if (!page.ok() || page->store != uuid_) {
        found.differ = true;
        continue;
      }
      for (std::uint64_t entry = 0; entry < page->count; ++entry) {
        last = std::max(last, page->entries[entry].sequence);
      }
      read[i % disk::kPurgePages] = here[i % disk::kPurgePages] = true;
      purged_.Merge(*page);
    }
    known.push_back(last);
    if (std::find(here.begin(), here.end(), false) == here.end()) {
      found.last_of_whole = std::max(found.last_of_whole, last);
    } else if (found.gap.empty()) {
      found.gap = options_.devices[device].path;
    }
  }
  if (devices_.all_out()) return EveryDeviceFailed();
  if (std::find(read.begin(), read.end(), false) != read.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat(options_.devices[0].path,
                     ": the list of what was deleted is damaged in every copy; serving what is "
                     "left could bring deleted blocks back. Remove the devices' files and the "
                     "catalog to begin anew"));
  }
  purges_at_open_ = purged_.last_sequence();
  sequence_ = std::max(sequence_.load(), purges_at_open_);
  for (const std::uint64_t last : known) {
    found.differ = found.differ || last != purged_.last_sequence();
  }
  return found;
}

std::string DiskStore::WhoMayKnowMore(const FoundPurges& found) const {
  std::string out = devices_.first_failure();
  if (found.gap.empty()) return out;
  return absl::StrCat(out, out.empty() ? "" : ", and ", "the list of what was deleted on ",
                      found.gap, " is damaged in both copies");
}

absl::Status DiskStore::CheckPurges(const FoundPurges& found) {
  KAVERN_ASSIGN_OR_RETURN(const auto lone, GetNumber(Catalog::kLonePurgesNumber));
  // A list that is whole and has the last delete has all of them. Of one with a gap nobody can
  // tell, and the pages of another device that fill it may be from before.
  if (lone.value_or(0) <= found.last_of_whole) return absl::OkStatus();
  const std::string who = WhoMayKnowMore(found);
  const std::string unused =
      who.empty() ? "not used: namespaces were deleted that no device knows of any more"
                  : absl::StrCat("not used while ", who,
                                 ": namespaces were deleted that nothing else knows of");
  return absl::UnavailableError(
      absl::StrCat(unused,
                   ", and their blocks would be back. Bring back what knows; or, to begin "
                   "anew, remove the devices' files and the catalog, ",
                   options_.catalog_path));
}

absl::Status DiskStore::NoteLonePurges(std::uint64_t sequence) {
  KAVERN_ASSIGN_OR_RETURN(const auto noted, GetNumber(Catalog::kLonePurgesNumber));
  if (sequence <= noted.value_or(0)) return absl::OkStatus();
  return PutNumber(Catalog::kLonePurgesNumber, sequence);
}

absl::Status DiskStore::OpenCatalog(bool may_discard) {
  const auto open = [this] {
    return Catalog::Open(options_.catalog_path, uuid_, options_.catalog_env,
                         options_.lock_patience);
  };
  auto opened = open();
  if (may_discard && absl::IsDataLoss(opened.status())) {
    catalog_damage_ = std::string(opened.status().message());
    KAVERN_RETURN_IF_ERROR(DiscardCatalog());
    opened = open();
  }
  if (!opened.ok()) return opened.status();
  if (!may_discard && (*opened)->is_new()) return absl::DataLossError("catalog: it is missing");
  if (!(*opened)->is_new()) {
    // Also where the rest of it turns out to be damaged, and a device that is out has the greatest.
    KAVERN_ASSIGN_OR_RETURN(const auto begun, (*opened)->GetNumber(Catalog::kCompleteNumber));
    sequence_ = std::max(sequence_.load(), begun.value_or(0));
  }
  MutexLock lock(mu_);
  catalog_ = *std::move(opened);
  return absl::OkStatus();
}

absl::Status DiskStore::DiscardCatalog() {
  return Catalog::Discard(options_.catalog_path, options_.catalog_env, options_.lock_patience);
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

}  // namespace kavern::tiers
