// The storage engine: blocks in tiers, without gRPC, sessions or tenants' names.
//
// Thread-safe. One lock guards all bookkeeping; nothing under it does I/O, copies a payload or
// waits. KV bytes are read and written by clients, in regions, under the leases that this class
// hands out.
#ifndef KAVERN_TIERS_TIERED_STORE_H_
#define KAVERN_TIERS_TIERED_STORE_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/namespace_spec.h"
#include "base/tier.h"
#include "base/turn_costs.h"
#include "tiers/conversations.h"
#include "tiers/fetch.h"
#include "tiers/index/block_index.h"
#include "tiers/leases.h"
#include "tiers/nvme/disk_index.h"
#include "tiers/nvme/disk_store.h"
#include "tiers/policy/write_budget.h"
#include "tiers/ram/region.h"
#include "tiers/ram/region_pool.h"
#include "tiers/ram/slot_allocator.h"
#include "tiers/scrubber.h"
#include "tiers/store_events.h"
#include "tiers/store_shared.h"
#include "tiers/store_status.h"
#include "tiers/write_back_queue.h"

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
  ConversationOptions conversations;
  const Clock* clock = &Clock::System();

  struct Disk {
    DiskStoreOptions store;
    // What a block that is written survives, where its store does not say.
    DiskDurability durability = DiskDurability::kBatch;
    WriteBackMode write_back = WriteBackMode::kEager;
    std::chrono::milliseconds write_back_idle{10000};  // for WriteBackMode::kIdle
    // Percent of RAM that can be evicted without a loss, in the modes that are not eager.
    std::uint32_t clean_percent = 25;
    WriteBudget::Options write_budget;
    // Parts on their way to disk at a time: they stay in RAM until they are written.
    std::uint64_t write_back_bytes_max = std::uint64_t{256} << 20;
    // What is read in the background to find damage early; 0: nothing.
    std::uint64_t scrub_bytes_per_second = 0;
    // A strict commit that waits longer for the disk is answered without.
    std::chrono::milliseconds write_timeout{10000};
    // A fetch that waits longer for the disk goes on without.
    std::chrono::milliseconds read_timeout{5000};
    // RAM that is being filled from disk at a time (one block at least); what is beyond it waits,
    // fetches before prefetches, each in order of arrival.
    std::uint64_t promotion_bytes_max = std::uint64_t{256} << 20;
    // After a fetch from disk: how many of the blocks that continue its chain there are read, too,
    // into RAM that is free.
    std::uint64_t read_ahead_blocks = 0;
  };
  std::optional<Disk> disk;  // none: there is no NVMe tier
};

enum class StoreOutcome : std::uint8_t { kGranted = 1, kExists = 2, kDeclined = 3 };

struct StoreRequest {
  BlockKey parent;  // the root key for the start of a chain
  std::span<const BlockKey> keys;
  std::uint32_t shard = 0;
  std::uint32_t group = 0;
  std::uint64_t grant_bytes_max = UINT64_MAX;  // what the session's lease quota still allows
  // nullopt: as configured. Of no meaning without disks.
  std::optional<DiskDurability> durability = {};
};

struct StoreGrant {
  std::vector<StoreOutcome> outcomes;  // one per key; kDeclined ones are a suffix
  WriteLease lease;                    // one extent per kGranted, in order
  std::string decline_reason;          // which limit refused; empty when nothing was declined
};

struct ConversationUpdate {
  std::string_view name;
  BlockKey leaf;
  std::uint64_t token_count = 0;               // up to the end of the leaf
  std::optional<std::uint32_t> priority = {};  // nullopt: kPriorityDefault
  std::chrono::milliseconds ttl{0};            // 0: as configured
};

struct ConversationFacts {
  BlockKey leaf;
  Tier leaf_tier = Tier::kNone;  // kNone: it was evicted since
  std::uint64_t token_count = 0;
  std::uint8_t priority = 0;      // after clamping
  std::chrono::milliseconds ttl;  // what is left of it, after clamping
  std::uint64_t updates = 0;
  std::chrono::milliseconds age;   // since the first of them
  std::chrono::milliseconds idle;  // since the last
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
  // InvalidArgument for a range outside the lease or done before. An empty one is of use where the
  // lease has_existing().
  //
  // `done` is for leases that are strict: unless the call fails it is called once, with no lock
  // held, in this call or later in a thread of the store, when every block that is complete with
  // this commit, and in the lease's first one every block that existed, is with all its ancestors
  // flushed and in the catalog, or will not be. At once for other leases.
  struct Durable {
    std::uint32_t blocks = 0;  // of those: durable
    std::string reason;        // why not all of them; empty: all, or the lease is not strict
  };
  using DurableDone = std::function<void(Durable)>;
  absl::StatusOr<std::uint32_t> CommitStore(WriteLease& lease, std::uint32_t first,
                                            std::span<const std::uint32_t> checksums,
                                            DurableDone done = nullptr);

  bool has_disk() const { return options_.disk.has_value(); }

  // Pins what is visible of `keys` for reading; a missing key does not stop the later ones. Touches
  // leaf to root. InvalidArgument: no keys; shard or group out of range. ResourceExhausted when
  // more than `lease_bytes_max` would be pinned: then nothing is.
  absl::StatusOr<FetchResult> Fetch(const NamespaceRef& ns, std::span<const BlockKey> keys,
                                    std::uint32_t shard, std::uint32_t group,
                                    std::uint64_t lease_bytes_max = UINT64_MAX);

  // The same, with what is on disk: it is read into RAM, beside other such reads. The first event
  // comes within this call: everything that is in RAM, and what is nowhere. The others follow as
  // reads end. Errors as Fetch, and then there is no event; the quota counts what is on disk, too.
  // Dropping the ticket ends the fetch.
  absl::StatusOr<FetchTicket> FetchAsync(const NamespaceRef& ns, const FetchRequest& request,
                                         FetchSink sink);
  // All events in one, waiting for the last.
  absl::StatusOr<FetchEvent> FetchAll(const NamespaceRef& ns, const FetchRequest& request);

  // Brings blocks from disk into RAM, all their parts; pins nothing. Waits behind every fetch, and
  // evicts nothing that was used since this call. The first news comes within this call.
  // InvalidArgument: no keys.
  absl::StatusOr<FetchTicket> Prefetch(const NamespaceRef& ns, std::span<const BlockKey> keys,
                                       PrefetchSink sink);

  // The fastest tier of each block of the longest prefix of `keys` that is visible in RAM or on
  // disk. Touches nothing.
  std::vector<Tier> MatchTiers(const NamespaceRef& ns, std::span<const BlockKey> keys) const;
  // Its length.
  std::uint32_t Match(const NamespaceRef& ns, std::span<const BlockKey> keys) const;

  // Somebody read bytes that failed their checksum. Checks for itself, outside the lock, and drops
  // the block when it is damaged (true); its children become orphans. False: the bytes are right,
  // or the block is not there. InvalidArgument: shard or group out of range.
  absl::StatusOr<bool> CheckSuspect(const NamespaceRef& ns, const BlockKey& key,
                                    std::uint32_t shard, std::uint32_t group);

  // Names the chain that ends with a block, or says anew what the name means: its blocks stay in
  // RAM as its priority says until its TTL ends, and then are the first to leave. InvalidArgument:
  // a bad name, priority or ttl, or a token_count that is not that of whole blocks. NotFound: the
  // leaf is neither visible in RAM nor on disk; one that is on disk only has no effect on RAM.
  // Another conversation of the tenant, or of the one with the most, may be forgotten for it.
  absl::StatusOr<ConversationFacts> UpdateConversation(const NamespaceRef& ns,
                                                       const ConversationUpdate& update);
  // NotFound: never named, ended, or forgotten for others.
  absl::StatusOr<ConversationFacts> DescribeConversation(const NamespaceRef& ns,
                                                         std::string_view name) const;
  // Takes timings of the namespace's turns, all or none, and answers what its turns cost by all
  // that were reported so far. They live in memory, and are forgotten with the namespace.
  // InvalidArgument names the sample and its field.
  absl::StatusOr<TurnCosts> ReportTimings(const NamespaceRef& ns, const TurnSamples& samples);
  TurnCosts Costs(const NamespaceRef& ns) const;
  const ConversationOptions& conversation_options() const { return options_.conversations; }

  // Forgets all blocks of a namespace, in every tier, pending ones too, and its conversations:
  // their writers' commits then publish nothing. Returns how many were visible. Waits until the
  // disk will never know them again. NotFound.
  absl::StatusOr<std::uint64_t> Purge(const NamespaceFingerprint& fingerprint);

  // Drops from RAM what is on disk too, but for what is leased: the next fetch reads it there.
  // Returns how many blocks. What is not written back yet stays: Quiesce() first.
  std::uint64_t Demote();

  // Hands the present directory of the namespace (if it has one) to StoreEvents::OnDirectory again:
  // for a session that has just opened it.
  void AnnounceDirectory(const NamespaceRef& ns);

  // Generation of the namespace's present directory, which was told to StoreEvents before; 0: there
  // is none. A reader that has mapped it finds whatever was committed before this call.
  std::uint64_t DirectoryGeneration(const NamespaceRef& ns) const;
  std::uint64_t DirectoryGeneration(const WriteLease& lease) const;  // 0 for an empty lease

  // Drops incomplete blocks that waited too long, ends conversations whose TTL is over, tries again
  // for directories that could not be made, and wakes the rebalancer. Called now and then by the
  // owner (the daemon's timer, or a test).
  void Housekeep();

  // Blocks until the background has nothing to do that earlier calls caused: population settled,
  // rebalancing finished or waiting for somebody else (a lease, a client's mapping, memory), what
  // is stored written back, reads of the disk ended.
  void Quiesce();
  // Writes back what is not on disk yet, for at most `patience`. False: some is left.
  bool WriteBack(std::chrono::milliseconds patience);

  // Reads and verifies the next block on disk, and drops it if it is damaged. Returns how many
  // bytes it read; 0: there is nothing to read, or it cannot be read now. Waits for the disk. What
  // the scrubber's thread calls, options.disk.scrub_bytes_per_second permitting; one caller at a
  // time.
  std::uint64_t ScrubNext();

  // The process is about to end, and clients may still hold leases: what they have mapped stays
  // readable. Called before their sessions are ended.
  void LeaveMemory();

  // The process is about to end: what the disks have been asked for is waited for, for at most
  // `patience`. Empty: it has ended. Else which disks have some left: they hang, and their kernel
  // may read and write the store's memory at any time. The store must not be destroyed then.
  std::string EndIo(std::chrono::milliseconds patience);

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

  TieredStore(TieredStoreOptions options, StoreEvents& events, std::unique_ptr<RegionPool> pool,
              std::unique_ptr<DiskStore> disk);

  using Calls = std::vector<std::function<void()>>;  // to be made, without the lock

  // What the leases' destructors call.
  void CloseNamespace(NamespaceRef& ref);
  void EndRead(ReadLease& lease);
  void EndWrite(WriteLease& lease);

  // `blocks` are the request's keys in the index, protected from eviction.
  StoreGrant GrantLocked(const std::shared_ptr<NamespaceStore>& ns, const StoreRequest& request,
                         std::span<const BlockId> blocks) KAVERN_REQUIRES(mu_);
  // Ends the writes of `grants`, and what follows from that.
  std::uint32_t PublishLocked(WriteLease& lease, std::span<WriteLease::Grant> grants,
                              std::span<const std::uint32_t> checksums, DurableDone done,
                              Calls* calls) KAVERN_REQUIRES(mu_);
  void PinLocked(const std::shared_ptr<NamespaceStore>& ns, std::span<const BlockId> blocks,
                 std::uint32_t shard, std::uint32_t group, FetchResult* result)
      KAVERN_REQUIRES(mu_);
  // Regions out of the pool for at least `slots` more slots, as far as it has any to give to this
  // namespace.
  void TakeRegionsLocked(const std::shared_ptr<NamespaceStore>& ns, std::uint32_t group,
                         std::uint64_t slots) KAVERN_REQUIRES(mu_);
  // Out of the pool, and known to the disks from then on; nullptr: none is ready.
  std::shared_ptr<Region> TakeRegion();
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

  // ---- Conversations (conversation_calls.cc) ----
  Tier LeafTierLocked(const NamespaceStore& ns, const BlockKey& leaf) const KAVERN_REQUIRES(mu_);
  ConversationFacts FactsLocked(const NamespaceStore& ns, const Conversation& conversation,
                                SteadyTime now) const KAVERN_REQUIRES(mu_);
  void LeaveAnchorsLocked(std::span<const ConversationTable::Left> all) KAVERN_REQUIRES(mu_);
  void EndConversations();

  absl::Status CheckFetch(const NamespaceRef& ns, std::span<const BlockKey> keys,
                          std::uint32_t shard, std::uint32_t group) const;
  // Touches what was fetched, leaf to root, and counts. `from_disk`: how many of `hits`.
  void CountFetchLocked(NamespaceStore& ns, std::uint32_t group, std::span<const BlockRef> hits,
                        std::uint64_t from_disk, std::uint64_t misses) KAVERN_REQUIRES(mu_);

  // ---- Fetches that wait (waiting_fetch.cc; jobs in disk_jobs.h) ----
  struct Waiting;
  // A block on its way from disk into RAM, and one the other way.
  struct Promotion;
  struct WriteJob;
  struct DurableWait;
  // What is found out under the lock and done without it.
  struct Outside;

  void RunOutside(Outside& outside);
  void Deliver(const std::shared_ptr<Waiting>& waiting);
  static bool HasNewsLocked(const Waiting& waiting);
  static FetchEvent TakeEventLocked(Waiting& waiting);
  // To be delivered, unless that is under way.
  static void AddNewsLocked(const std::shared_ptr<Waiting>& waiting, Outside* outside);
  // Waits for key `index` of the request, if it is on disk. False: it is not.
  bool AwaitLocked(const std::shared_ptr<Waiting>& waiting, const BlockKey& key,
                   std::uint32_t index, UseSequence youngest_victim) KAVERN_REQUIRES(mu_);
  FetchTicket BeginWaitLocked(const std::shared_ptr<Waiting>& waiting, Outside* outside)
      KAVERN_REQUIRES(mu_);
  // What became of key `index`; `id` is kNoBlock where it failed.
  void ResolveLocked(const std::shared_ptr<Waiting>& waiting, std::uint32_t index, BlockId id,
                     const absl::Status& status, Outside* outside) KAVERN_REQUIRES(mu_);
  void EndWaitLocked(const std::shared_ptr<Waiting>& waiting) KAVERN_REQUIRES(mu_);
  void CancelWait(const std::shared_ptr<Waiting>& waiting);
  // Whoever waited too long goes on without.
  void ExpireWaitingLocked(SteadyTime now, Outside* outside) KAVERN_REQUIRES(mu_);
  void FetchTimerLoop();

  // ---- Disk into RAM (promotion.cc) ----
  std::shared_ptr<Promotion> QueuePromotionLocked(const std::shared_ptr<NamespaceStore>& ns,
                                                  const BlockKey& key, bool for_fetch,
                                                  UseSequence youngest_victim) KAVERN_REQUIRES(mu_);
  void ReadAheadLocked(const std::shared_ptr<NamespaceStore>& ns, const BlockKey& last)
      KAVERN_REQUIRES(mu_);
  // As many of those that are queued as promotion_bytes_max allows.
  void BeginPromotionsLocked(Outside* outside) KAVERN_REQUIRES(mu_);
  void BeginPromotionLocked(const std::shared_ptr<Promotion>& promotion, Outside* outside)
      KAVERN_REQUIRES(mu_);
  absl::Status ReserveSlotsLocked(Promotion& promotion) KAVERN_REQUIRES(mu_);
  void EndRead(const std::shared_ptr<Promotion>& promotion, std::size_t slot, absl::Status status);
  // Its device hangs: nobody waits for it any more, and its slot is not free before it ends.
  void GiveUpRead(const std::shared_ptr<Promotion>& promotion, std::size_t slot,
                  absl::Status status);
  // One part less is waited for.
  void NoteReadLocked(const std::shared_ptr<Promotion>& promotion, absl::Status status,
                      Outside* outside) KAVERN_REQUIRES(mu_);
  void EndPromotionLocked(Promotion& promotion, Outside* outside) KAVERN_REQUIRES(mu_);
  void NotePromotedLocked(const Promotion& promotion) KAVERN_REQUIRES(mu_);
  void NoteFailedLocked(const Promotion& promotion) KAVERN_REQUIRES(mu_);
  static bool IsWantedLocked(const Promotion& promotion);
  // The latest by which somebody wants it, if all of them say one.
  static SteadyTime DeadlineOfLocked(const Promotion& promotion);
  // Its reads were cancelled or expired, and somebody has come for it since.
  bool IsToBeReadAnewLocked(const Promotion& promotion) const KAVERN_REQUIRES(mu_);
  void QueueAnewLocked(const std::shared_ptr<Promotion>& promotion) KAVERN_REQUIRES(mu_);
  // Takes what nobody waits for any more out of the queues, also of the disks.
  void DropUnwantedLocked(Outside* outside) KAVERN_REQUIRES(mu_);
  void FailQueuedLocked(const absl::Status& status, Outside* outside) KAVERN_REQUIRES(mu_);
  void DropFromDiskLocked(NamespaceStore& ns, DiskNamespace& on_disk, BlockId id)
      KAVERN_REQUIRES(mu_);

  // ---- Disk (write_back.cc, disk_mover.cc) ----
  void MoverLoop();
  void RecoverDisk();
  // Until something is due by the clock, or somebody says that there is work.
  void MoverSleepLocked(SteadyTime now) KAVERN_REQUIRES(mu_);
  // Why nothing is written until the next start; OK: it is.
  absl::Status WriteRefusalLocked() const KAVERN_REQUIRES(mu_);
  bool DiskIdleLocked(bool all_written) const KAVERN_REQUIRES(mu_);
  bool WaitForDisk(SteadyTime deadline, bool all_written);
  WriteBackQueue::Options QueueOptions() const;

  // Unless it is on disk, or on its way there.
  void QueueWriteLocked(const std::shared_ptr<NamespaceStore>& ns, const BlockKey& key,
                        DiskDurability durability) KAVERN_REQUIRES(mu_);
  // Whatever of these and of their ancestors is in RAM and neither on disk nor on its way there, as
  // strict, parents first: without its ancestors nobody finds a block.
  void QueueStrictLocked(const std::shared_ptr<NamespaceStore>& ns, std::span<const BlockKey> keys)
      KAVERN_REQUIRES(mu_);
  void PushWriteLocked(const std::shared_ptr<NamespaceStore>& ns, const BlockKey& key,
                       DiskDurability durability) KAVERN_REQUIRES(mu_);
  std::shared_ptr<WriteJob> NextWriteLocked(SteadyTime now, Calls* calls) KAVERN_REQUIRES(mu_);
  std::shared_ptr<WriteJob> BeginWriteLocked(const WriteBackQueue::Entry& entry, Calls* calls)
      KAVERN_REQUIRES(mu_);
  void CountLostLocked(const std::deque<WriteBackQueue::Entry>& lost, Calls* calls)
      KAVERN_REQUIRES(mu_);
  void RunWrite(const std::shared_ptr<WriteJob>& job);
  absl::Status PrepareWrite(const WriteJob& job);
  void EndWritten(const std::shared_ptr<WriteJob>& job, std::size_t part,
                  const absl::Status& status);
  // Its device hangs: nobody waits for it any more, and the block stays pinned until it ends.
  void GiveUpWrite(const std::shared_ptr<WriteJob>& job, std::size_t part,
                   const absl::Status& status);
  // What waits for nothing but devices that hang does not keep others from being written.
  void UncountWriteLocked(WriteJob& job) KAVERN_REQUIRES(mu_);
  void EndDurable(const std::shared_ptr<WriteJob>& job, const absl::Status& status);
  // The job is done. It is finished after that of its parent, where that is under way: a child
  // without its parent would be the first to be evicted.
  void EndJobLocked(const std::shared_ptr<WriteJob>& job, Calls* calls) KAVERN_REQUIRES(mu_);
  void FinishWriteLocked(WriteJob& job, Calls* calls) KAVERN_REQUIRES(mu_);
  // What became of the job, to those that are finished after it. `failure` is empty where its block
  // is on disk.
  static void TellFollowers(WriteJob& job, const std::string& failure);

  // ---- Strict commits ----
  void AwaitDurableLocked(const std::shared_ptr<NamespaceStore>& ns, std::span<const BlockKey> keys,
                          DurableDone done, Calls* calls) KAVERN_REQUIRES(mu_);
  // What is known of a block that somebody may wait for; `reason` is empty when it is durable.
  void SettleDurableLocked(const NamespaceStore* ns, const BlockKey& key, std::string_view reason,
                           Calls* calls) KAVERN_REQUIRES(mu_);
  // A block that is on disk, for whoever waits for it: it is durable once its ancestors are, and
  // all of them are synced. `synced`: they are, as far as they are on disk.
  void SettleWrittenLocked(const std::shared_ptr<NamespaceStore>& ns, const BlockKey& key,
                           bool synced, Calls* calls) KAVERN_REQUIRES(mu_);
  void SettleAfterSyncLocked(const std::shared_ptr<NamespaceStore>& ns, const BlockKey& key)
      KAVERN_REQUIRES(mu_);
  // Nothing is written any more.
  void SettleAllDurableLocked(std::string_view reason, Calls* calls) KAVERN_REQUIRES(mu_);
  static void SettleOne(const std::shared_ptr<DurableWait>& wait, std::string_view reason,
                        Calls* calls);
  void ExpireCommitsLocked(SteadyTime now, Calls* calls) KAVERN_REQUIRES(mu_);
  static void Make(const Calls& calls);

  // The budget outlives the daemon, to within kBudgetSaveInterval.
  void LoadBudgetLocked() KAVERN_REQUIRES(mu_);
  bool BudgetIsToBeSavedLocked(SteadyTime now) const KAVERN_REQUIRES(mu_);
  void SaveBudget();
  // The index calls it, which nobody uses without the lock.
  void OnDiskEvicted(const DiskNamespace& on_disk,
                     const BlockKey& key) KAVERN_NO_THREAD_SAFETY_ANALYSIS;
  void OnDiskFailed(std::uint32_t device);
  void RetireDiskLocked(std::uint32_t device, Calls* calls) KAVERN_REQUIRES(mu_);
  DiskStatus DiskStatusLocked() const KAVERN_REQUIRES(mu_);
  // What was read of it is wrong. RAM's copy, if there is one, is written anew.
  void DropDamagedLocked(DiskNamespace& on_disk, BlockId id) KAVERN_REQUIRES(mu_);

  const TieredStoreOptions options_;
  const TieredStoreOptions::Disk disk_options_;  // of no meaning where has_disk() is false

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

  // What the index holds is guarded by mu_ too.
  std::unique_ptr<DiskStore> disk_store_;  // nullptr: there is no NVMe tier
  std::unique_ptr<DiskIndex> disk_index_;
  WriteBackQueue write_back_ KAVERN_GUARDED_BY(mu_);
  bool write_due_ KAVERN_GUARDED_BY(mu_) = false;       // something in it may be due
  std::uint64_t write_all_ KAVERN_GUARDED_BY(mu_) = 0;  // callers who wait until it is empty
  std::optional<SteadyTime> budget_waits_until_ KAVERN_GUARDED_BY(mu_);
  WriteBudget budget_ KAVERN_GUARDED_BY(mu_);
  SteadyTime budget_saved_ KAVERN_GUARDED_BY(mu_);
  std::uint64_t budget_saved_bytes_ KAVERN_GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<std::pair<const NamespaceStore*, BlockKey>,
                      std::vector<std::shared_ptr<DurableWait>>>
      durable_waits_ KAVERN_GUARDED_BY(mu_);
  std::deque<std::shared_ptr<DurableWait>> commits_waiting_ KAVERN_GUARDED_BY(mu_);  // by deadline
  std::uint64_t writing_bytes_ KAVERN_GUARDED_BY(mu_) = 0;  // of RAM pinned by write jobs
  // Until they are finished, by the numbers of their reservations.
  absl::flat_hash_map<std::uint64_t, std::shared_ptr<WriteJob>> write_jobs_ KAVERN_GUARDED_BY(mu_);
  absl::flat_hash_map<std::pair<const NamespaceStore*, BlockKey>, std::shared_ptr<Promotion>>
      promotions_ KAVERN_GUARDED_BY(mu_);
  // Fetches first, then prefetches and what is read ahead. One that was taken out or moved to the
  // other queue is skipped.
  std::array<std::deque<std::shared_ptr<Promotion>>, 2> promotion_queues_ KAVERN_GUARDED_BY(mu_);
  std::uint64_t promoting_bytes_ KAVERN_GUARDED_BY(mu_) = 0;  // of RAM that is being filled
  std::uint64_t queued_promotions_ KAVERN_GUARDED_BY(mu_) = 0;
  absl::btree_set<std::pair<SteadyTime, std::shared_ptr<Waiting>>> waiting_ KAVERN_GUARDED_BY(mu_);
  bool disk_recovering_ KAVERN_GUARDED_BY(mu_) = false;
  absl::Status disk_failure_ KAVERN_GUARDED_BY(mu_);
  DiskStore::Recovery recovery_ KAVERN_GUARDED_BY(mu_);
  double recovery_seconds_ KAVERN_GUARDED_BY(mu_) = 0;
  CondVar mover_changed_;
  DiskIndex::Cursor scrubbed_ KAVERN_GUARDED_BY(mu_);
  CondVar timer_changed_;

  std::unique_ptr<RegionPool>
      pool_;  // guards itself; its lock may be taken under mu_, never mu_ under its
  std::thread background_;
  std::thread mover_;
  std::unique_ptr<Scrubber> scrubber_;  // calls ScrubNext()
  std::thread fetch_timer_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_TIERED_STORE_H_
