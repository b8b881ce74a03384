// Verified copies against memcpy, block by block through memory far larger than any cache.
//
// Arguments of each benchmark: block size in bytes. The verified copy meets its target when its
// bytes_per_second is at least that of memcpy with one thread, and 1.6 times that with two. Compare
// medians of one run only:
//   copy_bench --benchmark_repetitions=9 --benchmark_enable_random_interleaving=true
//              --benchmark_report_aggregates_only=true
//
// Does not measure: copies that fit a cache, the control path (kavern bench does), huge pages that
// the system refuses.
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>

#include "base/copy_and_checksum.h"

namespace kavern {
namespace {

// Source and destination are this large each.
constexpr std::size_t kArenaBytes = std::size_t{512} << 20;

// Filled, so that no page is the shared zero page and none is first touched while the clock runs.
std::span<std::byte> MakeArena() {
  void* memory =
      mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("copy_bench: mmap");
    std::exit(1);
  }
  madvise(memory, kArenaBytes, MADV_HUGEPAGE);
  auto* words = static_cast<std::uint64_t*>(memory);
  for (std::size_t i = 0; i < kArenaBytes / sizeof(*words); ++i) {
    words[i] = i * 0x9E3779B97F4A7C15u;
  }
  return {static_cast<std::byte*>(memory), kArenaBytes};
}

struct Arenas {
  std::span<std::byte> source = MakeArena();
  std::span<std::byte> destination = MakeArena();
};

const Arenas& SharedArenas() {
  static const Arenas arenas;
  return arenas;
}

// Threads take turns through the same arenas: thread t of n copies blocks t, t + n, ...
template <typename Copy>
void StreamBlocks(benchmark::State& state, Copy copy) {
  const Arenas& arenas = SharedArenas();
  const auto block_bytes = static_cast<std::size_t>(state.range(0));
  const std::size_t blocks = kArenaBytes / block_bytes;
  auto block = static_cast<std::size_t>(state.thread_index());
  for (auto _ : state) {
    copy(arenas.destination.subspan(block * block_bytes, block_bytes),
         arenas.source.subspan(block * block_bytes, block_bytes));
    block = (block + static_cast<std::size_t>(state.threads())) % blocks;
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}

void Memcpy(benchmark::State& state) {
  StreamBlocks(state, [](std::span<std::byte> to, std::span<const std::byte> from) {
    std::memcpy(to.data(), from.data(), from.size());
    benchmark::ClobberMemory();
  });
}

void Verified(benchmark::State& state, CopyKernel kernel) {
  StreamBlocks(state, [kernel](std::span<std::byte> to, std::span<const std::byte> from) {
    benchmark::DoNotOptimize(CopyAndChecksum(to, from, 0, kernel));
  });
}

void ChecksumOnly(benchmark::State& state) {
  StreamBlocks(state, [](std::span<std::byte> /*to*/, std::span<const std::byte> from) {
    benchmark::DoNotOptimize(Crc32c(from));
  });
}

void RegisterAll() {
  const auto configure = [](benchmark::internal::Benchmark* bench) {
    bench->UseRealTime()->ArgName("block");
    for (const std::int64_t block_kib : {4, 16, 64, 512, 2048}) bench->Arg(block_kib << 10);
    bench->Threads(1)->Threads(2);
  };
  configure(benchmark::RegisterBenchmark("memcpy", Memcpy));
  configure(benchmark::RegisterBenchmark("checksum_only", ChecksumOnly));
  for (const CopyKernel kernel : {CopyKernel::kPortable, CopyKernel::kAvx2, CopyKernel::kAvx512}) {
    if (!CopyKernelSupported(kernel)) continue;
    const std::string name = "verified_copy/" + std::string(CopyKernelName(kernel));
    configure(benchmark::RegisterBenchmark(name.c_str(), Verified, kernel));
  }
}

}  // namespace
}  // namespace kavern

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  kavern::RegisterAll();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
