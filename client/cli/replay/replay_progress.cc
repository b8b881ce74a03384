#include "client/cli/replay/replay_progress.h"

#include <sys/mman.h>

#include <cerrno>
#include <new>
#include <utility>

#include "absl/strings/str_format.h"

namespace kavern::cli {

absl::StatusOr<ReplayProgress> ReplayProgress::Create() {
  void* memory =
      mmap(nullptr, sizeof(Counters), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return ErrnoStatus(errno, "mmap of the progress counters");
  return ReplayProgress(new (memory) Counters{});
}

ReplayProgress::ReplayProgress(ReplayProgress&& other) noexcept
    : counters_(std::exchange(other.counters_, nullptr)) {}

ReplayProgress::~ReplayProgress() {
  if (counters_ != nullptr) munmap(counters_, sizeof(Counters));
}

std::string ReplayProgress::Note() const {
  const std::uint64_t blocks = counters_->blocks;
  const double hits = blocks == 0 ? 0
                                  : 100.0 * static_cast<double>(counters_->hit_blocks) /
                                        static_cast<double>(blocks);
  return absl::StrFormat("hit %.1f %%  moved %.2f GB  wrong bytes %d", hits,
                         static_cast<double>(counters_->bytes) / 1e9,
                         counters_->wrong_bytes.load());
}

}  // namespace kavern::cli
