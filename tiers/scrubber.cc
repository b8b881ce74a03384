#include "tiers/scrubber.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/clock.h"
#include "base/named_thread.h"

namespace kavern::tiers {
namespace {

// Before it looks again where there was nothing to read, or everything has been read.
constexpr std::chrono::seconds kPause(10);

}  // namespace

Scrubber::Scrubber(std::uint64_t bytes_per_second, std::function<std::uint64_t()> verify_next)
    : bytes_per_second_(bytes_per_second),
      verify_next_(std::move(verify_next)),
      thread_(NamedThread("scrubber", [this] { Loop(); })) {}

Scrubber::~Scrubber() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void Scrubber::Loop() {
  SteadyTime next = std::chrono::steady_clock::now() + kPause;
  for (;;) {
    {
      MutexLock lock(mu_);
      while (!stop_ && changed_.WaitUntil(mu_, next)) {
      }
      if (stop_) return;
    }
    const std::uint64_t bytes = verify_next_();
    const SteadyTime now = std::chrono::steady_clock::now();
    if (bytes == 0) {
      next = now + kPause;
      continue;
    }
    // From when it was due, so that the rate holds; a disk that is slower is not chased.
    const std::chrono::duration<double> takes(static_cast<double>(bytes) /
                                              static_cast<double>(bytes_per_second_));
    next = std::max(now, next + std::chrono::ceil<SteadyDuration>(takes));
  }
}

}  // namespace kavern::tiers
