#include "service/http_server.h"

#include <httplib.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kavern::service {
namespace {

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
  httplib::Client client("127.0.0.1", (*server)->port());
  const auto metrics = client.Get("/metrics");
  ASSERT_TRUE(metrics);
  EXPECT_EQ(metrics->body, "kavern_blocks 7\n");
  EXPECT_EQ(client.Get("/healthz")->status, 200);
  EXPECT_EQ(client.Get("/readyz")->status, 200);
  not_ready_ = "draining";
  EXPECT_EQ(client.Get("/readyz")->status, 503);
  EXPECT_EQ(client.Get("/readyz")->body, "draining\n");
  EXPECT_EQ(client.Get("/nowhere")->status, 404);
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
  {
    httplib::Client client("127.0.0.1", port);
    EXPECT_TRUE(client.Get("/healthz"));
  }
  first->reset();
  const auto second = HttpServer::Create(absl::StrCat("127.0.0.1:", port), Pages());
  EXPECT_TRUE(second.ok()) << second.status();
}

}  // namespace
}  // namespace kavern::service
