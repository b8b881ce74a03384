// The seam to time. Policies, sessions and leases read no clock of their own: whoever drives them
// passes the time in, or hands them a Clock that a test can hold still.
#ifndef KAVERN_BASE_CLOCK_H_
#define KAVERN_BASE_CLOCK_H_

#include <chrono>

namespace kavern {

using SteadyTime = std::chrono::steady_clock::time_point;
using SteadyDuration = std::chrono::steady_clock::duration;

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;

  // Monotonic, for ages and deadlines.
  virtual SteadyTime Now() const = 0;

  // Seconds since the Unix epoch, for what people read. Never used for ordering.
  virtual double WallSeconds() const = 0;

  // The process's own clock. Never destroyed.
  static const Clock& System();
};

}  // namespace kavern

#endif  // KAVERN_BASE_CLOCK_H_
