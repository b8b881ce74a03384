// Paged KV of an inference engine, moved to and from Kavern in the background.
//
// An engine keeps KV in pages ("engine blocks") of per-layer tensors, and a block table says which
// pages a sequence has. TensorLayout describes such tensors; PagedKv copies whole pages, as the
// engine's own bytes and never transposed, between them and the parts of Kavern's blocks.
#ifndef KAVERN_CLIENT_KAVERN_PAGED_KV_H_
#define KAVERN_CLIENT_KAVERN_PAGED_KV_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/kavern/client.h"

namespace kavern {

// Pages of one layer: page b lies at base + b * block_stride and is block_bytes long, contiguous.
struct LayerTensor {
  std::byte* base = nullptr;
  std::uint64_t block_stride = 0;
  std::uint64_t block_bytes = 0;
};

// The tensors of one layer group of one shard, in the order in which their bytes lie in a part:
// layer after layer, of each layer the pages of the block.
struct TensorLayout {
  std::vector<LayerTensor> layers;
  std::uint64_t block_count = 0;      // pages in every tensor
  std::uint32_t blocks_per_part = 1;  // pages that hold the tokens of one Kavern block

  // InvalidArgument names the field, and what was expected.
  absl::Status Validate() const;
  std::uint64_t PartBytes() const;
  // Memory of one part, for Namespace::Store and FetchInto. `blocks` are blocks_per_part page
  // numbers below block_count.
  void AppendPieces(std::span<const std::uint32_t> blocks, std::vector<MutableBuffer>& out) const;
};

struct PagedKvOptions {
  std::uint32_t shard = 0;
  // A load that the daemon has not answered by then has failed. Memory is written until the load
  // is reported, whatever its end.
  std::chrono::milliseconds load_deadline{2000};
  std::chrono::milliseconds store_deadline{2000};
  // Loads under way at a time, each in a thread of its own.
  int load_threads = 2;
  // Threads that gather one store, the calling one included.
  int copy_threads = 1;
};

// Which pages a store or load is about, in one layer group: of key i the pages
// [i * blocks_per_part, (i + 1) * blocks_per_part). A group may be about fewer keys than another:
// of a sliding window only the last ones are needed.
struct PagedBlocks {
  std::vector<BlockKey> keys;
  std::vector<std::uint32_t> blocks;
};

struct PagedLoad {
  std::vector<PagedBlocks> groups;  // one per group of the layout
};
struct PagedStore {
  BlockKey parent = {};  // key before keys[0]; zero for the start of a chain
  std::vector<BlockKey> keys;
  std::vector<std::vector<std::uint32_t>> blocks;  // per group
};

// How a load or store ended; each is reported once.
struct PagedResult {
  std::uint64_t id = 0;
  bool is_load = false;
  // Of the whole: the daemon away, too slow (DeadlineExceeded), full (ResourceExhausted).
  absl::Status status;
  // Loads: for every group and key, in the order of the plan. Pages of a key that is not kOk hold
  // rubbish.
  std::vector<std::vector<absl::StatusCode>> codes;
  std::vector<std::vector<Tier>> tiers;  // loads: where each was, as FetchResult::tiers
  // Stores: keys from the first on whose parts this call stored or found stored.
  std::size_t stored_keys = 0;
  std::uint64_t bytes = 0;  // copied
  // Loads: from Begin to the end. Stores: of leasing, gathering and committing, but not of the
  // engine's own work in between.
  double seconds = 0;
};

// Thread-safe. Its threads run on every processor of the process's cpuset, also where the thread
// that made it is bound to one. In a forked child nothing is under way: Begin... is
// FailedPrecondition there, and the rest does nothing.
class PagedKv {
 public:
  // `groups`: one per group of the namespace's layout. InvalidArgument when their parts have other
  // sizes. `ns` and the tensors must outlive it; the tensors' memory is this machine's.
  static absl::StatusOr<std::unique_ptr<PagedKv>> Create(std::shared_ptr<Namespace> ns,
                                                         std::vector<TensorLayout> groups,
                                                         const PagedKvOptions& options);
  // Lets what is under way end, within its deadline; loads and stores not yet begun are dropped.
  virtual ~PagedKv() = default;

  // Begins to copy what is stored into pages, and returns the load's number. Nobody may read or
  // write these pages until it is reported. InvalidArgument for numbers out of range.
  virtual absl::StatusOr<std::uint64_t> BeginLoad(PagedLoad load) = 0;

  // A store in two steps. Begin asks the daemon for memory while the engine still computes the
  // pages; Gather copies them. Keys must be new to no one: what exists is skipped.
  virtual absl::StatusOr<std::uint64_t> BeginStore(PagedStore store) = 0;
  // The engine has written the pages of one layer, of every store begun and not yet gathered:
  // copies them now, while they are in the processor's caches, so that Gather finds less to do.
  // Waits for nothing. Layers are copied in their order, so one that comes too early waits for
  // those before it; where one comes twice before the next Gather, or a store begins after one,
  // none of them is trusted, and Gather copies everything anew. InvalidArgument for a layer that is
  // not there.
  virtual absl::Status LayerWritten(std::size_t group, std::size_t layer) = 0;
  // Copies the pages of every store begun and not yet gathered. They may be overwritten when it
  // returns. A store whose memory the daemon has not granted within `patience` is given up
  // (DeadlineExceeded); publishing goes on in the background.
  virtual void Gather(std::chrono::milliseconds patience) = 0;
  // The same for the stores with these numbers; those gathered or given up before are passed over.
  // InvalidArgument, and nothing is done, for a number that was never returned.
  virtual absl::Status GatherStores(std::span<const std::uint64_t> ids,
                                    std::chrono::milliseconds patience) = 0;
  // Ends stores that are not yet gathered, all or those with these numbers (as GatherStores):
  // nothing of them is stored, and they are reported as Cancelled. For pages that are not what they
  // were to be.
  virtual void GiveUpStores() = 0;
  virtual absl::Status GiveUpStores(std::span<const std::uint64_t> ids) = 0;

  // What has ended since the last call. While that is nothing, but something is under way, waits
  // for at most `patience`.
  virtual std::vector<PagedResult> TakeResults(
      std::chrono::milliseconds patience = std::chrono::milliseconds(0)) = 0;
  // Waits until nothing is under way. False: not within `deadline`. Stores that were begun but not
  // gathered are given up.
  virtual bool Drain(std::chrono::milliseconds deadline) = 0;

  PagedKv(const PagedKv&) = delete;
  PagedKv& operator=(const PagedKv&) = delete;

 protected:
  PagedKv() = default;
};

}  // namespace kavern

#endif  // KAVERN_CLIENT_KAVERN_PAGED_KV_H_
