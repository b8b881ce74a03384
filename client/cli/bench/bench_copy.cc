#include "client/cli/bench/bench_copy.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/units.h"

namespace kavern::cli {
namespace {

constexpr std::uint64_t kTargetSetBytes = std::uint64_t{1} << 30;
constexpr std::uint64_t kSetBytes = std::uint64_t{256} << 20;
constexpr std::uint64_t kBytesPlaneSetBytes = std::uint64_t{128} << 20;
constexpr std::size_t kBatchesPerPassMax = 1024;
constexpr double kOneThreadTarget = 1.0;
constexpr double kTwoThreadsTarget = 1.6;

class Stopwatch {
 public:
  void Start() { start_ = std::chrono::steady_clock::now(); }
  void Stop() { total_ += std::chrono::steady_clock::now() - start_; }
  double seconds() const { return std::chrono::duration<double>(total_).count(); }

 private:
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::duration total_{0};
};

// One size of block and batch: passes over a set of blocks, each timed as GB/s.
class CopyPasses {
 public:
  CopyPasses(BenchNode& node, const CopyCase& c, const WorkerMemory& memory)
      : node_(node), case_(c), memory_(memory) {
    batches_ =
        std::clamp<std::uint64_t>(c.set_bytes / c.block_bytes / c.batch, 1, kBatchesPerPassMax);
  }

  // Each batch is a chain of its own.
  absl::Status StoreSet() {
    for (std::size_t b = 0; b < batches_; ++b) {
      chains_.push_back(node_.NewChain(case_.batch));
      KAVERN_RETURN_IF_ERROR(
          StoreWhole(node_.ns(BenchPlane::kOneThread), chains_.back(),
                     memory_.Sources(b * case_.batch, case_.batch, case_.block_bytes)));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<double> Fetch(BenchPlane plane) {
    const std::size_t batches = BatchesOf(plane);
    Stopwatch watch;
    for (std::size_t b = 0; b < batches; ++b) {
      const auto buffers = memory_.Destinations(b * case_.batch, case_.batch, case_.block_bytes);
      watch.Start();
      const auto fetched = node_.ns(plane).FetchInto({.keys = chains_[b]}, buffers);
      watch.Stop();
      if (!fetched.ok()) return fetched.status();
      if (!fetched->all_ok()) return Lost();
    }
    return Rate(batches, watch);
  }

  // The bytes that Fetch moves, from and to where it moves them, without anything else.
  absl::StatusOr<double> FetchByMemcpy() {
    Stopwatch watch;
    for (std::size_t b = 0; b < batches_; ++b) {
      const auto buffers = memory_.Destinations(b * case_.batch, case_.batch, case_.block_bytes);
      KAVERN_ASSIGN_OR_RETURN(FetchLease lease,
                              node_.ns(BenchPlane::kOneThread).Fetch({.keys = chains_[b]}));
      for (std::size_t i = 0; i < case_.batch; ++i) {
        if (lease.bytes(i).empty()) return Lost();
      }
      watch.Start();
      for (std::size_t i = 0; i < case_.batch; ++i) {
        std::memcpy(buffers[i].data(), lease.bytes(i).data(), buffers[i].size());
      }
      watch.Stop();
      KAVERN_RETURN_IF_ERROR(lease.Release());
    }
    return Rate(batches_, watch);
  }

  absl::StatusOr<double> Store(BenchPlane plane) {
    const std::size_t batches = BatchesOf(plane);
    Stopwatch watch;
    for (std::size_t b = 0; b < batches; ++b) {
      const auto buffers = memory_.Sources(b * case_.batch, case_.batch, case_.block_bytes);
      KAVERN_RETURN_IF_ERROR(UntilGranted([&]() -> absl::StatusOr<std::string> {
        const std::vector<BlockKey> chain = node_.NewChain(case_.batch);
        watch.Start();
        const auto stored = node_.ns(plane).Store({.keys = chain}, buffers);
        if (!stored.ok()) return stored.status();
        if (stored->decline_reason.empty()) watch.Stop();  // others do not count
        return stored->decline_reason;
      }));
    }
    return Rate(batches, watch);
  }

  // Into as much memory as Store fills: the leases of the whole pass are taken before.
  absl::StatusOr<double> StoreByMemcpy() {
    std::vector<StoreLease> leases;
    for (std::size_t b = 0; b < batches_; ++b) {
      KAVERN_RETURN_IF_ERROR(UntilGranted([&]() -> absl::StatusOr<std::string> {
        const std::vector<BlockKey> chain = node_.NewChain(case_.batch);
        KAVERN_ASSIGN_OR_RETURN(StoreLease lease,
                                node_.ns(BenchPlane::kOneThread).BeginStore({.keys = chain}));
        std::string declined = lease.decline_reason();
        if (declined.empty()) leases.push_back(std::move(lease));
        return declined;
      }));
    }
    Stopwatch watch;
    for (std::size_t b = 0; b < batches_; ++b) {
      const auto buffers = memory_.Sources(b * case_.batch, case_.batch, case_.block_bytes);
      watch.Start();
      for (std::size_t i = 0; i < case_.batch; ++i) {
        std::memcpy(leases[b].bytes(i).data(), buffers[i].data(), buffers[i].size());
      }
      watch.Stop();
    }
    return Rate(batches_, watch);
  }

 private:
  std::size_t BatchesOf(BenchPlane plane) const {
    if (plane != BenchPlane::kBytes) return batches_;
    return std::clamp<std::size_t>(kBytesPlaneSetBytes / case_.block_bytes / case_.batch, 1,
                                   batches_);
  }

  static absl::Status Lost() {
    return absl::FailedPreconditionError(
        "a block was evicted while it was measured: expected a daemon that nobody else uses");
  }

  double Rate(std::size_t batches, const Stopwatch& watch) const {
    return static_cast<double>(batches * case_.batch * case_.block_bytes) / watch.seconds() / 1e9;
  }

  BenchNode& node_;
  const CopyCase case_;
  const WorkerMemory& memory_;
  std::size_t batches_;
  std::vector<std::vector<BlockKey>> chains_;
};

// One way to move the bytes, and the rates of its passes beside those of the memcpy.
struct Way {
  std::string suffix;
  BenchPlane plane;
  std::optional<double> target;
  Pairs pairs = {};
};

std::vector<Way> WaysOf(const CopyCase& c) {
  const auto target = [&c](double value) {
    return c.targeted ? std::optional<double>(value) : std::nullopt;
  };
  std::vector<Way> ways = {{"t1", BenchPlane::kOneThread, target(kOneThreadTarget)},
                           {"t2", BenchPlane::kTwoThreads, target(kTwoThreadsTarget)}};
  if (c.batch * c.block_bytes <= kBytesPlaneSetBytes / 2) {
    ways.push_back({"bytes", BenchPlane::kBytes, std::nullopt});
  }
  return ways;
}

void AppendRows(const std::string& verb, const CopyCase& c, const std::vector<Way>& ways,
                std::vector<BenchRow>* rows) {
  const std::string size = absl::StrCat(c.block_bytes >> 10, "KiB.x", c.batch);
  for (const Way& way : ways) {
    const std::string name = way.plane == BenchPlane::kBytes
                                 ? absl::StrCat("grpc.", verb, ".", size)
                                 : absl::StrCat("ram.", verb, ".", size, ".", way.suffix);
    BenchRow row = RowOf(name, "GB/s", way.pairs, "memcpy, 1 thread");
    row.target = way.target;
    rows->push_back(std::move(row));
  }
}

}  // namespace

std::vector<CopyCase> CopyCases() {
  std::vector<CopyCase> cases;
  for (const std::uint64_t block_bytes : {2 * kMiB, 512 * kKiB, 64 * kKiB}) {
    for (const std::size_t batch : {1, 8, 32, 256}) {
      const bool targeted = block_bytes == 2 * kMiB && batch == 32;
      const std::uint64_t set =
          std::max(targeted ? kTargetSetBytes : kSetBytes, batch * block_bytes);
      cases.push_back({block_bytes, batch, set, targeted});
    }
  }
  return cases;
}

std::uint64_t CopyRoomBytes() {
  return 2 * kTargetSetBytes;
}
std::uint64_t CopyMemoryBytes() {
  return kTargetSetBytes;
}

absl::Status BenchCopies(BenchNode& node, const CopyCase& c, int repetitions,
                         const WorkerMemory& memory, std::vector<BenchRow>* rows) {
  CopyPasses passes(node, c, memory);
  std::vector<Way> fetch = WaysOf(c);
  std::vector<Way> store = WaysOf(c);
  KAVERN_RETURN_IF_ERROR(passes.StoreSet());
  // Repetition -1 warms up: page tables, threads, connections.
  for (int repetition = -1; repetition < repetitions; ++repetition) {
    KAVERN_ASSIGN_OR_RETURN(const double reference, passes.FetchByMemcpy());
    for (Way& way : fetch) {
      KAVERN_ASSIGN_OR_RETURN(const double rate, passes.Fetch(way.plane));
      if (repetition >= 0) way.pairs.Add(rate, reference);
    }
  }
  for (int repetition = -1; repetition < repetitions; ++repetition) {
    KAVERN_ASSIGN_OR_RETURN(const double reference, passes.StoreByMemcpy());
    for (Way& way : store) {
      KAVERN_ASSIGN_OR_RETURN(const double rate, passes.Store(way.plane));
      if (repetition >= 0) way.pairs.Add(rate, reference);
    }
  }
  AppendRows("fetch", c, fetch, rows);
  AppendRows("store", c, store, rows);
  return absl::OkStatus();
}

}  // namespace kavern::cli
