#include "client/kavern/paged_kv.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "client/copy_pool.h"
#include "client/job_queue.h"
#include "client/store_job.h"
#include "client/wide_affinity.h"

namespace kavern {
namespace {

using Clock = std::chrono::steady_clock;

absl::Status CheckAtLeastOne(const char* field, std::int64_t value) {
  if (value >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": got ", value, ", expected at least 1"));
}

// Which layers the engine has written since stores were last gathered.
class WrittenLayers {
 public:
  explicit WrittenLayers(std::span<const TensorLayout> groups) {
    for (const TensorLayout& group : groups) written_.emplace_back(group.layers.size());
  }

  // Notes one. False: it was noted before.
  bool Note(std::size_t group, std::size_t layer) {
    distrusted_ = distrusted_ || written_[group][layer];
    written_[group][layer] = true;
    any_ = true;
    return !distrusted_;
  }
  // A store that begins now knows nothing of layers that are noted.
  void NoteBegin() { distrusted_ = distrusted_ || any_; }
  // How many from the first on are written: checksums go through the layers in their order.
  std::size_t LayersFromFirst(std::size_t group) const {
    const auto end = std::ranges::find(written_[group], false);
    return static_cast<std::size_t>(end - written_[group].begin());
  }
  void Forget() {
    any_ = false;
    distrusted_ = false;
    for (auto& group : written_) group.assign(group.size(), false);
  }

 private:
  std::vector<std::vector<bool>> written_;  // per group and layer
  bool any_ = false;
  bool distrusted_ = false;  // until Forget()
};

class PagedKvImpl final : public PagedKv {
 public:
  PagedKvImpl(std::shared_ptr<Namespace> ns, std::vector<TensorLayout> groups,
              const PagedKvOptions& options)
      : ns_(std::move(ns)),
        groups_(std::move(groups)),
        options_(options),
        written_(groups_),
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
    MutexLock lock(mu_);
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
    MutexLock lock(mu_);
    const std::uint64_t id = NextId();
    auto begun = std::make_shared<Begun>(id, std::move(store), *ns_, groups_, options_.shard);
    ungathered_.push_back(begun);
    written_.NoteBegin();
    store_jobs_.Add([this, begun] { Lease(begun); });
    return id;
  }

  absl::Status LayerWritten(std::size_t group, std::size_t layer) override {
    if (group >= groups_.size() || layer >= groups_[group].layers.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", layer, " of group ", group, ": there is none"));
    }
    MutexLock one_at_a_time(copy_mu_);
    std::vector<std::shared_ptr<Begun>> stores;
    std::size_t layers = 0;
    bool right = false;
    {
      MutexLock lock(mu_);
      right = written_.Note(group, layer);
      layers = written_.LayersFromFirst(group);
      for (const auto& store : ungathered_) {
        if (store->answered) stores.push_back(store);
      }
    }
    for (const auto& store : stores) {
      if (right) {
        store->job.CopyLayers(copy_pool_, group, layers);
      } else {
        store->job.CopyAnew();
      }
    }
    return absl::OkStatus();
  }

  void Gather(std::chrono::milliseconds patience) override { GatherOf(TakeAll(), patience); }
  absl::Status GatherStores(std::span<const std::uint64_t> ids,
                            std::chrono::milliseconds patience) override {
    KAVERN_ASSIGN_OR_RETURN(Stores stores, Take(ids));
    GatherOf(std::move(stores), patience);
    return absl::OkStatus();
  }

  void GiveUpStores() override { GiveUpOf(TakeAll()); }
  absl::Status GiveUpStores(std::span<const std::uint64_t> ids) override {
    KAVERN_ASSIGN_OR_RETURN(Stores stores, Take(ids));
    GiveUpOf(std::move(stores));
    return absl::OkStatus();
  }

  std::vector<PagedResult> TakeResults(std::chrono::milliseconds patience) override {
    const Clock::time_point until = Clock::now() + patience;
    MutexLock lock(mu_);
    while (results_.empty() && under_way_ > 0 && finished_.WaitUntil(mu_, until)) {
    }
    return std::exchange(results_, {});
  }

  bool Drain(std::chrono::milliseconds deadline) override {
    GiveUpStores();
    const Clock::time_point until = Clock::now() + deadline;
    MutexLock lock(mu_);
    while (under_way_ > 0) {
      if (!finished_.WaitUntil(mu_, until) && under_way_ > 0) return false;
    }
    return true;
  }

 private:
  // A store that was begun. The flags are guarded by mu_; the job is the store thread's until it is
  // answered, then whoever's holds copy_mu_.
  struct Begun {
    template <typename... Arguments>
    explicit Begun(Arguments&&... arguments) : job(std::forward<Arguments>(arguments)...) {}
    client::StoreJob job;
    bool answered = false;
    absl::StatusCode given_up = absl::StatusCode::kOk;  // by whoever did not wait for the answer
  };
  using Stores = std::vector<std::shared_ptr<Begun>>;

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

  std::uint64_t NextId() KAVERN_REQUIRES(mu_) {
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
    result.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    return result;
  }

  // On the store thread. Whoever is late is finished here, for nobody else waits for it.
  void Lease(const std::shared_ptr<Begun>& store) {
    store->job.Lease(options_.store_deadline);
    {
      MutexLock lock(mu_);
      store->answered = true;
      answered_.NotifyAll();
      if (store->given_up == absl::StatusCode::kOk) return;
    }
    store->job.GiveUp(WhyGivenUp(store->given_up));
    Finish(store->job.TakeResult());
  }

  Stores TakeAll() {
    MutexLock lock(mu_);
    written_.Forget();
    return std::exchange(ungathered_, {});
  }

  absl::StatusOr<Stores> Take(std::span<const std::uint64_t> ids) {
    Stores taken;
    MutexLock lock(mu_);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] >= 1 && ids[i] <= last_id_) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "ids[", i, "]: got ", ids[i], ", expected the number of a store that was begun"));
    }
    std::erase_if(ungathered_, [&](const std::shared_ptr<Begun>& store) {
      if (std::ranges::find(ids, store->job.id()) == ids.end()) return false;
      taken.push_back(store);
      return true;
    });
    return taken;
  }

  static absl::Status WhyGivenUp(absl::StatusCode code) {
    return {code, code == absl::StatusCode::kDeadlineExceeded
                      ? "the daemon granted no memory in time"
                      : "given up before its pages were copied"};
  }

  // Of `stores`, those that the daemon answered by `until`; the others are given up.
  Stores Answered(Stores stores, Clock::time_point until, absl::StatusCode code) {
    MutexLock lock(mu_);
    std::erase_if(stores, [&](const std::shared_ptr<Begun>& store) KAVERN_REQUIRES(mu_) {
      while (!store->answered && answered_.WaitUntil(mu_, until)) {
      }
      if (store->answered) return false;
      store->given_up = code;
      return true;
    });
    return stores;
  }

  void GatherOf(Stores stores, std::chrono::milliseconds patience) {
    stores =
        Answered(std::move(stores), Clock::now() + patience, absl::StatusCode::kDeadlineExceeded);
    MutexLock one_at_a_time(copy_mu_);
    for (const auto& store : stores) {
      for (std::size_t group = 0; group < groups_.size(); ++group) {
        store->job.CopyLayers(copy_pool_, group, groups_[group].layers.size());
      }
      store_jobs_.Add([this, store] {
        store->job.Commit(options_.store_deadline);
        Finish(store->job.TakeResult());
      });
    }
  }

  void GiveUpOf(Stores stores) {
    constexpr auto kCode = absl::StatusCode::kCancelled;
    for (const auto& store : Answered(std::move(stores), Clock::time_point::min(), kCode)) {
      store_jobs_.Add([this, store] {
        {
          MutexLock one_at_a_time(copy_mu_);  // LayerWritten() may be copying it
          store->job.GiveUp(WhyGivenUp(kCode));
        }
        Finish(store->job.TakeResult());
      });
    }
  }

  const std::shared_ptr<Namespace> ns_;
  const std::vector<TensorLayout> groups_;
  const PagedKvOptions options_;

  Mutex copy_mu_;  // one thread copies at a time; taken before mu_
  Mutex mu_;
  CondVar answered_;
  CondVar finished_;
  std::uint64_t last_id_ KAVERN_GUARDED_BY(mu_) = 0;
  std::size_t under_way_ KAVERN_GUARDED_BY(mu_) = 0;
  Stores ungathered_ KAVERN_GUARDED_BY(mu_);
  WrittenLayers written_ KAVERN_GUARDED_BY(mu_);
  std::vector<PagedResult> results_ KAVERN_GUARDED_BY(mu_);

  client::CopyPool copy_pool_;
  // Last: their threads use everything above.
  client::JobQueue load_jobs_;
  client::JobQueue store_jobs_;
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
  absl::Status LayerWritten(std::size_t group, std::size_t layer) override {
    KAVERN_RETURN_IF_ERROR(CheckProcess());
    return impl_->LayerWritten(group, layer);
  }
  void Gather(std::chrono::milliseconds patience) override {
    if (CheckProcess().ok()) impl_->Gather(patience);
  }
  absl::Status GatherStores(std::span<const std::uint64_t> ids,
                            std::chrono::milliseconds patience) override {
    return CheckProcess().ok() ? impl_->GatherStores(ids, patience) : absl::OkStatus();
  }
  void GiveUpStores() override {
    if (CheckProcess().ok()) impl_->GiveUpStores();
  }
  absl::Status GiveUpStores(std::span<const std::uint64_t> ids) override {
    return CheckProcess().ok() ? impl_->GiveUpStores(ids) : absl::OkStatus();
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
        "this PagedKv belongs to the process that this one was forked from");
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
  KAVERN_RETURN_IF_ERROR(CheckAtLeastOne("load_threads", options.load_threads));
  KAVERN_RETURN_IF_ERROR(CheckAtLeastOne("copy_threads", options.copy_threads));
  KAVERN_RETURN_IF_ERROR(CheckAtLeastOne("load_deadline in ms", options.load_deadline.count()));
  KAVERN_RETURN_IF_ERROR(CheckAtLeastOne("store_deadline in ms", options.store_deadline.count()));
  const client::WideAffinity wide;
  return std::make_unique<PagedKvOfProcess>(
      std::make_unique<PagedKvImpl>(std::move(ns), std::move(groups), options));
}

}  // namespace kavern
