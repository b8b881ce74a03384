#include "client/kavern/paged_kv.h"

#include <unistd.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "client/copy_pool.h"
#include "client/wide_affinity.h"

namespace kavern {

absl::Status TensorLayout::Validate() const {
  if (layers.empty()) return absl::InvalidArgumentError("layers: none given");
  if (blocks_per_part == 0) {
    return absl::InvalidArgumentError("blocks_per_part: got 0, expected at least 1");
  }
  if (block_count == 0 || block_count > UINT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_count: got ", block_count, ", expected 1 to ", UINT32_MAX));
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerTensor& layer = layers[i];
    if (layer.base == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("layers[", i, "].base: got a null pointer"));
    }
    if (layer.block_bytes == 0 || layer.block_bytes > KvLayout::kPartBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("layers[", i, "].block_bytes: got ",
                                                     layer.block_bytes, ", expected 1 to ",
                                                     KvLayout::kPartBytesMax));
    }
    if (layer.block_stride < layer.block_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "layers[", i, "].block_stride: got ", layer.block_stride, ", expected at least ",
          layer.block_bytes, ", the bytes of a block of that layer"));
    }
  }
  return absl::OkStatus();
}

std::uint64_t TensorLayout::PartBytes() const {
  return std::accumulate(layers.begin(), layers.end(), std::uint64_t{0},
                         [this](std::uint64_t sum, const LayerTensor& layer) {
                           return sum + layer.block_bytes * blocks_per_part;
                         });
}

void TensorLayout::AppendPieces(std::span<const std::uint32_t> blocks,
                                std::vector<MutableBuffer>& out) const {
  for (const LayerTensor& layer : layers) {
    for (const std::uint32_t block : blocks) {
      out.emplace_back(layer.base + block * layer.block_stride, layer.block_bytes);
    }
  }
}

namespace {

using Clock = std::chrono::steady_clock;

// The daemon's answer to a store comes in pieces of at most so many keys.
constexpr std::size_t kKeysPerLease = 512;

// Threads that run jobs in order.
class JobQueue {
 public:
  JobQueue(const char* name, int threads) {
    for (int i = 0; i < threads; ++i) threads_.push_back(NamedThread(name, [this] { Loop(); }));
  }
  ~JobQueue() {
    {
      MutexLock lock(mu_);
      stop_ = true;
      jobs_.clear();
      changed_.NotifyAll();
    }
    for (std::thread& thread : threads_) thread.join();
  }
  JobQueue(const JobQueue&) = delete;
  JobQueue& operator=(const JobQueue&) = delete;

  void Add(std::function<void()> job) {
    MutexLock lock(mu_);
    jobs_.push_back(std::move(job));
    changed_.NotifyOne();
  }

 private:
  void Loop() {
    for (;;) {
      std::function<void()> job;
      {
        MutexLock lock(mu_);
        while (!stop_ && jobs_.empty()) changed_.Wait(mu_);
        if (stop_) return;
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
      job();
    }
  }

  Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> jobs_ KAVERN_GUARDED_BY(mu_);
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

class PagedKvImpl final : public PagedKv {
 public:
  PagedKvImpl(std::shared_ptr<Namespace> ns, std::vector<TensorLayout> groups,
              const PagedKvOptions& options)
      : ns_(std::move(ns)),
        groups_(std::move(groups)),
        options_(options),
        copy_pool_(options.copy_threads),
        load_jobs_("kavern-load", options.load_threads),
        store_jobs_("kavern-store", 1) {}

  absl::StatusOr<std::uint64_t> BeginLoad(PagedLoad load) override {
    if (load.groups.size() != groups_.size()) {
      return WrongCount("groups", load.groups.size(), groups_.size());
    }
    for (std::size_t group = 0; group < groups_.size(); ++group) {
      KAVERN_RETURN_IF_ERROR(CheckBlocks(group, load.groups[group].keys.size(),  //
                                         load.groups[group].blocks));
    }
    const std::uint64_t id = NextId();
    load_jobs_.Add([this, id, begin = Clock::now(), plan = std::move(load)] {
      Finish(RunLoad(id, begin, plan));
    });
    return id;
  }

  absl::StatusOr<std::uint64_t> BeginStore(PagedStore store) override {
    if (store.keys.empty()) return absl::InvalidArgumentError("keys: none given");
    if (store.blocks.size() != groups_.size()) {
      return WrongCount("blocks", store.blocks.size(), groups_.size());
    }
    for (std::size_t group = 0; group < groups_.size(); ++group) {
      KAVERN_RETURN_IF_ERROR(CheckBlocks(group, store.keys.size(), store.blocks[group]));
    }
    const std::uint64_t id = NextId();
    auto begun = std::make_shared<Begun>();
    begun->plan = std::move(store);
    begun->result.id = id;
    {
      MutexLock lock(mu_);
      ungathered_.push_back(begun);
    }
    store_jobs_.Add([this, begun] { Lease(begun); });
    return id;
  }

  void Gather(std::chrono::milliseconds patience) override {
    const Clock::time_point until = Clock::now() + patience;
    std::vector<std::shared_ptr<Begun>> stores;
    {
      MutexLock lock(mu_);
      stores = std::move(ungathered_);
      ungathered_.clear();
      for (const auto& store : stores) {
        while (!store->answered && leased_.WaitUntil(mu_, until)) {
        }
        if (!store->answered) store->late = true;
      }
    }
    for (const auto& store : stores) {
      // Whoever is late is finished by Lease().
      if (store->late) continue;
      const Clock::time_point begin = Clock::now();
      Fill(*store);
      store->result.seconds += SecondsSince(begin);
      store_jobs_.Add([this, store] { Commit(*store); });
    }
  }

  std::vector<PagedResult> TakeResults(std::chrono::milliseconds patience) override {
    const Clock::time_point until = Clock::now() + patience;
    MutexLock lock(mu_);
    while (results_.empty() && under_way_ > 0 && finished_.WaitUntil(mu_, until)) {
    }
    return std::exchange(results_, {});
  }

  bool Drain(std::chrono::milliseconds deadline) override {
    Gather(std::chrono::milliseconds(0));
    const Clock::time_point until = Clock::now() + deadline;
    MutexLock lock(mu_);
    while (under_way_ > 0) {
      if (!finished_.WaitUntil(mu_, until) && under_way_ > 0) return false;
    }
    return true;
  }

 private:
  // A store between Begin and its report.
  struct Begun {
    PagedStore plan;
    Clock::time_point begin = Clock::now();
    bool answered = false;  // guarded by mu_, as is `late`
    bool late = false;
    // One per kKeysPerLease keys and group, in this order; fewer where the daemon declined.
    struct Leased {
      StoreLease lease;
      std::size_t group = 0;
      std::size_t first = 0;  // key of the plan
      std::size_t count = 0;
      std::size_t filled = 0;
    };
    std::vector<Leased> leases;
    PagedResult result;
  };

  static absl::Status WrongCount(const char* field, std::size_t got, std::size_t expected) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": got ", got, " entries, expected ",
                                                   expected, ", one for every layer group"));
  }

  absl::Status CheckBlocks(std::size_t group, std::size_t keys,
                           const std::vector<std::uint32_t>& blocks) const {
    const TensorLayout& layout = groups_[group];
    if (blocks.size() != keys * layout.blocks_per_part) {
      return absl::InvalidArgumentError(absl::StrCat(
          "blocks of group ", group, ": got ", blocks.size(), ", expected ",
          keys * layout.blocks_per_part, ", ", layout.blocks_per_part, " for every key"));
    }
    for (const std::uint32_t block : blocks) {
      if (block >= layout.block_count) {
        return absl::InvalidArgumentError(absl::StrCat("blocks of group ", group, ": got ", block,
                                                       ", expected less than ",  //
                                                       layout.block_count));
      }
    }
    return absl::OkStatus();
  }

  std::uint64_t NextId() {
    MutexLock lock(mu_);
    ++under_way_;
    return ++last_id_;
  }

  void Finish(PagedResult result) {
    MutexLock lock(mu_);
    results_.push_back(std::move(result));
    --under_way_;
    finished_.NotifyAll();
  }

  std::vector<MutableBuffer> PiecesOf(std::size_t group,
                                      std::span<const std::uint32_t> blocks) const {
    const TensorLayout& layout = groups_[group];
    std::vector<MutableBuffer> pieces;
    pieces.reserve(blocks.size() * layout.layers.size());
    for (std::size_t i = 0; i < blocks.size(); i += layout.blocks_per_part) {
      layout.AppendPieces(blocks.subspan(i, layout.blocks_per_part), pieces);
    }
    return pieces;
  }

  PagedResult RunLoad(std::uint64_t id, Clock::time_point begin, const PagedLoad& plan) {
    PagedResult result;
    result.id = id;
    result.is_load = true;
    const Clock::time_point until = begin + options_.load_deadline;
    for (std::size_t group = 0; group < groups_.size(); ++group) {
      const PagedBlocks& blocks = plan.groups[group];
      auto& codes = result.codes.emplace_back(blocks.keys.size(), absl::StatusCode::kUnavailable);
      auto& tiers = result.tiers.emplace_back(blocks.keys.size(), Tier::kNone);
      if (blocks.keys.empty() || !result.status.ok()) continue;
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now());
      if (left <= std::chrono::milliseconds(0)) {
        result.status = absl::DeadlineExceededError("the load waited for its turn too long");
        continue;
      }
      auto fetched = ns_->FetchInto({.keys = blocks.keys,
                                     .shard = options_.shard,
                                     .group = static_cast<std::uint32_t>(group),
                                     .deadline = left},
                                    PiecesOf(group, blocks.blocks));
      if (!fetched.ok()) {
        result.status = fetched.status();
        continue;
      }
      codes = std::move(fetched->codes);
      tiers = std::move(fetched->tiers);
      result.bytes += fetched->fetched_bytes;
    }
    result.seconds = SecondsSince(begin);
    return result;
  }

  // Asks the daemon for the memory of a store.
  void Lease(const std::shared_ptr<Begun>& store) {
    const Clock::time_point begin = Clock::now();
    if (absl::Status status = LeaseAll(*store); !status.ok()) {
      store->leases.clear();
      store->result.status = std::move(status);
    }
    store->result.seconds = SecondsSince(begin);
    {
      MutexLock lock(mu_);
      store->answered = true;
      leased_.NotifyAll();
      if (!store->late) return;
    }
    store->leases.clear();  // gives the memory back
    store->result.status = absl::DeadlineExceededError("the daemon granted no memory in time");
    Finish(std::move(store->result));
  }

  absl::Status LeaseAll(Begun& store) {
    const Clock::time_point until = store.begin + options_.store_deadline;
    const std::span<const BlockKey> keys = store.plan.keys;
    std::size_t granted = keys.size();  // keys that no group has declined
    for (std::size_t first = 0; first < granted; first += kKeysPerLease) {
      for (std::uint32_t group = 0; group < groups_.size() && first < granted; ++group) {
        const auto left =
            std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now());
        if (left <= std::chrono::milliseconds(0)) {
          return absl::DeadlineExceededError("the daemon granted no memory in time");
        }
        const std::size_t count = std::min(kKeysPerLease, granted - first);
        StoreRequest request;
        request.parent = first == 0 ? store.plan.parent : keys[first - 1];
        request.keys = keys.subspan(first, count);
        request.shard = options_.shard;
        request.group = group;
        request.deadline = left;
        KAVERN_ASSIGN_OR_RETURN(StoreLease lease, ns_->BeginStore(request));
        const auto outcomes = lease.outcomes();
        const auto declined = std::find(outcomes.begin(), outcomes.end(), StoreOutcome::kDeclined);
        if (declined != outcomes.end()) {
          granted = first + static_cast<std::size_t>(declined - outcomes.begin());
          store.result.status = absl::ResourceExhaustedError(lease.decline_reason());
        }
        store.leases.push_back({std::move(lease), group, first, count, 0});
      }
    }
    store.result.stored_keys = granted;
    return absl::OkStatus();
  }

  void Fill(Begun& store) {
    struct Item {
      StoreLease* lease;
      std::size_t group;
      std::size_t in_lease;
      std::size_t in_plan;
    };
    std::vector<Item> items;
    for (auto& leased : store.leases) {
      for (std::size_t i = 0; i < leased.count; ++i) {
        if (leased.first + i >= store.result.stored_keys) break;
        if (leased.lease.bytes(i).empty()) continue;  // exists
        items.push_back({&leased.lease, leased.group, i, leased.first + i});
        ++leased.filled;
        store.result.bytes += groups_[leased.group].PartBytes();
      }
    }
    copy_pool_.Run(items.size(), [&](std::size_t n) {
      const Item& item = items[n];
      const std::size_t pages = groups_[item.group].blocks_per_part;
      const auto pieces =
          PiecesOf(item.group,
                   std::span(store.plan.blocks[item.group]).subspan(item.in_plan * pages, pages));
      const std::vector<ConstBuffer> sources(pieces.begin(), pieces.end());
      // What is not filled is not committed, nor is what follows it.
      item.lease->Fill(item.in_lease, sources).IgnoreError();
    });
  }

  void Commit(Begun& store) {
    const Clock::time_point begin = Clock::now();
    for (auto& leased : store.leases) {
      if (leased.filled == 0) continue;
      absl::Status status = leased.lease.Commit(options_.store_deadline);
      if (status.ok()) continue;
      store.result.status = std::move(status);
      store.result.stored_keys = std::min(store.result.stored_keys, leased.first);
      break;
    }
    if (!store.result.status.ok() && !absl::IsResourceExhausted(store.result.status)) {
      store.result.bytes = 0;
    }
    store.leases.clear();
    store.result.seconds += SecondsSince(begin);
    Finish(std::move(store.result));
  }

  const std::shared_ptr<Namespace> ns_;
  const std::vector<TensorLayout> groups_;
  const PagedKvOptions options_;

  Mutex mu_;
  CondVar leased_;
  CondVar finished_;
  std::uint64_t last_id_ KAVERN_GUARDED_BY(mu_) = 0;
  std::size_t under_way_ KAVERN_GUARDED_BY(mu_) = 0;
  std::vector<std::shared_ptr<Begun>> ungathered_ KAVERN_GUARDED_BY(mu_);
  std::vector<PagedResult> results_ KAVERN_GUARDED_BY(mu_);

  client::CopyPool copy_pool_;
  // Last: their threads use everything above.
  JobQueue load_jobs_;
  JobQueue store_jobs_;
};

// What a forked child has of it: neither threads, nor a lock that somebody would open.
class PagedKvOfProcess final : public PagedKv {
 public:
  explicit PagedKvOfProcess(std::unique_ptr<PagedKvImpl> impl) : impl_(std::move(impl)) {}
  ~PagedKvOfProcess() override {
    if (CheckProcess().ok()) return;
    [[maybe_unused]] auto* leaked = impl_.release();
  }

  absl::StatusOr<std::uint64_t> BeginLoad(PagedLoad load) override {
    KAVERN_RETURN_IF_ERROR(CheckProcess());
    return impl_->BeginLoad(std::move(load));
  }
  absl::StatusOr<std::uint64_t> BeginStore(PagedStore store) override {
    KAVERN_RETURN_IF_ERROR(CheckProcess());
    return impl_->BeginStore(std::move(store));
  }
  void Gather(std::chrono::milliseconds patience) override {
    if (CheckProcess().ok()) impl_->Gather(patience);
  }
  std::vector<PagedResult> TakeResults(std::chrono::milliseconds patience) override {
    return CheckProcess().ok() ? impl_->TakeResults(patience) : std::vector<PagedResult>();
  }
  bool Drain(std::chrono::milliseconds deadline) override {
    return !CheckProcess().ok() || impl_->Drain(deadline);
  }

 private:
  absl::Status CheckProcess() const {
    if (getpid() == pid_) return absl::OkStatus();
    return absl::FailedPreconditionError(
        "this PagedKv belongs to the parent process: make a new one after fork()");
  }

  const pid_t pid_ = getpid();
  std::unique_ptr<PagedKvImpl> impl_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PagedKv>> PagedKv::Create(std::shared_ptr<Namespace> ns,
                                                         std::vector<TensorLayout> groups,
                                                         const PagedKvOptions& options) {
  const KvLayout& layout = ns->spec().layout;
  if (groups.size() != layout.groups.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("groups: got ", groups.size(), " tensor layouts, expected ",
                     layout.groups.size(), ", one for every layer group"));
  }
  for (std::size_t i = 0; i < groups.size(); ++i) {
    KAVERN_RETURN_IF_ERROR(groups[i].Validate());
    const std::uint64_t expected = layout.PartBytes(static_cast<std::uint32_t>(i));
    if (groups[i].PartBytes() != expected) {
      return absl::InvalidArgumentError(
          absl::StrCat("groups[", i, "]: its pages hold ", groups[i].PartBytes(),
                       " bytes of a block, expected ", expected, " by the namespace's layout"));
    }
  }
  if (options.shard >= layout.shard_count) {
    return absl::InvalidArgumentError(
        absl::StrCat("shard: got ", options.shard, ", expected less than ", layout.shard_count));
  }
  if (options.load_threads < 1 || options.copy_threads < 1) {
    return absl::InvalidArgumentError("load_threads, copy_threads: expected at least 1");
  }
  if (options.load_deadline <= std::chrono::milliseconds(0) ||
      options.store_deadline <= std::chrono::milliseconds(0)) {
    return absl::InvalidArgumentError("load_deadline, store_deadline: expected above 0");
  }
  const client::WideAffinity wide;
  return std::make_unique<PagedKvOfProcess>(
      std::make_unique<PagedKvImpl>(std::move(ns), std::move(groups), options));
}

}  // namespace kavern
