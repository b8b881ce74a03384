// /metrics, /healthz and /readyz.
#ifndef KAVERN_SERVICE_HTTP_SERVER_H_
#define KAVERN_SERVICE_HTTP_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kavern::service {

// Serves on a thread of its own until destroyed.
class HttpServer {
 public:
  struct Pages {
    std::function<std::string()> metrics;  // Prometheus text format
    // Empty: 200. Otherwise 503 with the reason.
    std::function<std::string()> not_healthy;
    std::function<std::string()> not_ready;
  };

  // `address` is host:port on loopback; port 0 takes a free one. Unavailable when it cannot be
  // bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Create(const std::string& address,
                                                            Pages pages);
  virtual ~HttpServer() = default;
  virtual int port() const = 0;
};

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_HTTP_SERVER_H_
