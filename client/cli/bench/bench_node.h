// The daemon that is measured, seen through the clients that measure it.
#ifndef KAVERN_CLIENT_CLI_BENCH_BENCH_NODE_H_
#define KAVERN_CLIENT_CLI_BENCH_BENCH_NODE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "client/admin_client.h"
#include "client/cli/command.h"
#include "client/kavern/client.h"

namespace kavern::cli {

// How bytes move: threads that copy in shared memory, or messages over gRPC.
enum class BenchPlane { kOneThread, kTwoThreads, kBytes };

class BenchNode {
 public:
  static absl::StatusOr<std::unique_ptr<BenchNode>> Connect(const GlobalOptions& global);

  // Every later OpenNamespace is of blocks of this size; what the last size stored is forgotten,
  // and its memory is back. InvalidArgument when the daemon's RAM tier has less than `room_bytes`.
  absl::Status UseBlockBytes(std::uint64_t block_bytes, std::uint64_t room_bytes);
  absl::Status Forget();
  // Until all of the RAM tier's memory is in place: making it takes a processor that is to be
  // measured.
  absl::Status AwaitRam();

  client::AdminClient& admin() { return *admin_; }
  Client& client(BenchPlane plane) { return *clients_.at(plane); }
  Namespace& ns(BenchPlane plane) { return *namespaces_.at(plane); }
  std::uint64_t block_bytes() const { return block_bytes_; }

  // `count` keys of a chain that no earlier call returned.
  std::vector<BlockKey> NewChain(std::size_t count);

 private:
  BenchNode() = default;

  std::unique_ptr<client::AdminClient> admin_;
  std::map<BenchPlane, std::unique_ptr<Client>> clients_;
  std::map<BenchPlane, std::shared_ptr<Namespace>> namespaces_;
  std::uint64_t block_bytes_ = 0;
  std::uint64_t ram_bytes_ = 0;
  std::uint64_t epoch_ = 0;
  std::uint64_t chains_ = 0;
};

// Calls `store`, which answers why a block was declined, until none is: where the daemon's memory
// is full of others' blocks, a store is declined while a region of theirs is being freed.
// ResourceExhausted when that does not end.
absl::Status UntilGranted(const std::function<absl::StatusOr<std::string>()>& store);

// Stores every one of the blocks.
absl::Status StoreWhole(Namespace& ns, std::span<const BlockKey> keys,
                        std::span<const ConstBuffer> blocks);

// Memory of the measuring process, in huge pages where the kernel gives them, every page touched.
class WorkerMemory {
 public:
  static absl::StatusOr<WorkerMemory> Create(std::uint64_t size_bytes);

  // `count` buffers of `size` bytes from the one at `index` on, wrapping around at the end.
  std::vector<MutableBuffer> Destinations(std::size_t index, std::size_t count,
                                          std::uint64_t size) const;
  std::vector<ConstBuffer> Sources(std::size_t index, std::size_t count, std::uint64_t size) const;

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  WorkerMemory(std::byte* memory, std::uint64_t size_bytes) : memory_(memory), size_(size_bytes) {}
  std::byte* At(std::size_t index, std::uint64_t size) const;

  std::unique_ptr<std::byte, Free> memory_;
  std::uint64_t size_;
};

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_BENCH_BENCH_NODE_H_
