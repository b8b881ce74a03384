// The background of TieredStore: moves memory to the namespaces that lack it.
//
// One region at a time. The donor is whoever has the block that was used longest ago (an empty
// region counts as used when it was granted). Its least used blocks are evicted until those of its
// emptiest region fit elsewhere; they are copied there, outside the lock; the region is retired,
// and the pool makes a fresh one once every session has unmapped it, so that no byte goes from one
// namespace to another.

#include <algorithm>
#include <cstring>
#include <utility>

#include "tiers/namespace_store.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {

void TieredStore::WakeLocked() {
  wake_ = true;
  wake_changed_.NotifyAll();
}

bool TieredStore::OthersStarveLocked(const NamespaceStore& ns, std::uint32_t group) const {
  if (starving_.empty()) return false;
  return starving_.front().ns.get() != &ns || starving_.front().group != group;
}

void TieredStore::RequestRegionLocked(const std::shared_ptr<NamespaceStore>& ns,
                                      std::uint32_t group) {
  NamespaceStore::GroupNotes& notes = ns->notes(group);
  notes.evictions_since_asked = 0;
  if (notes.wants_region) return;
  notes.wants_region = true;
  (ns->group(group).region_count() == 0 ? starving_ : growing_).push_back({ns, group});
  WakeLocked();
}

void TieredStore::Quiesce() {
  for (;;) {
    WaitForDisk(SteadyTime::max(), /*all_written=*/false);
    pool_->WaitUntilSettled();
    std::uint64_t activity = 0;
    {
      MutexLock lock(mu_);
      while (wake_ || busy_) idle_changed_.Wait(mu_);
      activity = activity_;
    }
    // What the background gave up just now may be memory that the pool takes up again.
    pool_->WaitUntilSettled();
    MutexLock lock(mu_);
    if (!wake_ && !busy_ && activity_ == activity) return;
  }
}

void TieredStore::BackgroundLoop() {
  for (;;) {
    {
      MutexLock lock(mu_);
      while (!wake_ && !stop_) {
        busy_ = false;
        idle_changed_.NotifyAll();
        wake_changed_.Wait(mu_);
      }
      if (stop_) return;
      wake_ = false;
      busy_ = true;
      ++activity_;
      blocked_donors_.clear();
      waits_for_leases_ = false;
    }
    DestroyRetired();
    while (ServeRequest()) DestroyRetired();
  }
}

void TieredStore::DestroyRetired() {
  std::vector<std::shared_ptr<Region>> regions;
  std::vector<std::unique_ptr<DirectorySegment>> directories;
  {
    MutexLock lock(mu_);
    regions.swap(shared_.retired_regions);
    directories.swap(shared_.retired_directories);
  }
  if (disk_store_ == nullptr) return;
  // Pinned memory would not go back to the machine with its region.
  for (const auto& region : regions) disk_store_->UnregisterMemory(region->bytes());
}

TieredStore::RegionRequest* TieredStore::NextRequestLocked() {
  for (;;) {
    std::deque<RegionRequest>& queue = starving_.empty() ? growing_ : starving_;
    if (queue.empty()) return nullptr;
    const NamespaceStore& ns = *queue.front().ns;
    const GroupSlots& slots = ns.group(queue.front().group);
    const bool forgotten = ns.refs == 0 && ns.HasEmptyMemory();
    const bool served = starving_.empty() ? slots.free_count() >= slots.slots_per_region()
                                          : slots.region_count() > 0;
    if (!forgotten && !served) return &queue.front();
    PopRequestLocked();
  }
}

void TieredStore::PopRequestLocked() {
  std::deque<RegionRequest>& queue = starving_.empty() ? growing_ : starving_;
  queue.front().ns->notes(queue.front().group).wants_region = false;
  queue.pop_front();
}

// True: something was done, and there may be more to do.
bool TieredStore::ServeRequest() {
  std::optional<Donor> donor;
  {
    MutexLock lock(mu_);
    const RegionRequest* request = stop_ ? nullptr : NextRequestLocked();
    if (request == nullptr) return false;
    if (std::shared_ptr<Region> region = TakeRegion()) {
      request->ns->AddRegion(request->group, std::move(region), options_.clock->Now());
      PopRequestLocked();
      waiting_since_.reset();
      return true;
    }
    if (RegionIsComingLocked()) return false;
    const bool starving = !starving_.empty();
    donor = FindDonorLocked(*request, starving);
    if (!donor.has_value()) {
      waits_for_leases_ = starving;
      if (starving) return false;
      PopRequestLocked();
      return true;
    }
  }
  Drain(*donor);
  return true;
}

// Whether to wait rather than to empty a region: memory is on its way already.
bool TieredStore::RegionIsComingLocked() {
  const RegionPool::Status pool = pool_->GetStatus();
  if (pool.existing_bytes + pool.region_bytes <= pool.capacity_bytes && pool.waiting_for.empty()) {
    return true;
  }
  const std::uint64_t at_rest = pool.ready_bytes + shared_.assigned_regions * pool.region_bytes;
  const SteadyTime now = options_.clock->Now();
  if (pool.existing_bytes <= at_rest) {
    waiting_since_.reset();
    return false;
  }
  // A client that does not unmap what was retired costs the others some time, not their place.
  if (!waiting_since_.has_value()) waiting_since_ = now;
  if (now - *waiting_since_ < options_.unmap_patience) return true;
  waiting_since_ = now;
  return false;
}

std::optional<TieredStore::Donor> TieredStore::FindDonorLocked(const RegionRequest& request,
                                                               bool starving) const {
  // A group that starves may take from its own namespace's others.
  std::uint64_t bound = UINT64_MAX;
  if (!starving) {
    const std::uint64_t margin = request.ns->group(request.group).slots_per_region();
    const std::uint64_t own = request.ns->OldestUse().value_or(UINT64_MAX);
    bound = own - std::min(own, margin);
  }
  const SteadyTime granted_before = options_.clock->Now() - options_.grant_patience;
  std::optional<Donor> best;
  for (const auto& [fingerprint, ns] : namespaces_) {
    if (ns->region_count() == 0 || (ns == request.ns && !starving)) continue;
    for (std::uint32_t group = 0; group < ns->layout().groups.size(); ++group) {
      const auto surplus = ns->FindSurplus(group, granted_before);
      if (!surplus.has_value() || surplus->last_use >= bound) continue;
      const bool blocked = std::find(blocked_donors_.begin(), blocked_donors_.end(),
                                     std::pair<const NamespaceStore*, std::uint32_t>(
                                         ns.get(), group)) != blocked_donors_.end();
      if (blocked) continue;
      bound = surplus->last_use;
      const Region* region = ns->group(group).RegionAt(surplus->ordinal);
      best = Donor{ns, group, surplus->ordinal, region->id()};
    }
  }
  return best;
}

void TieredStore::Drain(const Donor& donor) {
  NamespaceStore& ns = *donor.ns;
  std::vector<NamespaceStore::Move> moves;
  for (;;) {
    moves.clear();
    {
      MutexLock lock(mu_);
      const Region* region = ns.group(donor.group).RegionAt(donor.ordinal);
      // The namespace may have become empty, and given up all its regions by itself.
      if (region == nullptr || region->id() != donor.region_id) return;
      const auto state = stop_ ? NamespaceStore::DrainState::kBlocked
                               : ns.PlanDrain(donor.group, donor.ordinal, &moves);
      if (state == NamespaceStore::DrainState::kDrained) {
        ns.RetireRegion(donor.group, donor.ordinal);
        ++shared_.counters.regions_rebalanced;
        SettleLocked(donor.ns);
        return;
      }
      if (state == NamespaceStore::DrainState::kBlocked) {
        ns.group(donor.group).SetDraining(donor.ordinal, false);
        blocked_donors_.emplace_back(&ns, donor.group);
        SettleLocked(donor.ns);
        return;
      }
    }
    for (const NamespaceStore::Move& move : moves) {
      std::memcpy(move.destination.data(), move.source.data(), move.source.size());
    }
    MutexLock lock(mu_);
    ns.FinishMoves(donor.group, moves);
  }
}

}  // namespace kavern::tiers
