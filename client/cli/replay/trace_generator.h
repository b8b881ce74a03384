// A seeded generator of multi-turn conversations, in the format of real traces.
#ifndef KAVERN_CLIENT_CLI_REPLAY_TRACE_GENERATOR_H_
#define KAVERN_CLIENT_CLI_REPLAY_TRACE_GENERATOR_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "client/cli/replay/trace.h"

namespace kavern::cli {

struct TraceGeneratorOptions {
  std::uint64_t seed = 1;
  std::uint64_t conversations = 200;
  double turns_mean = 5;             // geometric, at least 1
  double arrivals_per_second = 1;    // of conversations, Poisson
  double think_seconds_mean = 20;    // between an answer and the next question, exponential
  std::uint64_t system_prompts = 4;  // each conversation begins with one of them
  std::uint64_t system_prompt_tokens = 2048;
  double question_tokens_mean = 400;       // exponential, at least 16
  double answer_tokens_mean = 500;         // exponential, at least 16
  double answer_tokens_per_second = 50;    // how long an answer takes
  std::uint64_t input_tokens_max = 32768;  // a conversation that has grown past it ends

  absl::Status Validate() const;
};

// Requests in order of time. The same options give the same trace, on any machine. Each turn's
// input is the whole history; blocks that two inputs share have the same ids. The options must be
// valid.
std::vector<TraceRequest> GenerateTrace(const TraceGeneratorOptions& options);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_REPLAY_TRACE_GENERATOR_H_
