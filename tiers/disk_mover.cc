// The thread of the disk half of TieredStore: recovery, then writing back.

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "tiers/disk_jobs.h"
#include "tiers/namespace_store.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {

namespace {

// Between two savings of the write budget: what a killed daemon forgets that it wrote.
constexpr std::chrono::seconds kBudgetSaveInterval(10);
constexpr char kBudgetBytes[] = "write_budget_bytes";
constexpr char kBudgetTime[] = "write_budget_time";  // seconds since the epoch

}  // namespace

void TieredStore::RecoverDisk() {
  const SteadyTime began = options_.clock->Now();
  // Those that were out when the store was opened.
  for (std::uint32_t device = 0; device < disk_store_->segment_counts().size(); ++device) {
    if (!disk_store_->device_healthy(device)) OnDiskFailed(device);
  }
  auto recovered = disk_store_->Recover(*disk_index_, [this](const std::function<void()>& work) {
    MutexLock lock(mu_);
    work();
  });
  MutexLock lock(mu_);
  disk_recovering_ = false;
  recovery_seconds_ = std::chrono::duration<double>(options_.clock->Now() - began).count();
  if (!recovered.ok()) {
    disk_failure_ = recovered.status();
  } else {
    recovery_ = *std::move(recovered);
    shared_.last_use = std::max(shared_.last_use, recovery_.sequence);
    LoadBudgetLocked();
  }
  for (const auto& [fingerprint, ns] : namespaces_) {
    if (ns->disk() != nullptr) ns->directory().Rebuild(ns->indices());
  }
  idle_changed_.NotifyAll();
}

void TieredStore::MoverLoop() {
  RecoverDisk();
  for (;;) {
    std::shared_ptr<WriteJob> job;
    Calls calls;
    bool save_budget = false;
    {
      MutexLock lock(mu_);
      for (;;) {
        const SteadyTime now = options_.clock->Now();
        ExpireCommitsLocked(now, &calls);
        const absl::Status refusal = WriteRefusalLocked();
        if (!refusal.ok()) {
          SettleAllDurableLocked(std::string(refusal.message()), &calls);
          idle_changed_.NotifyAll();
        }
        if (stop_ || !calls.empty()) break;
        if (refusal.ok() && writing_bytes_ < disk_options_.write_back_bytes_max) {
          job = NextWriteLocked(now, &calls);
          if (job != nullptr || !calls.empty()) break;
          idle_changed_.NotifyAll();
        }
        save_budget = BudgetIsToBeSavedLocked(now);
        if (save_budget) break;
        MoverSleepLocked(now);
      }
      if (stop_ && calls.empty()) break;
    }
    Make(calls);
    if (save_budget) SaveBudget();
    if (job != nullptr) RunWrite(job);
  }
  SaveBudget();
}

void TieredStore::MoverSleepLocked(SteadyTime now) {
  std::optional<SteadyTime> until;
  const auto at = [&until](std::optional<SteadyTime> time) {
    if (time.has_value() && (!until.has_value() || *time < *until)) until = time;
  };
  if (!commits_waiting_.empty()) at(commits_waiting_.front()->deadline);
  if (WriteRefusalLocked().ok() && writing_bytes_ < disk_options_.write_back_bytes_max) {
    at(budget_waits_until_.has_value() ? budget_waits_until_ : write_back_.NextAt());
  }
  if (budget_.limited()) at(std::max(now, budget_saved_) + kBudgetSaveInterval);
  if (!until.has_value() || *until == SteadyTime::max()) {
    mover_changed_.Wait(mu_);
    return;
  }
  // The clock may be a test's.
  const SteadyDuration left = std::max(*until - now, SteadyDuration(std::chrono::milliseconds(1)));
  mover_changed_.WaitUntil(mu_, std::chrono::steady_clock::now() + left);
}

// ---- The write budget between daemons ----

void TieredStore::LoadBudgetLocked() {
  const SteadyTime now = options_.clock->Now();
  budget_saved_ = now;
  if (!budget_.limited()) return;
  const auto bytes = disk_store_->GetNumber(kBudgetBytes);
  const auto time = disk_store_->GetNumber(kBudgetTime);
  if (!bytes.ok() || !bytes->has_value() || !time.ok() || !time->has_value()) return;
  // A clock that was set back refills nothing.
  const double seconds = options_.clock->WallSeconds() - static_cast<double>(**time);
  const std::uint64_t there = RefilledBytes(disk_options_.write_budget, **bytes, seconds);
  budget_.Reset(now, there);
  budget_saved_bytes_ = there;
}

bool TieredStore::BudgetIsToBeSavedLocked(SteadyTime now) const {
  return budget_.limited() && now - budget_saved_ >= kBudgetSaveInterval &&
         budget_.Available(now) != budget_saved_bytes_;
}

void TieredStore::SaveBudget() {
  if (disk_options_.write_budget.bytes_per_day == 0) return;
  std::uint64_t bytes = 0;
  {
    MutexLock lock(mu_);
    if (!disk_failure_.ok()) return;
    const SteadyTime now = options_.clock->Now();
    bytes = budget_.Available(now);
    budget_saved_ = now;
    budget_saved_bytes_ = bytes;
  }
  // The time first: a crash between the two leaves less budget, not more.
  const auto time = static_cast<std::uint64_t>(std::max(0.0, options_.clock->WallSeconds()));
  absl::Status saved = disk_store_->PutNumber(kBudgetTime, time);
  if (saved.ok()) saved = disk_store_->PutNumber(kBudgetBytes, bytes);
  if (saved.ok()) return;
  MutexLock lock(mu_);
  ++shared_.counters.budget_save_failures;
}

// ---- Waiting for it ----

absl::Status TieredStore::WriteRefusalLocked() const {
  if (!disk_failure_.ok()) return disk_failure_;
  // What it does not take would be written in full, and found by nobody.
  const std::string catalog = disk_store_->catalog_failure();
  return catalog.empty() ? absl::OkStatus() : absl::UnavailableError(catalog);
}

bool TieredStore::DiskIdleLocked(bool all_written) const {
  if (disk_recovering_ || !write_jobs_.empty() || !promotions_.empty()) return false;
  if (!WriteRefusalLocked().ok()) return true;
  return all_written ? write_back_.size() == 0 : !write_due_;
}

bool TieredStore::WaitForDisk(SteadyTime deadline, bool all_written) {
  if (disk_store_ == nullptr) return true;
  disk_store_->Hurry(true);
  bool idle = true;
  {
    MutexLock lock(mu_);
    write_all_ += all_written ? 1 : 0;
    mover_changed_.NotifyAll();
    while (idle && !DiskIdleLocked(all_written)) {
      idle = idle_changed_.WaitUntil(mu_, deadline) || DiskIdleLocked(all_written);
    }
    write_all_ -= all_written ? 1 : 0;
  }
  disk_store_->Hurry(false);
  return idle;
}

bool TieredStore::WriteBack(std::chrono::milliseconds patience) {
  return WaitForDisk(std::chrono::steady_clock::now() + patience, /*all_written=*/true);
}

void TieredStore::OnDiskFailed(std::uint32_t device) {
  Calls calls;
  {
    MutexLock lock(mu_);
    RetireDiskLocked(device, &calls);
  }
  Make(calls);
}

void TieredStore::RetireDiskLocked(std::uint32_t device, Calls* calls) {
  const std::uint64_t evicted = shared_.counters.disk_evicted_blocks;
  shared_.counters.disk_failed_blocks += disk_index_->RetireDevice(device);
  shared_.counters.disk_evicted_blocks = evicted;  // those made no room for anything
  if (disk_index_->all_retired()) {
    disk_failure_ = absl::UnavailableError("every device failed");
    SettleAllDurableLocked(std::string(disk_failure_.message()), calls);
  }
  std::vector<std::shared_ptr<NamespaceStore>> all;
  for (const auto& [fingerprint, ns] : namespaces_) all.push_back(ns);
  for (const std::shared_ptr<NamespaceStore>& ns : all) SettleLocked(ns);
  mover_changed_.NotifyAll();
  idle_changed_.NotifyAll();
}

DiskStatus TieredStore::DiskStatusLocked() const {
  DiskStatus status;
  if (disk_store_ == nullptr) return status;
  status.configured = true;
  status.recovering = disk_recovering_;
  if (recovery_.from_headers) status.recovered_from_headers = recovery_.why;
  if (!disk_failure_.ok()) status.failure = std::string(disk_failure_.message());
  status.method = std::string(disk_store_->method());
  status.queue_depth = static_cast<std::uint64_t>(disk_options_.store.queue_depth);
  status.capacity_bytes = disk_store_->capacity_bytes();
  status.used_bytes = disk_index_->used_bytes();
  status.blocks = disk_index_->block_count();
  status.recovered_blocks = recovery_.parts;
  status.recovery_seconds = recovery_seconds_;
  status.write_back_blocks = write_back_.size() + write_jobs_.size();
  status.write_back_bytes = write_back_.bytes() + writing_bytes_;
  status.write_budget_bytes = budget_.Available(options_.clock->Now());
  status.waits_for_budget = budget_waits_until_.has_value();
  status.index_bytes = disk_index_->MemoryBytes();
  status.catalog_bytes = disk_store_->catalog_memory_bytes();
  status.queued_promotions = queued_promotions_;
  status.promoting_bytes = promoting_bytes_;
  status.unreadable_segments = recovery_.unreadable_segments;
  status.catalog_failure = disk_store_->catalog_failure();
  status.io = disk_store_->counters();
  status.devices = disk_store_->device_facts();
  return status;
}

}  // namespace kavern::tiers
