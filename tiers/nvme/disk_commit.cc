// The one thread that makes durable: flush, then catalog, for all that was written, and the list of
// purges.

#include <algorithm>
#include <utility>

#include "base/status_macros.h"
#include "tiers/nvme/disk_store.h"

namespace kavern::tiers {
namespace {

// Entries of one batch of the catalog.
constexpr std::size_t kBatchMax = 4096;
// Between two looks at whether a device hangs.
constexpr std::chrono::milliseconds kWatchInterval(1000);

}  // namespace

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
  if (committer_.joinable()) {
    {
      MutexLock lock(mu_);
      while (io_under_way_ > 0) changed_.Wait(mu_);
      stop_ = true;
      changed_.NotifyAll();
    }
    committer_.join();
  }
  if (watcher_.joinable()) {
    {
      MutexLock lock(mu_);
      stop_watching_ = true;
      watch_changed_.NotifyAll();
    }
    watcher_.join();
  }
}

std::vector<std::string> DiskStore::EndIo(std::chrono::steady_clock::time_point deadline) {
  std::vector<std::string> left = devices_.EndIo(deadline);
  if (!left.empty()) return left;
  MutexLock lock(mu_);
  const std::uint64_t batch = batches_;
  while (committing_ && batches_ == batch && changed_.WaitUntil(mu_, deadline)) {
  }
  if (committing_ && batches_ == batch)
    left.push_back(options_.catalog_path + ": a write to the catalog has not ended");
  return left;
}

void DiskStore::WatchLoop() {
  const auto interval = std::min(kWatchInterval, options_.hang_timeout / 4);
  for (;;) {
    {
      const auto until = std::chrono::steady_clock::now() + interval;
      MutexLock lock(mu_);
      while (!stop_watching_ && watch_changed_.WaitUntil(mu_, until)) {
      }
      if (stop_watching_) return;
    }
    devices_.TakeOutWhatHangs(options_.clock->Now(), options_.hang_timeout);
  }
}

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
      committing_ = true;
    }
    CommitBatch(std::move(batch), std::move(syncs));
    for (PurgeRequest& purge : purges) {
      purged_.Add(purge.fingerprint, purge.sequence);
      absl::Status status = WritePurges();
      purge.done(std::move(status));
    }
    MutexLock lock(mu_);
    committing_ = false;
    ++batches_;
    changed_.NotifyAll();
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
  // A start that finds only devices that are out now must know that it does not know.
  return devices_.all_healthy() ? absl::OkStatus() : NoteLonePurges(purged_.last_sequence());
}

std::vector<absl::Status> DiskStore::FlushDevices() {
  ++flushes_;
  return devices_.Flush();
}

}  // namespace kavern::tiers
