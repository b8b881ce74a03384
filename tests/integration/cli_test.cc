// The command line, as a user runs it.
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "client/cli/layout_options.h"
#include "client/cli/replay/payload_pattern.h"
#include "client/cli/replay/replay_worker.h"
#include "client/cli/replay/trace.h"
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
  static json Simulate(const std::string& trace, std::uint64_t capacity_blocks,
                       const std::vector<std::string>& more = {}) {
    std::vector<std::string> command = {
        "/usr/bin/python3",
        std::string(KAVERN_SOURCE_DIR) + "/tests/sim/lru_reference.py",
        "--capacity-blocks",
        std::to_string(capacity_blocks),
        "--full-blocks-only",
        "--json",
        trace};
    command.insert(command.end(), more.begin(), more.end());
    const CommandResult result = RunCommand(command);
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
  // `settings`, and a disk of one file beside the socket.
  std::vector<std::string> WithDisk(std::vector<std::string> settings, std::uint64_t capacity_bytes,
                                    std::uint64_t segment_bytes) {
    settings.insert(settings.end(), {"nvme.devices=[{path: " + directory() + "/disk, capacity: " +
                                         std::to_string(capacity_bytes) + "}]",
                                     "nvme.catalog=" + directory() + "/catalog",
                                     "nvme.segment=" + std::to_string(segment_bytes)});
    return settings;
  }
  // Plays it in blocks of 4 KiB over both tiers: regions of 16 blocks, segments of 100 slots.
  // Nothing is flushed: 5,700 requests would wait for it.
  void ExpectTieredReplayEqualsSimulation(const std::string& trace, std::uint64_t ram_blocks,
                                          std::uint64_t nvme_blocks) {
    constexpr std::uint64_t kSlotsPerSegment = 100;
    constexpr std::uint64_t kPage = 4096;
    const std::uint64_t segment = kPage + kSlotsPerSegment * 2 * kPage;
    StartDaemon(
        WithDisk({"ram.capacity=" + std::to_string(ram_blocks * kPage), "ram.region=64KiB",
                  "nvme.durability=none",
                  "limits.lease_bytes_per_session_max=" + std::to_string(ram_blocks * kPage)},
                 kMiB + nvme_blocks / kSlotsPerSegment * segment, segment));
    const json replayed = KavernJson({"replay", trace, "--deterministic", "--layers", "1",
                                      "--kv-heads", "1", "--head-dim", "4", "--dtype", "int8"});
    const json simulated =
        Simulate(trace, ram_blocks, {"--nvme-blocks", std::to_string(nvme_blocks)});
    EXPECT_EQ(replayed["requests"], simulated["requests"]);
    EXPECT_EQ(replayed["blocks"], simulated["block_references"]);
    EXPECT_EQ(replayed["hit_blocks"], simulated["hit_blocks"]);
    EXPECT_EQ(replayed["hit_blocks_by_tier"]["ram"], simulated["ram_hit_blocks"]);
    EXPECT_EQ(replayed["hit_blocks_by_tier"]["nvme"], simulated["nvme_hit_blocks"]);
    EXPECT_GT(simulated["nvme_hit_blocks"], 0);
    EXPECT_EQ(Status().counters().evicted_blocks(), simulated["evicted_blocks"]);
    EXPECT_EQ(Status().counters().disk_evicted_blocks(), simulated["nvme_evicted_blocks"]);
    EXPECT_EQ(replayed["verified_bytes"], replayed["hit_blocks"].get<std::uint64_t>() * kPage);
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

TEST_F(CliTest, DeterministicReplayOverTwoTiersHasTheHitsByTierOfAnIndependentSimulation) {
  ExpectTieredReplayEqualsSimulation(Generate(500), 1024, 1500);
}

TEST_F(CliTest, DeterministicReplayOfARealTraceOverTwoTiersHasTheHitsByTierOfASimulation) {
  if (!std::ifstream(kConversationTrace)) GTEST_SKIP() << "the trace is not on this machine";
  ExpectTieredReplayEqualsSimulation(kConversationTrace, 2000, 30000);
}

// Killed in the midst of a replay over two tiers, which awaits it: what was written back is there
// again.
TEST_F(CliTest, ReplayOverADaemonThatComesBackWithItsDiskGoesOnHitting) {
  StartDaemon(WithDisk({"ram.capacity=32MiB"}, 256 * kMiB, 4 * kMiB));
  ChildProcess replay({KAVERN_BINARY, "--address", address(), "--json", "replay", Generate(400),
                       "--await-daemon-ms", "60000", "--layers", "1", "--kv-heads", "1",
                       "--head-dim", "64"});
  ASSERT_TRUE(Eventually([&] {
    return Status().counters().fetch_hit_blocks() > 200 && Status().nvme().blocks() > 50;
  }));
  KillDaemon();
  RestartDaemon();
  const json report = json::parse(replay.ReadAll());
  EXPECT_EQ(replay.Wait(), 0);
  EXPECT_EQ(report["wrong_bytes"], 0);
  EXPECT_EQ(report["failed_calls"], 0) << report["first_failure"];
  EXPECT_EQ(report["restarts"], 1);
  EXPECT_GT(report["nvme_hit_blocks_after_restart"], 0);
  EXPECT_GT(Status().nvme().recovered_blocks(), 50U);
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

// Somebody stored other bytes under the trace's keys, with checksums that are right for them: only
// the replay itself can see that they are not what the keys stand for.
TEST_F(CliTest, ReplayThatIsServedWrongBytesCountsThemAndFails) {
  StartDaemon({"ram.capacity=128MiB"});
  const std::string trace = Generate(10);
  cli::LayoutOptions options;
  options.layers = 1;
  options.kv_heads = 1;
  options.head_dim = 4;
  const NamespaceSpec spec = cli::ChooseLayout(options, cli::kTraceBlockTokens)->spec;
  const auto client = Connect();
  const auto ns = *client->OpenNamespace(spec);
  const auto keys = cli::RequestKeys(ns->fingerprint(), cli::ReadTraceFile(trace)->front());
  std::vector<std::byte> payload(spec.layout.PartBytes(0));
  cli::FillPattern(keys[0], 0, payload);
  payload[100] ^= std::byte{1};
  payload[3000] ^= std::byte{0xff};
  const ConstBuffer block(payload);
  ASSERT_TRUE(ns->Store({.keys = std::span(keys).first(1)}, {&block, 1}).ok());

  const std::vector<std::string> replay = {"replay",     trace, "--layers",   "1",
                                           "--kv-heads", "1",   "--head-dim", "4"};
  EXPECT_EQ(Kavern(replay).status, 1);
  std::vector<std::string> with_json = replay;
  with_json.push_back("--json");
  const CommandResult result = Kavern(with_json);
  EXPECT_EQ(result.status, 1);
  const json report = json::parse(result.output);
  // Two bytes each time that the block was fetched.
  EXPECT_GT(report["wrong_bytes"], 0);
  EXPECT_EQ(report["wrong_bytes"].get<int>() % 2, 0);
  EXPECT_EQ(report["failed_calls"], 0) << report["first_failure"];
}

TEST_F(CliTest, ExitCodesSayWhatWentWrong) {
  EXPECT_EQ(Kavern({"status"}).status, 3);  // no daemon yet
  EXPECT_EQ(Kavern({"no-such-command"}).status, 2);
  EXPECT_EQ(Kavern({"replay", directory() + "/absent"}).status, 2);
  StartDaemon();
  std::ofstream(directory() + "/bad.jsonl") << "{\"timestamp\": 0}\n";
  EXPECT_EQ(Kavern({"replay", directory() + "/bad.jsonl"}).status, 2);
  EXPECT_EQ(Kavern({"--tenant", "nobody", "status"}).status, 4);
  EXPECT_EQ(Kavern({"--tenant", "nobody", "--deadline-ms", "300", "replay", Generate(1)}).status,
            4);
  EXPECT_EQ(Kavern({"status"}).status, 0);
}

TEST_F(CliTest, OutputThatCannotBeWrittenIsNoSuccess) {
  EXPECT_EQ(RunCommand({"/bin/sh", "-c", KAVERN_BINARY " trace generate >/dev/full"}).status, 2);
}

TEST_F(CliTest, AnUnknownCommandIsNamedWithTheNearestKnownOne) {
  for (const char* words : {"repaly x", "trace genrate"}) {
    const CommandResult result =
        RunCommand({"/bin/sh", "-c", std::string(KAVERN_BINARY " ") + words + " 2>&1"});
    EXPECT_EQ(result.status, 2);
    EXPECT_NE(result.output.find("unknown command; did you mean"), std::string::npos)
        << result.output;
  }
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
