// Reads what is on disk in the background, at a bounded rate, so that damage is found before
// somebody asks for it.
#ifndef KAVERN_TIERS_SCRUBBER_H_
#define KAVERN_TIERS_SCRUBBER_H_

#include <cstdint>
#include <functional>
#include <thread>

#include "base/mutex.h"

namespace kavern::tiers {

// One thread. What it reads, and what becomes of damage, is the business of `verify_next`.
class Scrubber {
 public:
  // `verify_next` verifies a piece and returns how many bytes it read; 0: nothing at present. It is
  // called by the scrubber's thread alone, until the destructor returns.
  Scrubber(std::uint64_t bytes_per_second, std::function<std::uint64_t()> verify_next);
  // Waits for the verification under way.
  ~Scrubber();
  Scrubber(const Scrubber&) = delete;
  Scrubber& operator=(const Scrubber&) = delete;

 private:
  void Loop();

  const std::uint64_t bytes_per_second_;
  const std::function<std::uint64_t()> verify_next_;
  Mutex mu_;
  CondVar changed_;
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_SCRUBBER_H_
