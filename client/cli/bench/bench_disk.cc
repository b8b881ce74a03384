#include "client/cli/bench/bench_disk.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "client/cli/bench/fio.h"
#include "client/cli/replay/payload_pattern.h"

namespace kavern::cli {
namespace {

constexpr std::uint64_t kBlockSizes[] = {64 * kKiB, 256 * kKiB, kMiB, 2 * kMiB, 8 * kMiB};
constexpr std::uint64_t kTargetedBlockBytes = 2 * kMiB;
constexpr double kFetchTarget = 0.95;
constexpr double kWriteTarget = 0.90;
// One call asks for as many blocks as the disk takes at a time, of small ones for more.
constexpr std::uint64_t kCallBytesMin = 16 * kMiB;
// Calls under way at a time: while one copies the other reads.
constexpr int kFetchers = 2;
constexpr std::chrono::milliseconds kPollInterval(5);
constexpr std::chrono::seconds kWritePatience(120);
constexpr std::chrono::seconds kColdPatience(10);

using Seconds = std::chrono::duration<double>;

// User and system seconds of the process so far; nullopt: it cannot be seen from here.
std::optional<double> CpuSeconds(std::uint64_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::ostringstream text;
  text << file.rdbuf();
  const std::string line = text.str();
  const std::size_t name_end = line.rfind(')');
  if (name_end == std::string::npos || line.find("(kavernd)") == std::string::npos) {
    return std::nullopt;
  }
  const std::vector<std::string> fields = absl::StrSplit(line.substr(name_end + 2), ' ');
  constexpr std::size_t kUserTicks = 11;  // behind the name: man 5 proc
  if (fields.size() < kUserTicks + 2) return std::nullopt;
  return (std::stod(fields[kUserTicks]) + std::stod(fields[kUserTicks + 1])) /
         static_cast<double>(sysconf(_SC_CLK_TCK));
}

// What one side of a pair did.
struct Pass {
  double bytes_per_second = 0;
  double cpu_seconds = 0;
};

// What the daemon must have in RAM.
std::uint64_t RoomBytes(const DiskBenchOptions& options) {
  return 2 * options.set_bytes;
}

// One block size.
class DiskPasses {
 public:
  DiskPasses(BenchNode& node, const DiskBenchOptions& options, const WorkerMemory& memory,
             std::uint64_t block_bytes, std::uint64_t depth)
      : node_(node),
        options_(options),
        memory_(memory),
        block_bytes_(block_bytes),
        depth_(depth),
        blocks_(options.set_bytes / block_bytes),
        batch_(std::max(depth, kCallBytesMin / block_bytes)) {}

  // The blocks that Fetch reads, half of them in each half of the memory; what was written before
  // is gone, so that the disk need not evict them.
  absl::Status StoreFetchSet() {
    KAVERN_RETURN_IF_ERROR(node_.UseBlockBytes(block_bytes_, RoomBytes(options_)));
    chains_.clear();
    KAVERN_RETURN_IF_ERROR(FillAndStore(0, blocks_, &chains_));
    return node_.admin().Quiesce();
  }

  // Of the first `blocks` of the set, none of which is in RAM.
  absl::StatusOr<Pass> Fetch(std::size_t blocks) {
    KAVERN_RETURN_IF_ERROR(MakeCold());
    KAVERN_ASSIGN_OR_RETURN(const double before, Cpu());
    const auto start = std::chrono::steady_clock::now();
    KAVERN_RETURN_IF_ERROR(FetchAll(blocks));
    const Seconds took = std::chrono::steady_clock::now() - start;
    KAVERN_ASSIGN_OR_RETURN(const double after, Cpu());
    KAVERN_RETURN_IF_ERROR(VerifyPatterns(blocks));
    return Pass{Rate(blocks, took), after - before};
  }

  // Stores new blocks, until all of them are on disk and flushed.
  absl::StatusOr<Pass> WriteBack() {
    // Into a tier that has room: what an eviction costs, and what it chooses, is not measured here.
    KAVERN_RETURN_IF_ERROR(node_.UseBlockBytes(block_bytes_, RoomBytes(options_)));
    std::vector<std::vector<BlockKey>> chains = NewChains(blocks_);
    Fill(0, chains);
    KAVERN_ASSIGN_OR_RETURN(const double before, Cpu());
    KAVERN_ASSIGN_OR_RETURN(const Seconds took, StoreUntilWritten(0, chains));
    KAVERN_ASSIGN_OR_RETURN(const double after, Cpu());
    return Pass{Rate(blocks_, took), after - before};
  }

  struct Mixed {
    Pass fetch;
    Pass write;
  };
  // Half a set each, at the same time.
  absl::StatusOr<Mixed> FetchWhileWriting() {
    const std::size_t half = chains_.size() / 2 * batch_;
    KAVERN_RETURN_IF_ERROR(MakeCold());
    std::vector<std::vector<BlockKey>> chains = NewChains(half);
    Fill(half, chains);
    KAVERN_ASSIGN_OR_RETURN(const double before, Cpu());
    absl::StatusOr<Seconds> wrote = absl::InternalError("not run");
    std::thread writer =
        NamedThread("kavern-writer", [&] { wrote = StoreUntilWritten(half, chains); });
    const auto start = std::chrono::steady_clock::now();
    const absl::Status fetched = FetchAll(half);
    const Seconds took = std::chrono::steady_clock::now() - start;
    writer.join();
    KAVERN_RETURN_IF_ERROR(fetched);
    if (!wrote.ok()) return wrote.status();
    KAVERN_ASSIGN_OR_RETURN(const double after, Cpu());
    KAVERN_RETURN_IF_ERROR(VerifyPatterns(half));
    Mixed mixed;
    mixed.fetch = {Rate(half, took), after - before};
    mixed.write = {Rate(half, *wrote), 0};
    return mixed;
  }

  // ---- fio ----
  absl::StatusOr<Pass> FioRead() { return FioOne(Job(false, 0, blocks_)); }
  absl::StatusOr<Pass> FioWrite() { return FioOne(Job(true, 0, blocks_)); }
  absl::StatusOr<Mixed> FioMixed() {
    const std::size_t half = chains_.size() / 2 * batch_;
    const FioJob jobs[] = {Job(false, 0, half), Job(true, half, half)};
    KAVERN_ASSIGN_OR_RETURN(const auto results, RunFio(options_.fio_file, jobs));
    Mixed mixed;
    mixed.fetch = {results[0].bytes_per_second, results[0].cpu_seconds + results[1].cpu_seconds};
    mixed.write = {results[1].bytes_per_second, 0};
    return mixed;
  }

  double SetGigabytes() const { return static_cast<double>(blocks_ * block_bytes_) / 1e9; }
  double MixedGigabytes() const {
    const std::uint64_t pairs = chains_.size() / 2;
    return static_cast<double>(pairs * batch_ * 2 * block_bytes_) / 1e9;
  }
  std::string Size() const { return absl::StrCat(block_bytes_ / kKiB, "KiB.d", depth_); }

 private:
  FioJob Job(bool write, std::size_t first, std::size_t blocks) const {
    FioJob job;
    job.write = write;
    job.block_bytes = block_bytes_;
    job.offset = first * block_bytes_;
    job.bytes = blocks * block_bytes_;
    job.depth = depth_;
    job.writes_per_flush = writes_per_flush_;
    return job;
  }

  absl::StatusOr<Pass> FioOne(const FioJob& job) {
    KAVERN_ASSIGN_OR_RETURN(const auto results, RunFio(options_.fio_file, {&job, 1}));
    return Pass{results[0].bytes_per_second, results[0].cpu_seconds};
  }

  // The set is a whole number of batches, each a chain of its own.
  std::vector<std::vector<BlockKey>> NewChains(std::size_t blocks) {
    std::vector<std::vector<BlockKey>> chains;
    for (std::size_t i = 0; i < blocks; i += batch_) {
      chains.push_back(node_.NewChain(std::min(batch_, blocks - i)));
    }
    return chains;
  }

  void Fill(std::size_t first, const std::vector<std::vector<BlockKey>>& chains) {
    for (std::size_t c = 0; c < chains.size(); ++c) {
      const auto buffers = memory_.Destinations(first + c * batch_, chains[c].size(), block_bytes_);
      for (std::size_t i = 0; i < buffers.size(); ++i) FillPattern(chains[c][i], 0, buffers[i]);
    }
  }

  absl::Status FillAndStore(std::size_t first, std::size_t blocks,
                            std::vector<std::vector<BlockKey>>* chains) {
    *chains = NewChains(blocks);
    Fill(first, *chains);
    return StoreAll(first, *chains);
  }

  absl::Status StoreAll(std::size_t first, const std::vector<std::vector<BlockKey>>& chains) {
    for (std::size_t c = 0; c < chains.size(); ++c) {
      KAVERN_RETURN_IF_ERROR(
          StoreWhole(node_.ns(BenchPlane::kOneThread), chains[c],
                     memory_.Sources(first + c * batch_, chains[c].size(), block_bytes_)));
    }
    return absl::OkStatus();
  }

  // From the first store to the last flush. What the tier writes shares flushes as it is configured
  // to; only the last of them is not waited for idly.
  absl::StatusOr<Seconds> StoreUntilWritten(std::size_t first,
                                            const std::vector<std::vector<BlockKey>>& chains) {
    std::uint64_t bytes = 0;
    for (const auto& chain : chains) bytes += chain.size() * block_bytes_;
    KAVERN_ASSIGN_OR_RETURN(const auto before, node_.admin().GetStatus());
    const auto start = std::chrono::steady_clock::now();
    KAVERN_RETURN_IF_ERROR(StoreAll(first, chains));
    v1::GetStatusResponse status;
    for (;;) {
      KAVERN_ASSIGN_OR_RETURN(status, node_.admin().GetStatus());
      if (status.nvme().written_bytes() - before.nvme().written_bytes() >= bytes) break;
      if (status.nvme().write_back_blocks() == 0 ||
          std::chrono::steady_clock::now() - start > kWritePatience) {
        return absl::FailedPreconditionError(
            "blocks were not written to disk: expected a daemon that nobody else uses, with "
            "room for two sets in RAM and four on disk");
      }
      std::this_thread::sleep_for(kPollInterval);
    }
    KAVERN_RETURN_IF_ERROR(node_.admin().Quiesce());
    const Seconds took = std::chrono::steady_clock::now() - start;
    const std::uint64_t flushes = status.nvme().flushes() - before.nvme().flushes() + 1;
    writes_per_flush_ = std::max<std::uint64_t>(1, bytes / block_bytes_ / flushes);
    return took;
  }

  // Leases of the last pass are given back in the background: a block may stay for a moment.
  absl::Status MakeCold() {
    const auto give_up = std::chrono::steady_clock::now() + kColdPatience;
    for (;;) {
      KAVERN_RETURN_IF_ERROR(node_.admin().Quiesce());
      KAVERN_RETURN_IF_ERROR(node_.admin().Demote().status());
      KAVERN_ASSIGN_OR_RETURN(const auto status, node_.admin().GetStatus());
      if (status.ram().used_bytes() == 0) return node_.AwaitRam();
      if (std::chrono::steady_clock::now() > give_up) {
        return absl::FailedPreconditionError(
            absl::StrCat(FormatBytes(status.ram().used_bytes()),
                         " are left in RAM: expected a daemon that nobody else uses"));
      }
      std::this_thread::sleep_for(kPollInterval);
    }
  }

  absl::Status FetchAll(std::size_t blocks) {
    std::atomic<std::size_t> next = 0;
    std::vector<absl::Status> statuses(kFetchers);
    std::vector<std::thread> fetchers;
    for (absl::Status& status : statuses) {
      fetchers.push_back(NamedThread("kavern-fetcher", [&] {
        for (std::size_t c = next++; c * batch_ < blocks && status.ok(); c = next++) {
          status = FetchChain(c);
        }
      }));
    }
    for (std::thread& fetcher : fetchers) fetcher.join();
    for (const absl::Status& status : statuses) KAVERN_RETURN_IF_ERROR(status);
    return absl::OkStatus();
  }

  absl::Status FetchChain(std::size_t c) {
    const auto buffers = memory_.Destinations(c * batch_, chains_[c].size(), block_bytes_);
    const auto fetched = node_.ns(BenchPlane::kOneThread).FetchInto({.keys = chains_[c]}, buffers);
    if (!fetched.ok()) return fetched.status();
    if (fetched->all_ok()) return absl::OkStatus();
    return absl::FailedPreconditionError(
        "a block was not on disk any more: expected a daemon that nobody else uses");
  }

  absl::Status VerifyPatterns(std::size_t blocks) {
    for (std::size_t c = 0; c * batch_ < blocks; ++c) {
      const auto buffers = memory_.Destinations(c * batch_, chains_[c].size(), block_bytes_);
      for (std::size_t i = 0; i < buffers.size(); ++i) {
        if (const std::uint64_t wrong = CountWrongBytes(chains_[c][i], 0, buffers[i]); wrong > 0) {
          return absl::DataLossError(absl::StrCat("block ", chains_[c][i].ToHex(), ": ", wrong,
                                                  " bytes are not what was stored"));
        }
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<double> Cpu() {
    if (pid_ == 0) {
      KAVERN_ASSIGN_OR_RETURN(const auto status, node_.admin().GetStatus());
      pid_ = status.pid();
    }
    return CpuSeconds(pid_).value_or(0);
  }

  double Rate(std::size_t blocks, Seconds took) const {
    return static_cast<double>(blocks * block_bytes_) / took.count();
  }

  BenchNode& node_;
  const DiskBenchOptions& options_;
  const WorkerMemory& memory_;
  const std::uint64_t block_bytes_;
  const std::uint64_t depth_;
  const std::size_t blocks_;  // of a set
  const std::size_t batch_;   // blocks of a call, and of a chain
  std::vector<std::vector<BlockKey>> chains_;
  std::uint64_t writes_per_flush_ = 0;  // of the tier, as it was last measured
  std::uint64_t pid_ = 0;
};

// Pairs of passes, and the rows that come of them.
class DiskPairs {
 public:
  void Add(const Pass& ours, const Pass& theirs, double gigabytes) {
    rate_.Add(ours.bytes_per_second / 1e9, theirs.bytes_per_second / 1e9);
    cpu_.Add(ours.cpu_seconds / gigabytes, theirs.cpu_seconds / gigabytes);
  }
  void Append(const std::string& name, std::optional<double> target, bool with_cpu,
              std::vector<BenchRow>* rows) const {
    BenchRow rate = RowOf(name, "GB/s", rate_, "fio, huge pages");
    rate.target = target;
    rows->push_back(std::move(rate));
    if (with_cpu && Median(cpu_.values) > 0 && Median(cpu_.references) > 0) {
      BenchRow cpu = RowOf(name + ".cpu", "s/GB", cpu_, "fio, huge pages");
      cpu.at_least = false;
      rows->push_back(std::move(cpu));
    }
  }

 private:
  Pairs rate_;
  Pairs cpu_;
};

// Runs both sides of a pair; every other time the reference goes first, so that what the one leaves
// behind (a disk that was idle, or one that was not) falls on both.
template <typename Result>
absl::Status RunPair(int repetition, const std::function<absl::StatusOr<Result>()>& ours,
                     const std::function<absl::StatusOr<Result>()>& theirs, Result* our_result,
                     Result* their_result) {
  const bool reversed = repetition % 2 == 1;
  if (reversed) {
    KAVERN_ASSIGN_OR_RETURN(*their_result, theirs());
  }
  KAVERN_ASSIGN_OR_RETURN(*our_result, ours());
  if (!reversed) {
    KAVERN_ASSIGN_OR_RETURN(*their_result, theirs());
  }
  return absl::OkStatus();
}

// Repetition -1 warms up, and tells fio how often the tier flushes.
absl::Status PairPasses(int repetitions, double gigabytes,
                        const std::function<absl::StatusOr<Pass>()>& ours,
                        const std::function<absl::StatusOr<Pass>()>& theirs, DiskPairs* pairs) {
  for (int repetition = -1; repetition < repetitions; ++repetition) {
    Pass our_pass;
    Pass their_pass;
    // The first pair begins with ours.
    KAVERN_RETURN_IF_ERROR(RunPair(repetition + 1, ours, theirs, &our_pass, &their_pass));
    if (repetition >= 0) pairs->Add(our_pass, their_pass, gigabytes);
  }
  return absl::OkStatus();
}

absl::Status BenchOneSize(DiskPasses& passes, std::size_t blocks, int repetitions,
                          std::vector<BenchRow>* rows) {
  DiskPairs write;
  KAVERN_RETURN_IF_ERROR(PairPasses(
      repetitions, passes.SetGigabytes(), [&] { return passes.WriteBack(); },
      [&] { return passes.FioWrite(); }, &write));
  KAVERN_RETURN_IF_ERROR(passes.StoreFetchSet());
  DiskPairs fetch;
  KAVERN_RETURN_IF_ERROR(PairPasses(
      repetitions, passes.SetGigabytes(), [&] { return passes.Fetch(blocks); },
      [&] { return passes.FioRead(); }, &fetch));
  DiskPairs mixed_fetch;
  DiskPairs mixed_write;
  for (int repetition = -1; repetition < repetitions; ++repetition) {
    DiskPasses::Mixed ours;
    DiskPasses::Mixed theirs;
    KAVERN_RETURN_IF_ERROR(RunPair<DiskPasses::Mixed>(
        repetition + 1, [&] { return passes.FetchWhileWriting(); },
        [&] { return passes.FioMixed(); }, &ours, &theirs));
    if (repetition < 0) continue;
    mixed_fetch.Add(ours.fetch, theirs.fetch, passes.MixedGigabytes());
    mixed_write.Add(ours.write, theirs.write, passes.MixedGigabytes());
  }
  fetch.Append("nvme.fetch." + passes.Size(), kFetchTarget, true, rows);
  write.Append("nvme.write." + passes.Size(), kWriteTarget, true, rows);
  mixed_fetch.Append("nvme.mixed.fetch." + passes.Size(), std::nullopt, true, rows);
  mixed_write.Append("nvme.mixed.write." + passes.Size(), std::nullopt, false, rows);
  return absl::OkStatus();
}

}  // namespace

std::uint64_t DiskMemoryBytes(const DiskBenchOptions& options) {
  return options.set_bytes;
}

absl::Status BenchDisk(BenchNode& node, const DiskBenchOptions& options, const WorkerMemory& memory,
                       const std::function<void(const std::string&)>& progress,
                       std::vector<BenchRow>* rows) {
  KAVERN_ASSIGN_OR_RETURN(const auto status, node.admin().GetStatus());
  if (!status.has_nvme()) {
    return absl::FailedPreconditionError(
        "the daemon has no NVMe tier, or this user is no operator of it");
  }
  const bool made = !std::filesystem::exists(options.fio_file);
  const absl::Cleanup remove = [&] {
    std::error_code ignored;
    if (made) std::filesystem::remove(options.fio_file, ignored);
  };
  if (made) {
    progress("a file for fio");
    KAVERN_RETURN_IF_ERROR(PrepareFioFile(options.fio_file, options.set_bytes));
  }
  for (const std::uint64_t block_bytes : kBlockSizes) {
    if (options.targets_only && block_bytes != kTargetedBlockBytes) continue;
    progress(absl::StrCat(FormatBytes(block_bytes), " blocks on disk"));
    KAVERN_RETURN_IF_ERROR(node.UseBlockBytes(block_bytes, RoomBytes(options)));
    DiskPasses passes(node, options, memory, block_bytes, status.nvme().queue_depth());
    KAVERN_RETURN_IF_ERROR(
        BenchOneSize(passes, options.set_bytes / block_bytes, options.repetitions, rows));
  }
  return node.Forget();
}

}  // namespace kavern::cli
