// Blocks of the RAM tier that are to be written to disk, and which of them is next.
//
// A state machine: no I/O, no thread, no clock. Not thread-safe: the store's lock guards it.
#ifndef KAVERN_TIERS_WRITE_BACK_QUEUE_H_
#define KAVERN_TIERS_WRITE_BACK_QUEUE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "base/block_key.h"
#include "base/clock.h"
#include "tiers/index/block_index.h"
#include "tiers/nvme/disk_store.h"
#include "tiers/policy/eviction_policy.h"

namespace kavern::tiers {

class NamespaceStore;

enum class WriteBackMode : std::uint8_t {
  kEager,       // as soon as it is stored
  kIdle,        // once nobody has used it for idle_time
  kOnEviction,  // once RAM lacks blocks that it could evict without losing them
};

class WriteBackQueue {
 public:
  struct Options {
    WriteBackMode mode = WriteBackMode::kEager;
    SteadyDuration idle_time{0};
    // In every mode the oldest are written while more than this waits: the rest of RAM can be
    // evicted without a loss.
    std::uint64_t waiting_bytes_max = UINT64_MAX;
  };
  struct Entry {
    std::shared_ptr<NamespaceStore> ns;
    BlockRef block;
    BlockKey key;
    std::uint64_t bytes = 0;
    DiskDurability durability = DiskDurability::kBatch;
    UseSequence last_use = 0;  // when it was queued
    SteadyTime since;
  };
  // The block's last use; nullopt: it is not in RAM any more, or on disk by now.
  using Facts = std::function<std::optional<UseSequence>(const Entry&)>;

  WriteBackQueue(const Options& options, Facts facts);

  // kStrict ones come before all others.
  void Push(Entry entry);
  // Brings the entry that is due at `now` to the front; nullptr: none is. `hurry`: all are due.
  // Valid until the next call. Appends entries that are of no use any more to `lost`.
  const Entry* Due(SteadyTime now, bool hurry, std::deque<Entry>* lost);
  // Takes out what Due() gave.
  Entry Pop();
  // When Due() may have one without another Push; nullopt: not by time alone.
  std::optional<SteadyTime> NextAt() const;

  std::uint64_t size() const { return strict_.size() + waiting_.size(); }
  std::uint64_t bytes() const { return bytes_; }

 private:
  bool IsOverfull() const { return bytes_ > options_.waiting_bytes_max; }
  void DropUseless(std::deque<Entry>& queue, std::deque<Entry>* lost);
  void Sweep(std::deque<Entry>* lost);

  const Options options_;
  const Facts facts_;
  std::deque<Entry> strict_;
  std::deque<Entry> waiting_;  // by `since`
  std::uint64_t bytes_ = 0;    // of both
  std::uint64_t sweep_at_;     // so that entries of blocks that left do not pile up
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_WRITE_BACK_QUEUE_H_
