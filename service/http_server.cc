#include "service/http_server.h"

#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <list>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"

namespace kavern::service {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

constexpr std::size_t kRequestBytesMax = 8192;
constexpr int kBacklog = 128;
// How long no connection is taken after one could not be, for want of descriptors.
constexpr std::chrono::milliseconds kAcceptPause(100);
constexpr char kPlainText[] = "text/plain; charset=utf-8";
constexpr char kMetricsText[] = "text/plain; version=0.0.4; charset=utf-8";

struct Connection {
  enum class State { kReading, kWriting, kEnding };

  UniqueFd socket;
  SteadyTime deadline;
  State state = State::kReading;
  std::string request;   // its head, as far as it has come
  std::string response;  // what is still to be sent
};

std::string Response(std::string_view code, std::string_view type, const std::string& body,
                     bool with_body) {
  return absl::StrCat("HTTP/1.1 ", std::string(code), "\r\nContent-Type: ", std::string(type),
                      "\r\nContent-Length: ", body.size(), "\r\nConnection: close\r\n\r\n",
                      with_body ? body : "");
}

bool WouldBlock(int error_number) {
  return error_number == EAGAIN || error_number == EWOULDBLOCK || error_number == EINTR;
}

// A listening socket on host:port, and its port.
absl::StatusOr<std::pair<UniqueFd, int>> ListenOn(const std::string& address) {
  const std::size_t colon = address.rfind(':');
  if (colon == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("http.address: ", address));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  struct addrinfo hints {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  struct addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("http.address: ", address));
  }
  UniqueFd socket(::socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  // Not SO_REUSEPORT: a second daemon would share the port, and each scrape meet either.
  const int on = 1;
  setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const bool bound = bind(socket.get(), found->ai_addr, found->ai_addrlen) == 0 &&
                     listen(socket.get(), kBacklog) == 0;
  freeaddrinfo(found);
  struct sockaddr_storage name {};
  socklen_t size = sizeof(name);
  if (!bound || getsockname(socket.get(), reinterpret_cast<sockaddr*>(&name), &size) != 0) {
    return absl::UnavailableError(absl::StrCat("http.address: cannot listen on ", address));
  }
  // The port lies at the same place in both families.
  const int port = ntohs(reinterpret_cast<const sockaddr_in*>(&name)->sin_port);
  return std::make_pair(std::move(socket), port);
}

class HttpServerImpl final : public HttpServer {
 public:
  HttpServerImpl(Pages pages, Limits limits) : pages_(std::move(pages)), limits_(limits) {}

  ~HttpServerImpl() override {
    if (!thread_.joinable()) return;
    const std::uint64_t one = 1;
    (void)!write(stop_.get(), &one, sizeof(one));
    thread_.join();
  }

  absl::Status Listen(const std::string& address) {
    KAVERN_ASSIGN_OR_RETURN(auto listening, ListenOn(address));
    listener_ = std::move(listening.first);
    port_ = listening.second;
    stop_ = UniqueFd(eventfd(0, EFD_CLOEXEC));
    if (!stop_.valid()) return ErrnoStatus(errno, "eventfd");
    thread_ = NamedThread("http", [this] { Run(); });
    return absl::OkStatus();
  }

  int port() const override { return port_; }

 private:
  void Run() {
    for (;;) {
      const SteadyTime now = std::chrono::steady_clock::now();
      connections_.remove_if([&](const Connection& c) { return c.deadline <= now; });
      std::vector<pollfd> waits = {{stop_.get(), POLLIN, 0}};
      // A negative descriptor is not looked at.
      waits.push_back({now < accept_after_ ? -1 : listener_.get(), POLLIN, 0});
      SteadyTime wake = now < accept_after_ ? accept_after_ : now + std::chrono::hours(1);
      for (const Connection& c : connections_) {
        const bool writing = c.state == Connection::State::kWriting;
        waits.push_back({c.socket.get(), static_cast<short>(writing ? POLLOUT : POLLIN), 0});
        wake = std::min(wake, c.deadline);
      }
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(wake - now);
      poll(waits.data(), waits.size(), static_cast<int>(left.count()));
      if (waits[0].revents != 0) return;
      std::size_t at = 2;
      for (auto c = connections_.begin(); c != connections_.end(); ++at) {
        c = waits[at].revents != 0 && !Advance(*c) ? connections_.erase(c) : std::next(c);
      }
      if (waits[1].revents != 0) Accept();
    }
  }

  void Accept() {
    UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    const SteadyTime now = std::chrono::steady_clock::now();
    if (!socket.valid()) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        accept_after_ = now + kAcceptPause;
      }
      return;
    }
    if (connections_.size() == limits_.connections_max) connections_.pop_front();
    Connection& connection = connections_.emplace_back();
    connection.socket = std::move(socket);
    connection.deadline = now + limits_.connection_time;
    // A probe's request comes with it, so that no later connection can crowd it out.
    if (!Advance(connection)) connections_.pop_back();
  }

  // Reads, answers and ends as far as the peer lets it. False: the connection is over.
  bool Advance(Connection& connection) const {
    if (connection.state == Connection::State::kReading) {
      char buffer[4096];
      const ssize_t n = recv(connection.socket.get(), buffer, sizeof(buffer), 0);
      if (n <= 0) return n < 0 && WouldBlock(errno);
      connection.request.append(buffer, static_cast<std::size_t>(n));
      if (connection.request.find("\r\n\r\n") != std::string::npos) {
        connection.response = Answer(connection.request);
      } else if (connection.request.size() > kRequestBytesMax) {
        connection.response = Response("431 Request Header Fields Too Large", kPlainText, "", true);
      } else {
        return true;
      }
      connection.state = Connection::State::kWriting;
    }
    if (connection.state == Connection::State::kWriting) {
      std::string& rest = connection.response;
      const ssize_t n = send(connection.socket.get(), rest.data(), rest.size(), MSG_NOSIGNAL);
      if (n < 0) return WouldBlock(errno);
      rest.erase(0, static_cast<std::size_t>(n));
      if (!rest.empty()) return true;
      // Closing now would take the answer back from a peer that is still sending.
      shutdown(connection.socket.get(), SHUT_WR);
      connection.state = Connection::State::kEnding;
    }
    char ignored[4096];
    const ssize_t n = recv(connection.socket.get(), ignored, sizeof(ignored), 0);
    return n > 0 || (n < 0 && WouldBlock(errno));
  }

  std::string Answer(const std::string& request) const {
    const std::vector<std::string> words =
        absl::StrSplit(request.substr(0, request.find("\r\n")), ' ');
    if (words.size() != 3 || words[2].rfind("HTTP/1.", 0) != 0) {
      return Response("400 Bad Request", kPlainText, "", true);
    }
    const bool get = words[0] == "GET";
    if (!get && words[0] != "HEAD") {
      return Response("405 Method Not Allowed", kPlainText, "", true);
    }
    const std::string path = words[1].substr(0, words[1].find('?'));
    if (path == "/metrics") return Response("200 OK", kMetricsText, pages_.metrics(), get);
    if (path == "/healthz") return Probe(pages_.not_healthy(), get);
    if (path == "/readyz") return Probe(pages_.not_ready(), get);
    return Response("404 Not Found", kPlainText, "", get);
  }

  static std::string Probe(const std::string& reason, bool with_body) {
    return reason.empty()
               ? Response("200 OK", kPlainText, "ok\n", with_body)
               : Response("503 Service Unavailable", kPlainText, reason + "\n", with_body);
  }

  const Pages pages_;
  const Limits limits_;
  UniqueFd listener_;
  UniqueFd stop_;
  int port_ = -1;
  std::thread thread_;
  // The thread's own.
  std::list<Connection> connections_;  // oldest first
  SteadyTime accept_after_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Create(const std::string& address,
                                                               Pages pages, Limits limits) {
  auto server = std::make_unique<HttpServerImpl>(std::move(pages), limits);
  KAVERN_RETURN_IF_ERROR(server->Listen(address));
  return server;
}

}  // namespace kavern::service
