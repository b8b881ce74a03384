// Power cuts: a workload's operations are recorded, and for every prefix of them, with unflushed
// writes there, gone, torn or reordered, a real store recovers from what the disks may hold.
//
// Checked of every state: P1 (what is served has the bytes of a store of that block), P2 (what was
// acknowledged as durable, and not evicted since, is served), P3 (nothing that an acknowledged
// purge deleted is served), P5 (audit, and no slot in use without a block), P7 (the store opens).
//
// Not checked: what disk_state.h does not model; loads from RAM (a power cut leaves none); two
// stores at a time; devices of more than a few segments.
//
// KAVERN_POWER_CUT_SEED chooses the workload; KAVERN_POWER_CUT_WRITES its length;
// KAVERN_POWER_CUT_CUTS=n gives every prefix n sampled losses (by default every eighth has one).

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <random>

#include "gtest/gtest.h"
#include "rocksdb/env.h"
#include "tests/crash/crash_store.h"
#include "tests/crash/disk_state.h"
#include "tests/crash/trace.h"
#include "tests/fakes/temp_directory.h"

namespace kavern::tiers {
namespace {

namespace fs = std::filesystem;

// What the world knew when the trace had `position` operations.
struct Event {
  enum class Kind : std::uint8_t {
    kBegun,     // `name` is about to be stored with the bytes of `version`
    kPurged,    // acknowledged: the namespace of `name`, up to `version`
    kSnapshot,  // `durable` is what is acknowledged, and not evicted
    kStrict,    // `durable` was acknowledged by the answer to a strict commit
  };
  std::size_t position = 0;
  Kind kind = Kind::kBegun;
  BlockName name;
  std::uint64_t version = 0;
  std::set<BlockName> stored;  // by this store, that may not have been there before
  std::set<BlockName> durable;
};

struct Recording {
  std::vector<TraceOp> ops;
  std::vector<Event> events;
  std::uint64_t stores = 0;
  std::uint64_t strict = 0;
  std::uint64_t purges = 0;
  std::uint64_t evictions = 0;
  std::uint64_t restarts = 0;
};

// Stores, purges, evicts and restarts, one after the other, and notes what was acknowledged when.
class Workload {
 public:
  explicit Workload(std::uint64_t seed)
      : random_(seed), directory_(MemoryPath()), images_(EmptyImages()), env_(RecordedEnv(trace_)) {
    options_.directory = directory_.path();
    options_.open = Recorded(OpenImages(images_), trace_);
    options_.catalog_env = env_.get();
    options_.ram_regions = 6;
  }

  Recording Run(std::uint64_t writes) {
    Open();
    std::uint64_t next_purge = 40;
    std::uint64_t next_restart = 70;
    while (recording_.stores < writes) {
      StoreSome();
      if (random_() % 3 != 0) Snapshot();
      if (recording_.stores >= next_purge) {
        Purge();
        next_purge += 30 + random_() % 50;
      }
      if (recording_.stores >= next_restart) {
        Restart();
        next_restart += 50 + random_() % 80;
      }
    }
    Snapshot();
    Close();
    recording_.ops = trace_.Take();
    return std::move(recording_);
  }

 private:
  void Open() {
    auto opened = CrashStore::Open(options_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
    on_disk_ = store_->OnDisk(truth_.versions());
    evicted_ = 0;
  }
  void Close() {
    recording_.evictions += store_->store().GetCounters().disk_evicted_blocks;
    store_.reset();
  }

  // The block with all its ancestors.
  static std::set<BlockName> ChainTo(const BlockName& name) {
    std::set<BlockName> chain;
    for (std::uint64_t n = name.n / 4 * 4; n <= name.n; ++n) chain.insert({name.ns, n});
    return chain;
  }

  // A chain, or what is left of it.
  void StoreSome() {
    const auto ns = static_cast<std::uint32_t>(random_() % 8 == 0 ? 2 : random_() % 2);
    const std::uint64_t first = random_() % (ns == 2 ? 3 : 15) * 4;
    const std::uint64_t count = 1 + random_() % 4;
    for (std::uint64_t n = first; n < first + count; ++n) {
      const BlockName name = {ns, n};
      const std::uint64_t version = ++version_;
      truth_.Begun(name, version);
      Note(Event::Kind::kBegun, name, version);
      const std::size_t event = recording_.events.size() - 1;
      // One commit of a chain here and there, amid others of the store's own class.
      const bool strict = random_() % 8 == 0;
      CrashStore::StrictStore done;
      if (strict) {
        done = store_->StoreStrict(name, version);
      } else {
        done.stored = store_->Store(name, version);
      }
      if (!done.stored) continue;
      recording_.events[event].stored = {name};
      // Brings its ancestors along, those too that were evicted, for its own sake perhaps.
      if (strict) recording_.events[event].stored = ChainTo(name);
      ++recording_.stores;
      if (done.durable) {
        ++recording_.strict;
        for (const BlockName& durable : ChainTo(name)) weak_.erase(durable);
        Note(Event::Kind::kStrict, {}, 0);
        recording_.events.back().durable = ChainTo(name);
        continue;
      }
      if (options_.durability == DiskDurability::kBatch) {
        weak_.erase(name);
      } else {
        weak_.insert(name);
      }
    }
  }

  void Snapshot() {
    ASSERT_TRUE(store_->WaitDurable());
    std::set<BlockName> now = store_->OnDisk(truth_.versions());
    const std::uint64_t evicted = store_->store().GetCounters().disk_evicted_blocks;
    std::set<BlockName> vanished;
    std::set_difference(on_disk_.begin(), on_disk_.end(), now.begin(), now.end(),
                        std::inserter(vanished, vanished.end()));
    EXPECT_LE(vanished.size(), evicted - evicted_) << "blocks left the disk that were not evicted";
    evicted_ = evicted;
    on_disk_ = now;
    for (const BlockName& name : weak_) now.erase(name);
    Note(Event::Kind::kSnapshot, {}, 0);
    recording_.events.back().durable = std::move(now);
  }

  void Purge() {
    Snapshot();
    const auto ns = static_cast<std::uint32_t>(random_() % kCrashNamespaces);
    // Some of it is still on its way to the disk.
    StoreSome();
    const std::uint64_t upto = version_;
    ASSERT_TRUE(store_->Purge(ns).ok());
    ++recording_.purges;
    truth_.Purged(ns, upto);
    Note(Event::Kind::kPurged, {ns, 0}, upto);
    std::erase_if(on_disk_, [&](const BlockName& name) { return name.ns == ns; });
    Snapshot();
  }

  void Restart() {
    Snapshot();
    Close();
    ++recording_.restarts;
    switch (random_() % 4) {
      case 0:
        DamageCatalog();
        break;
      case 1:
        options_.durability = options_.durability == DiskDurability::kBatch
                                  ? DiskDurability::kNone
                                  : DiskDurability::kBatch;
        break;
      default:
        options_.durability = DiskDurability::kBatch;
    }
    const std::set<BlockName> before = on_disk_;
    Open();
    // More may be there: what was evicted, but not overwritten.
    EXPECT_TRUE(std::includes(on_disk_.begin(), on_disk_.end(), before.begin(), before.end()))
        << "a restart lost " << before.size() << " - " << on_disk_.size() << " blocks";
    Snapshot();
  }

  // The newest log, in its midst: the whole catalog is to be made anew from the headers.
  void DamageCatalog() {
    fs::path newest;
    for (const auto& file : fs::directory_iterator(directory_.path() / "catalog")) {
      if (file.path().extension() == ".log" && (newest.empty() || newest < file.path())) {
        newest = file.path();
      }
    }
    if (fs::file_size(newest) > 0) {
      FlipByte(newest, random_() % fs::file_size(newest), std::byte{4}, trace_);
    }
  }

  void Note(Event::Kind kind, const BlockName& name, std::uint64_t version) {
    recording_.events.push_back({trace_.size(), kind, name, version, {}, {}});
  }

  std::mt19937_64 random_;
  TempDirectory directory_;
  DiskImages images_;
  Trace trace_;
  std::unique_ptr<rocksdb::Env> env_;
  CrashStoreOptions options_;
  std::unique_ptr<CrashStore> store_;
  BlockTruth truth_;
  std::uint64_t version_ = 0;
  std::set<BlockName> on_disk_;
  std::uint64_t evicted_ = 0;
  std::set<BlockName> weak_;  // stored without durability
  Recording recording_;
};

// Goes through a recording, and recovers where it is told to.
class Replay {
 public:
  Replay(const Recording& recording, std::string harness) : recording_(recording) {
    report_.harness = std::move(harness);
    report_.operations = recording.ops.size();
  }

  bool AtEnd() const { return position_ == recording_.ops.size(); }
  DiskState::Effect Step() {
    const DiskState::Effect effect = state_.Apply(recording_.ops[position_++]);
    for (; next_ < recording_.events.size() && recording_.events[next_].position <= position_;
         ++next_) {
      const Event& event = recording_.events[next_];
      if (event.kind == Event::Kind::kBegun) truth_.Begun(event.name, event.version);
      if (event.kind == Event::Kind::kPurged) truth_.Purged(event.name.ns, event.version);
      if (event.kind == Event::Kind::kSnapshot) required_.clear();
      if (!event.durable.empty() || event.kind == Event::Kind::kSnapshot) Required(event);
    }
    return effect;
  }

  void Recover(DiskState::Cut cut, std::uint64_t seed) {
    const TempDirectory directory(MemoryPath());
    CrashStoreOptions options;
    options.directory = directory.path();
    options.open =
        OpenImages(state_.Materialise(cut, seed, (directory.path() / "catalog").string(), faults_));
    CheckRecovery(options, truth_, required_,
                  "after operation " + std::to_string(position_) + ", cut " +
                      std::to_string(static_cast<int>(cut)) + ", seed " + std::to_string(seed),
                  report_);
  }

  CrashReport& Finish() {
    report_.AddFaults(faults_);
    report_.Print();
    return report_;
  }

  DiskState& state() { return state_; }
  CrashReport& report() { return report_; }
  bool anything_required() const { return !required_.empty(); }

 private:
  // What is there now and at the next snapshot must be there all the time between, unless it was
  // evicted and stored again.
  void Required(const Event& event) {
    required_.insert(event.durable.begin(), event.durable.end());
    for (std::size_t i = next_ + 1; i < recording_.events.size(); ++i) {
      const Event& next = recording_.events[i];
      for (const BlockName& name : next.stored) required_.erase(name);
      if (next.kind != Event::Kind::kSnapshot) continue;
      std::set<BlockName> both;
      const std::set<BlockName>& later = next.durable;
      std::set_intersection(required_.begin(), required_.end(), later.begin(), later.end(),
                            std::inserter(both, both.end()));
      required_ = std::move(both);
      return;
    }
  }

  const Recording& recording_;
  DiskState state_;
  BlockTruth truth_;
  std::set<BlockName> required_;
  std::size_t position_ = 0;
  std::size_t next_ = 0;
  FaultCounts faults_;
  CrashReport report_;
};

class PowerCut : public testing::Test {
 protected:
  static const Recording& Recorded() {
    static const Recording recording = [] {
      const std::uint64_t seed = FromEnvironment("KAVERN_POWER_CUT_SEED", 1);
      const std::uint64_t writes = FromEnvironment("KAVERN_POWER_CUT_WRITES", 1000);
      std::printf("power_cut: seed %lu\n", seed);
      return Workload(seed).Run(writes);
    }();
    return recording;
  }
};

TEST_F(PowerCut, EveryPrefixOfAWorkloadAndSampledLossesAndTears) {
  const Recording& recording = Recorded();
  EXPECT_GT(recording.purges, 5U);
  EXPECT_GT(recording.evictions, 100U);
  EXPECT_GT(recording.restarts, 5U);
  EXPECT_GT(recording.strict, 20U);
  const std::uint64_t cuts = FromEnvironment("KAVERN_POWER_CUT_CUTS", 0);
  const std::uint64_t stride = FromEnvironment("KAVERN_POWER_CUT_STRIDE", 1);
  Replay replay(recording, "power_cut");
  std::uint64_t prefix = 0;
  while (!replay.AtEnd()) {
    const DiskState::Effect effect = replay.Step();
    if (effect == DiskState::Effect::kNone) continue;
    if (++prefix % stride != 0) continue;
    // Every state that a prefix can leave without luck: all that was written, and all that is
    // certain.
    replay.Recover(effect == DiskState::Effect::kWritten ? DiskState::Cut::kNothingLost
                                                         : DiskState::Cut::kAllLost,
                   0);
    if (cuts == 0 && prefix / stride % 8 == 3)
      replay.Recover(DiskState::Cut::kSomeLostOrTorn, prefix);
    for (std::uint64_t i = 0; i < cuts; ++i) {
      replay.Recover(DiskState::Cut::kSomeLostOrTorn, prefix * cuts + i);
    }
  }
  CrashReport& report = replay.Finish();
  EXPECT_EQ(report.Violations(), 0U) << report.first_violation;
  EXPECT_GT(report.acked_checked, 0U);
  for (const char* kind : {"lost_write", "torn_write", "reordered_write"}) {
    EXPECT_GT(report.faults[kind], 0U) << kind;
  }
}

// The harness sees it when flushes do nothing, or RocksDB's syncs: else its zeros say nothing.
void ExpectSeen(const Recording& recording, bool flushes, bool syncs, const char* harness) {
  Replay replay(recording, harness);
  std::uint64_t prefix = 0;
  bool ignoring = false;
  while (!replay.AtEnd() && replay.report().acked_lost == 0) {
    if (replay.Step() == DiskState::Effect::kNone) continue;
    if (!ignoring && replay.anything_required()) {
      replay.state().Ignore(flushes, syncs);
      ignoring = true;
    }
    if (++prefix % 5 == 0) replay.Recover(DiskState::Cut::kSomeLostOrTorn, prefix);
  }
  CrashReport& report = replay.Finish();
  EXPECT_GT(report.acked_lost, 0U);
  EXPECT_EQ(report.wrong_bytes, 0U) << "checksums do not depend on flushes";
}

TEST_F(PowerCut, ADeviceThatIgnoresFlushesIsSeenByTheHarness) {
  ExpectSeen(Recorded(), true, false, "power_cut_without_flush");
}

TEST_F(PowerCut, FilesThatIgnoreSyncsAreSeenByTheHarness) {
  ExpectSeen(Recorded(), false, true, "power_cut_without_sync");
}

}  // namespace
}  // namespace kavern::tiers
