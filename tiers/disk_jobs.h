// What the disk half of TieredStore has under way. Private to waiting_fetch.cc, promotion.cc,
// write_back.cc and disk_mover.cc; guarded by the store's lock but for what is fixed once the job
// has begun.
#ifndef KAVERN_TIERS_DISK_JOBS_H_
#define KAVERN_TIERS_DISK_JOBS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/block_key.h"
#include "base/clock.h"
#include "tiers/namespace_store.h"
#include "tiers/nvme/disk_index.h"
#include "tiers/nvme/disk_store.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {

// Of one read or write of a part. What is given up (DiskIo::given_up) has its memory in RAM until
// it has ended, and is not waited for.
enum class PartIo : std::uint8_t { kUnderWay, kGivenUp, kEnded };

// A fetch or prefetch that waits for blocks to be read.
struct TieredStore::Waiting {
  // Fixed.
  std::shared_ptr<NamespaceStore> ns;
  std::uint32_t part = 0;
  std::uint32_t group = 0;
  bool pins = true;  // false: a prefetch
  SteadyTime deadline = SteadyTime::max();
  // Called by whoever set `delivering`. `ready`: how many blocks became so, pinned or not.
  std::function<void(FetchEvent event, std::uint32_t ready)> sink;

  FetchEvent event;  // not delivered yet
  std::uint32_t ready = 0;
  std::vector<bool> open;      // by key: still waited for
  std::size_t pending = 0;     // how many
  std::vector<BlockRef> hits;  // by key; of others the ref of no block
  std::uint64_t from_disk = 0;
  std::uint64_t misses = 0;
  bool ended = false;       // nothing is added any more
  bool last_told = false;   // or nobody wants to hear
  bool delivering = false;  // some thread is at it
};

// A block on its way from disk into RAM.
struct TieredStore::Promotion {
  std::shared_ptr<NamespaceStore> ns;
  DiskNamespace* on_disk = nullptr;
  BlockKey key;
  bool for_fetch = false;           // else for a prefetch, or read ahead
  UseSequence youngest_victim = 0;  // what may be evicted for it
  enum class State : std::uint8_t { kQueued, kReading, kEnded };
  State state = State::kQueued;
  std::uint64_t bytes = 0;  // of RAM that it fills
  DiskIndex::PinnedBlock disk;
  struct Slot {
    NamespaceStore::Pin pin;
    std::uint32_t part = 0;
    PartIo io = PartIo::kUnderWay;
  };
  std::vector<Slot> slots;     // of the parts that RAM lacks
  std::size_t parts_left = 0;  // neither ended nor given up
  std::uint64_t token = 0;     // of its reads, once they have begun
  bool cancelled = false;      // they were
  absl::Status status;
  struct Waiter {
    std::shared_ptr<Waiting> waiting;
    std::uint32_t index = 0;  // into its keys
  };
  std::vector<Waiter> waiters;
  bool read_ahead = false;  // nobody has asked for it
};

struct TieredStore::Outside {
  std::vector<std::function<void()>> reads;       // to be begun
  std::vector<std::uint64_t> cancels;             // tokens of reads that nobody wants any more
  std::vector<std::shared_ptr<Waiting>> news;     // to be delivered
  std::vector<FetchEvent> dropped;                // whose leases end
  std::vector<std::shared_ptr<Promotion>> ended;  // to be let go of, with what their waiters hold
  // The first event of news[0], which was taken before any read could end.
  std::optional<FetchEvent> first;
  std::uint32_t first_ready = 0;

  bool empty() const {
    return reads.empty() && cancels.empty() && news.empty() && dropped.empty() && ended.empty();
  }
};

// A block on its way from RAM to disk.
struct TieredStore::WriteJob {
  std::shared_ptr<NamespaceStore> ns;
  DiskNamespace* on_disk = nullptr;
  BlockKey key;
  BlockKey parent;
  DiskIndex::Reservation reservation;
  std::vector<NamespaceStore::Pin> pins;
  std::vector<DiskStore::PartWrite> parts;
  std::vector<std::uint32_t> checksums;
  std::uint64_t bytes = 0;  // that count as being written
  DiskDurability durability = DiskDurability::kBatch;
  UseSequence last_use = 0;
  std::vector<PartIo> writes;   // by part
  std::size_t writes_left = 0;  // that have not ended
  std::size_t given_up = 0;     // of those
  std::size_t parts_left = 0;   // that neither failed nor are durable
  absl::Status status;
  std::vector<std::shared_ptr<WriteJob>> followers;  // done, but for this block before them
  // Its catalog entry, or that of a block before it that it waited for, came after the last sync
  // that is known of.
  bool unsynced = false;
  std::string failure_before;  // why a block before it that it waited for is not on disk
};

// A commit whose caller waits until its blocks are durable.
struct TieredStore::DurableWait {
  std::size_t left = 0;  // blocks that are not settled yet
  Durable result;
  SteadyTime deadline;
  bool ended = false;
  DurableDone done;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_DISK_JOBS_H_
