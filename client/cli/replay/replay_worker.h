// One simulated inference worker: takes the cached prefix of each request back, and stores the
// rest.
#ifndef KAVERN_CLIENT_CLI_REPLAY_REPLAY_WORKER_H_
#define KAVERN_CLIENT_CLI_REPLAY_REPLAY_WORKER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/block_key.h"
#include "base/kv_layout.h"
#include "client/cli/replay/replay_stats.h"
#include "client/cli/replay/trace.h"
#include "client/kavern/client.h"

namespace kavern::cli {

// The keys of a request's full blocks, root first. A trace has no tokens: some stand for each hash
// id, always the same.
std::vector<BlockKey> RequestKeys(const NamespaceFingerprint& fingerprint,
                                  const TraceRequest& request);

// Not thread-safe. For every request: compute the keys, match, fetch the prefix into this process's
// own memory, compare every byte, then store the blocks that were not fetched. Only full blocks
// take part. "Prefill" takes no time: its result is the payload pattern.
class ReplayWorker {
 public:
  // `ns` outlives the worker. `preset` prices the prefill that hits save; none: it is not priced.
  ReplayWorker(Namespace& ns, std::optional<ModelPreset> preset);

  void Play(const TraceRequest& request);

  // A daemon is there again, after so long. What follows is counted as after its restart, too.
  void NoteRestart(double away_seconds);

  const ReplayStats& stats() const { return stats_; }

 private:
  // Fetches and verifies keys_[0, matched), batch by batch; returns how many leading blocks came
  // whole.
  std::size_t FetchPrefix(std::size_t matched);
  // Leading blocks of the batch that came whole, in all parts.
  std::size_t FetchBatch(std::span<const BlockKey> keys);
  std::size_t FetchPart(std::span<const BlockKey> keys, std::uint32_t shard, std::uint32_t group);
  void StoreFrom(std::size_t first);
  // Whether all of the batch is stored now, so that the next one has a parent.
  bool StoreBatch(const BlockKey& parent, std::span<const BlockKey> keys);
  bool StorePart(const BlockKey& parent, std::span<const BlockKey> keys, std::uint32_t shard,
                 std::uint32_t group);
  void Count(const absl::Status& status);

  Namespace& ns_;
  const std::optional<ModelPreset> preset_;
  const KvLayout& layout_;
  std::size_t batch_blocks_;
  std::vector<BlockKey> keys_;
  std::vector<std::byte> memory_;  // of one batch of the largest group
  std::vector<Tier> tiers_;        // of the batch's blocks: the slowest that a part came from
  double call_seconds_ = 0;        // spent in the library for the present request
  ReplayStats stats_;
};

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_REPLAY_REPLAY_WORKER_H_
