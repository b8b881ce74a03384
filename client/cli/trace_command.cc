// kavern trace generate.
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "client/cli/command.h"
#include "client/cli/replay/trace_generator.h"

namespace kavern::cli {
namespace {

int RunGenerate(const GlobalOptions& global, const TraceGeneratorOptions& options,
                const std::string& output) {
  if (absl::Status status = options.Validate(); !status.ok()) return Fail(status);
  const std::vector<TraceRequest> requests = GenerateTrace(options);
  if (output == "-") {
    WriteTrace(requests, std::cout);
    return kExitOk;
  }
  std::ofstream file(output);
  WriteTrace(requests, file);
  file.close();
  if (!file) return Fail(absl::InvalidArgumentError(output + ": cannot be written"));
  std::uint64_t blocks = 0;
  std::set<std::uint64_t> unique;
  for (const TraceRequest& request : requests) {
    blocks += request.hash_ids.size();
    unique.insert(request.hash_ids.begin(), request.hash_ids.end());
  }
  const nlohmann::json summary = {{"file", output},
                                  {"requests", requests.size()},
                                  {"block_references", blocks},
                                  {"unique_blocks", unique.size()}};
  if (global.json) {
    std::cout << summary.dump() << "\n";
  } else {
    std::cout << output << ": " << requests.size() << " requests, " << blocks
              << " block references, " << unique.size() << " unique blocks\n";
  }
  return kExitOk;
}

}  // namespace

void RegisterTrace(CLI::App& app, const GlobalOptions& global, Runner& run) {
  CLI::App* command = app.add_subcommand("trace", "Make traces to replay");
  command->require_subcommand(1);
  CLI::App* generate = command->add_subcommand(
      "generate", "Write a seeded trace of multi-turn conversations (JSON lines)");
  auto options = std::make_shared<TraceGeneratorOptions>();
  auto output = std::make_shared<std::string>("-");
  generate->add_option("-o,--output", *output, "File to write; - is stdout")->capture_default_str();
  generate->add_option("--seed", options->seed, "Same seed, same trace")->capture_default_str();
  generate->add_option("--conversations", options->conversations, "How many")
      ->capture_default_str();
  generate->add_option("--turns", options->turns_mean, "Mean turns of a conversation")
      ->capture_default_str();
  generate
      ->add_option("--arrival-rate", options->arrivals_per_second,
                   "Conversations that begin per second")
      ->capture_default_str();
  generate
      ->add_option("--think-seconds", options->think_seconds_mean,
                   "Mean time between an answer and the next question")
      ->capture_default_str();
  generate->add_option("--system-prompts", options->system_prompts, "Shared system prompts")
      ->capture_default_str();
  generate->add_option("--system-prompt-tokens", options->system_prompt_tokens, "Tokens of each")
      ->capture_default_str();
  generate->add_option("--question-tokens", options->question_tokens_mean, "Mean tokens asked")
      ->capture_default_str();
  generate->add_option("--answer-tokens", options->answer_tokens_mean, "Mean tokens answered")
      ->capture_default_str();
  generate
      ->add_option("--input-tokens-max", options->input_tokens_max,
                   "A conversation that has grown past this ends")
      ->capture_default_str();
  generate->callback([&run, &global, options, output] {
    run = [&global, options, output] { return RunGenerate(global, *options, *output); };
  });
}

}  // namespace kavern::cli
