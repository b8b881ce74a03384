#include "client/cli/command_line.h"

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/nearest_word.h"
#include "base/units.h"
#include "client/cli/commands.h"
#include "client/version.h"

namespace kavern::cli {
namespace {

constexpr char kFooter[] =
    "Exit codes: 0 done; 1 the command found what must not be (wrong bytes, a failing check);\n"
    "2 wrong arguments or input; 3 no daemon at the address; 4 the daemon refused.";

// Empty, or what is wrong with it.
std::string IsBytes(const std::string& text) {
  const auto bytes = ParseBytes(text);
  return bytes.ok() ? std::string() : std::string(bytes.status().message());
}

void AddLayoutOptions(CLI::App& command, LayoutOptions& options) {
  std::string known;
  for (const ModelPreset& preset : ModelPresets()) {
    known += (known.empty() ? "" : ", ") + std::string(preset.name);
  }
  command.add_option("--model", options.model, "KV layout and prefill cost of: " + known)
      ->capture_default_str();
  command
      .add_option("--scale-layers", options.scale_layers,
                  "Share of the model's layers to keep, so that blocks fit a small machine")
      ->check(CLI::Range(1e-6, 1.0))
      ->capture_default_str();
  const std::string group = "Layout in place of --model";
  command.add_option("--layers", options.layers, "Layers; replaces --model")->group(group);
  command.add_option("--kv-heads", options.kv_heads, "KV heads of one shard")
      ->capture_default_str()
      ->group(group);
  command.add_option("--head-dim", options.head_dim, "Elements of a head")
      ->capture_default_str()
      ->group(group);
  command.add_option("--latent-dim", options.latent_dim, "MLA: elements of the latent vector")
      ->group(group);
  command.add_option("--dtype", options.dtype, "Element type")->capture_default_str()->group(group);
  command
      .add_option("--shards", options.shards, "Distinct shards of a block (tensor parallel ranks)")
      ->capture_default_str();
}

void RegisterStatus(CLI::App& app, const GlobalOptions& global, Runner& run) {
  CLI::App* command = app.add_subcommand("status", "What the daemon holds and has done");
  auto wait_ms = std::make_shared<std::int64_t>(0);
  command->add_option("--wait-ms", *wait_ms,
                      "Wait this long for a daemon that answers and has its RAM tier populated");
  command->callback([&run, &global, wait_ms] {
    run = [&global, wait_ms] { return RunStatus(global, *wait_ms); };
  });
}

void RegisterTop(CLI::App& app, const GlobalOptions& global, Runner& run) {
  CLI::App* command = app.add_subcommand("top", "The same, live; q ends it");
  auto interval_ms = std::make_shared<std::int64_t>(1000);
  auto iterations = std::make_shared<std::uint64_t>(0);
  command->add_option("--interval-ms", *interval_ms, "Time between two screens")
      ->check(CLI::Range(50, 3600000))
      ->capture_default_str();
  command->add_option("-n,--iterations", *iterations, "Screens to show; 0: until q")
      ->capture_default_str();
  command->callback([&run, &global, interval_ms, iterations] {
    run = [&global, interval_ms, iterations] { return RunTop(global, *interval_ms, *iterations); };
  });
}

void RegisterNamespaces(CLI::App& app, const GlobalOptions& global, Runner& run) {
  CLI::App* command = app.add_subcommand("namespaces", "Which namespaces there are");
  auto purge = std::make_shared<std::string>();
  command->add_option("--purge", *purge,
                      "Forget every block of the namespace with this fingerprint");
  command->callback(
      [&run, &global, purge] { run = [&global, purge] { return RunNamespaces(global, *purge); }; });
}

void RegisterReplay(CLI::App& app, const GlobalOptions& global, Runner& run) {
  CLI::App* command = app.add_subcommand(
      "replay", "Play a trace of requests as inference workers would, and verify every byte");
  auto options = std::make_shared<ReplayCommandOptions>();
  ReplayOptions& replay = options->replay;
  command->add_option("file", options->file, "Trace: JSON lines, see `kavern trace generate`")
      ->required();
  AddLayoutOptions(*command, options->layout);
  auto* fast = command->add_flag("--as-fast-as-possible", options->as_fast_as_possible,
                                 "Do not wait for the trace's times (the default)");
  command->add_option("--speedup", replay.speedup, "Play the trace's time this many times faster")
      ->check(CLI::PositiveNumber)
      ->excludes(fast);
  command->add_option("--workers", replay.workers, "Threads per process and tenant, each a client")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command->add_option("--processes", replay.processes, "Processes, which share the requests")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--tenants", replay.tenants, "Tenants, each of which plays the whole trace")
      ->delimiter(',');
  command->add_option("--copy-threads", replay.client.copy_threads, "Of each worker")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--limit", options->limit, "Play only the first requests; 0: all")
      ->capture_default_str();
  command->add_flag(
      "--deterministic", replay.deterministic,
      "One worker that waits for the daemon's background after each request: the hits are "
      "a function of trace and capacity");
  command
      ->add_option("--await-daemon-ms", options->await_daemon_ms,
                   "A worker whose daemon went away waits this long for the next one, and the "
                   "report tells what was hit before and after; 0: it goes on without")
      ->capture_default_str();
  command->callback([&run, &global, options] {
    run = [&global, options] { return RunReplayCommand(global, *options); };
  });
}

void RegisterBench(CLI::App& app, const GlobalOptions& global, Runner& run) {
  CLI::App* command = app.add_subcommand(
      "bench",
      "Measure an idle daemon against memcpy, empty calls, libcrypto and fio; evicts what it "
      "holds");
  auto options = std::make_shared<BenchOptions>();
  auto set = std::make_shared<std::string>("1GiB");
  command
      ->add_option("--repetitions", options->repetitions, "Of every measurement; the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("--targets", options->targets_only,
                    "Only the rows that have a target, and their kin");
  command->add_option("--disk", options->fio_file,
                      "Measure the NVMe tier against fio instead; fio gets this file, beside the "
                      "daemon's, and fills it");
  command->add_option("--disk-set", *set, "With --disk: what one pass moves")
      ->capture_default_str()
      ->check(IsBytes);
  command->callback([&run, &global, options, set] {
    options->disk_set_bytes = ParseBytes(*set).value_or(0);
    run = [&global, options] { return RunBench(global, *options); };
  });
}

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

void RegisterDoctor(CLI::App& app, const GlobalOptions& global, Runner& run) {
  CLI::App* command =
      app.add_subcommand("doctor", "What on this machine will make Kavern slow or fail");
  auto options = std::make_shared<DoctorOptions>();
  auto ram = std::make_shared<std::string>();
  CLI::Option* directory =
      command
          ->add_option("--dir,--disk-path", options->directory, "Directory on the disk to look at")
          ->capture_default_str();
  command
      ->add_option("--ram", *ram, "The ram.capacity that this machine shall carry, such as 64GiB")
      ->check(IsBytes);
  command->add_flag_callback(
      "--no-disk-test", [options] { options->measure_disk = false; },
      "Do not measure that disk, which takes five seconds");
  command->callback([&global, &run, options, ram, directory] {
    options->directory_chosen = directory->count() > 0;
    if (!ram->empty()) options->ram_bytes = ParseBytes(*ram).value_or(0);
    run = [&global, options] { return RunDoctor(global, *options); };
  });
}

void RegisterStore(CLI::App& app, const GlobalOptions& global, Runner& run) {
  CLI::App* command = app.add_subcommand(
      "store", "Look at the NVMe tier of a daemon that is not running, and change nothing");
  command->require_subcommand(1);
  auto options = std::make_shared<StoreOptions>();
  const auto add = [&](const std::string& name, const std::string& description) {
    CLI::App* added = command->add_subcommand(name, description);
    added->add_option("-c,--config", options->config, "The daemon's YAML configuration");
    added->add_option("--set", options->overrides,
                      "key=value in place of what the file says; may be repeated");
    added->callback([&run, &global, options, name] {
      run = [&global, options, name] { return RunStore(global, *options, name); };
    });
    return added;
  };
  add("verify", "Read and check every byte that counts")
      ->add_option("--damage-max", options->damage_max, "Damaged places to name")
      ->capture_default_str();
  add("stats", "What is stored, by device, slot size and namespace");
  add("export-catalog", "The catalog, one JSON object a line");
}

void RegisterCompletion(CLI::App& app, const GlobalOptions& global, Runner& run) {
  CLI::App* command =
      app.add_subcommand("completion", "Print a script that teaches a shell these commands");
  command->footer(
      "bash: source <(kavern completion bash)\n"
      "zsh:  kavern completion zsh > \"${fpath[1]}/_kavern\"\n"
      "fish: kavern completion fish > ~/.config/fish/completions/kavern.fish");
  auto shell = std::make_shared<std::string>();
  command->add_option("shell", *shell, "Which shell")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->callback([&app, &global, &run, shell] {
    run = [&app, &global, shell] {
      return RunCompletion(global, app.get_name(), DescribeCommands(app), *shell);
    };
  });
}

// The word where a command should be, and the command that it may have been meant for: CLI11 says
// only that one is missing.
std::string UnknownCommand(const CLI::App& app) {
  const CLI::App* at = &app;
  while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
  // Below a command too, a word that is none is handed to the root.
  const std::vector<std::string> words = app.remaining(/*recurse=*/true);
  std::vector<std::string> known;
  for (const CLI::App* child : at->get_subcommands({})) known.push_back(child->get_name());
  if (words.empty() || known.empty()) return "";
  const std::string nearest = NearestWord(words.front(), known);
  return words.front() + ": unknown command" +
         (nearest.empty() ? "" : "; did you mean " + nearest + "?");
}

constexpr decltype(&RegisterStatus) kCommands[] = {
    RegisterStatus, RegisterTop,    RegisterNamespaces, RegisterReplay,     RegisterBench,
    RegisterTrace,  RegisterDoctor, RegisterStore,      RegisterCompletion,
};

}  // namespace

void BuildCommandLine(CLI::App& app, GlobalOptions& global, Runner& run) {
  app.add_option("-a,--address", global.address,
                 "The daemon: unix:///path/to/socket or tcp://127.0.0.1:port")
      ->envname("KAVERN_ADDRESS")
      ->capture_default_str();
  app.add_option("-t,--tenant", global.tenant,
                 "Which of the tenants that this user maps to (default: the first)")
      ->envname("KAVERN_TENANT");
  app.add_option_function<std::int64_t>(
         "--deadline-ms",
         [&global](const std::int64_t& ms) { global.deadline = std::chrono::milliseconds(ms); },
         "Longest wait for one call")
      ->default_str(std::to_string(global.deadline.count()));
  app.add_flag("--json", global.json, "Print one JSON object and nothing else");
  app.set_version_flag("--version", std::string("kavern ") + KAVERN_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  app.footer(kFooter);
  for (const auto& command : kCommands) command(app, global, run);
}

int Main(int argc, char** argv) {
  CLI::App app("kavern: look at, measure and exercise a Kavern daemon.", "kavern");
  GlobalOptions global;
  Runner run;
  BuildCommandLine(app, global, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::RequiredError& error) {
    const std::string unknown = UnknownCommand(app);
    if (unknown.empty()) return app.exit(error) == 0 ? kExitOk : kExitUsage;
    std::fprintf(stderr, "kavern: %s\n", unknown.c_str());
    return kExitUsage;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return run ? run() : kExitUsage;
}

}  // namespace kavern::cli
