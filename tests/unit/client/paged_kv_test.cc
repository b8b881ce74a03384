// Pages of an engine's tensors to Kavern and back: the right bytes, each job reported once, and no
// page touched after its report.
#include "client/kavern/paged_kv.h"

#include <sched.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "tests/unit/client/client_fixture.h"

namespace kavern {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::uint32_t kPages = 64;
constexpr std::uint32_t kLayers = 2;
constexpr std::uint32_t kPagesPerPart = 2;
constexpr std::uint64_t kPageBytes = kPartBytes / kLayers / kPagesPerPart;
constexpr std::uint64_t kStride = kPageBytes + 64;  // as padded pages are

// An engine's KV: per layer a tensor of pages.
class Engine {
 public:
  explicit Engine(std::uint8_t fill) {
    for (auto& layer : layers_) layer.assign(kPages * kStride, std::byte{fill});
  }

  TensorLayout Layout() {
    TensorLayout layout;
    layout.block_count = kPages;
    layout.blocks_per_part = kPagesPerPart;
    for (auto& layer : layers_) layout.layers.push_back({layer.data(), kStride, kPageBytes});
    return layout;
  }

  std::span<std::byte> Page(std::uint32_t layer, std::uint32_t page) {
    return std::span(layers_[layer]).subspan(page * kStride, kPageBytes);
  }

  // Fills the pages of one block, so that every byte tells where it belongs.
  void Compute(std::span<const std::uint32_t> pages, std::uint8_t block) {
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      for (std::uint32_t p = 0; p < kPagesPerPart; ++p) {
        std::ranges::generate(Page(layer, pages[p]),
                              [value = block * 16U + layer * 4 + p]() mutable {
                                return static_cast<std::byte>(value += 7);
                              });
      }
    }
  }

 private:
  std::vector<std::byte> layers_[kLayers];
};

class PagedKvTest : public ClientTest {
 protected:
  PagedKvTest() : client_(Connect()), ns_(Open(*client_)), keys_(Keys(*ns_, 1, 4)) {
    for (std::size_t block = 0; block < keys_.size(); ++block) {
      source_.Compute(std::span(from_).subspan(block * kPagesPerPart, kPagesPerPart),
                      static_cast<std::uint8_t>(block));
    }
  }

  std::unique_ptr<PagedKv> Paged(Engine& engine, PagedKvOptions options = {}) {
    auto paged = PagedKv::Create(ns_, {engine.Layout()}, options);
    EXPECT_TRUE(paged.ok()) << paged.status();
    return *std::move(paged);
  }

  static PagedResult Next(PagedKv& paged) {
    std::vector<PagedResult> results;
    EXPECT_TRUE(Eventually([&] { return !(results = paged.TakeResults()).empty(); }));
    EXPECT_EQ(results.size(), 1U);
    return results.empty() ? PagedResult() : results.front();
  }

  PagedResult StoreAll(PagedKv& paged) {
    const auto id = paged.BeginStore({.parent = {}, .keys = keys_, .blocks = {from_}});
    EXPECT_TRUE(id.ok()) << id.status();
    paged.Gather(seconds(20));
    PagedResult result = Next(paged);
    EXPECT_EQ(result.id, *id);
    EXPECT_FALSE(result.is_load);
    return result;
  }

  PagedLoad LoadPlan() const { return {.groups = {{.keys = keys_, .blocks = to_}}}; }

  void ExpectLoaded(Engine& target) {
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      for (std::size_t i = 0; i < from_.size(); ++i) {
        EXPECT_TRUE(std::ranges::equal(source_.Page(layer, from_[i]), target.Page(layer, to_[i])))
            << "layer " << layer << ", page " << i;
      }
    }
  }

  // Begins a store of all keys, and returns when the daemon has granted its memory: stores are
  // asked for in their order.
  void BeginAnswered(PagedKv& paged) {
    ASSERT_TRUE(paged.BeginStore({.parent = {}, .keys = keys_, .blocks = {from_}}).ok());
    const auto last =
        paged.BeginStore({.parent = {}, .keys = Keys(*ns_, 99, 1), .blocks = {{50, 51}}});
    ASSERT_TRUE(last.ok()) << last.status();
    ASSERT_TRUE(paged.GiveUpStores({{*last}}).ok());
    const PagedResult given_up = Next(paged);
    EXPECT_EQ(given_up.id, *last);
    EXPECT_TRUE(absl::IsCancelled(given_up.status)) << given_up.status;  // answered or not
  }

  // What comes back for the keys is what `computed` has in these pages.
  void ExpectStored(const PagedResult& stored, const Engine& computed) {
    ASSERT_TRUE(stored.status.ok()) << stored.status;
    EXPECT_EQ(stored.stored_keys, keys_.size());
    EXPECT_EQ(stored.bytes, keys_.size() * kPartBytes);
    source_ = computed;
    Engine target{0xee};
    const auto reader = Paged(target);
    ASSERT_TRUE(reader->BeginLoad(LoadPlan()).ok());
    const PagedResult loaded = Next(*reader);
    ASSERT_TRUE(loaded.status.ok()) << loaded.status;
    EXPECT_THAT(loaded.codes, testing::ElementsAre(AllOk(keys_.size())));
    ExpectLoaded(target);
  }

  std::unique_ptr<Client> client_;
  std::shared_ptr<Namespace> ns_;
  std::vector<BlockKey> keys_;
  Engine source_{0};
  // Scattered, as block tables are.
  const std::vector<std::uint32_t> from_ = {9, 3, 60, 1, 22, 23, 5, 40};
  const std::vector<std::uint32_t> to_ = {8, 63, 2, 11, 30, 7, 44, 0};
};

TEST_F(PagedKvTest, PagesComeBackToOtherPagesOfAnotherEngine) {
  const auto writer = Paged(source_);
  const PagedResult stored = StoreAll(*writer);
  ASSERT_TRUE(stored.status.ok()) << stored.status;
  EXPECT_EQ(stored.stored_keys, keys_.size());
  EXPECT_EQ(stored.bytes, keys_.size() * kPartBytes);
  EXPECT_EQ(ns_->Match(keys_), keys_.size());

  Engine target{0xee};
  const auto reader = Paged(target, {.copy_threads = 2});
  ASSERT_TRUE(reader->BeginLoad(LoadPlan()).ok());
  const PagedResult loaded = Next(*reader);
  ASSERT_TRUE(loaded.status.ok()) << loaded.status;
  EXPECT_TRUE(loaded.is_load);
  EXPECT_THAT(loaded.codes, testing::ElementsAre(AllOk(keys_.size())));
  ExpectLoaded(target);
  // Nothing else was written: padding and other pages are as they were.
  EXPECT_EQ(target.Page(0, 50)[0], std::byte{0xee});
  EXPECT_EQ(target.Page(0, 8).data()[kPageBytes], std::byte{0xee});
}

// What the engine overwrites after Gather is not what is stored.
TEST_F(PagedKvTest, PagesMayBeOverwrittenAfterGather) {
  const auto writer = Paged(source_);
  ASSERT_TRUE(writer->BeginStore({.parent = {}, .keys = keys_, .blocks = {from_}}).ok());
  writer->Gather(seconds(20));
  Engine copy = source_;
  for (const std::uint32_t page : from_) std::ranges::fill(source_.Page(0, page), std::byte{0xff});
  ASSERT_TRUE(Next(*writer).status.ok());
  source_ = copy;
  Engine target{0xee};
  const auto reader = Paged(target);
  ASSERT_TRUE(reader->BeginLoad(LoadPlan()).ok());
  ASSERT_TRUE(Next(*reader).status.ok());
  ExpectLoaded(target);
}

// Each layer is copied when it is written, so what happens to its pages later is not stored.
TEST_F(PagedKvTest, LayersAreCopiedAsTheyAreWritten) {
  const auto writer = Paged(source_);
  const Engine computed = source_;
  BeginAnswered(*writer);
  for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE(writer->LayerWritten(0, layer).ok());
    for (const std::uint32_t page : from_)
      std::ranges::fill(source_.Page(layer, page), std::byte{});
  }
  writer->Gather(seconds(20));
  ExpectStored(Next(*writer), computed);
}

TEST_F(PagedKvTest, ALayerWrittenBeforeItsTurnWaits) {
  const auto writer = Paged(source_);
  const Engine computed = source_;
  for (const std::uint32_t page : from_) std::ranges::fill(source_.Page(0, page), std::byte{});
  BeginAnswered(*writer);
  ASSERT_TRUE(writer->LayerWritten(0, 1).ok());
  source_ = computed;
  ASSERT_TRUE(writer->LayerWritten(0, 0).ok());
  writer->Gather(seconds(20));
  ExpectStored(Next(*writer), computed);
}

// An engine that computes a step in halves calls twice, and the pages change in between.
TEST_F(PagedKvTest, ALayerWrittenTwiceIsCopiedAnew) {
  const auto writer = Paged(source_);
  const Engine computed = source_;
  for (const std::uint32_t page : from_) std::ranges::fill(source_.Page(0, page), std::byte{});
  BeginAnswered(*writer);
  ASSERT_TRUE(writer->LayerWritten(0, 0).ok());
  ASSERT_TRUE(writer->LayerWritten(0, 1).ok());
  source_ = computed;
  ASSERT_TRUE(writer->LayerWritten(0, 0).ok());
  ASSERT_TRUE(writer->LayerWritten(0, 1).ok());
  writer->Gather(seconds(20));
  ExpectStored(Next(*writer), computed);
  // And only until they are gathered.
  EXPECT_TRUE(absl::IsInvalidArgument(writer->LayerWritten(0, kLayers)));
  EXPECT_TRUE(absl::IsInvalidArgument(writer->LayerWritten(1, 0)));
}

TEST_F(PagedKvTest, AStoreBegunAfterALayerWasWrittenIsCopiedWhole) {
  const auto writer = Paged(source_);
  const Engine computed = source_;
  ASSERT_TRUE(writer->LayerWritten(0, 0).ok());
  for (const std::uint32_t page : from_) std::ranges::fill(source_.Page(0, page), std::byte{});
  BeginAnswered(*writer);
  ASSERT_TRUE(writer->LayerWritten(0, 1).ok());
  source_ = computed;
  writer->Gather(seconds(20));
  ExpectStored(Next(*writer), computed);
}

TEST_F(PagedKvTest, OfAStoreThatIsGivenUpNothingIsStored) {
  const auto writer = Paged(source_);
  BeginAnswered(*writer);
  ASSERT_TRUE(writer->LayerWritten(0, 0).ok());
  writer->GiveUpStores();
  const PagedResult given_up = Next(*writer);
  EXPECT_TRUE(absl::IsCancelled(given_up.status)) << given_up.status;
  EXPECT_EQ(given_up.stored_keys, 0U);
  writer->Gather(seconds(20));
  EXPECT_EQ(ns_->Match(keys_), 0U);
  EXPECT_TRUE(Eventually([&] { return daemon_.leased_bytes() == 0; }));
  EXPECT_TRUE(StoreAll(*writer).status.ok());
}

TEST_F(PagedKvTest, StoresAreGatheredByTheirNumbers) {
  const auto writer = Paged(source_);
  const auto first = writer->BeginStore(
      {.parent = {}, .keys = {keys_[0]}, .blocks = {{from_.begin(), from_.begin() + 2}}});
  const auto other = Keys(*ns_, 7, 1);
  ASSERT_TRUE(writer->BeginStore({.parent = {}, .keys = other, .blocks = {{50, 51}}}).ok());
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(writer->GatherStores({{*first}}, seconds(20)).ok());
  const PagedResult stored = Next(*writer);
  EXPECT_EQ(stored.id, *first);
  EXPECT_TRUE(stored.status.ok()) << stored.status;
  EXPECT_EQ(ns_->Match(other), 0U);
  writer->Gather(seconds(20));
  EXPECT_TRUE(Next(*writer).status.ok());
  EXPECT_EQ(ns_->Match(other), 1U);
}

TEST_F(PagedKvTest, WhatExistsIsNotCopiedAgain) {
  const auto paged = Paged(source_);
  ASSERT_TRUE(StoreAll(*paged).status.ok());
  const PagedResult again = StoreAll(*paged);
  EXPECT_TRUE(again.status.ok()) << again.status;
  EXPECT_EQ(again.stored_keys, keys_.size());
  EXPECT_EQ(again.bytes, 0U);
  EXPECT_TRUE(Eventually([&] { return daemon_.leased_bytes() == 0; }));
}

TEST_F(PagedKvTest, AMissIsReportedForItsKeyOnly) {
  const auto paged = Paged(source_);
  ASSERT_TRUE(StoreAll(*paged).status.ok());
  PagedLoad plan = LoadPlan();
  plan.groups[0].keys[2] = Keys(*ns_, 7, 1)[0];
  ASSERT_TRUE(paged->BeginLoad(plan).ok());
  const PagedResult loaded = Next(*paged);
  EXPECT_TRUE(loaded.status.ok()) << loaded.status;
  auto expected = AllOk(4);
  expected[2] = absl::StatusCode::kNotFound;
  EXPECT_THAT(loaded.codes, testing::ElementsAre(expected));
}

TEST_F(PagedKvTest, ADaemonThatGrantsNoMemoryHoldsTheEngineForItsPatienceOnly) {
  const auto paged = Paged(source_, {.store_deadline = milliseconds(300)});
  daemon_.LoseNextAnswer("BeginStore", /*carried_out=*/true);
  ASSERT_TRUE(paged->BeginStore({.parent = {}, .keys = keys_, .blocks = {from_}}).ok());
  paged->Gather(milliseconds(1));
  const PagedResult late = Next(*paged);
  EXPECT_TRUE(absl::IsDeadlineExceeded(late.status)) << late.status;
  EXPECT_EQ(late.stored_keys, 0U);
  EXPECT_EQ(ns_->Match(keys_), 0U);
  // The next store of the same pages goes through.
  EXPECT_TRUE(StoreAll(*paged).status.ok());
}

TEST_F(PagedKvTest, ALoadThatGetsNoAnswerEndsByItsDeadline) {
  const auto paged = Paged(source_, {.load_deadline = milliseconds(50)});
  ASSERT_TRUE(StoreAll(*paged).status.ok());
  daemon_.LoseNextAnswer("Fetch", /*carried_out=*/false);
  ASSERT_TRUE(paged->BeginLoad(LoadPlan()).ok());
  const PagedResult loaded = Next(*paged);
  EXPECT_TRUE(absl::IsDeadlineExceeded(loaded.status)) << loaded.status;
  EXPECT_EQ(loaded.codes[0],
            std::vector<absl::StatusCode>(keys_.size(), absl::StatusCode::kUnavailable));
}

TEST_F(PagedKvTest, WithoutADaemonBothFailAtOnceAndWorkAgainWhenItIsBack) {
  const auto paged = Paged(source_);
  daemon_.Stop();
  ASSERT_TRUE(Eventually([&] { return !client_->connection().attached; }));
  EXPECT_TRUE(absl::IsUnavailable(StoreAll(*paged).status));
  ASSERT_TRUE(paged->BeginLoad(LoadPlan()).ok());
  EXPECT_TRUE(absl::IsUnavailable(Next(*paged).status));
  daemon_.Start();
  ASSERT_TRUE(client_->WaitUntilAttached(seconds(20)).ok());
  EXPECT_TRUE(StoreAll(*paged).status.ok());
}

TEST_F(PagedKvTest, AFullTierStoresAPrefix) {
  const auto paged = Paged(source_);
  // Held under lease, nothing can be evicted for the store.
  const auto others = Keys(*ns_, 9, 4096);
  std::vector<StoreLease> held;
  for (std::size_t i = 0; i < others.size(); ++i) {
    auto lease = ns_->BeginStore(
        {.parent = i == 0 ? BlockKey{} : others[i - 1], .keys = std::span(others).subspan(i, 1)});
    if (!lease.ok() || lease->outcomes()[0] == StoreOutcome::kDeclined) break;
    held.push_back(*std::move(lease));
  }
  ASSERT_LT(held.size(), others.size());
  held.pop_back();  // room for one
  ASSERT_TRUE(Eventually([&] {
    const auto status = daemon_.store().GetStatus();
    return status.leased_bytes == held.size() * kPartBytes;
  }));
  const PagedResult stored = StoreAll(*paged);
  EXPECT_TRUE(absl::IsResourceExhausted(stored.status)) << stored.status;
  EXPECT_LE(stored.stored_keys, 1U);
  EXPECT_EQ(ns_->Match(keys_), stored.stored_keys);
}

TEST_F(PagedKvTest, PlansThatReachOutsideTheTensorsAreRefused) {
  const auto paged = Paged(source_);
  PagedLoad load = LoadPlan();
  load.groups[0].blocks[5] = kPages;
  EXPECT_TRUE(absl::IsInvalidArgument(paged->BeginLoad(load).status()));
  load.groups[0].blocks.pop_back();
  EXPECT_TRUE(absl::IsInvalidArgument(paged->BeginLoad(load).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(paged->BeginLoad({}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      paged->BeginStore({.parent = {}, .keys = keys_, .blocks = {{1, 2}}}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      paged->BeginStore({.parent = {}, .keys = {}, .blocks = {{}}}).status()));
  EXPECT_TRUE(paged->TakeResults().empty());
}

TEST_F(PagedKvTest, TensorsThatDoNotHoldTheLayoutsPartsAreRefused) {
  TensorLayout layout = source_.Layout();
  layout.layers.pop_back();
  const auto short_part = PagedKv::Create(ns_, {layout}, {});
  EXPECT_THAT(std::string(short_part.status().message()), testing::HasSubstr("expected 4096"));
  EXPECT_TRUE(absl::IsInvalidArgument(PagedKv::Create(ns_, {}, {}).status()));
  layout = source_.Layout();
  layout.layers[1].block_stride = kPageBytes - 1;
  const auto overlap = PagedKv::Create(ns_, {layout}, {});
  EXPECT_THAT(std::string(overlap.status().message()), testing::HasSubstr("layers[1]"));
  EXPECT_TRUE(
      absl::IsInvalidArgument(PagedKv::Create(ns_, {source_.Layout()}, {.shard = 1}).status()));
}

// The engine may not have computed their pages yet.
TEST_F(PagedKvTest, DrainGivesUpStoresThatWereNotGathered) {
  const auto paged = Paged(source_);
  BeginAnswered(*paged);
  EXPECT_TRUE(paged->Drain(seconds(20)));
  EXPECT_TRUE(absl::IsCancelled(Next(*paged).status));
  EXPECT_EQ(ns_->Match(keys_), 0U);
}

TEST_F(PagedKvTest, DrainEndsWhatWasBegun) {
  const auto paged = Paged(source_);
  ASSERT_TRUE(StoreAll(*paged).status.ok());
  // Loads run at once, so each has pages of its own, as an engine sees to.
  Engine target{0xee};
  const auto reader = Paged(target);
  const auto loads = static_cast<std::uint32_t>(kPages / to_.size());
  for (std::uint32_t load = 0; load < loads; ++load) {
    PagedLoad plan = LoadPlan();
    std::vector<std::uint32_t>& pages = plan.groups[0].blocks;
    std::iota(pages.begin(), pages.end(), load * static_cast<std::uint32_t>(pages.size()));
    ASSERT_TRUE(reader->BeginLoad(std::move(plan)).ok());
  }
  EXPECT_TRUE(reader->Drain(seconds(20)));
  EXPECT_EQ(reader->TakeResults().size(), loads);
}

// A thread bound to one processor, as an engine's is, keeps its binding.
TEST_F(PagedKvTest, TheCallersAffinityIsLeftAlone) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &before)) {
      CPU_SET(cpu, &one);
      break;
    }
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  const auto paged = Paged(source_);
  cpu_set_t after;
  ASSERT_EQ(sched_getaffinity(0, sizeof(after), &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&one, &after));
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

}  // namespace
}  // namespace kavern
