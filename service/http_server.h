// /metrics, /healthz and /readyz.
#ifndef KAVERN_SERVICE_HTTP_SERVER_H_
#define KAVERN_SERVICE_HTTP_SERVER_H_

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kavern::service {

// Serves GET and HEAD, one request a connection, on a thread of its own until destroyed. Every
// process of the machine can connect: those that say nothing, or too slowly, keep nobody out and
// take no more than `Limits` of descriptors and time.
class HttpServer {
 public:
  struct Pages {
    std::function<std::string()> metrics;  // Prometheus text format
    // Empty: 200. Otherwise 503 with the reason.
    std::function<std::string()> not_healthy;
    std::function<std::string()> not_ready;
  };

  struct Limits {
    // Beyond it the oldest connection is closed for the newest.
    std::size_t connections_max = 64;
    // From its beginning to its end.
    std::chrono::milliseconds connection_time{5000};
  };

  // `address` is host:port on loopback; port 0 takes a free one. Unavailable when it cannot be
  // bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Create(const std::string& address, Pages pages,
                                                            Limits limits);
  static absl::StatusOr<std::unique_ptr<HttpServer>> Create(const std::string& address,
                                                            Pages pages) {
    return Create(address, std::move(pages), Limits());
  }
  virtual ~HttpServer() = default;
  virtual int port() const = 0;
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_HTTP_SERVER_H_
