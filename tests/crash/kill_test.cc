// Kills: a child under load on real files is killed, at random and at named points of its I/O; what
// it was promised is kept here, outside of it. A store with other options (durability, RAM,
// io_uring or threads, queue depth) then opens the files, everything is read, and the next child
// goes on.
//
// Checked: P1, P2 (whatever the durability: the machine goes on), P3, P5, P7.
//
// Not checked: power cuts (power_cut_test.cc); evictions, since all fits the disk; kills of a store
// while it recovers, but for those that come early.
//
// KAVERN_KILLS says how many (default 60), KAVERN_KILL_SEED which.

#include <csignal>
#include <random>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/crash/crash_store.h"
#include "tests/fakes/temp_directory.h"
#include "tests/integration/child_process.h"

namespace kavern::tiers {
namespace {

class Kills {
 public:
  explicit Kills(std::uint64_t seed) : random_(seed) { report_.harness = "kill"; }

  void Run(std::uint64_t kills) {
    for (std::uint64_t i = 0; i < kills && report_.Violations() == 0; ++i) KillOne();
    report_.Print();
  }
  CrashReport& report() { return report_; }

 private:
  void KillOne() {
    static constexpr const char* kPoints[] = {"never", "write", "written", "flush", "flushed"};
    const char* point = kPoints[random_() % 5];
    const std::uint64_t n = 1 + random_() % 60;
    ChildProcess child({KILL_CHILD_BINARY, directory_.path().string(), std::to_string(random_()),
                        std::to_string(version_), random_() % 2 == 0 ? "none" : "batch",
                        std::to_string(5 + random_() % 6), random_() % 2 == 0 ? "1" : "0",
                        std::to_string(1 + random_() % 16), point, std::to_string(n)});
    const bool at_random = std::string(point) == "never";
    // So many lines after the start, some in the midst of recovery.
    const std::uint64_t lines = random_() % 150;
    constexpr std::uint64_t kLinesMax = 5000;  // a point that never comes
    for (std::uint64_t i = 0; i < (at_random ? lines : kLinesMax); ++i) {
      const std::string line = child.ReadLine();
      if (line.empty()) break;
      Learn(line);
    }
    child.Signal(SIGKILL);
    std::istringstream rest(child.ReadAll());
    for (std::string line; std::getline(rest, line);) Learn(line);
    EXPECT_EQ(child.Wait(), 128 + SIGKILL);
    ++report_.faults[at_random ? "kill_at_random" : absl::StrCat("kill_at_", point)];

    CrashStoreOptions options;
    options.directory = directory_.path();
    options.durability = random_() % 2 == 0 ? DiskDurability::kNone : DiskDurability::kBatch;
    options.io_uring = random_() % 2 == 0;
    options.ram_regions = 6 + random_() % 4;
    options.queue_depth = static_cast<int>(1 + random_() % 32);
    CheckRecovery(options, truth_, required_, absl::StrCat("kill ", report_.crashes), report_);
  }

  // A line of the child; what is cut off was not said.
  void Learn(const std::string& line) {
    std::istringstream words(line);
    std::string what;
    BlockName name;
    std::uint64_t version = 0;
    words >> what;
    ++report_.operations;
    if (what == "begun" && words >> name.ns >> name.n >> version) {
      truth_.Begun(name, version);
      version_ = std::max(version_, version);
    } else if (what == "purging" && words >> name.ns) {
      std::erase_if(required_, [&](const BlockName& block) { return block.ns == name.ns; });
    } else if (what == "purged" && words >> name.ns >> version) {
      truth_.Purged(name.ns, version);
    } else if (what == "durable") {
      required_.clear();
      while (words >> name.ns >> name.n) required_.insert(name);
    } else if (what == "evicted" || what == "failed") {
      ADD_FAILURE() << line;
    }
  }

  std::mt19937_64 random_;
  TempDirectory directory_;
  BlockTruth truth_;
  std::set<BlockName> required_;
  std::uint64_t version_ = 0;
  CrashReport report_;
};

TEST(Kill, AChildKilledAnywhereLosesNothingAcknowledgedAndServesNothingWrong) {
  const std::uint64_t seed = FromEnvironment("KAVERN_KILL_SEED", 1);
  const std::uint64_t kills = FromEnvironment("KAVERN_KILLS", 60);
  Kills run(seed);
  run.Run(kills);
  CrashReport& report = run.report();
  EXPECT_EQ(report.Violations(), 0U) << "seed " << seed << ": " << report.first_violation;
  EXPECT_EQ(report.crashes, kills);
  EXPECT_GT(report.acked_checked, 0U);
  for (const char* kind :
       {"kill_at_random", "kill_at_write", "kill_at_written", "kill_at_flush", "kill_at_flushed"}) {
    EXPECT_GT(report.faults[kind], 0U) << kind;
  }
}

}  // namespace
}  // namespace kavern::tiers
