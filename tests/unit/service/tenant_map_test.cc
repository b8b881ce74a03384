#include "service/session/tenant_map.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kavern::service {
namespace {

using ::testing::HasSubstr;

TenantMap Map(std::vector<TenantRule> rules, std::vector<std::uint64_t> operators = {}) {
  auto map = TenantMap::Create(std::move(rules), std::move(operators), 1000);
  EXPECT_TRUE(map.ok()) << map.status();
  return *std::move(map);
}

PeerCredentials Peer(std::uint32_t uid, std::uint32_t gid = 5) {
  return {7, uid, gid};
}

TEST(TenantMapTest, WithoutRulesOnlyTheDaemonsOwnUserHasATenant) {
  const TenantMap map = Map({});
  EXPECT_EQ(*map.Resolve(Peer(1000), ""), "default");
  EXPECT_EQ(*map.Resolve(Peer(1000), "default"), "default");
  EXPECT_TRUE(absl::IsPermissionDenied(map.Resolve(Peer(1001), "").status()));
  EXPECT_TRUE(absl::IsPermissionDenied(map.Resolve(Peer(1001), "default").status()));
}

TEST(TenantMapTest, WithRulesTheDaemonsOwnUserIsNobodySpecial) {
  const TenantMap map = Map({{"a", {1}, {}}, {"b", {2}, {20}}});
  EXPECT_EQ(*map.Resolve(Peer(1), ""), "a");
  EXPECT_EQ(*map.Resolve(Peer(9, 20), ""), "b");
  EXPECT_TRUE(absl::IsPermissionDenied(map.Resolve(Peer(9, 21), "").status()));
  EXPECT_TRUE(absl::IsPermissionDenied(map.Resolve(Peer(1000), "a").status()));
}

TEST(TenantMapTest, APeerOfSeveralTenantsChooses) {
  const TenantMap map = Map({{"a", {1}, {}}, {"b", {1}, {}}, {"c", {2}, {}}});
  EXPECT_EQ(*map.Resolve(Peer(1), ""), "a");
  EXPECT_EQ(*map.Resolve(Peer(1), "b"), "b");
}

TEST(TenantMapTest, AForeignTenantAndOneThatDoesNotExistLookTheSame) {
  const TenantMap map = Map({{"a", {1}, {}}, {"c", {2}, {}}});
  EXPECT_EQ(map.Resolve(Peer(1), "c").status(), map.Resolve(Peer(1), "nobody").status());
  EXPECT_EQ(map.Resolve(Peer(3), "c").status(), map.Resolve(Peer(3), "nobody").status());
}

TEST(TenantMapTest, AnOperatorWithoutATenantMayAttachForNone) {
  const TenantMap map = Map({{"a", {1}, {}}}, {50});
  for (const std::uint32_t uid : {0u, 50u, 1000u}) {
    EXPECT_TRUE(map.IsOperator(Peer(uid)));
    EXPECT_EQ(*map.Resolve(Peer(uid), ""), "");
    EXPECT_TRUE(absl::IsPermissionDenied(map.Resolve(Peer(uid), "a").status()));
  }
  EXPECT_FALSE(map.IsOperator(Peer(1)));
}

TEST(TenantMapTest, RulesThatCannotBeMeantAreRefusedByName) {
  const auto message = [](std::vector<TenantRule> rules) {
    auto map = TenantMap::Create(std::move(rules), {}, 0);
    EXPECT_TRUE(absl::IsInvalidArgument(map.status()));
    return std::string(map.status().message());
  };
  EXPECT_THAT(message({{"", {1}, {}}}), HasSubstr("tenants[0].name"));
  EXPECT_THAT(message({{"a", {1}, {}}, {"a b", {1}, {}}}), HasSubstr("tenants[1].name"));
  EXPECT_THAT(message({{std::string(64, 'x'), {1}, {}}}), HasSubstr("1 to 63"));
  EXPECT_THAT(message({{"a", {1}, {}}, {"a", {2}, {}}}), HasSubstr("tenants[0] too"));
  EXPECT_THAT(message({{"a", {}, {}}}), HasSubstr("at least one of uids and gids"));
  EXPECT_THAT(message({{"a", {0xffffffff}, {}}}), HasSubstr("tenants[0].uids"));
}

}  // namespace
}  // namespace kavern::service
