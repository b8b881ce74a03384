// Random calls against a naive reference: what is granted, exists or is declined, what is visible,
// what is evicted, and every byte that is fetched. One namespace, one thread, all memory ready
// before each call. What this does not check: rebalancing between namespaces, threads, directories
// read by clients.
#include <cstdlib>
#include <functional>
#include <map>
#include <random>

#include "gmock/gmock.h"
#include "tests/unit/tiers/store_fixture.h"
#include "tiers/tiered_store.h"

namespace kavern::tiers {
namespace {

constexpr std::uint32_t kParts = 2;
constexpr std::uint64_t kSlots = 32;
constexpr int kNodes = 40;

// A slot is in use while somebody holds it: the block that owns it, and each lease.
using Slot = std::shared_ptr<int>;

struct ModelBlock {
  int parent = -1;
  std::vector<Slot> parts = std::vector<Slot>(kParts);
  int writers = 0;
  int leases = 0;
  std::uint64_t last_use = 0;

  bool visible() const {
    for (const Slot& part : parts) {
      if (part == nullptr) return false;
    }
    return true;
  }
  bool any_part() const { return parts[0] != nullptr || parts[1] != nullptr; }
};
using ModelBlockPtr = std::shared_ptr<ModelBlock>;

struct HeldWrite {
  StoreGrant grant;
  std::uint32_t part;
  std::vector<int> nodes;
  std::vector<ModelBlockPtr> blocks;
  std::vector<Slot> slots;
  std::size_t committed = 0;
};

struct HeldRead {
  FetchResult result;
  std::uint32_t part;
  std::vector<BlockKey> keys;
  std::vector<ModelBlockPtr> blocks;
  std::vector<Slot> slots;
};

class TieredStoreModelTest : public StoreFixture {
 protected:
  // ---- The reference ----
  bool IsOrphan(int node) const {
    for (int at = node; at >= 0; at = parents_[static_cast<std::size_t>(at)]) {
      if (!blocks_.contains(at)) return true;
    }
    return false;
  }
  bool HasChildren(int node) const {
    for (const auto& [child, block] : blocks_) {
      if (parents_[static_cast<std::size_t>(child)] == node) return true;
    }
    return false;
  }
  std::uint64_t SlotsInUse() const {
    std::set<const int*> slots;
    for (const auto& [node, block] : blocks_) {
      for (const Slot& part : block->parts) slots.insert(part.get());
    }
    for (const HeldWrite& write : writes_) {
      for (const Slot& slot : write.slots) slots.insert(slot.get());
    }
    for (const HeldRead& read : reads_) {
      for (const Slot& slot : read.slots) slots.insert(slot.get());
    }
    slots.erase(nullptr);
    return slots.size();
  }
  // The blocks that the store may evict next: more than one only among orphans.
  std::vector<int> Victims(const std::set<int>& protected_nodes) const {
    std::vector<int> victims;
    std::uint64_t oldest = UINT64_MAX;
    for (const auto& [node, block] : blocks_) {
      if (!block->visible() || block->writers > 0 || block->leases > 0) continue;
      if (HasChildren(node) || protected_nodes.contains(node)) continue;
      const std::uint64_t use = IsOrphan(node) ? 0 : block->last_use;
      if (use < oldest) victims.clear();
      if (use <= oldest) victims.push_back(node);
      oldest = std::min(oldest, use);
    }
    return victims;
  }
  void DropWriter(int node, const ModelBlockPtr& block) {
    --block->writers;
    const auto found = blocks_.find(node);
    if (found == blocks_.end() || found->second != block) return;
    if (block->writers == 0 && !block->any_part()) blocks_.erase(found);
  }

  // ---- Steps ----
  std::uint64_t Random(std::uint64_t below) { return random_() % below; }
  BlockKey Key(int node) const { return KeyOf(static_cast<std::uint64_t>(node)); }

  std::vector<int> RandomPath() {
    std::vector<int> path;
    for (int at = static_cast<int>(Random(kNodes)); at >= 0;
         at = parents_[static_cast<std::size_t>(at)]) {
      path.insert(path.begin(), at);
    }
    return path;
  }
  std::vector<BlockKey> Keys(std::span<const int> nodes) const {
    std::vector<BlockKey> keys;
    for (const int node : nodes) keys.push_back(Key(node));
    return keys;
  }

  void BeginStep() {
    std::vector<int> path = RandomPath();
    const std::size_t from = Random(4) == 0 ? Random(path.size()) : 0;
    const int parent = from == 0 ? -1 : path[from - 1];
    path.erase(path.begin(), path.begin() + static_cast<std::ptrdiff_t>(from));
    const auto part = static_cast<std::uint32_t>(Random(kParts));
    const std::vector<BlockKey> keys = Keys(path);
    StoreRequest request;
    request.parent = parent < 0 ? Root(ns_) : Key(parent);
    request.keys = keys;
    request.shard = part;
    auto grant = store_->BeginStore(ns_, request);
    if (parent >= 0 && !blocks_.contains(parent)) {
      ASSERT_EQ(grant.status().code(), absl::StatusCode::kInvalidArgument);
      return;
    }
    ASSERT_TRUE(grant.ok()) << grant.status().ToString();
    CheckGrant(*std::move(grant), parent, path, part);
  }

  void CheckGrant(StoreGrant grant, int parent, const std::vector<int>& path, std::uint32_t part) {
    HeldWrite write;
    write.part = part;
    std::set<int> chain = {parent};
    chain.insert(path.begin(), path.end());
    std::vector<StoreOutcome> expected(path.size(), StoreOutcome::kDeclined);
    for (std::size_t i = 0; i < path.size(); ++i) {
      const int node = path[i];
      if (blocks_.contains(node) && blocks_[node]->parts[part] != nullptr) {
        expected[i] = StoreOutcome::kExists;
        continue;
      }
      // What this very call has made pending is kept by its writers.
      while (SlotsInUse() + write.slots.size() >= kSlots && EvictOne(chain)) {
      }
      if (SlotsInUse() + write.slots.size() >= kSlots) break;
      ModelBlockPtr& block = blocks_[node];
      if (block == nullptr) block = std::make_shared<ModelBlock>();
      ++block->writers;
      write.nodes.push_back(node);
      write.blocks.push_back(block);
      write.slots.push_back(std::make_shared<int>());
      expected[i] = StoreOutcome::kGranted;
    }
    ASSERT_THAT(grant.outcomes, ::testing::ContainerEq(expected));
    ASSERT_EQ(grant.lease.size(), write.slots.size());
    for (std::size_t i = 0; i < grant.lease.size(); ++i) {
      FillPayload(grant.lease.extent(i), grant.lease.key(i), part);
    }
    write.grant = std::move(grant);
    if (!write.slots.empty()) writes_.push_back(std::move(write));
  }

  bool EvictOne(const std::set<int>& chain) {
    const std::vector<int> victims = Victims(chain);
    for (const int node : victims) {
      // Among equals it is the store's choice. (What it evicted it may not have made pending
      // again.)
      if (victims.size() > 1 && IsCached(ns_, Key(node))) continue;
      blocks_.erase(node);
      ++evicted_;
      return true;
    }
    EXPECT_TRUE(victims.empty()) << "the store evicted none of the oldest blocks";
    return false;
  }

  void CommitStep() {
    if (writes_.empty()) return;
    const std::size_t which = Random(writes_.size());
    HeldWrite& write = writes_[which];
    const std::size_t count = 1 + Random(write.slots.size() - write.committed);
    std::vector<std::uint32_t> checksums;
    std::uint32_t expected = 0;
    for (std::size_t i = write.committed; i < write.committed + count; ++i) {
      checksums.push_back(
          ChecksumOf(write.grant.lease.extent(i), write.grant.lease.key(i), write.part));
      const auto found = blocks_.find(write.nodes[i]);
      const bool alive = found != blocks_.end() && found->second == write.blocks[i];
      if (alive) {
        ++expected;
        Slot& part = write.blocks[i]->parts[write.part];
        if (part == nullptr) part = write.slots[i];
        DropWriter(write.nodes[i], write.blocks[i]);
      }
      write.slots[i] = nullptr;
    }
    for (std::size_t i = write.committed + count; i > write.committed; --i) {
      write.blocks[i - 1]->last_use = ++use_;
    }
    const auto published = store_->CommitStore(
        write.grant.lease, static_cast<std::uint32_t>(write.committed), checksums);
    ASSERT_TRUE(published.ok());
    ASSERT_EQ(*published, expected);
    write.committed += count;
    if (write.committed == write.slots.size()) Erase(writes_, which);
  }

  void AbortStep() {
    if (writes_.empty()) return;
    const std::size_t which = Random(writes_.size());
    HeldWrite& write = writes_[which];
    for (std::size_t i = write.committed; i < write.slots.size(); ++i) {
      DropWriter(write.nodes[i], write.blocks[i]);
    }
    Erase(writes_, which);
  }

  void FetchStep() {
    const std::vector<int> path = RandomPath();
    HeldRead read;
    read.part = static_cast<std::uint32_t>(Random(kParts));
    read.keys = Keys(path);
    read.result = Fetch(ns_, read.keys, read.part);
    std::vector<std::uint32_t> missing;
    for (std::uint32_t i = 0; i < path.size(); ++i) {
      const auto found = blocks_.find(path[i]);
      if (found == blocks_.end() || !found->second->visible()) {
        missing.push_back(i);
        continue;
      }
      ++found->second->leases;
      read.blocks.push_back(found->second);
      read.slots.push_back(found->second->parts[read.part]);
    }
    for (auto block = read.blocks.rbegin(); block != read.blocks.rend(); ++block) {
      (*block)->last_use = ++use_;
    }
    ASSERT_THAT(read.result.missing, ::testing::ContainerEq(missing));
    if (!read.slots.empty()) reads_.push_back(std::move(read));
  }

  void ReleaseStep() {
    if (reads_.empty()) return;
    const std::size_t which = Random(reads_.size());
    HeldRead& read = reads_[which];
    ASSERT_TRUE(HoldsPayloads(read.result, read.keys, read.part));
    verified_ += read.slots.size();
    for (const ModelBlockPtr& block : read.blocks) --block->leases;
    Erase(reads_, which);
  }

  void PurgeStep() {
    if (Random(20) != 0) return;
    std::uint64_t visible = 0;
    for (const auto& [node, block] : blocks_) visible += block->visible() ? 1 : 0;
    blocks_.clear();
    ASSERT_EQ(*store_->Purge(ns_.fingerprint()), visible);
  }

  template <typename T>
  static void Erase(std::vector<T>& all, std::size_t which) {
    std::swap(all[which], all.back());
    all.pop_back();
  }

  void Compare() {
    for (int node = 0; node < kNodes; ++node) {
      const auto found = blocks_.find(node);
      const bool visible = found != blocks_.end() && found->second->visible();
      ASSERT_EQ(IsCached(ns_, Key(node)), visible) << "block " << node;
    }
    ASSERT_EQ(store_->GetStatus().used_bytes, SlotsInUse() * 4096);
    ASSERT_EQ(store_->GetCounters().evicted_blocks, evicted_);
  }

  void Run(std::uint64_t seed, int steps) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    random_.seed(seed);
    ns_ = Open(SpecOf("m", kParts, 1));
    for (int node = 0; node < kNodes; ++node) {
      parents_.push_back(node < 3 ? -1
                                  : static_cast<int>(Random(static_cast<std::uint64_t>(node))));
    }
    const std::vector<std::function<void()>> choices = {
        [this] { BeginStep(); },  [this] { BeginStep(); },   [this] { CommitStep(); },
        [this] { CommitStep(); }, [this] { CommitStep(); },  [this] { AbortStep(); },
        [this] { FetchStep(); },  [this] { ReleaseStep(); }, [this] { PurgeStep(); }};
    for (int step = 0; step < steps; ++step) {
      SCOPED_TRACE("step " + std::to_string(step));
      store_->Quiesce();
      choices[Random(choices.size())]();
      if (HasFatalFailure()) return;
      Compare();
      if (HasFatalFailure()) return;
      if (step % 50 == 0) ExpectSound();
    }
  }

  void TearDown() override {
    writes_.clear();
    reads_.clear();
    ns_.Reset();
    StoreFixture::TearDown();
  }

  std::mt19937_64 random_;
  NamespaceRef ns_;
  std::vector<int> parents_;
  std::map<int, ModelBlockPtr> blocks_;
  std::vector<HeldWrite> writes_;
  std::vector<HeldRead> reads_;
  std::uint64_t use_ = 0;
  std::uint64_t evicted_ = 0;
  std::uint64_t verified_ = 0;
};

TEST_F(TieredStoreModelTest, AgreesWithANaiveReferenceOnRandomCalls) {
  // 40 blocks in a random tree, two parts each, compete for 32 slots; up to any number of leases at
  // once.
  const char* given = std::getenv("KAVERN_TEST_SEED");
  const std::uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::cout << "KAVERN_TEST_SEED=" << seed << "\n";
  Start(kSlots / kSlotsPerRegion);
  Run(seed, 4000);
  EXPECT_GT(evicted_, 0U);
  EXPECT_GT(verified_, 0U);
}

}  // namespace
}  // namespace kavern::tiers
