#include "client/cli/replay/trace_generator.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace kavern::cli {
namespace {

constexpr std::uint64_t kTurnsMax = 1000;
constexpr std::uint64_t kPieceTokensMin = 16;

// splitmix64: the standard library's distributions differ between implementations, a trace must
// not.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t Next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // In (0, 1].
  double Unit() { return static_cast<double>((Next() >> 11) + 1) * 0x1p-53; }
  double Exponential(double mean) { return -mean * std::log(Unit()); }
  std::uint64_t Below(std::uint64_t bound) { return Next() % bound; }
  // 1, 2, 3, ... with the given mean.
  std::uint64_t Geometric(double mean) {
    if (mean <= 1) return 1;
    const double turns = std::ceil(std::log(Unit()) / std::log(1 - 1 / mean));
    return std::clamp<std::uint64_t>(static_cast<std::uint64_t>(turns), 1, kTurnsMax);
  }

 private:
  std::uint64_t state_;
};

// Hands out ids of full blocks. A conversation's blocks are its own once they hold a token of its
// own.
class Conversation {
 public:
  Conversation(const std::vector<std::uint64_t>& system_prompt, std::uint64_t system_tokens)
      : ids_(system_prompt), tokens_(system_tokens) {}

  void Append(std::uint64_t tokens, std::uint64_t* next_id) {
    tokens_ += tokens;
    while (ids_.size() < tokens_ / kTraceBlockTokens) ids_.push_back((*next_id)++);
  }

  // Ids of the whole history; a partial last block gets an id that no later block has, because the
  // id of a full block stands for all of its tokens.
  std::vector<std::uint64_t> InputIds(std::uint64_t* next_id) const {
    std::vector<std::uint64_t> ids = ids_;
    if (tokens_ % kTraceBlockTokens != 0) ids.push_back((*next_id)++);
    return ids;
  }

  std::uint64_t tokens() const { return tokens_; }

 private:
  std::vector<std::uint64_t> ids_;
  std::uint64_t tokens_;
};

std::uint64_t Tokens(Random& random, double mean) {
  return std::max(kPieceTokensMin, static_cast<std::uint64_t>(random.Exponential(mean)));
}

}  // namespace

absl::Status TraceGeneratorOptions::Validate() const {
  const auto positive = [](const char* name, double value) {
    return value > 0 && value < 1e9 ? absl::OkStatus()
                                    : absl::InvalidArgumentError(absl::StrCat(
                                          name, ": got ", value, ", expected more than 0"));
  };
  const std::pair<const char*, double> numbers[] = {
      {"--conversations", static_cast<double>(conversations)},
      {"--turns", turns_mean},
      {"--arrival-rate", arrivals_per_second},
      {"--think-seconds", think_seconds_mean},
      {"--system-prompts", static_cast<double>(system_prompts)},
      {"--question-tokens", question_tokens_mean},
      {"--answer-tokens", answer_tokens_mean},
      {"--input-tokens-max", static_cast<double>(input_tokens_max)},
  };
  for (const auto& [name, value] : numbers) {
    if (absl::Status status = positive(name, value); !status.ok()) return status;
  }
  return absl::OkStatus();
}

std::vector<TraceRequest> GenerateTrace(const TraceGeneratorOptions& options) {
  Random random(options.seed);
  std::uint64_t next_id = 0;
  // Only the full blocks of a system prompt are shared: its last tokens lie in a block with the
  // question.
  std::vector<std::vector<std::uint64_t>> system_prompts(options.system_prompts);
  for (auto& prompt : system_prompts) {
    for (std::uint64_t i = 0; i < options.system_prompt_tokens / kTraceBlockTokens; ++i) {
      prompt.push_back(next_id++);
    }
  }

  std::vector<TraceRequest> requests;
  double arrival = 0;
  for (std::uint64_t i = 0; i < options.conversations; ++i) {
    arrival += random.Exponential(1 / options.arrivals_per_second);
    double now = arrival;
    Conversation conversation(system_prompts[random.Below(options.system_prompts)],
                              options.system_prompt_tokens);
    const std::uint64_t turns = random.Geometric(options.turns_mean);
    for (std::uint64_t turn = 0; turn < turns; ++turn) {
      conversation.Append(Tokens(random, options.question_tokens_mean), &next_id);
      if (conversation.tokens() > options.input_tokens_max) break;
      TraceRequest request;
      request.timestamp_ms = static_cast<std::uint64_t>(now * 1e3);
      request.input_length = conversation.tokens();
      request.output_length = Tokens(random, options.answer_tokens_mean);
      request.hash_ids = conversation.InputIds(&next_id);
      conversation.Append(request.output_length, &next_id);
      now += static_cast<double>(request.output_length) / options.answer_tokens_per_second +
             random.Exponential(options.think_seconds_mean);
      requests.push_back(std::move(request));
    }
  }
  std::stable_sort(requests.begin(), requests.end(),
                   [](const auto& a, const auto& b) { return a.timestamp_ms < b.timestamp_ms; });
  return requests;
}

}  // namespace kavern::cli
