// Memory per block of index and policy, at a million blocks: the budget is 128 bytes, all included.
#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdio>
#include <random>

#include "tests/unit/tiers/test_keys.h"
#include "tiers/index/block_index.h"
#include "tiers/policy/leaf_first_lru.h"

namespace kavern::tiers {
namespace {

constexpr std::uint64_t kBlocks = 1'000'000;
constexpr std::uint64_t kChainBlocks = 32;
constexpr double kBudgetBytesPerBlock = 128;

// What the allocator has handed out, bytes; 0 where the sanitizers' own allocator does not tell.
std::uint64_t HeapBytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

class BlockIndexMemory : public ::testing::Test {
 protected:
  void Store(std::uint64_t number) {
    const BlockKey parent = number % kChainBlocks == 0 ? kRoot : TestKey(number - 1);
    const BlockId id = index_.InsertPending(TestKey(number), parent);
    index_.AddWriter(id);
    index_.CommitPart(id, 0, {static_cast<SlotId>(number), 0});
    index_.DropWriter(id);
    index_.Touch(id, ++clock_);
  }

  void ExpectWithinBudget(const char* when) {
    const auto blocks = static_cast<double>(index_.size());
    const double counted = static_cast<double>(index_.MemoryBytes() + lru_.MemoryBytes()) / blocks;
    std::printf("%s, %.0f blocks: index %.1f, policy %.1f bytes per block\n", when, blocks,
                static_cast<double>(index_.MemoryBytes()) / blocks,
                static_cast<double>(lru_.MemoryBytes()) / blocks);
    EXPECT_LE(counted, kBudgetBytesPerBlock) << when;
    const std::uint64_t heap = HeapBytes();
    if (heap_before_ == 0 || heap == 0) return;
    const double real = static_cast<double>(heap - heap_before_) / blocks;
    std::printf("  the heap says %.1f\n", real);
    EXPECT_LE(real, kBudgetBytesPerBlock) << when;
    EXPECT_NEAR(counted, real, 0.1 * real) << "MemoryBytes does not tell what is allocated";
  }

  static inline const BlockKey kRoot = TestKey(1'000'000'000);
  const std::uint64_t heap_before_ = HeapBytes();
  LeafFirstLru lru_;
  BlockIndex index_{kRoot, 1, lru_};
  UseSequence clock_ = 0;
};

TEST_F(BlockIndexMemory, ChainsStayWithinTheBudget) {
  // A million blocks in chains of 32; then a third of them is evicted and stored anew.
  for (std::uint64_t i = 0; i < kBlocks; ++i) Store(i);
  ExpectWithinBudget("chains");
  for (std::uint64_t i = 0; i < kBlocks / 3; ++i) {
    index_.Remove(lru_.Victim()->id);
    Store(kBlocks + i);
  }
  ExpectWithinBudget("chains after churn");
}

TEST_F(BlockIndexMemory, NothingButLeavesStaysWithinTheBudget) {
  // The most that the policy can be asked to sort: a million first blocks, used in random order.
  std::mt19937_64 random(20265);
  for (std::uint64_t i = 0; i < kBlocks; ++i) Store(i * kChainBlocks);
  for (std::uint64_t i = 0; i < kBlocks / 2; ++i) {
    index_.Touch(static_cast<BlockId>(random() % kBlocks), random() % (1 << 30));
  }
  ExpectWithinBudget("leaves");
}

}  // namespace
}  // namespace kavern::tiers
