// What an inference worker does with Kavern: takes the cached prefix of a prompt back, computes the
// rest, stores what it computed. Run it twice against one daemon: the second run computes nothing.
//
//   worker_example unix:///run/kavern/kavern.sock
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <vector>

#include "client/kavern/client.h"

namespace {

// Stands for the model: the KV of a block follows from its key, which stands for all tokens up to
// its end.
void Prefill(const kavern::BlockKey& key, kavern::MutableBuffer kv) {
  for (std::size_t i = 0; i < kv.size(); ++i) kv[i] = std::byte(key.bytes[i % 16]);
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "worker: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  kavern::ClientOptions options;
  if (argc > 1) options.address = argv[1];
  auto client = kavern::Client::Create(options);
  if (!client.ok()) return Fail(client.status());

  // Everything that changes KV bytes goes into the spec: workers share blocks only if all of it is
  // equal.
  kavern::NamespaceSpec spec;
  spec.model = "llama-3-8b";
  spec.weights_revision = "main";
  spec.layout = kavern::FindModelPreset("llama-3-8b")->Layout(/*tokens_per_block=*/16);
  if (!(*client)->WaitUntilAttached(std::chrono::seconds(2)).ok()) {
    std::printf("no daemon: computed everything\n");  // the worst that Kavern does to a worker
    return 0;
  }
  auto ns = (*client)->OpenNamespace(spec);
  if (!ns.ok()) return Fail(ns.status());

  std::vector<std::uint32_t> prompt(256);
  std::iota(prompt.begin(), prompt.end(), 1000);
  kavern::BlockKeyChain chain((*ns)->fingerprint(), spec.layout.tokens_per_block);
  chain.Append(prompt);
  const auto keys = chain.keys();

  // The worker's own KV memory, one buffer a block.
  std::vector<std::vector<std::byte>> kv(keys.size(),
                                         std::vector<std::byte>(spec.layout.PartBytes(0)));
  const std::vector<kavern::MutableBuffer> blocks(kv.begin(), kv.end());

  std::size_t cached = (*ns)->Match(keys);  // shared memory, no call
  if (cached > 0) {
    const auto got =
        (*ns)->FetchInto({.keys = keys.first(cached)}, std::span(blocks).first(cached));
    if (!got.ok()) return Fail(got.status());
    const auto ok = [](absl::StatusCode code) { return code == absl::StatusCode::kOk; };
    cached = std::find_if_not(got->codes.begin(), got->codes.end(), ok) - got->codes.begin();
  }
  for (std::size_t i = cached; i < keys.size(); ++i) Prefill(keys[i], blocks[i]);
  if (cached < keys.size()) {
    const std::vector<kavern::ConstBuffer> fresh(kv.begin() + cached, kv.end());
    const auto stored = (*ns)->Store({.parent = cached > 0 ? keys[cached - 1] : kavern::BlockKey{},
                                      .keys = keys.subspan(cached)},
                                     fresh);
    if (!stored.ok()) return Fail(stored.status());
  }
  std::printf("%zu blocks: %zu fetched, %zu computed\n", keys.size(), cached, keys.size() - cached);

  // The next turn: what of it is worth fetching, as measured by then.
  const auto plan = (*ns)->Plan({.keys = keys, .token_count = prompt.size()});  // no call
  if (!plan.ok()) return Fail(plan.status());
  const auto to_fetch = keys.subspan(plan->first_block, plan->fetch_blocks);
  const absl::Status told = (*ns)->ReportPrefill(
      {.begin_token = 0, .end_token = 256, .duration = std::chrono::milliseconds(40)});
  if (!told.ok()) return Fail(told);
  std::printf("next turn: %zu to fetch\n", to_fetch.size());
}
