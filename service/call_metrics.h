// Counts and times of RPCs, and the limit on calls in progress. Knows no gRPC.
#ifndef KAVERN_SERVICE_CALL_METRICS_H_
#define KAVERN_SERVICE_CALL_METRICS_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "base/mutex.h"
#include "prometheus/counter.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace kavern::service {

// Thread-safe.
class CallMetrics {
 public:
  // `registry` must outlive it.
  CallMetrics(prometheus::Registry& registry, std::uint64_t concurrent_calls_max);

  // One call in progress: counted while it lives, its time and status recorded by Finish.
  // Move-only.
  class Call {
   public:
    Call(CallMetrics& metrics, const char* method);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    // False: there are concurrent_calls_max already; answer ResourceExhausted.
    bool admitted() const { return admitted_; }
    void Finish(absl::StatusCode code) { code_ = code; }

   private:
    CallMetrics& metrics_;
    const char* const method_;
    const std::chrono::steady_clock::time_point start_;
    const bool admitted_;
    absl::StatusCode code_ = absl::StatusCode::kCancelled;
  };

  std::uint64_t in_progress() const { return in_progress_.load(std::memory_order_relaxed); }

 private:
  void Record(const char* method, absl::StatusCode code, double seconds);

  const std::uint64_t concurrent_calls_max_;
  std::atomic<std::uint64_t> in_progress_ = 0;
  prometheus::Family<prometheus::Counter>& calls_;
  prometheus::Family<prometheus::Histogram>& seconds_;

  struct MethodMetrics {
    prometheus::Histogram* seconds = nullptr;
    absl::flat_hash_map<int, prometheus::Counter*> by_code;
  };
  Mutex mu_;
  // Keyed by the address of the method's literal: every call names its method by one.
  absl::flat_hash_map<const char*, MethodMetrics> methods_ KAVERN_GUARDED_BY(mu_);
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_CALL_METRICS_H_
