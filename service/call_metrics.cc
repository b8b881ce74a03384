#include "service/call_metrics.h"

namespace kavern::service {
namespace {

// Seconds: from one small RPC to a long stream.
const prometheus::Histogram::BucketBoundaries kSecondsBuckets = {
    25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.5, 1, 5};

}  // namespace

CallMetrics::CallMetrics(prometheus::Registry& registry, std::uint64_t concurrent_calls_max)
    : concurrent_calls_max_(concurrent_calls_max),
      calls_(prometheus::BuildCounter()
                 .Name("kavern_rpc_total")
                 .Help("RPCs that ended, by method and status code.")
                 .Register(registry)),
      seconds_(prometheus::BuildHistogram()
                   .Name("kavern_rpc_seconds")
                   .Help("Time from the arrival of an RPC at its handler to its end, by method.")
                   .Register(registry)) {}

CallMetrics::Call::Call(CallMetrics& metrics, const char* method)
    : metrics_(metrics),
      method_(method),
      start_(std::chrono::steady_clock::now()),
      admitted_(metrics.in_progress_.fetch_add(1, std::memory_order_relaxed) <
                metrics.concurrent_calls_max_) {}

CallMetrics::Call::~Call() {
  metrics_.in_progress_.fetch_sub(1, std::memory_order_relaxed);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
  metrics_.Record(method_, code_, elapsed.count());
}

void CallMetrics::Record(const char* method, absl::StatusCode code, double seconds) {
  prometheus::Histogram* histogram = nullptr;
  prometheus::Counter* counter = nullptr;
  {
    MutexLock lock(mu_);
    MethodMetrics& metrics = methods_[method];
    if (metrics.seconds == nullptr) {
      metrics.seconds = &seconds_.Add({{"method", method}}, kSecondsBuckets);
    }
    prometheus::Counter*& by_code = metrics.by_code[static_cast<int>(code)];
    if (by_code == nullptr) {
      by_code = &calls_.Add({{"method", method}, {"code", absl::StatusCodeToString(code)}});
    }
    histogram = metrics.seconds;
    counter = by_code;
  }
  histogram->Observe(seconds);
  counter->Increment();
}

}  // namespace kavern::service
