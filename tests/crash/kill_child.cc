// The child of kill_test.cc: stores, reads and purges on real files until it is killed, and says on
// stdout what it is about to do and what was acknowledged, each line before the next step.
//
//   kill_child DIRECTORY SEED FIRST_VERSION DURABILITY RAM_REGIONS IO_URING DEPTH POINT N
//
// At the Nth time that POINT (write, written, flush, flushed; or never) comes it kills itself.

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "tests/crash/crash_store.h"

namespace kavern::tiers {
namespace {

struct Point {
  std::string name;
  std::atomic<std::int64_t> left = 0;

  void Reached(const char* point) {
    if (name == point && --left == 0) (void)kill(getpid(), SIGKILL);
  }
};

class KillingDevice final : public BlockDevice {
 public:
  KillingDevice(std::unique_ptr<BlockDevice> base, Point& point)
      : base_(std::move(base)), point_(point) {}
  void Submit(DiskIo io) override {
    if (io.op == DiskIo::Op::kWrite || io.op == DiskIo::Op::kFlush) {
      const bool write = io.op == DiskIo::Op::kWrite;
      point_.Reached(write ? "write" : "flush");
      io.done = [this, write, done = std::move(io.done)](absl::Status status) {
        point_.Reached(write ? "written" : "flushed");
        done(std::move(status));
      };
    }
    base_->Submit(std::move(io));
  }
  std::uint64_t size_bytes() const override { return base_->size_bytes(); }
  std::string_view method() const override { return base_->method(); }

 private:
  const std::unique_ptr<BlockDevice> base_;
  Point& point_;
};

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

int Run(char** arguments) {
  Point point;
  point.name = arguments[8];
  point.left = std::strtoll(arguments[9], nullptr, 10);
  CrashStoreOptions options;
  options.directory = arguments[1];
  options.durability =
      std::string(arguments[4]) == "none" ? DiskDurability::kNone : DiskDurability::kBatch;
  options.ram_regions = std::strtoull(arguments[5], nullptr, 10);
  options.io_uring = std::string(arguments[6]) == "1";
  options.queue_depth = static_cast<int>(std::strtol(arguments[7], nullptr, 10));
  options.open =
      [&point](const BlockDeviceOptions& device) -> absl::StatusOr<std::unique_ptr<BlockDevice>> {
    auto base = OpenBlockDevice(device);
    if (!base.ok()) return base;
    return std::make_unique<KillingDevice>(*std::move(base), point);
  };
  auto opened = CrashStore::Open(options);
  if (!opened.ok()) {
    Say("failed " + opened.status().ToString());
    return 1;
  }
  CrashStore& store = **opened;
  Say("ready");
  std::mt19937_64 random(std::strtoull(arguments[2], nullptr, 10));
  std::uint64_t version = std::strtoull(arguments[3], nullptr, 10);
  // Everything fits the disk: nothing is evicted there.
  std::map<BlockName, std::vector<std::uint64_t>> all;
  for (std::uint32_t ns = 0; ns < kCrashNamespaces; ++ns) {
    for (std::uint64_t n = 0; n < (ns == 2 ? 4 : 20); ++n) all[{ns, n}] = {};
  }
  for (;;) {
    const auto ns = static_cast<std::uint32_t>(random() % kCrashNamespaces);
    if (random() % 12 == 0) {
      Say("purging " + std::to_string(ns));
      if (store.Purge(ns).ok()) {
        Say("purged " + std::to_string(ns) + " " + std::to_string(version));
      }
      continue;
    }
    const std::uint64_t first = ns == 2 ? 0 : random() % 5 * 4;
    for (std::uint64_t n = first; n < first + 4; ++n) {
      ++version;
      const std::string block = std::to_string(ns) + " " + std::to_string(n);
      Say("begun " + block + " " + std::to_string(version));
      store.Store({ns, n}, version);
    }
    if (random() % 2 == 0) continue;
    if (!store.WaitDurable()) continue;
    std::string line = "durable";
    for (const BlockName& name : store.OnDisk(all)) {
      line += " " + std::to_string(name.ns) + " " + std::to_string(name.n);
    }
    if (store.store().GetCounters().disk_evicted_blocks > 0) line = "evicted";
    Say(line);
  }
}

}  // namespace
}  // namespace kavern::tiers

int main(int count, char** arguments) {
  return count == 10 ? kavern::tiers::Run(arguments) : 2;
}
