// Many of everything.
#include <sys/resource.h>

#include "tests/integration/node_test.h"
#include "tests/unit/service/attach_test_client.h"

namespace kavern {
namespace {

using ScaleTest = NodeTest;

TEST_F(ScaleTest, TenThousandNamespacesAreServedAndOneMoreThanAllowedIsRefused) {
  StartDaemon({"limits.namespaces_max=10000"});
  const auto client = Connect();
  std::vector<std::shared_ptr<Namespace>> all;
  for (int i = 0; i < 10000; ++i) {
    auto ns = client->OpenNamespace(TestSpec("model-" + std::to_string(i)));
    ASSERT_TRUE(ns.ok()) << i << ": " << ns.status();
    all.push_back(*std::move(ns));
  }
  EXPECT_TRUE(absl::IsResourceExhausted(client->OpenNamespace(TestSpec("one more")).status()));
  EXPECT_EQ(Status().namespaces(), 10000U);
  // A namespace that holds nothing owns no memory, so each of these finds some.
  for (int i = 0; i < 10000; i += 2500) {
    const auto keys = TestKeys(all[i]->fingerprint(), 1, 8);
    ASSERT_TRUE(StorePattern(*all[i], keys).ok());
    const Fetched fetched = FetchPattern(*all[i], keys);
    EXPECT_EQ(fetched.ok, keys.size());
    EXPECT_EQ(fetched.wrong_bytes, 0U);
  }
}

TEST_F(ScaleTest, AThousandIdleConnectionsHoldUpNobody) {
  struct rlimit limit {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = limit.rlim_max;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  if (limit.rlim_cur < 1500) GTEST_SKIP() << "needs 1500 open files, may have " << limit.rlim_cur;
  StartDaemon();
  std::vector<service::AttachTestClient> idle(1000);
  for (service::AttachTestClient& client : idle) {
    ASSERT_TRUE(client.Attach(socket_path() + ".attach").has_value());
  }
  const auto client = Connect();
  const auto ns = *client->OpenNamespace(TestSpec());
  const auto keys = TestKeys(ns->fingerprint(), 1, 8);
  ASSERT_TRUE(StorePattern(*ns, keys).ok());
  EXPECT_EQ(FetchPattern(*ns, keys).ok, keys.size());
  EXPECT_GE(Status().sessions(), 1001U);
  for (service::AttachTestClient& other : idle) other.Close();
  EXPECT_TRUE(Eventually([&] { return Status().sessions() <= 2; }));
}

// Connections that never say hello are bounded in number and time.
TEST_F(ScaleTest, ConnectionsThatSayNothingKeepNobodyOut) {
  StartDaemon({"limits.handshakes_max=8", "limits.hello_timeout=200ms"});
  std::vector<service::AttachTestClient> silent(32);
  for (service::AttachTestClient& client : silent) (void)client.Connect(socket_path() + ".attach");
  const auto client = Connect();
  EXPECT_TRUE(client->OpenNamespace(TestSpec()).ok());
}

}  // namespace
}  // namespace kavern
