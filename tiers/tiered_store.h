// The storage engine: blocks in tiers, without gRPC, sessions or tenants' names.
//
// Thread-safe. One lock guards all bookkeeping; nothing under it does I/O, copies a payload or
// waits. KV bytes are read and written by clients, in regions, under the leases that this class
// hands out.
#ifndef KAVERN_TIERS_TIERED_STORE_H_
#define KAVERN_TIERS_TIERED_STORE_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/namespace_spec.h"
#include "tiers/index/block_index.h"
#include "tiers/leases.h"
#include "tiers/ram/region.h"
#include "tiers/ram/region_pool.h"
#include "tiers/ram/slot_allocator.h"
#include "tiers/store_events.h"
#include "tiers/store_shared.h"
#include "tiers/store_status.h"

namespace kavern::tiers {

struct TieredStoreOptions {
  RegionPoolOptions ram;
  std::string eviction_policy = "lru";
  std::uint64_t namespaces_max = 16384;
  // Blocks of which some but not all parts are committed, per namespace, and how long they may
  // wait. In namespaces of several parts the number also bounds blocks that are only being written.
  std::uint64_t incomplete_blocks_max = 4096;
  std::chrono::milliseconds incomplete_age_max{60000};
  // How long a region that was given up may stay mapped by clients before another one is emptied in
  // its stead. Looked at by Housekeep().
  std::chrono::milliseconds unmap_patience{1000};
  // How long a region waits for the first block of the namespace that it was given to. Looked at by
  // Housekeep().
  std::chrono::milliseconds grant_patience{1000};
  const Clock* clock = &Clock::System();
};

enum class StoreOutcome : std::uint8_t { kGranted = 1, kExists = 2, kDeclined = 3 };

struct StoreRequest {
  BlockKey parent;  // the root key for the start of a chain
  std::span<const BlockKey> keys;
  std::uint32_t shard = 0;
  std::uint32_t group = 0;
  std::uint64_t grant_bytes_max = UINT64_MAX;  // what the session's lease quota still allows
};

struct StoreGrant {
  std::vector<StoreOutcome> outcomes;  // one per key; kDeclined ones are a suffix
  WriteLease lease;                    // one extent per kGranted, in order
  std::string decline_reason;          // which limit refused; empty when nothing was declined
};

struct FetchResult {
  ReadLease lease;
  std::vector<std::uint32_t> missing;  // indices of keys that are not visible
};

class TieredStore {
 public:
  // `events` must outlive the store. Starts the pool's and the rebalancer's threads.
  // InvalidArgument for options that contradict each other.
  static absl::StatusOr<std::unique_ptr<TieredStore>> Create(TieredStoreOptions options,
                                                             StoreEvents& events);
  // Joins its threads. All refs and leases must be gone.
  ~TieredStore();
  TieredStore(const TieredStore&) = delete;
  TieredStore& operator=(const TieredStore&) = delete;

  // Finds or makes the namespace of (tenant, spec). InvalidArgument for a bad layout or a part that
  // does not fit a region; ResourceExhausted when there are namespaces_max, all of them with blocks
  // or refs.
  absl::StatusOr<NamespaceRef> OpenNamespace(const std::string& tenant, const NamespaceSpec& spec);

  // Reserves extents. A key that is visible, or whose part is committed already, exists; any other
  // is granted an extent, also when somebody else is writing it: first commit wins, and the loser's
  // succeeds too.
  //
  // InvalidArgument, and nothing is reserved: shard or group out of range; no keys, a key twice, a
  // zero key, the root as a key; a parent that is neither the root nor in the index ("parent: <hex>
  // is not cached (any more)": evicted since the caller matched it, or never stored: store from an
  // earlier block); a key whose known parent is another than the one before it. A tier that is full
  // of leases declines, it does not fail. May evict, but never what this request names.
  absl::StatusOr<StoreGrant> BeginStore(const NamespaceRef& ns, const StoreRequest& request);

  // Publishes grants [first, first + checksums.size()) of the lease: a block becomes visible with
  // its last part. Returns how many were published, by this call or by an earlier writer; the rest
  // were dropped meanwhile (purged, expired) and publish nothing. The blocks that are visible then
  // are touched leaf to root; their ancestors outside the range are not: whoever fetched them did.
  // InvalidArgument for a range outside the lease or done before.
  absl::StatusOr<std::uint32_t> CommitStore(WriteLease& lease, std::uint32_t first,
                                            std::span<const std::uint32_t> checksums);

  // Pins what is visible of `keys` for reading; a missing key does not stop the later ones. Touches
  // leaf to root. InvalidArgument: no keys; shard or group out of range. ResourceExhausted when
  // more than `lease_bytes_max` would be pinned: then nothing is.
  absl::StatusOr<FetchResult> Fetch(const NamespaceRef& ns, std::span<const BlockKey> keys,
                                    std::uint32_t shard, std::uint32_t group,
                                    std::uint64_t lease_bytes_max = UINT64_MAX);

  // Length of the longest visible prefix of `keys`. Touches nothing.
  std::uint32_t Match(const NamespaceRef& ns, std::span<const BlockKey> keys) const;

  // Somebody read bytes that failed their checksum. Checks for itself, outside the lock, and drops
  // the block when it is damaged (true); its children become orphans. False: the bytes are right,
  // or the block is not there. InvalidArgument: shard or group out of range.
  absl::StatusOr<bool> CheckSuspect(const NamespaceRef& ns, const BlockKey& key,
                                    std::uint32_t shard, std::uint32_t group);

  // Forgets all blocks of a namespace, pending ones too: their writers' commits then publish
  // nothing. Returns how many were visible. NotFound.
  absl::StatusOr<std::uint64_t> Purge(const NamespaceFingerprint& fingerprint);

  // Hands the present directory of the namespace (if it has one) to StoreEvents::OnDirectory again:
  // for a session that has just opened it.
  void AnnounceDirectory(const NamespaceRef& ns);

  // Generation of the namespace's present directory, which was told to StoreEvents before; 0: there
  // is none. A reader that has mapped it finds whatever was committed before this call.
  std::uint64_t DirectoryGeneration(const NamespaceRef& ns) const;
  std::uint64_t DirectoryGeneration(const WriteLease& lease) const;  // 0 for an empty lease

  // Drops incomplete blocks that waited too long, tries again for directories that could not be
  // made, and wakes the rebalancer. Called now and then by the owner (the daemon's timer, or a
  // test).
  void Housekeep();

  // Blocks until the background has nothing to do that earlier calls caused: population settled,
  // rebalancing finished or waiting for somebody else (a lease, a client's mapping, memory).
  void Quiesce();

  // The process is about to end, and clients may still hold leases: what they have mapped stays
  // readable. Called before their sessions are ended.
  void LeaveMemory();

  StoreStatus GetStatus() const;
  StoreCounters GetCounters() const;
  std::vector<NamespaceStatus> ListNamespaces() const;

  // Recounts everything from scratch and compares: allocated slots = slots reachable from blocks
  // and leases, directory = visible blocks, sums = recounts. Internal says what differs. For tests
  // and `quiesced` audits (P5). Does not look at payload bytes.
  absl::Status Audit() const;

 private:
  friend class NamespaceRef;
  friend class ReadLease;
  friend class WriteLease;

  // Somebody who could not get a slot: a group of a namespace.
  struct RegionRequest {
    std::shared_ptr<NamespaceStore> ns;  // shared with the table; may be forgotten meanwhile
    std::uint32_t group = 0;
  };
  struct Donor {
    std::shared_ptr<NamespaceStore> ns;
    std::uint32_t group = 0;
    RegionOrdinal ordinal = 0;
    std::uint64_t region_id = 0;
  };

  TieredStore(TieredStoreOptions options, StoreEvents& events, std::unique_ptr<RegionPool> pool);

  // What the leases' destructors call.
  void CloseNamespace(NamespaceRef& ref);
  void EndRead(ReadLease& lease);
  void EndWrite(WriteLease& lease);

  // `blocks` are the request's keys in the index, protected from eviction.
  StoreGrant GrantLocked(const std::shared_ptr<NamespaceStore>& ns, const StoreRequest& request,
                         std::span<const BlockId> blocks) KAVERN_REQUIRES(mu_);
  void PinLocked(const std::shared_ptr<NamespaceStore>& ns, std::span<const BlockId> blocks,
                 std::uint32_t shard, std::uint32_t group, FetchResult* result)
      KAVERN_REQUIRES(mu_);
  // Regions out of the pool for at least `slots` more slots, as far as it has any to give to this
  // namespace.
  void TakeRegionsLocked(const std::shared_ptr<NamespaceStore>& ns, std::uint32_t group,
                         std::uint64_t slots) KAVERN_REQUIRES(mu_);
  std::string DeclineReasonLocked(const NamespaceStore& ns, std::uint32_t group) const
      KAVERN_REQUIRES(mu_);
  // After blocks or leases went: an empty namespace gives its memory back, and is forgotten when no
  // ref is left. Tells the background what it may be waiting for.
  void SettleLocked(const std::shared_ptr<NamespaceStore>& ns) KAVERN_REQUIRES(mu_);

  // ---- Rebalancing (rebalancer.cc) ----
  void RequestRegionLocked(const std::shared_ptr<NamespaceStore>& ns, std::uint32_t group)
      KAVERN_REQUIRES(mu_);
  bool OthersStarveLocked(const NamespaceStore& ns, std::uint32_t group) const KAVERN_REQUIRES(mu_);
  void WakeLocked() KAVERN_REQUIRES(mu_);
  void BackgroundLoop();
  void DestroyRetired();
  bool ServeRequest();
  RegionRequest* NextRequestLocked() KAVERN_REQUIRES(mu_);
  void PopRequestLocked() KAVERN_REQUIRES(mu_);
  bool RegionIsComingLocked() KAVERN_REQUIRES(mu_);
  std::optional<Donor> FindDonorLocked(const RegionRequest& request, bool starving) const
      KAVERN_REQUIRES(mu_);
  void Drain(const Donor& donor);

  const TieredStoreOptions options_;

  mutable Mutex mu_;
  StoreShared shared_ KAVERN_GUARDED_BY(mu_);
  // What a NamespaceStore holds is guarded by mu_ too, but for what is fixed after its
  // construction.
  absl::flat_hash_map<NamespaceFingerprint, std::shared_ptr<NamespaceStore>> namespaces_
      KAVERN_GUARDED_BY(mu_);
  // Groups that own no region come before those that would like another one; each in order of
  // arrival.
  std::deque<RegionRequest> starving_ KAVERN_GUARDED_BY(mu_);
  std::deque<RegionRequest> growing_ KAVERN_GUARDED_BY(mu_);
  std::optional<SteadyTime> waiting_since_ KAVERN_GUARDED_BY(mu_);  // for clients to unmap
  // Groups that could not be drained since the background last went to sleep.
  std::vector<std::pair<const NamespaceStore*, std::uint32_t>> blocked_donors_
      KAVERN_GUARDED_BY(mu_);
  bool waits_for_leases_ KAVERN_GUARDED_BY(mu_) = false;  // for one to end: nothing can be drained
  bool wake_ KAVERN_GUARDED_BY(mu_) = false;
  bool busy_ KAVERN_GUARDED_BY(mu_) = true;
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  std::uint64_t activity_ KAVERN_GUARDED_BY(mu_) = 0;  // times that the background woke up
  CondVar wake_changed_;
  CondVar idle_changed_;

  std::unique_ptr<RegionPool>
      pool_;  // guards itself; its lock may be taken under mu_, never mu_ under its
  std::thread background_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_TIERED_STORE_H_
