#include "tiers/policy/write_budget.h"

#include <algorithm>
#include <chrono>

namespace kavern::tiers {
namespace {

constexpr double kSecondsPerDay = 86400;

double Refilled(const WriteBudget::Options& options, double bytes, double seconds) {
  const double rate = static_cast<double>(options.bytes_per_day) / kSecondsPerDay;
  return std::min(static_cast<double>(options.burst_bytes), bytes + rate * std::max(0.0, seconds));
}

double SecondsBetween(SteadyTime from, SteadyTime to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

WriteBudget::WriteBudget(const Options& options, SteadyTime now, std::uint64_t bytes)
    : options_(options),
      bytes_(static_cast<double>(std::min(bytes, options.burst_bytes))),
      at_(now) {}

void WriteBudget::Refill(SteadyTime now) {
  bytes_ = Refilled(options_, bytes_, SecondsBetween(at_, now));
  at_ = std::max(at_, now);
}

bool WriteBudget::Take(SteadyTime now, std::uint64_t bytes) {
  if (!limited()) return true;
  Refill(now);
  if (static_cast<double>(bytes) > bytes_) return false;
  bytes_ -= static_cast<double>(bytes);
  return true;
}

void WriteBudget::Reset(SteadyTime now, std::uint64_t bytes) {
  bytes_ = static_cast<double>(std::min(bytes, options_.burst_bytes));
  at_ = now;
}

void WriteBudget::Return(std::uint64_t bytes) {
  bytes_ = std::min(static_cast<double>(options_.burst_bytes), bytes_ + static_cast<double>(bytes));
}

SteadyTime WriteBudget::WhenEnough(SteadyTime now, std::uint64_t bytes) const {
  if (!limited()) return now;
  if (bytes > options_.burst_bytes) return SteadyTime::max();
  const double there = Refilled(options_, bytes_, SecondsBetween(at_, now));
  const double lacking = static_cast<double>(bytes) - there;
  if (lacking <= 0) return now;
  const double rate = static_cast<double>(options_.bytes_per_day) / kSecondsPerDay;
  // One tick later than exact, so that rounding never makes a caller try too early.
  return now + std::chrono::ceil<SteadyDuration>(std::chrono::duration<double>(lacking / rate)) +
         SteadyDuration(1);
}

std::uint64_t WriteBudget::Available(SteadyTime now) const {
  if (!limited()) return UINT64_MAX;
  return static_cast<std::uint64_t>(Refilled(options_, bytes_, SecondsBetween(at_, now)));
}

std::uint64_t RefilledBytes(const WriteBudget::Options& options, std::uint64_t bytes,
                            double seconds) {
  return static_cast<std::uint64_t>(Refilled(options, static_cast<double>(bytes), seconds));
}

}  // namespace kavern::tiers
