// The command line, as a user runs it.
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/integration/node_test.h"

namespace kavern {
namespace {

using nlohmann::json;

const char* const kConversationTrace =
    KAVERN_SOURCE_DIR "/../shared/traces/conversation_trace_30min.jsonl";

class CliTest : public NodeTest {
 protected:
  CommandResult Kavern(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {KAVERN_BINARY, "--address", address()});
    return RunCommand(arguments);
  }
  json KavernJson(std::vector<std::string> arguments) {
    arguments.push_back("--json");
    const CommandResult result = Kavern(std::move(arguments));
    EXPECT_EQ(result.status, 0);
    return json::parse(result.output);
  }
  std::string Generate(int conversations) {
    std::string path = directory() + "/trace.jsonl";
    EXPECT_EQ(
        Kavern({"trace", "generate", "--conversations", std::to_string(conversations), "-o", path})
            .status,
        0);
    return path;
  }
  // Hits of the same trace in a cache of so many blocks, by a program that shares no code with the
  // daemon.
  static json Simulate(const std::string& trace, std::uint64_t capacity_blocks) {
    const CommandResult result = RunCommand(
        {"/usr/bin/python3", std::string(KAVERN_SOURCE_DIR) + "/tests/sim/lru_reference.py",
         "--capacity-blocks", std::to_string(capacity_blocks), "--full-blocks-only", "--json",
         trace});
    EXPECT_EQ(result.status, 0);
    return json::parse(result.output)["rows"][0];
  }
  // Plays it in blocks of 4 KiB.
  void ExpectReplayEqualsSimulation(const std::string& trace, const std::string& capacity,
                                    std::uint64_t capacity_blocks) {
    StartDaemon({"ram.capacity=" + capacity});
    const json replayed = KavernJson({"replay", trace, "--deterministic", "--layers", "1",
                                      "--kv-heads", "1", "--head-dim", "4", "--dtype", "int8"});
    const json simulated = Simulate(trace, capacity_blocks);
    EXPECT_EQ(replayed["requests"], simulated["requests"]);
    EXPECT_EQ(replayed["blocks"], simulated["block_references"]);
    EXPECT_EQ(replayed["hit_blocks"], simulated["hit_blocks"]);
    EXPECT_GT(replayed["hit_blocks"], 0);
    EXPECT_EQ(Status().counters().evicted_blocks(), simulated["evicted_blocks"]);
    EXPECT_GT(simulated["evicted_blocks"], 0);
    EXPECT_EQ(replayed["verified_bytes"], replayed["hit_blocks"].get<std::uint64_t>() * 4096);
    EXPECT_EQ(replayed["wrong_bytes"], 0);
    EXPECT_EQ(replayed["failed_calls"], 0) << replayed["first_failure"];
  }
};

TEST_F(CliTest, DeterministicReplayHasTheHitsOfAnIndependentSimulation) {
  ExpectReplayEqualsSimulation(Generate(500), "4MiB", 1024);
}

TEST_F(CliTest, DeterministicReplayOfARealTraceHasTheHitsOfAnIndependentSimulation) {
  if (!std::ifstream(kConversationTrace)) GTEST_SKIP() << "the trace is not on this machine";
  ExpectReplayEqualsSimulation(kConversationTrace, "128MiB", 32768);
}

TEST_F(CliTest, ReplayWithWorkersProcessesTenantsAndShardsVerifiesEveryByte) {
  const std::string uid = std::to_string(getuid());
  StartDaemon({"ram.capacity=128MiB",
               "tenants=[{name: a, uids: [" + uid + "]}, {name: b, uids: [" + uid + "]}]"});
  const std::string trace = Generate(40);
  const json one = KavernJson(
      {"replay", trace, "--layers", "1", "--kv-heads", "1", "--head-dim", "32", "--shards", "2"});
  const json many =
      KavernJson({"replay", trace, "--layers", "2", "--kv-heads", "1", "--head-dim", "16",
                  "--workers", "2", "--processes", "2", "--tenants", "a,b", "--speedup", "1000"});
  EXPECT_EQ(many["requests"], 2 * one["requests"].get<int>());
  for (const json& report : {one, many}) {
    EXPECT_GT(report["hit_blocks"], 0);
    EXPECT_EQ(report["verified_bytes"], report["fetched_bytes"]);
    EXPECT_EQ(report["wrong_bytes"], 0);
    EXPECT_EQ(report["failed_calls"], 0) << report["first_failure"];
  }
}

// A model's preset prices what the hits save; the daemon that held them says the same counts.
TEST_F(CliTest, ReportsOfReplayAndStatusAgree) {
  StartDaemon({"ram.capacity=128MiB"});
  const json report =
      KavernJson({"replay", Generate(10), "--model", "llama-3-8b", "--scale-layers", "0.03125"});
  EXPECT_GT(report["prefill_seconds_saved"], 0);
  EXPECT_EQ(report["block_bytes"], 2 << 20);
  const json status = KavernJson({"status"});
  EXPECT_EQ(status["counters"]["fetch_bytes"], report["fetched_bytes"]);
  EXPECT_EQ(status["counters"]["store_bytes"], report["stored_bytes"]);
  EXPECT_EQ(KavernJson({"namespaces"})["namespaces"].size(), 1U);
  EXPECT_EQ(Kavern({"top", "--iterations", "2", "--interval-ms", "50"}).status, 0);
}

// The daemon is killed and restarted while the trace is played: misses, and nothing wrong.
TEST_F(CliTest, ReplayOverADaemonThatDiesLosesHitsAndNothingElse) {
  StartDaemon({"ram.capacity=128MiB"});
  ChildProcess replay({KAVERN_BINARY, "--address", address(), "--json", "replay", Generate(400),
                       "--layers", "1", "--kv-heads", "1", "--head-dim", "64"});
  ASSERT_TRUE(Eventually([&] { return Status().counters().fetch_hit_blocks() > 200; }));
  KillDaemon();
  RestartDaemon();
  const json report = json::parse(replay.ReadAll());
  EXPECT_EQ(replay.Wait(), 0);
  EXPECT_EQ(report["wrong_bytes"], 0);
  EXPECT_EQ(report["failed_calls"], 0) << report["first_failure"];
  EXPECT_GT(report["hit_blocks"], 200);
}

TEST_F(CliTest, ExitCodesSayWhatWentWrong) {
  EXPECT_EQ(Kavern({"status"}).status, 3);  // no daemon yet
  EXPECT_EQ(Kavern({"no-such-command"}).status, 2);
  EXPECT_EQ(Kavern({"replay", directory() + "/absent"}).status, 2);
  StartDaemon();
  std::ofstream(directory() + "/bad.jsonl") << "{\"timestamp\": 0}\n";
  EXPECT_EQ(Kavern({"replay", directory() + "/bad.jsonl"}).status, 2);
  EXPECT_EQ(Kavern({"--tenant", "nobody", "status"}).status, 4);
  EXPECT_EQ(Kavern({"status"}).status, 0);
}

TEST_F(CliTest, TheExampleConfigurationIsValid) {
  EXPECT_EQ(RunCommand({KAVERND_BINARY, "--config", KAVERN_SOURCE_DIR "/deploy/kavern.example.yaml",
                        "--check-config"})
                .status,
            0);
  EXPECT_EQ(RunCommand({KAVERND_BINARY, "--set", "ram.capcity=1GiB", "--check-config"}).status, 2);
}

}  // namespace
}  // namespace kavern
