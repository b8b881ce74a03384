// `kavern store` on what a daemon left on disk, as an operator runs it.
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/integration/node_test.h"

namespace kavern {
namespace {

using nlohmann::json;

class StoreCommandTest : public NodeTest {
 protected:
  static constexpr std::size_t kBlocks = 24;

  std::string disk() const { return directory() + "/disk"; }

  // The same configuration for daemon and command, out of one file.
  std::string Config() {
    std::string path = directory() + "/kavern.yaml";
    std::ofstream(path) << "nvme:\n  devices: [{path: " << disk() << ", capacity: 33MiB}]\n"
                        << "  catalog: " << directory() << "/catalog\n  segment: 1MiB\n";
    return path;
  }
  CommandResult Store(const std::string& what, std::vector<std::string> more = {}) {
    std::vector<std::string> words = {KAVERN_BINARY, "store", what, "--config", Config()};
    words.insert(words.end(), more.begin(), more.end());
    return RunCommand(words);
  }
  void StartWithDisk() {
    StartDaemon({"nvme.devices=[{path: " + disk() + ", capacity: 33MiB}]",
                 "nvme.catalog=" + directory() + "/catalog", "nvme.segment=1MiB"});
  }
  void StoreBlocks() {
    const auto client = Connect();
    const auto ns = *client->OpenNamespace(TestSpec());
    ASSERT_TRUE(StorePattern(*ns, TestKeys(ns->fingerprint(), 1, kBlocks)).ok());
    ASSERT_TRUE(Admin()->Quiesce().ok());
  }
  std::vector<json> Export() {
    const CommandResult result = Store("export-catalog");
    EXPECT_EQ(result.status, 0);
    std::vector<json> rows;
    std::istringstream lines(result.output);
    for (std::string line; std::getline(lines, line);) rows.push_back(json::parse(line));
    return rows;
  }
};

TEST_F(StoreCommandTest, VerifyOfADamagedFileNamesTheBlockThatTheDaemonThenMisses) {
  StartWithDisk();
  StoreBlocks();
  EXPECT_EQ(Store("verify").status, 4) << "a running daemon has the store";
  EXPECT_EQ(StopDaemon(), 0);

  EXPECT_EQ(Store("verify").status, 0);
  const json stats = json::parse(Store("stats", {"--json"}).output);
  ASSERT_EQ(stats["namespaces"].size(), 1U);
  EXPECT_EQ(stats["namespaces"][0]["blocks"], kBlocks);
  const std::vector<json> entries = Export();
  ASSERT_EQ(entries.size(), kBlocks);

  const json& victim = entries[10];
  {
    std::fstream file(disk(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(victim["offset"].get<std::streamoff>() + 4096 + 77);
    file.write("damaged", 7);
    ASSERT_TRUE(file.good());
  }
  const CommandResult damaged = Store("verify", {"--json"});
  EXPECT_EQ(damaged.status, 1);
  const json verdict = json::parse(damaged.output);
  EXPECT_EQ(verdict["sound"], false);
  EXPECT_EQ(verdict["right_parts"], kBlocks - 1);
  ASSERT_EQ(verdict["damage"].size(), 1U);
  EXPECT_EQ(verdict["damage"][0]["key"], victim["key"]);
  EXPECT_EQ(verdict["damage"][0]["offset"], victim["offset"]);

  RestartDaemon();
  const auto client = Connect();
  const auto ns = *client->OpenNamespace(TestSpec());
  const auto keys = TestKeys(ns->fingerprint(), 1, kBlocks);
  ASSERT_TRUE(Eventually([&] { return ns->Match(keys) == kBlocks; }));
  const Fetched fetched = FetchPattern(*ns, keys);
  EXPECT_EQ(fetched.wrong_bytes, 0U);
  EXPECT_EQ(fetched.ok, kBlocks - 1);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    EXPECT_EQ(fetched.codes[i] != absl::StatusCode::kOk,
              keys[i].ToHex() == victim["key"].get<std::string>());
  }
}

TEST_F(StoreCommandTest, WrongConfigurationsAreUsageErrors) {
  EXPECT_EQ(Store("verify").status, 2) << "there is no store yet";
  EXPECT_EQ(RunCommand({KAVERN_BINARY, "store", "verify"}).status, 2) << "no devices";
  EXPECT_EQ(RunCommand({KAVERN_BINARY, "store"}).status, 2);
  EXPECT_EQ(Store("stats", {"--set", "nvme.segmet=1MiB"}).status, 2);
}

// What is on disk only is fetched from there, right.
TEST_F(StoreCommandTest, DemotedBlocksComeBackFromDisk) {
  StartWithDisk();
  StoreBlocks();
  const auto demoted = Admin()->Demote();
  ASSERT_TRUE(demoted.ok()) << demoted.status();
  EXPECT_EQ(*demoted, kBlocks);
  EXPECT_EQ(Status().ram().used_bytes(), 0U);
  const auto client = Connect();
  const auto ns = *client->OpenNamespace(TestSpec());
  const Fetched fetched = FetchPattern(*ns, TestKeys(ns->fingerprint(), 1, kBlocks));
  EXPECT_EQ(fetched.ok, kBlocks);
  EXPECT_EQ(fetched.wrong_bytes, 0U);
  EXPECT_EQ(Status().counters().promoted_blocks(), kBlocks);
}

}  // namespace
}  // namespace kavern
