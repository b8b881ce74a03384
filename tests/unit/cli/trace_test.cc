#include "client/cli/replay/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "client/cli/replay/trace_generator.h"

namespace kavern::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kGoodLine[] =
    R"({"timestamp": 0, "input_length": 513, "output_length": 9, "hash_ids": [4, 5]})";

absl::StatusOr<std::vector<TraceRequest>> Read(const std::string& text) {
  std::istringstream in(text);  // NOLINT(bugprone-unused-local-non-trivial-variable): it is read
  return ReadTrace(in, "trace.jsonl");
}

std::string Written(const std::vector<TraceRequest>& requests) {
  std::ostringstream out;
  WriteTrace(requests, out);
  return out.str();
}

TraceGeneratorOptions SmallTrace() {
  TraceGeneratorOptions options;
  options.conversations = 30;
  options.system_prompts = 3;
  options.system_prompt_tokens = 4 * kTraceBlockTokens + 100;
  return options;
}

TEST(Trace, WhatWasWrittenReadsBackTheSame) {
  const std::vector<TraceRequest> requests = GenerateTrace(SmallTrace());
  ASSERT_GT(requests.size(), 30u);
  const std::string text = Written(requests);
  const auto read = Read(text);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), requests.size());
  EXPECT_EQ(Written(*read), text);
  EXPECT_EQ((*read)[7].timestamp_ms, requests[7].timestamp_ms);
  EXPECT_EQ((*read)[7].input_length, requests[7].input_length);
  EXPECT_EQ((*read)[7].output_length, requests[7].output_length);
  EXPECT_EQ((*read)[7].hash_ids, requests[7].hash_ids);
}

TEST(Trace, OnlyFullBlocksCount) {
  // 513 tokens: one full block and one token of a second.
  const auto read = Read(kGoodLine);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)[0].hash_ids.size(), 2u);
  EXPECT_EQ((*read)[0].FullBlocks(), 1u);
}

struct BadLine {
  const char* line;
  const char* complaint;
};

class TraceMistake : public ::testing::TestWithParam<BadLine> {};

TEST_P(TraceMistake, IsNamedByLineAndField) {
  // Line 1 is good, line 2 blank, line 3 has the mistake.
  const auto read = Read(std::string(kGoodLine) + "\n\n" + GetParam().line + "\n");
  ASSERT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(read.status().message()),
              AllOf(HasSubstr("trace.jsonl:3: "), HasSubstr(GetParam().complaint)));
}

INSTANTIATE_TEST_SUITE_P(
    All, TraceMistake,
    ::testing::Values(
        BadLine{"not json", "JSON object"}, BadLine{"[1, 2]", "JSON object"},
        BadLine{R"({"timestamp": 0, "input_length": 1)", "JSON object"},
        BadLine{R"({"input_length": 1, "output_length": 1, "hash_ids": [1]})", "timestamp"},
        BadLine{R"({"timestamp": -1, "input_length": 1, "output_length": 1, "hash_ids": [1]})",
                "timestamp"},
        BadLine{R"({"timestamp": 0, "input_length": 1.5, "output_length": 1, "hash_ids": [1]})",
                "input_length"},
        BadLine{R"({"timestamp": 0, "input_length": 1e30, "output_length": 1, "hash_ids": [1]})",
                "input_length"},
        BadLine{
            R"({"timestamp": 0, "input_length": 99999999999, "output_length": 1, "hash_ids": []})",
            "input_length"},
        BadLine{R"({"timestamp": 0, "input_length": 1, "output_length": "2", "hash_ids": [1]})",
                "output_length"},
        BadLine{R"({"timestamp": 0, "input_length": 1, "output_length": 1})", "hash_ids"},
        BadLine{R"({"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": 7})",
                "hash_ids"},
        BadLine{R"({"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": ["a"]})",
                "hash_ids"},
        BadLine{R"({"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [-3]})",
                "hash_ids"},
        BadLine{R"({"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1, 2]})",
                "hash_ids: got 2, expected 1"}));

TEST(Trace, AnEmptyFileIsAMistakeAndAMissingOneIsNotFound) {
  EXPECT_EQ(Read("\n \n").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadTraceFile("/nonexistent/trace.jsonl").status().code(), absl::StatusCode::kNotFound);
}

TEST(TraceGenerator, TheSameSeedGivesTheSameTraceAndAnotherSeedAnother) {
  TraceGeneratorOptions options = SmallTrace();
  const std::string first = Written(GenerateTrace(options));
  EXPECT_EQ(Written(GenerateTrace(options)), first);
  options.seed += 1;
  EXPECT_NE(Written(GenerateTrace(options)), first);
}

// Blocks by the position at which they occur.
std::map<std::uint64_t, std::set<std::size_t>> PositionsOf(
    const std::vector<TraceRequest>& requests) {
  std::map<std::uint64_t, std::set<std::size_t>> positions;
  for (const TraceRequest& request : requests) {
    for (std::size_t i = 0; i < request.hash_ids.size(); ++i) {
      positions[request.hash_ids[i]].insert(i);
    }
  }
  return positions;
}

TEST(TraceGenerator, ConversationsShareTheBlocksOfTheirSystemPromptAndNoOther) {
  // Three system prompts of 4 full blocks and 100 tokens: 12 ids, each at one position, in many
  // conversations.
  const std::vector<TraceRequest> requests = GenerateTrace(SmallTrace());
  std::map<std::vector<std::uint64_t>, int> prompts;
  for (const TraceRequest& request : requests) {
    ASSERT_GE(request.FullBlocks(), 4u);
    ++prompts[{request.hash_ids.begin(), request.hash_ids.begin() + 4}];
  }
  EXPECT_EQ(prompts.size(), 3u);
  for (const auto& [ids, count] : prompts) EXPECT_GT(count, 1);

  // A block's id stands for its whole prefix: behind one id there is always the same one.
  std::map<std::uint64_t, std::uint64_t> before;
  for (const TraceRequest& request : requests) {
    for (std::size_t i = 1; i < request.hash_ids.size(); ++i) {
      const auto [it, is_new] = before.emplace(request.hash_ids[i], request.hash_ids[i - 1]);
      ASSERT_TRUE(is_new || it->second == request.hash_ids[i - 1]);
    }
  }
  for (const auto& [id, positions] : PositionsOf(requests)) ASSERT_EQ(positions.size(), 1u) << id;
}

TEST(TraceGenerator, RequestsComeInOrderOfTimeAndWithinTheLongestInput) {
  TraceGeneratorOptions options = SmallTrace();
  options.input_tokens_max = 6000;
  const std::vector<TraceRequest> requests = GenerateTrace(options);
  std::uint64_t before = 0;
  for (const TraceRequest& request : requests) {
    EXPECT_GE(request.timestamp_ms, before);
    EXPECT_LE(request.input_length, 6000u);
    EXPECT_EQ(request.hash_ids.size(),
              (request.input_length + kTraceBlockTokens - 1) / kTraceBlockTokens);
    before = request.timestamp_ms;
  }
}

TEST(TraceGenerator, ImpossibleOptionsAreNamed) {
  const auto complaint = [](auto change) {
    TraceGeneratorOptions options;
    change(options);
    return std::string(options.Validate().message());
  };
  EXPECT_EQ(complaint([](auto&) {}), "");
  EXPECT_THAT(complaint([](auto& o) { o.conversations = 0; }), HasSubstr("--conversations"));
  EXPECT_THAT(complaint([](auto& o) { o.turns_mean = -1; }), HasSubstr("--turns"));
  EXPECT_THAT(complaint([](auto& o) { o.arrivals_per_second = 0; }), HasSubstr("--arrival-rate"));
  EXPECT_THAT(complaint([](auto& o) { o.system_prompts = 0; }), HasSubstr("--system-prompts"));
}

}  // namespace
}  // namespace kavern::cli
