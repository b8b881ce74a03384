#include "client/cli/bench/bench_node.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/units.h"

namespace kavern::cli {
namespace {

constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20;
constexpr std::uint32_t kTokensPerBlock = 512;
// Emptying and filling a RAM tier is no call of a worker's.
constexpr std::chrono::milliseconds kAdminDeadline(120000);
constexpr std::chrono::milliseconds kPollInterval(10);

NamespaceSpec SpecOf(std::uint64_t block_bytes, std::uint64_t epoch) {
  NamespaceSpec spec;
  spec.model = "kavern-bench";
  spec.epoch = epoch;
  spec.layout.dtype = KvDtype::kInt8;
  spec.layout.tokens_per_block = kTokensPerBlock;
  LayerGroup group;
  group.layer_count = 1;
  group.kv_heads = 1;
  group.head_dim = static_cast<std::uint32_t>(block_bytes / kTokensPerBlock / 2);
  spec.layout.groups.push_back(group);
  return spec;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BenchNode>> BenchNode::Connect(const GlobalOptions& global) {
  std::unique_ptr<BenchNode> node(new BenchNode);
  KAVERN_ASSIGN_OR_RETURN(
      node->admin_, client::AdminClient::Connect(global.address, global.tenant, kAdminDeadline));
  KAVERN_ASSIGN_OR_RETURN(const auto status, node->admin_->GetStatus());
  node->ram_bytes_ = status.ram().capacity_bytes();
  node->epoch_ = std::random_device()();
  for (const BenchPlane plane :
       {BenchPlane::kOneThread, BenchPlane::kTwoThreads, BenchPlane::kBytes}) {
    ClientOptions options;
    options.address = global.address;
    options.tenant = global.tenant;
    options.client_name = "bench";
    options.deadline = global.deadline;
    options.copy_threads = plane == BenchPlane::kTwoThreads ? 2 : 1;
    options.force_bytes_plane = plane == BenchPlane::kBytes;
    KAVERN_ASSIGN_OR_RETURN(node->clients_[plane], Client::Create(options));
    KAVERN_RETURN_IF_ERROR(node->clients_[plane]->WaitUntilAttached(global.deadline));
  }
  return node;
}

absl::Status BenchNode::UseBlockBytes(std::uint64_t block_bytes, std::uint64_t room_bytes) {
  KAVERN_RETURN_IF_ERROR(Forget());
  if (ram_bytes_ < room_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the daemon's ram.capacity: got ",
                                                   FormatBytes(ram_bytes_), ", expected at least ",
                                                   FormatBytes(room_bytes), " to measure with"));
  }
  block_bytes_ = block_bytes;
  ++epoch_;
  for (auto& [plane, client] : clients_) {
    KAVERN_ASSIGN_OR_RETURN(namespaces_[plane], client->OpenNamespace(SpecOf(block_bytes, epoch_)));
  }
  return absl::OkStatus();
}

absl::Status BenchNode::Forget() {
  if (!namespaces_.empty()) {
    const NamespaceFingerprint fingerprint = namespaces_.begin()->second->fingerprint();
    const auto purged = admin_->PurgeNamespace(fingerprint);
    if (!purged.ok() && !absl::IsNotFound(purged.status())) return purged.status();
    namespaces_.clear();
  }
  return AwaitRam();
}

absl::Status BenchNode::AwaitRam() {
  // Regions come back when every client has unmapped them, this process's own included.
  const auto give_up = std::chrono::steady_clock::now() + kAdminDeadline;
  for (;;) {
    KAVERN_RETURN_IF_ERROR(admin_->Quiesce());
    KAVERN_ASSIGN_OR_RETURN(const auto status, admin_->GetStatus());
    const v1::RamStatus& ram = status.ram();
    if (ram.populated_bytes() >= ram.capacity_bytes()) return absl::OkStatus();
    if (std::chrono::steady_clock::now() >= give_up) {
      return absl::DeadlineExceededError(absl::StrCat("ram: ", FormatBytes(ram.populated_bytes()),
                                                      " of ", FormatBytes(ram.capacity_bytes()),
                                                      " populated: is another client at work?"));
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}

std::vector<BlockKey> BenchNode::NewChain(std::size_t count) {
  const std::uint64_t chain = ++chains_;
  std::vector<BlockKey> keys;
  BlockKey parent = ns(BenchPlane::kOneThread).fingerprint().RootKey();
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t tokens[] = {static_cast<std::uint32_t>(chain),
                                    static_cast<std::uint32_t>(i)};
    parent = ComputeBlockKey(parent, tokens);
    keys.push_back(parent);
  }
  return keys;
}

absl::Status UntilGranted(const std::function<absl::StatusOr<std::string>()>& store) {
  const auto give_up = std::chrono::steady_clock::now() + kAdminDeadline;
  for (;;) {
    KAVERN_ASSIGN_OR_RETURN(const std::string declined, store());
    if (declined.empty()) return absl::OkStatus();
    if (std::chrono::steady_clock::now() >= give_up) {
      return absl::ResourceExhaustedError(absl::StrCat("a store was declined: ", declined));
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}

absl::Status StoreWhole(Namespace& ns, std::span<const BlockKey> keys,
                        std::span<const ConstBuffer> blocks) {
  return UntilGranted([&]() -> absl::StatusOr<std::string> {
    KAVERN_ASSIGN_OR_RETURN(const StoreResult stored, ns.Store({.keys = keys}, blocks));
    return stored.decline_reason;
  });
}

// ---- WorkerMemory ----

absl::StatusOr<WorkerMemory> WorkerMemory::Create(std::uint64_t size_bytes) {
  void* memory = std::aligned_alloc(kHugePageBytes, size_bytes);
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("memory: cannot get ", FormatBytes(size_bytes), " for the worker's side"));
  }
  // Smaller pages make both sides of every ratio slower, no more.
  (void)madvise(memory, size_bytes, MADV_HUGEPAGE);
  std::memset(memory, 0x5a, size_bytes);
  return WorkerMemory(static_cast<std::byte*>(memory), size_bytes);
}

void WorkerMemory::Free::operator()(std::byte* memory) const {
  std::free(memory);
}

std::byte* WorkerMemory::At(std::size_t index, std::uint64_t size) const {
  return memory_.get() + (index % (size_ / size)) * size;
}

std::vector<MutableBuffer> WorkerMemory::Destinations(std::size_t index, std::size_t count,
                                                      std::uint64_t size) const {
  std::vector<MutableBuffer> buffers;
  for (std::size_t i = 0; i < count; ++i) buffers.emplace_back(At(index + i, size), size);
  return buffers;
}

std::vector<ConstBuffer> WorkerMemory::Sources(std::size_t index, std::size_t count,
                                               std::uint64_t size) const {
  std::vector<ConstBuffer> buffers;
  for (std::size_t i = 0; i < count; ++i) buffers.emplace_back(At(index + i, size), size);
  return buffers;
}

}  // namespace kavern::cli
