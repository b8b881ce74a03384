#include "service/http_server.h"

#include <httplib.h>

#include <atomic>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace kavern::service {
namespace {

// A scrape and two probes at a time are plenty; more would only be threads.
constexpr int kThreads = 2;
constexpr int kTimeoutSeconds = 5;
constexpr char kPlainText[] = "text/plain; charset=utf-8";

void Answer(httplib::Response& response, const std::string& reason) {
  response.status = reason.empty() ? 200 : 503;
  response.set_content(reason.empty() ? "ok\n" : reason + "\n", kPlainText);
}

class HttpServerImpl final : public HttpServer {
 public:
  explicit HttpServerImpl(Pages pages) : pages_(std::move(pages)) {
    server_.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
    server_.set_read_timeout(kTimeoutSeconds);
    server_.set_write_timeout(kTimeoutSeconds);
    server_.set_keep_alive_max_count(16);
    server_.set_payload_max_length(4096);
    // httplib's own options let a second daemon share the port, and each scrape meet either.
    server_.set_socket_options([](socket_t socket) {
      const int on = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    });
    server_.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(pages_.metrics(), "text/plain; version=0.0.4; charset=utf-8");
    });
    server_.Get("/healthz", [this](const httplib::Request&, httplib::Response& response) {
      Answer(response, pages_.not_healthy());
    });
    server_.Get("/readyz", [this](const httplib::Request&, httplib::Response& response) {
      Answer(response, pages_.not_ready());
    });
  }

  ~HttpServerImpl() override {
    server_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen(const std::string& address) {
    const std::size_t colon = address.rfind(':');
    int port = -1;
    if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port)) {
      return absl::InvalidArgumentError(absl::StrCat("http.address: ", address));
    }
    std::string host = address.substr(0, colon);
    if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
    if (port == 0) {
      port_ = server_.bind_to_any_port(host);
    } else {
      port_ = server_.bind_to_port(host, port) ? port : -1;
    }
    if (port_ < 0) {
      return absl::UnavailableError(absl::StrCat("http.address: cannot listen on ", address));
    }
    thread_ = std::thread([this] {
      server_.listen_after_bind();
      ended_ = true;
    });
    // stop() is lost on a server that has not begun to listen.
    while (!server_.is_running() && !ended_) std::this_thread::yield();
    return absl::OkStatus();
  }

  int port() const override { return port_; }

 private:
  const Pages pages_;
  httplib::Server server_;
  std::thread thread_;
  std::atomic<bool> ended_ = false;
  int port_ = -1;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Create(const std::string& address,
                                                               Pages pages) {
  auto server = std::make_unique<HttpServerImpl>(std::move(pages));
  if (absl::Status status = server->Listen(address); !status.ok()) return status;
  return server;
}

}  // namespace kavern::service
