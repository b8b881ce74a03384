// Block devices on a real disk: slots (a page of header, then payload) of one file, in random
// order, 32 at a time, into and out of a region, as the NVMe tier does it.
//
// Arguments of each benchmark: payload bytes; 1: the region is registered with io_uring; 1: with
// IORING_SETUP_DEFER_TASKRUN. The file is written with incompressible bytes first (unwritten
// extents would be read from no disk). Compare medians of one run:
//   disk_bench --benchmark_repetitions=7 --benchmark_enable_random_interleaving=true
//              --benchmark_report_aggregates_only=true
// KAVERN_BENCH_FILE names the file (default /var/tmp/kavern-disk-bench; removed afterwards unless
// it is named), and fio on the same file is the reference:
//   fio --name=reference --filename=FILE --size=2g --direct=1 --ioengine=io_uring --registerfiles
//       --fixedbufs --rw=randread --bs=2m --iodepth=32 --runtime=5 --time_based
//
// Does not measure: checksums, the catalog, flushes.
#include <benchmark/benchmark.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "tiers/nvme/block_device.h"
#include "tiers/nvme/disk_store.h"
#include "tiers/ram/region.h"

namespace kavern::tiers {
namespace {

constexpr std::uint64_t kFileBytes = std::uint64_t{2} << 30;
constexpr int kDepth = 32;

[[noreturn]] void Fail(const absl::Status& status) {
  std::fprintf(stderr, "disk_bench: %s\n", status.ToString().c_str());
  std::exit(1);
}

double CpuSeconds() {
  struct rusage used {};
  getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

// At most kDepth under way, each with memory of its own.
class Window {
 public:
  Window() {
    for (std::size_t i = 0; i < kDepth; ++i) free_.push_back(i);
  }
  // Which memory.
  std::size_t Enter() {
    MutexLock lock(mu_);
    while (free_.empty()) changed_.Wait(mu_);
    const std::size_t taken = free_.back();
    free_.pop_back();
    return taken;
  }
  void Leave(std::size_t taken, const absl::Status& status) {
    if (!status.ok()) Fail(status);
    MutexLock lock(mu_);
    free_.push_back(taken);
    changed_.NotifyAll();
  }
  void Empty() {
    MutexLock lock(mu_);
    while (free_.size() < kDepth) changed_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<std::size_t> free_ KAVERN_GUARDED_BY(mu_);
};

std::shared_ptr<Region> MakeRegion(std::uint64_t bytes) {
  auto region = Region::Create(1, bytes, HugePages::kAuto, nullptr);
  if (!region.ok()) Fail(region.status());
  if (const absl::Status status = (*region)->Populate(0, bytes); !status.ok()) Fail(status);
  std::mt19937_64 random(1);
  const std::span<std::byte> memory = (*region)->bytes();
  auto* words = reinterpret_cast<std::uint64_t*>(memory.data());
  std::generate_n(words, memory.size() / sizeof(*words), random);
  return *std::move(region);
}

std::string FileName() {
  const char* named = std::getenv("KAVERN_BENCH_FILE");
  return named == nullptr ? "/var/tmp/kavern-disk-bench" : named;
}

std::unique_ptr<BlockDevice> OpenFile(bool registered, bool defer_taskrun) {
  BlockDeviceOptions options;
  options.path = FileName();
  options.size_bytes = kFileBytes;
  options.depth = kDepth;
  options.register_memory = registered;
  options.registered_io_min_bytes = kDiskPage;  // whatever its default is
  options.defer_taskrun = defer_taskrun;
  auto device = OpenBlockDevice(options);
  if (!device.ok()) Fail(device.status());
  return *std::move(device);
}

void FillFile() {
  const auto device = OpenFile(false, true);
  const auto region = MakeRegion(std::uint64_t{64} << 20);
  Window window;
  for (std::uint64_t at = 0; at < kFileBytes; at += region->size_bytes()) {
    const std::size_t taken = window.Enter();
    DiskIo io;
    io.op = DiskIo::Op::kWrite;
    io.offset = at;
    io.pieces = {region->bytes()};
    io.done = [&window, taken](const absl::Status& status) { window.Leave(taken, status); };
    device->Submit(std::move(io));
  }
  window.Empty();
}

void Slots(benchmark::State& state, DiskIo::Op op) {
  const auto payload_bytes = static_cast<std::uint64_t>(state.range(0));
  const auto device = OpenFile(state.range(1) == 1, state.range(2) == 1);
  const auto region = MakeRegion(kDepth * payload_bytes);
  device->RegisterMemory(region->bytes());
  const DiskPages headers(kDepth);
  const std::uint64_t stride = payload_bytes + kDiskPage;
  std::vector<std::uint64_t> slots(kFileBytes / stride);
  for (std::size_t i = 0; i < slots.size(); ++i) slots[i] = i * stride;
  std::mt19937_64 random(2);
  std::shuffle(slots.begin(), slots.end(), random);
  slots.resize(std::min<std::size_t>(slots.size(), (std::uint64_t{1} << 30) / stride));

  const double cpu_before = CpuSeconds();
  std::uint64_t bytes = 0;
  for (auto _ : state) {
    Window window;
    for (const std::uint64_t slot : slots) {
      const std::size_t taken = window.Enter();
      DiskIo io;
      io.op = op;
      io.offset = slot;
      io.pieces = {headers.page(taken),
                   region->bytes().subspan(taken * payload_bytes, payload_bytes)};
      io.done = [&window, taken](const absl::Status& status) { window.Leave(taken, status); };
      device->Submit(std::move(io));
    }
    window.Empty();
    bytes += slots.size() * payload_bytes;
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes));
  state.counters["cpu_s_per_GB"] = (CpuSeconds() - cpu_before) / (static_cast<double>(bytes) / 1e9);
  state.counters["registered"] = device->facts().registered_bytes > 0 ? 1 : 0;
}

void ReadSlots(benchmark::State& state) {
  Slots(state, DiskIo::Op::kRead);
}
void WriteSlots(benchmark::State& state) {
  Slots(state, DiskIo::Op::kWrite);
}

void AllArguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"payload", "registered", "defer"})
      ->ArgsProduct({{64 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20}, {0, 1}, {0, 1}})
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond)
      ->Iterations(1);
}
BENCHMARK(ReadSlots)->Apply(AllArguments);
BENCHMARK(WriteSlots)->Apply(AllArguments);

}  // namespace
}  // namespace kavern::tiers

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  kavern::tiers::FillFile();
  benchmark::RunSpecifiedBenchmarks();
  if (std::getenv("KAVERN_BENCH_FILE") == nullptr) unlink(kavern::tiers::FileName().c_str());
  return 0;
}
