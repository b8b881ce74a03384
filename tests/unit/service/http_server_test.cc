#include "service/http_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kavern::service {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

UniqueFd ConnectTo(int port) {
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  struct sockaddr_in name {};
  name.sin_family = AF_INET;
  name.sin_port = htons(static_cast<std::uint16_t>(port));
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(socket.get(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)), 0);
  return socket;
}

void Say(const UniqueFd& socket, const std::string& text) {
  EXPECT_EQ(send(socket.get(), text.data(), text.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(text.size()));
}

// All that the server says until it ends the connection.
std::string Heard(const UniqueFd& socket) {
  std::string heard;
  char buffer[4096];
  for (;;) {
    const ssize_t n = recv(socket.get(), buffer, sizeof(buffer), 0);
    if (n <= 0) return heard;
    heard.append(buffer, static_cast<std::size_t>(n));
  }
}

std::string Get(int port, const std::string& path, const std::string& method = "GET") {
  const UniqueFd socket = ConnectTo(port);
  Say(socket, absl::StrCat(method, " ", path, " HTTP/1.1\r\nHost: here\r\n\r\n"));
  return Heard(socket);
}

class HttpServerTest : public ::testing::Test {
 protected:
  HttpServer::Pages Pages() {
    HttpServer::Pages pages;
    pages.metrics = [] { return std::string("kavern_blocks 7\n"); };
    pages.not_healthy = [] { return std::string(); };
    pages.not_ready = [this] { return not_ready_; };
    return pages;
  }

  std::string not_ready_;
};

TEST_F(HttpServerTest, AnswersProbesAndMetrics) {
  const auto server = HttpServer::Create("127.0.0.1:0", Pages());
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  EXPECT_EQ(Get(port, "/metrics"),
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
            "Content-Length: 16\r\nConnection: close\r\n\r\nkavern_blocks 7\n");
  EXPECT_THAT(Get(port, "/healthz?verbose"), StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(Get(port, "/readyz"), StartsWith("HTTP/1.1 200 "));
  not_ready_ = "draining";
  EXPECT_THAT(Get(port, "/readyz"), StartsWith("HTTP/1.1 503 "));
  EXPECT_THAT(Get(port, "/readyz"), HasSubstr("\r\n\r\ndraining\n"));
  EXPECT_THAT(Get(port, "/readyz", "HEAD"), ::testing::EndsWith("\r\n\r\n"));
  EXPECT_THAT(Get(port, "/nowhere"), StartsWith("HTTP/1.1 404 "));
}

TEST_F(HttpServerTest, WhatIsNoRequestForAPageIsRefused) {
  const auto server = HttpServer::Create("127.0.0.1:0", Pages());
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  EXPECT_THAT(Get(port, "/metrics", "POST"), StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(Get(port, "/a b"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Get(port, "/" + std::string(9000, 'x')), StartsWith("HTTP/1.1 4"));
  const UniqueFd endless = ConnectTo(port);
  Say(endless, std::string(9000, 'x'));
  EXPECT_THAT(Heard(endless), StartsWith("HTTP/1.1 431 "));
  EXPECT_THAT(Get(port, "/healthz"), StartsWith("HTTP/1.1 200 "));
}

// A response larger than the socket's buffers, to a peer that reads late.
TEST_F(HttpServerTest, ALargePageArrivesWhole) {
  HttpServer::Pages pages = Pages();
  pages.metrics = [] { return std::string(std::size_t{16} << 20, 'm'); };
  const auto server = HttpServer::Create("127.0.0.1:0", pages);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string heard = Get((*server)->port(), "/metrics");
  const std::size_t head = heard.find("\r\n\r\n");
  ASSERT_NE(head, std::string::npos);
  EXPECT_EQ(heard.size() - head - 4, std::size_t{16} << 20);
}

// Anybody on the machine may connect: 200 connections say half a request and no more.
TEST_F(HttpServerTest, ConnectionsThatSayNothingKeepNobodyOutAndAreBounded) {
  HttpServer::Limits limits;
  limits.connections_max = 8;
  limits.connection_time = std::chrono::hours(1);
  const auto server = HttpServer::Create("127.0.0.1:0", Pages(), limits);
  ASSERT_TRUE(server.ok()) << server.status();
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 200; ++i) {
    silent.push_back(ConnectTo((*server)->port()));
    Say(silent.back(), "GET /metrics HTTP/1.1\r\nX: ");
  }
  EXPECT_THAT(Get((*server)->port(), "/healthz"), StartsWith("HTTP/1.1 200 "));
  // The answer above came after all of them: whoever was closed for another knows it by now.
  int open = 0;
  for (const UniqueFd& socket : silent) {
    struct pollfd wait = {socket.get(), POLLIN, 0};
    open += poll(&wait, 1, 0) == 0 ? 1 : 0;
  }
  EXPECT_GT(open, 0);
  EXPECT_LE(open, 8);
}

TEST_F(HttpServerTest, AConnectionThatTakesTooLongIsEnded) {
  HttpServer::Limits limits;
  limits.connection_time = std::chrono::milliseconds(50);
  const auto server = HttpServer::Create("127.0.0.1:0", Pages(), limits);
  ASSERT_TRUE(server.ok()) << server.status();
  const UniqueFd slow = ConnectTo((*server)->port());
  Say(slow, "GET /metrics");
  EXPECT_EQ(Heard(slow), "");
}

// Two daemons that share a port would each answer half of the scrapes.
TEST_F(HttpServerTest, APortThatIsTakenIsRefusedAndNotShared) {
  const auto first = HttpServer::Create("127.0.0.1:0", Pages());
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = HttpServer::Create(absl::StrCat("127.0.0.1:", (*first)->port()), Pages());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(HttpServerTest, APortIsFreeAgainOnceItsServerHasEnded) {
  auto first = HttpServer::Create("127.0.0.1:0", Pages());
  ASSERT_TRUE(first.ok()) << first.status();
  const int port = (*first)->port();
  EXPECT_THAT(Get(port, "/healthz"), StartsWith("HTTP/1.1 200 "));
  first->reset();
  const auto second = HttpServer::Create(absl::StrCat("127.0.0.1:", port), Pages());
  EXPECT_TRUE(second.ok()) << second.status();
}

}  // namespace
}  // namespace kavern::service
