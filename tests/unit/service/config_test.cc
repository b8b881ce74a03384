#include "service/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/units.h"
#include "proto/kavern/v1/shm_layout.h"

namespace kavern::service {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StartsWith;

DaemonConfig Parsed(const std::string& yaml, const ConfigOverrides& overrides = {}) {
  const auto config = ParseDaemonConfig(yaml, "kavern.yaml", overrides);
  EXPECT_TRUE(config.ok()) << yaml << "\n" << config.status();
  return config.value_or(DaemonConfig());
}

std::string MistakeIn(const std::string& yaml, const ConfigOverrides& overrides = {}) {
  const auto config = ParseDaemonConfig(yaml, "kavern.yaml", overrides);
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << yaml;
  return std::string(config.status().message());
}

std::string Printed(DaemonConfig config) {
  return MakeConfigTable(config).Print();
}

TEST(DaemonConfig, DefaultsAreValidAndOpenNothingToOthers) {
  const DaemonConfig config = Parsed("");
  EXPECT_EQ(config.listen.socket_mode, 0600U);
  EXPECT_EQ(config.listen.tcp_address, "");
  EXPECT_THAT(config.http.address, StartsWith("127.0.0.1:"));
  EXPECT_TRUE(config.tenants.empty());
  EXPECT_EQ(config.ram.capacity_bytes % config.ram.region_bytes, 0U);
  EXPECT_EQ(config.limits.lease_bytes_per_session_max, config.ram.capacity_bytes / 2);
}

TEST(DaemonConfig, WhatIsPrintedParsesBackToTheSame) {
  const DaemonConfig odd = Parsed(
      "listen:\n"
      "  socket: \"/run/a \\\"b\\\" #c/kavern.sock\"\n"
      "  socket_mode: \"0660\"\n"
      "  socket_group: gpu\n"
      "  tcp: {address: \"[::1]:0\", tenant: team-a, insecure: true}\n"
      "http: {address: \"\"}\n"
      "log: {level: trace, format: json}\n"
      "ram: {capacity: 96MiB, region: 32MiB, reserve: 123456789, huge_pages: \"off\", prepopulate: "
      "false}\n"
      "tenants:\n"
      "  - {name: team-a, uids: [1000, 4294967294], gids: []}\n"
      "  - {name: team.b_2, gids: [7]}\n"
      "operators: {uids: [12, 13]}\n"
      "limits: {sessions_max: 3, incomplete_age_max: 1500ms, message_bytes_max: 3MiB}\n"
      "shutdown: {drain: 0ms}\n");
  for (const DaemonConfig& config : {DaemonConfig(), odd}) {
    const std::string printed = Printed(config);
    const DaemonConfig back = Parsed(printed);
    EXPECT_EQ(Printed(back), Printed(Parsed(Printed(back))));
    if (config.limits.lease_bytes_per_session_max != 0) {
      EXPECT_EQ(Printed(back), printed);
    }
  }
  const DaemonConfig back = Parsed(Printed(odd));
  EXPECT_EQ(back.listen.socket, "/run/a \"b\" #c/kavern.sock");
  EXPECT_EQ(back.listen.socket_mode, 0660U);
  EXPECT_EQ(back.listen.tcp_address, "[::1]:0");
  EXPECT_EQ(back.http.address, "");
  EXPECT_EQ(back.ram.reserve_bytes, 123456789U);
  EXPECT_EQ(back.ram.huge_pages, "off");
  EXPECT_FALSE(back.ram.prepopulate);
  ASSERT_THAT(back.tenants, SizeIs(2));
  EXPECT_EQ(back.tenants[0].name, "team-a");
  EXPECT_THAT(back.tenants[0].uids, ElementsAre(1000U, 4294967294U));
  EXPECT_THAT(back.tenants[1].gids, ElementsAre(7U));
  EXPECT_THAT(back.operator_uids, ElementsAre(12U, 13U));
  EXPECT_EQ(back.limits.lease_bytes_per_session_max, 48 * kMiB);
  EXPECT_EQ(back.limits.incomplete_age_max, milliseconds(1500));
  EXPECT_EQ(back.drain_timeout, milliseconds(0));
}

TEST(DaemonConfig, EveryKeyIsDocumentedOnceAndStandsInOneTable) {
  DaemonConfig config;
  const ConfigTable table = MakeConfigTable(config);
  std::vector<std::string> paths;
  for (const ConfigEntry& entry : table.entries()) {
    EXPECT_THAT(entry.doc, ::testing::EndsWith(".")) << entry.path;
    EXPECT_GT(entry.doc.size(), 10U) << entry.path;
    paths.push_back(entry.path);
  }
  std::sort(paths.begin(), paths.end());
  EXPECT_EQ(std::adjacent_find(paths.begin(), paths.end()), paths.end());
}

TEST(DaemonConfig, TheExampleFileIsValid) {
  const auto config =
      LoadDaemonConfig(absl::StrCat(KAVERN_SOURCE_DIR, "/deploy/kavern.example.yaml"));
  EXPECT_TRUE(config.ok()) << config.status();
}

TEST(DaemonConfig, LimitsOfConversationsAreReadAndTheirMistakesNameTheField) {
  const DaemonConfig config = Parsed(
      "conversations: {priority_max: 80, ttl_max: 10m, count_max: 7, count_per_tenant_max: 3}");
  EXPECT_EQ(config.conversations.priority_max, 80U);
  EXPECT_EQ(config.conversations.ttl_max, std::chrono::minutes(10));
  EXPECT_EQ(config.conversations.count_max, 7U);
  EXPECT_EQ(config.conversations.count_per_tenant_max, 3U);
  EXPECT_THAT(MistakeIn("conversations:\n  priority_max: 101\n"),
              StartsWith("kavern.yaml:2:17: conversations.priority_max: got"));
  EXPECT_THAT(MistakeIn("conversations: {ttl_max: 0s}"), HasSubstr("conversations.ttl_max: got"));
  EXPECT_THAT(MistakeIn("conversations: {count_max: 0}"),
              HasSubstr("conversations.count_max: got"));
}

TEST(DaemonConfig, AMistakeInAFileNamesItsPlaceAndTheNearestKey) {
  EXPECT_EQ(MistakeIn("ram:\n  capcity: 1GiB\n"),
            "kavern.yaml:2:3: ram.capcity: unknown key; did you mean ram.capacity?");
  EXPECT_EQ(MistakeIn("tenants:\n- name: a\n  uid: [1]\n"),
            "kavern.yaml:3:3: tenants[0].uid: unknown key; did you mean tenants[0].uids?");
  EXPECT_EQ(MistakeIn("eviction: {policy: fifo}"),
            "kavern.yaml:1:20: eviction.policy: got \"fifo\", expected one of lru");
}

// What only all keys together show is wrong has a place too: that of the key that is named.
TEST(DaemonConfig, AMistakeThatNoSingleKeyShowsNamesItsPlace) {
  EXPECT_THAT(MistakeIn("ram:\n  region: 64MiB\n  capacity: 100MiB\n"),
              StartsWith("kavern.yaml:3:13: ram.capacity: got 100 MiB"));
  EXPECT_THAT(MistakeIn("tenants:\n- {name: a, uids: [1]}\n- {name: a, uids: [2]}\n"),
              StartsWith("kavern.yaml:3:10: tenants[1].name: "));
  EXPECT_THAT(MistakeIn("tenants:\n- name: a\n"), StartsWith("kavern.yaml:2:3: tenants[0] (a): "));
  // Of several that give the key, the last one counts; where none does, the file is named.
  EXPECT_THAT(MistakeIn("ram: {capacity: 64MiB}", {"ram.capacity=65MiB"}),
              StartsWith("--set ram.capacity=65MiB:2:13: ram.capacity: got 65 MiB"));
  EXPECT_THAT(MistakeIn("ram: {region: 3MiB}"), StartsWith("kavern.yaml: ram.capacity: "));
}

TEST(DaemonConfig, TcpStaysOnLoopback) {
  const std::string rest = ", tenant: a, insecure: true}}";
  for (const char* good : {"127.0.0.1:7420", "[::1]:7420", "localhost:0", "127.0.0.1:65535"}) {
    EXPECT_EQ(
        Parsed(absl::StrCat("listen: {tcp: {address: \"", good, "\"", rest)).listen.tcp_address,
        good);
  }
  for (const char* bad :
       {"0.0.0.0:7420", "[::]:7420", ":7420", "*:7420", "10.0.0.1:7420", "127.0.0.1", "127.0.0.1:",
        "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:99999999999999999999", "127.0.0.1:http",
        "localhost.example.com:7420", "::1:7420", "127.0.0.1:7420,0.0.0.0:7420", "127.0.0.1:7420 ",
        "127.0.0.1: 7420", "127.0.0.1:+7420", "unix:/tmp/x:1", "127.0.0.1:0.0.0.0:7420"}) {
    EXPECT_THAT(MistakeIn(absl::StrCat("listen: {tcp: {address: \"", bad, "\"", rest)),
                HasSubstr("expected \"\" or a loopback address"))
        << bad;
    EXPECT_THAT(MistakeIn(absl::StrCat("http: {address: \"", bad, "\"}")),
                HasSubstr("expected \"\" or a loopback address"))
        << bad;
  }
}

TEST(DaemonConfig, TcpNeedsATenantAndTheWordInsecure) {
  const std::string mistakes = MistakeIn("listen: {tcp: {address: \"127.0.0.1:7420\"}}");
  const std::vector<std::string> lines = absl::StrSplit(mistakes, '\n');
  EXPECT_THAT(lines, ElementsAre(HasSubstr("listen.tcp.insecure: expected true"),
                                 HasSubstr("listen.tcp.tenant: expected a tenant's name")));
}

// A tenant's name goes into metrics, logs and messages of a fixed size: the rule for names holds
// wherever one is given.
TEST(DaemonConfig, TheTcpTenantIsATenantsName) {
  for (const std::string& name :
       {std::string("a b"), std::string("a\\nb"), std::string("../x"), std::string(64, 'x')}) {
    EXPECT_THAT(MistakeIn(absl::StrCat(
                    "listen: {tcp: {address: \"127.0.0.1:7420\", insecure: true, tenant: \"", name,
                    "\"}}")),
                HasSubstr("listen.tcp.tenant: "))
        << name;
  }
}

TEST(DaemonConfig, CapacityIsAMultipleOfTheRegion) {
  EXPECT_THAT(MistakeIn("ram: {capacity: 100MiB, region: 64MiB}"),
              HasSubstr("ram.capacity: got 100 MiB, expected a multiple of ram.region, 64 MiB"));
  EXPECT_THAT(MistakeIn("ram: {capacity: 32MiB, region: 64MiB}"),
              HasSubstr("ram.capacity: got 32 MiB"));
  EXPECT_THAT(MistakeIn("ram: {region: 65537}"), HasSubstr("ram.region: got 65537 bytes"));
  EXPECT_THAT(MistakeIn("ram: {capacity: 3MiB, region: 1MiB, huge_pages: hugetlb}"),
              HasSubstr("ram.region: expected a multiple of 2 MiB"));
}

TEST(DaemonConfig, TheSocketPathAndItsAttachSuffixFitTheKernelsLimit) {
  // 107 bytes and the NUL are what sun_path holds.
  const std::size_t longest = 107 - std::string(shm::kAttachSuffix).size();
  const std::string path = "/" + std::string(longest - 1, 'x');
  EXPECT_EQ(Parsed(absl::StrCat("listen: {socket: ", path, "}")).listen.socket, path);
  EXPECT_THAT(MistakeIn(absl::StrCat("listen: {socket: ", path, "x}")),
              HasSubstr("an absolute path"));
  EXPECT_THAT(MistakeIn("listen: {socket: kavern.sock}"), HasSubstr("an absolute path"));
  EXPECT_THAT(MistakeIn("listen: {socket: \"\"}"), HasSubstr("an absolute path"));
  EXPECT_THAT(MistakeIn("listen: {socket: \"/run/a\\0b\"}"), HasSubstr("an absolute path"));
}

TEST(DaemonConfig, TenantRulesAreCheckedAtStart) {
  EXPECT_THAT(MistakeIn("tenants: [{name: a}]"), HasSubstr("at least one of uids and gids"));
  EXPECT_THAT(MistakeIn("tenants: [{name: \"a/b\", uids: [1]}]"), HasSubstr("tenants[0].name"));
  EXPECT_THAT(MistakeIn("tenants: [{name: a, uids: [1]}, {name: a, uids: [2]}]"),
              HasSubstr("the name of tenants[0] too"));
  EXPECT_THAT(MistakeIn("tenants: [{name: a, uids: [4294967295]}]"), HasSubstr("0 to 4294967294"));
}

TEST(DaemonConfig, OverridesReplaceWhatTheFileSaysInOrder) {
  const DaemonConfig config =
      Parsed("ram: {capacity: 1GiB}\nlog: {level: error}\n",
             {"ram.capacity=2GiB", "ram.capacity=3GiB", "http.address=", "operators.uids=[1, 2]"});
  EXPECT_EQ(config.ram.capacity_bytes, 3 * kGiB);
  EXPECT_EQ(config.log.level, "error");
  EXPECT_EQ(config.http.address, "");
  EXPECT_THAT(config.operator_uids, ElementsAre(1U, 2U));
  EXPECT_EQ(config.limits.lease_bytes_per_session_max, 3 * kGiB / 2);
}

TEST(DaemonConfig, AWrongOverrideSaysWhichOne) {
  EXPECT_THAT(MistakeIn("", {"ram.capacity"}),
              HasSubstr("--set: got \"ram.capacity\", expected key=value"));
  EXPECT_THAT(MistakeIn("", {"=1"}), HasSubstr("expected key=value"));
  EXPECT_THAT(MistakeIn("", {"ram.capacity=lots"}),
              ::testing::AllOf(StartsWith("--set ram.capacity=lots"), HasSubstr("got \"lots\"")));
  EXPECT_THAT(MistakeIn("", {"ram.capcity=1GiB"}), HasSubstr("did you mean ram.capacity?"));
  EXPECT_THAT(MistakeIn("ram: {region: 64MiB}", {"ram.capacity=65MiB"}),
              HasSubstr("a multiple of ram.region"));
}

class ConfigFile : public ::testing::Test {
 protected:
  ConfigFile() {
    std::string name = (std::filesystem::temp_directory_path() / "config_test_XXXXXX").string();
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  ~ConfigFile() override { std::filesystem::remove_all(directory_); }

  std::string Write(const std::string& text) {
    std::string path = directory_ + "/kavern.yaml";
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  std::string directory_;
};

TEST_F(ConfigFile, IsReadAndNamedInItsMistakes) {
  const auto config = LoadDaemonConfig(Write("log: {level: error}\n"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->log.level, "error");
  const std::string path = Write("log: {level: loud}\n");
  EXPECT_THAT(std::string(LoadDaemonConfig(path).status().message()),
              StartsWith(path + ":1:14: log.level: got \"loud\""));
}

TEST_F(ConfigFile, ThatIsNotThereOrCannotBeReadIsNotTheDefaults) {
  EXPECT_EQ(LoadDaemonConfig(directory_ + "/none.yaml").status().code(),
            absl::StatusCode::kNotFound);
  const auto folder = LoadDaemonConfig(directory_);
  EXPECT_FALSE(folder.ok()) << "a directory was read as an empty configuration";
}

TEST_F(ConfigFile, ThatIsTooLargeIsRefused) {
  const auto config = LoadDaemonConfig(Write("# " + std::string(2 * kMiB, 'x') + "\n"));
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("larger than 1 MiB"));
}

}  // namespace
}  // namespace kavern::service
