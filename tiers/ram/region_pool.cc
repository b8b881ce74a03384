#include "tiers/ram/region_pool.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/named_thread.h"
#include "base/units.h"

namespace kavern::tiers {
namespace {

// Population looks for a stop request this often.
constexpr std::uint64_t kPopulateStepBytes = 16 * kMiB;
// Memory that others free announces itself to nobody: look again after this long.
constexpr std::chrono::milliseconds kMemoryPollInterval(200);

}  // namespace

// Outlives the pool while a region does.
struct RegionPool::Shared {
  explicit Shared(RegionPoolOptions pool_options) : options(std::move(pool_options)) {}

  const RegionPoolOptions options;
  const std::shared_ptr<std::atomic<bool>> leave_memory =
      std::make_shared<std::atomic<bool>>(false);

  mutable Mutex mu;
  CondVar changed;
  bool stop KAVERN_GUARDED_BY(mu) = false;
  // Nothing to do for the populator until something changes.
  bool settled KAVERN_GUARDED_BY(mu) = false;
  // Regions that somebody asked for and did not get (without prepopulation the only reason to make
  // one).
  std::uint64_t wanted KAVERN_GUARDED_BY(mu) = 0;
  std::uint64_t next_id KAVERN_GUARDED_BY(mu) = 1;
  std::uint64_t existing KAVERN_GUARDED_BY(mu) = 0;  // regions, the one being made included
  bool making KAVERN_GUARDED_BY(mu) = false;
  std::uint64_t huge_page_bytes KAVERN_GUARDED_BY(mu) = 0;
  std::deque<std::shared_ptr<Region>> ready KAVERN_GUARDED_BY(mu);
  std::string waiting_for KAVERN_GUARDED_BY(mu);
  std::function<void()> on_ready KAVERN_GUARDED_BY(mu);

  std::uint64_t regions_max() const { return options.capacity_bytes / options.region_bytes; }

  bool WorkToDo() const KAVERN_REQUIRES(mu) {
    return existing < regions_max() && (options.prepopulate || ready.size() < wanted);
  }

  void Forget(std::uint64_t huge_bytes) KAVERN_EXCLUDES(mu) {
    MutexLock lock(mu);
    --existing;
    huge_page_bytes -= huge_bytes;
    settled = false;
    changed.NotifyAll();
  }
};

// The background thread: makes one region at a time.
class RegionPool::Populator {
 public:
  explicit Populator(std::shared_ptr<RegionPool::Shared> shared) : shared_(std::move(shared)) {}

  void Run() {
    while (WaitForWork()) {
      const std::string obstacle = MakeOne();
      NoteMade();
      if (!obstacle.empty()) WaitForMemory(obstacle);
    }
  }

 private:
  // False: stop.
  bool WaitForWork() {
    MutexLock lock(shared_->mu);
    while (!shared_->stop && !shared_->WorkToDo()) {
      shared_->waiting_for.clear();
      shared_->settled = true;
      shared_->changed.NotifyAll();
      shared_->changed.Wait(shared_->mu);
    }
    return !shared_->stop;
  }

  void WaitForMemory(const std::string& obstacle) {
    const auto deadline = std::chrono::steady_clock::now() + kMemoryPollInterval;
    MutexLock lock(shared_->mu);
    shared_->waiting_for = obstacle;
    shared_->settled = true;
    shared_->changed.NotifyAll();
    while (!shared_->stop && shared_->settled &&
           shared_->changed.WaitUntil(shared_->mu, deadline)) {
    }
  }

  // Empty on success (or stop), else what it waits for.
  std::string MakeOne() {
    const RegionPoolOptions& options = shared_->options;
    const auto facts = options.read_memory();
    if (!facts.ok()) return std::string(facts.status().message());
    const std::uint64_t populatable = PopulatableBytes(*facts, options.reserve_bytes);
    if (populatable < options.region_bytes) {
      return absl::StrCat("memory: a region needs ", FormatBytes(options.region_bytes), ", ",
                          FormatBytes(populatable), " is free beside the reserve of ",
                          FormatBytes(options.reserve_bytes));
    }
    std::uint64_t id = 0;
    {
      MutexLock lock(shared_->mu);
      id = shared_->next_id++;
      ++shared_->existing;
      shared_->making = true;
    }
    auto huge_bytes = std::make_shared<std::uint64_t>(0);
    auto region = Region::Create(
        id, options.region_bytes, options.huge_pages,
        [shared = shared_, huge_bytes] { shared->Forget(*huge_bytes); }, shared_->leave_memory);
    if (!region.ok()) {
      shared_->Forget(0);
      return std::string(region.status().message());
    }
    for (std::uint64_t at = 0; at < options.region_bytes; at += kPopulateStepBytes) {
      if (Stopping()) return "";
      const absl::Status status =
          (*region)->Populate(at, std::min(kPopulateStepBytes, options.region_bytes - at));
      if (!status.ok()) return std::string(status.message());
    }
    *huge_bytes = (*region)->huge_page_bytes();
    Publish(*std::move(region), *huge_bytes);
    return "";
  }

  void NoteMade() {
    MutexLock lock(shared_->mu);
    shared_->making = false;
  }

  void Publish(std::shared_ptr<Region> region, std::uint64_t huge_bytes) {
    std::function<void()> on_ready;
    {
      MutexLock lock(shared_->mu);
      shared_->ready.push_back(std::move(region));
      shared_->making = false;
      shared_->huge_page_bytes += huge_bytes;
      if (shared_->wanted > 0) --shared_->wanted;
      shared_->waiting_for.clear();
      on_ready = shared_->on_ready;
    }
    if (on_ready) on_ready();
  }

  bool Stopping() {
    MutexLock lock(shared_->mu);
    return shared_->stop;
  }

  const std::shared_ptr<RegionPool::Shared> shared_;
};

absl::StatusOr<std::unique_ptr<RegionPool>> RegionPool::Create(RegionPoolOptions options) {
  if (options.region_bytes == 0 || options.region_bytes % 4096 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("ram.region: got ", options.region_bytes,
                                                   " bytes, expected a multiple of 4 KiB"));
  }
  if (options.capacity_bytes < options.region_bytes ||
      options.capacity_bytes % options.region_bytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("ram.capacity: got ", options.capacity_bytes,
                                                   " bytes, expected a multiple of ram.region, ",
                                                   options.region_bytes, " bytes"));
  }
  if (!options.read_memory) {
    options.read_memory = [] { return ReadMemoryFacts(); };
  }
  return std::unique_ptr<RegionPool>(new RegionPool(std::make_shared<Shared>(std::move(options))));
}

RegionPool::RegionPool(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {
  populator_ = NamedThread("populate", [shared = shared_] { Populator(shared).Run(); });
}

RegionPool::~RegionPool() {
  {
    MutexLock lock(shared_->mu);
    shared_->stop = true;
    shared_->on_ready = nullptr;
    shared_->changed.NotifyAll();
  }
  populator_.join();
  // Regions take the lock when they end: they end after it was let go.
  std::deque<std::shared_ptr<Region>> ready;
  MutexLock lock(shared_->mu);
  ready.swap(shared_->ready);
}

std::shared_ptr<Region> RegionPool::Take() {
  MutexLock lock(shared_->mu);
  if (shared_->ready.empty()) {
    // One asker may ask again and again: one region is on its way for all of that.
    shared_->wanted = std::max<std::uint64_t>(shared_->wanted, 1);
    if (shared_->WorkToDo()) {
      shared_->settled = false;
      shared_->changed.NotifyAll();
    }
    return nullptr;
  }
  std::shared_ptr<Region> region = std::move(shared_->ready.front());
  shared_->ready.pop_front();
  return region;
}

void RegionPool::LeaveMemory() {
  *shared_->leave_memory = true;
}

void RegionPool::SetReadyCallback(std::function<void()> ready) {
  MutexLock lock(shared_->mu);
  shared_->on_ready = std::move(ready);
}

void RegionPool::WaitUntilSettled() {
  MutexLock lock(shared_->mu);
  while (!shared_->settled && !shared_->stop) shared_->changed.Wait(shared_->mu);
}

RegionPool::Status RegionPool::GetStatus() const {
  MutexLock lock(shared_->mu);
  Status status;
  status.capacity_bytes = shared_->options.capacity_bytes;
  status.region_bytes = shared_->options.region_bytes;
  status.existing_bytes = shared_->existing * status.region_bytes;
  status.making_bytes = shared_->making ? status.region_bytes : 0;
  status.ready_bytes = shared_->ready.size() * status.region_bytes;
  status.huge_page_bytes = shared_->huge_page_bytes;
  status.waiting_for = shared_->waiting_for;
  return status;
}

}  // namespace kavern::tiers
