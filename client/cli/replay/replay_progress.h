// How far a replay is: counted by all its workers, in memory that its processes share.
#ifndef KAVERN_CLIENT_CLI_REPLAY_REPLAY_PROGRESS_H_
#define KAVERN_CLIENT_CLI_REPLAY_REPLAY_PROGRESS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace kavern::cli {

class ReplayProgress {
 public:
  struct Counters {
    std::atomic<std::uint64_t> requests;
    std::atomic<std::uint64_t> blocks;
    std::atomic<std::uint64_t> hit_blocks;
    std::atomic<std::uint64_t> bytes;  // fetched and stored
    std::atomic<std::uint64_t> wrong_bytes;
  };
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "shared between processes");

  // Processes forked later count into the same memory.
  static absl::StatusOr<ReplayProgress> Create();
  ReplayProgress(ReplayProgress&& other) noexcept;
  ReplayProgress& operator=(ReplayProgress&&) = delete;
  ~ReplayProgress();

  Counters& counters() const { return *counters_; }
  // "hit 41.2 %  3.51 GB  wrong 0".
  std::string Note() const;

 private:
  explicit ReplayProgress(Counters* counters) : counters_(counters) {}
  Counters* counters_;
};

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_REPLAY_REPLAY_PROGRESS_H_
