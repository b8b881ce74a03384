// A random history of the whole tiered store, RAM and NVMe, on faulty disks, against a simple
// reference: of every block, the bytes that may be served (those of its stores since its namespace
// was last purged), and whether it must be there (acknowledged, not evicted, never lost since).
//
// Of honest disks (which fail, and say so, and lose unflushed writes with the power) P1, P2, P3, P5
// and P7 are checked; of disks that lie (misdirected, short, stale) P1, P3 and P5.
//
// Not checked: when things happen (the reference has no clock); which block is evicted, and that
// what could be kept is; many clients at once.
//
// KAVERN_DISK_MODEL_SEED replays one history, KAVERN_DISK_MODEL_STEPS makes it longer, and
// KAVERN_DISK_MODEL_RUNS says how many are tried.

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/crash/fault_rig.h"

namespace kavern::tiers {
namespace {

class History {
 public:
  History(std::uint64_t seed, bool honest, CrashReport& report)
      : seed_(seed), honest_(honest), random_(seed), rig_(seed), report_(report) {
    rig_.options().ram_regions = 5;
  }

  void Run(std::uint64_t steps) {
    Open();
    for (std::uint64_t step = 0; step < steps && store_ != nullptr; ++step) {
      const std::uint64_t what = random_() % 100;
      if (what < 55) {
        StoreChain();
      } else if (what < 80) {
        ReadSome();
      } else if (what < 88) {
        Acknowledge();
      } else if (what < 91) {
        Purge();
      } else if (what < 95) {
        ChangeFaults();
      } else if (what < 97) {
        Restart();
      } else {
        LosePower();
      }
      if (report_.Violations() > 0) {
        report_.first_violation =
            absl::StrCat("seed ", seed_, " step ", step, ": ", report_.first_violation);
        break;
      }
    }
    store_.reset();
    report_.AddFaults(rig_.counts());
    report_.faults["file_error"] += rig_.files().faults(FaultFileSystem::Mode::kError);
    report_.faults["file_no_space"] += rig_.files().faults(FaultFileSystem::Mode::kNoSpace);
  }

 private:
  void Open() {
    rig_.files().Set(FaultFileSystem::Mode::kSound);
    rig_.options().durability = random_() % 4 == 0 ? DiskDurability::kNone : DiskDurability::kBatch;
    const auto began = std::chrono::steady_clock::now();
    auto opened = rig_.Open();
    const auto took = std::chrono::steady_clock::now() - began;
    report_.recovery_ms.push_back(std::chrono::duration<double, std::milli>(took).count());
    ++report_.crashes;
    if (!opened.ok()) {
      report_.Violated(report_.unrecovered, opened.status().ToString());
      return;
    }
    store_ = *std::move(opened);
    // Recovered from sound disks, so all that must be there is; then they begin to fail again.
    if (honest_) {
      const std::set<BlockName> served = store_->ReadAll(truth_, report_);
      report_.acked_checked += must_.size();
      for (const BlockName& name : must_) {
        if (served.contains(name)) continue;
        const BlockKey key = KeyOf(name);
        report_.Violated(
            report_.acked_lost,
            absl::StrCat(name.ns, "/", name.n, " is lost; listed: ",
                         store_->store().Match(store_->ns(name.ns), {&key, 1}),
                         "; damaged: ", store_->store().GetStatus().disk.io.damaged_parts,
                         "; catalog: ", store_->store().GetStatus().disk.recovered_from_headers));
      }
    }
    ChangeFaults();
  }

  void ChangeFaults() {
    const auto some = [this](double most) { return random_() % 3 == 0 ? 0 : most; };
    rig_.SetRate(DiskFault::kReadError, some(0.35));  // reads are few
    rig_.SetRate(DiskFault::kWriteError, some(0.05));
    rig_.SetRate(DiskFault::kFlushError, some(0.1));
    rig_.SetRate(DiskFault::kNoSpace, some(0.05));
    rig_.files().Set(random_() % 8 == 0 ? FaultFileSystem::Mode::kNoSpace
                                        : FaultFileSystem::Mode::kSound);
    if (honest_) return;
    rig_.SetRate(DiskFault::kMisdirectedWrite, some(0.03));
    rig_.SetRate(DiskFault::kMisdirectedRead, some(0.1));
    rig_.SetRate(DiskFault::kShortRead, some(0.1));
    rig_.SetRate(DiskFault::kStaleRead, 0.3);
  }

  BlockName AnyBlock() {
    const auto ns = static_cast<std::uint32_t>(random_() % kCrashNamespaces);
    return {ns, random_() % (ns == 2 ? 16 : 64)};
  }

  void StoreChain() {
    BlockName name = AnyBlock();
    name.n -= name.n % 4;
    const std::uint64_t end = name.n + 1 + random_() % 4;
    for (; name.n < end; ++name.n) {
      truth_.Begun(name, ++version_);
      ++report_.operations;
      if (!store_->Store(name, version_)) continue;
      // It was not there, or only in part: whatever was acknowledged of it was evicted.
      must_.erase(name);
      if (rig_.options().durability == DiskDurability::kBatch) {
        weak_.erase(name);
      } else {
        weak_.insert(name);
      }
    }
  }

  void ReadSome() {
    for (int i = 0; i < 4; ++i) {
      ++report_.operations;
      store_->Read(AnyBlock(), truth_, report_);
    }
  }

  void Acknowledge() {
    ++report_.operations;
    store_->WaitDurable();
    must_ = store_->OnDisk(truth_.versions());
    for (const BlockName& name : weak_) must_.erase(name);
    store_->CheckSound(report_);
  }

  void Purge() {
    ++report_.operations;
    const auto ns = static_cast<std::uint32_t>(random_() % kCrashNamespaces);
    const std::uint64_t upto = version_;
    const bool acknowledged = store_->Purge(ns).ok();
    std::erase_if(must_, [&](const BlockName& name) { return name.ns == ns; });
    if (acknowledged) truth_.Purged(ns, upto);
  }

  void Restart() {
    // What is still on its way evicts.
    store_->WaitDurable();
    Forget();
    store_.reset();
    Open();
  }

  // Devices and files stop at once; of what was not flushed some is gone.
  void LosePower() {
    for (std::uint32_t i = 0; i < kCrashDevices; ++i) rig_.device(i).LosePower();
    rig_.files().Set(FaultFileSystem::Mode::kError);
    Forget();
    store_.reset();
    Open();
  }

  // What has been evicted since it was acknowledged need not be there.
  void Forget() {
    const std::set<BlockName> now = store_->OnDisk(truth_.versions());
    std::erase_if(must_, [&](const BlockName& name) { return !now.contains(name); });
  }

  const std::uint64_t seed_;
  const bool honest_;
  std::mt19937_64 random_;
  FaultRig rig_;
  std::unique_ptr<CrashStore> store_;
  BlockTruth truth_;
  std::uint64_t version_ = 0;
  std::set<BlockName> must_;
  std::set<BlockName> weak_;  // stored without durability
  CrashReport& report_;
};

void RunHistories(bool honest, const char* harness) {
  const std::uint64_t steps = FromEnvironment("KAVERN_DISK_MODEL_STEPS", 400);
  const std::uint64_t runs = FromEnvironment("KAVERN_DISK_MODEL_RUNS", 12);
  const std::uint64_t seed = FromEnvironment("KAVERN_DISK_MODEL_SEED", 0);
  CrashReport report;
  report.harness = harness;
  for (std::uint64_t run = 0; run < (seed != 0 ? 1 : runs); ++run) {
    History(seed != 0 ? seed : 1000 + run, honest, report).Run(steps);
    if (report.Violations() > 0) break;
  }
  report.Print();
  EXPECT_EQ(report.Violations(), 0U) << report.first_violation;
  if (seed != 0) return;
  std::vector<std::string> kinds = {"read_error", "write_error", "flush_error", "no_space",
                                    "lost_write", "torn_write",  "file_error",  "file_no_space"};
  if (!honest) {
    // Stale reads are rare here, and certain in disk_fault_test.cc.
    kinds.insert(kinds.end(), {"misdirected_write", "misdirected_read", "short_read"});
  }
  for (const std::string& kind : kinds) EXPECT_GT(report.faults[kind], 0U) << kind;
}

TEST(DiskModel, DisksThatFailHonestlyLoseNothingAcknowledged) {
  RunHistories(true, "disk_model.honest");
}

TEST(DiskModel, DisksThatLieAreNeverBelieved) {
  RunHistories(false, "disk_model.lying");
}

}  // namespace
}  // namespace kavern::tiers
