// The daemon's own policy and index on whole traces, against an independent simulation:
// tests/sim/lru_reference.py.
//
// What it does not check: slots, regions and leases of several workers at once; a block is one part
// here.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "tiers/index/block_index.h"
#include "tiers/policy/leaf_first_lru.h"

namespace kavern::tiers {
namespace {

using Chain = std::vector<std::uint64_t>;
constexpr std::uint64_t kTokensPerBlock = 512;

const std::string kSource = KAVERN_SOURCE_DIR;
const std::string kTrace = kSource + "/../shared/traces/synthetic_trace.jsonl";
const std::string kScript = kSource + "/tests/sim/lru_reference.py";

BlockKey KeyOf(std::uint64_t hash_id) {
  BlockKey key;
  const std::uint64_t spread = (hash_id + 1) * 0x9e3779b97f4a7c15;
  std::memcpy(key.bytes.data(), &spread, sizeof(spread));
  return key;
}

struct Counts {
  std::uint64_t references = 0;
  std::uint64_t hits = 0;
  std::uint64_t evictions = 0;
};

// One worker's requests as the store serves them: leases on the hits, writers on the new blocks,
// room by eviction, and at the end a use of the whole chain from leaf to root.
class Cache {
 public:
  explicit Cache(std::uint64_t capacity_blocks) : capacity_blocks_(capacity_blocks) {}

  void Serve(const Chain& chain) {
    std::vector<BlockId> held = Match(chain);
    counts_.references += chain.size();
    counts_.hits += held.size();
    const std::size_t hits = held.size();
    BlockKey parent = hits == 0 ? kRoot : KeyOf(chain[hits - 1]);
    for (std::size_t i = hits; i < chain.size() && MakeRoom(); ++i) {
      const BlockKey key = KeyOf(chain[i]);
      held.push_back(index_.InsertPending(key, parent));
      index_.AddWriter(held.back());
      parent = key;
    }
    for (std::size_t i = 0; i < held.size(); ++i) {
      if (i < hits) {
        index_.DropLease(held[i]);
      } else {
        index_.CommitPart(held[i], 0, {static_cast<SlotId>(chain[i]), 0});
        index_.DropWriter(held[i]);
      }
    }
    TouchAll(held);
  }

  const Counts& counts() const { return counts_; }
  std::string Audit() const {
    return index_.size() > capacity_blocks_ ? "more blocks than fit" : index_.Audit();
  }

 private:
  // The longest cached prefix, with a lease on each block, used.
  std::vector<BlockId> Match(const Chain& chain) {
    std::vector<BlockId> hits;
    for (const std::uint64_t hash_id : chain) {
      const BlockId id = index_.Find(KeyOf(hash_id));
      if (id == kNoBlock || !index_.IsVisible(id)) break;
      index_.AddLease(id);
      hits.push_back(id);
    }
    TouchAll(hits);
    return hits;
  }

  bool MakeRoom() {
    if (index_.size() < capacity_blocks_) return true;
    const auto victim = lru_.Victim();
    if (!victim) return false;
    index_.Remove(victim->id);
    ++counts_.evictions;
    return true;
  }

  void TouchAll(const std::vector<BlockId>& chain) {
    for (auto id = chain.rbegin(); id != chain.rend(); ++id) index_.Touch(*id, ++clock_);
  }

  static inline const BlockKey kRoot = NamespaceFingerprint{{1, 2, 3}}.RootKey();
  const std::uint64_t capacity_blocks_;
  LeafFirstLru lru_;
  BlockIndex index_{kRoot, 1, lru_};
  UseSequence clock_ = 0;
  Counts counts_;
};

std::vector<Chain> ReadTrace(const std::string& path, bool full_blocks_only) {
  std::vector<Chain> chains;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto request = nlohmann::json::parse(line);
    Chain chain = request.at("hash_ids").get<Chain>();
    const std::uint64_t full = request.at("input_length").get<std::uint64_t>() / kTokensPerBlock;
    if (full_blocks_only && chain.size() > full) chain.resize(full);
    chains.push_back(std::move(chain));
  }
  return chains;
}

Counts Simulate(const std::vector<Chain>& chains, std::uint64_t capacity_blocks) {
  Cache cache(capacity_blocks);
  for (const Chain& chain : chains) cache.Serve(chain);
  EXPECT_EQ(cache.Audit(), "");
  return cache.counts();
}

nlohmann::json GoldenRows() {
  std::ifstream file(kSource + "/tests/golden/lru_synthetic.json");
  return nlohmann::json::parse(file).at("rows");
}

// Runs the reference with `arguments`; its rows.
nlohmann::json RunReference(const std::string& arguments) {
  const std::string command = "python3 '" + kScript + "' " + arguments + " --json";
  FILE* const pipe = popen(command.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  if (pipe == nullptr) return nlohmann::json::array();
  std::string output;
  char chunk[4096];
  while (const std::size_t got = fread(chunk, 1, sizeof(chunk), pipe)) output.append(chunk, got);
  EXPECT_EQ(pclose(pipe), 0) << command;
  const auto parsed = nlohmann::json::parse(output, nullptr, false);
  EXPECT_TRUE(parsed.is_object()) << output;
  return parsed.is_object() ? parsed.at("rows") : nlohmann::json::array();
}

void ExpectRowsAgree(const std::string& trace, const nlohmann::json& rows) {
  for (const auto& row : rows) {
    SCOPED_TRACE(row.dump());
    const Counts counts = Simulate(ReadTrace(trace, row.at("full_blocks_only")),
                                   row.at("capacity_blocks").get<std::uint64_t>());
    EXPECT_EQ(counts.references, row.at("block_references"));
    EXPECT_EQ(counts.hits, row.at("hit_blocks"));
    EXPECT_EQ(counts.evictions, row.at("evicted_blocks"));
  }
}

TEST(LruTrace, CountsOnTheSyntheticTraceEqualTheGoldenOnesOfTheReference) {
  if (!std::filesystem::exists(kTrace)) GTEST_SKIP() << "no trace at " << kTrace;
  const auto rows = GoldenRows();
  ASSERT_GE(rows.size(), 6u);
  ExpectRowsAgree(kTrace, rows);
}

TEST(LruTrace, HitRatiosOnTheSyntheticTraceAreThePublishedOnes) {
  // Per cent of block references, computed elsewhere, given to two decimals.
  if (!std::filesystem::exists(kTrace)) GTEST_SKIP() << "no trace at " << kTrace;
  const std::vector<Chain> chains = ReadTrace(kTrace, false);
  const std::vector<std::pair<std::uint64_t, double>> published = {
      {1'000, 8.41}, {5'000, 27.93}, {10'000, 42.39}, {30'000, 62.42}, {50'000, 63.96}};
  for (const auto& [capacity_blocks, per_cent] : published) {
    const Counts counts = Simulate(chains, capacity_blocks);
    EXPECT_NEAR(100.0 * static_cast<double>(counts.hits) / static_cast<double>(counts.references),
                per_cent, 0.005)
        << capacity_blocks << " blocks";
  }
}

TEST(LruTrace, TheGoldenCountsAreWhatTheReferencePrints) {
  if (!std::filesystem::exists(kTrace)) GTEST_SKIP() << "no trace at " << kTrace;
  std::string arguments = "'" + kTrace + "'";
  const auto golden = GoldenRows();
  for (const auto& row : golden) {
    arguments += " --capacity-blocks " + row.at("capacity_blocks").dump();
  }
  EXPECT_EQ(RunReference(arguments), golden);
}

// Writes conversations that grow, fork and end, in the traces' format, and removes the file.
class GeneratedTrace {
 public:
  explicit GeneratedTrace(unsigned seed) : random_(seed) {
    path_ = (std::filesystem::temp_directory_path() / "kavern-lru-XXXXXX").string();
    const int fd = mkstemp(path_.data());
    EXPECT_GE(fd, 0);
    close(fd);
    std::ofstream file(path_);
    for (int i = 0; i < 3'000; ++i) {
      const Chain chain = NextChain();
      const std::uint64_t tokens = chain.size() * kTokensPerBlock - random_() % kTokensPerBlock;
      file << nlohmann::json{{"timestamp", i}, {"input_length", tokens}, {"hash_ids", chain}}
           << "\n";
    }
  }
  ~GeneratedTrace() { std::filesystem::remove(path_); }
  GeneratedTrace(const GeneratedTrace&) = delete;
  GeneratedTrace& operator=(const GeneratedTrace&) = delete;

  const std::string& path() const { return path_; }

 private:
  // A prefix of an earlier chain, or nothing, and some new blocks: up to 30 in all.
  Chain NextChain() {
    Chain chain;
    if (!chains_.empty() && random_() % 8 != 0) {
      const std::size_t recent = std::min<std::size_t>(chains_.size(), 40);
      chain = chains_[chains_.size() - 1 - random_() % recent];
      if (random_() % 3 == 0 || chain.size() > 24) chain.resize(1 + random_() % chain.size());
    }
    const auto more = (chain.empty() ? 1 : 0) + random_() % 6;
    for (std::uint64_t i = 0; i < more; ++i) chain.push_back(next_id_++);
    chains_.push_back(chain);
    return chain;
  }

  std::mt19937 random_;
  std::string path_;
  std::vector<Chain> chains_;
  std::uint64_t next_id_ = 0;
};

TEST(LruTrace, CountsOnGeneratedConversationsEqualTheReferencesDownToTinyCaches) {
  // Capacities below, at and above the longest request: some requests do not fit.
  constexpr unsigned kSeed = 20267;
  SCOPED_TRACE(kSeed);
  const GeneratedTrace trace(kSeed);
  for (const char* const mode : {"", " --full-blocks-only"}) {
    const auto rows = RunReference("'" + trace.path() +
                                   "' --capacity-blocks 1 --capacity-blocks 7 --capacity-blocks 23"
                                   " --capacity-blocks 30 --capacity-blocks 200" +
                                   mode);
    ASSERT_EQ(rows.size(), 5u);
    EXPECT_GT(rows[0].at("evicted_blocks"), 100);
    EXPECT_GT(rows[4].at("hit_blocks"), rows[1].at("hit_blocks"));
    ExpectRowsAgree(trace.path(), rows);
  }
}

}  // namespace
}  // namespace kavern::tiers
