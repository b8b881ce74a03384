// The reference for keys is the very functions that base/sha256 uses, see there.
#define OPENSSL_SUPPRESS_DEPRECATED

#include "client/cli/bench/bench_control.h"

#include <openssl/sha.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/units.h"

namespace kavern::cli {
namespace {

constexpr int kCallsPerRepetition = 200;
constexpr std::size_t kMatchKeys = 1000;
constexpr int kMatchesPerRepetition = 200;
constexpr std::size_t kKeysPerChain = 4096;
constexpr int kChainsPerRepetition = 16;
constexpr std::size_t kKeysPerTurn = 64;

double Microseconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
      .count();
}

absl::Status StoreChain(BenchNode& node, std::span<const BlockKey> keys,
                        const WorkerMemory& memory) {
  return StoreWhole(node.ns(BenchPlane::kOneThread), keys,
                    memory.Sources(0, keys.size(), node.block_bytes()));
}

// Calls `work` and the empty call in turn; both in microseconds.
absl::StatusOr<Pairs> AgainstPing(BenchNode& node, int repetitions,
                                  const std::function<absl::StatusOr<double>()>& work) {
  Client& client = node.client(BenchPlane::kOneThread);
  Pairs pairs;
  for (int repetition = -1; repetition < repetitions; ++repetition) {
    std::vector<double> worked;
    std::vector<double> pinged;
    for (int i = 0; i < kCallsPerRepetition; ++i) {
      absl::Status status;
      pinged.push_back(Microseconds([&] { status = client.Ping(); }));
      KAVERN_RETURN_IF_ERROR(status);
      KAVERN_ASSIGN_OR_RETURN(const double micros, work());
      worked.push_back(micros);
    }
    if (repetition >= 0) pairs.Add(Median(worked), Median(pinged));
  }
  return pairs;
}

absl::StatusOr<double> TimeFetchRelease(BenchNode& node, std::span<const BlockKey> keys) {
  absl::Status status;
  const double micros = Microseconds([&] {
    auto lease = node.ns(BenchPlane::kOneThread).Fetch({.keys = keys});
    status = lease.ok() ? lease->Release() : lease.status();
  });
  KAVERN_RETURN_IF_ERROR(status);
  return micros;
}

// Without the copy, which lies between the two calls.
absl::StatusOr<double> TimeBeginCommit(BenchNode& node, std::size_t count,
                                       const WorkerMemory& memory) {
  const std::vector<BlockKey> keys = node.NewChain(count);
  absl::StatusOr<StoreLease> lease;
  const double begin =
      Microseconds([&] { lease = node.ns(BenchPlane::kOneThread).BeginStore({.keys = keys}); });
  if (!lease.ok()) return lease.status();
  for (std::size_t i = 0; i < count; ++i) {
    KAVERN_RETURN_IF_ERROR(lease->Fill(i, memory.Sources(i, 1, node.block_bytes())));
  }
  absl::Status status;
  const double commit = Microseconds([&] { status = lease->Commit(); });
  KAVERN_RETURN_IF_ERROR(status);
  return begin + commit;
}

BenchRow PlainRow(const std::string& name, const std::string& unit, std::vector<double> values) {
  BenchRow row;
  row.name = name;
  row.unit = unit;
  row.value = Median(std::move(values));
  return row;
}

// The message that a block key is the hash of has this many bytes beside its tokens:
// docs/PROTOCOL.md.
constexpr std::size_t kKeyOverheadBytes = 24;

BenchRow KeysRow(std::uint32_t tokens_per_block, int repetitions) {
  std::mt19937 random(tokens_per_block);
  std::vector<std::uint32_t> tokens(kKeysPerChain * tokens_per_block);
  for (std::uint32_t& token : tokens) token = random() % 150000;
  const std::size_t message_bytes = kKeyOverheadBytes + tokens_per_block * sizeof(std::uint32_t);
  std::vector<std::uint8_t> messages(kKeysPerChain * message_bytes, 0x5a);
  NamespaceFingerprint fingerprint;
  fingerprint.bytes.fill(1);

  Pairs pairs;
  std::uint8_t digest[SHA256_DIGEST_LENGTH] = {};
  // The same work: every message begins with half of the digest before it.
  const auto hash_by_libcrypto = [&](std::size_t first, std::size_t count) {
    for (std::size_t i = first; i < first + count; ++i) {
      std::memcpy(messages.data() + i * message_bytes, digest, sizeof(BlockKey));
      SHA256_CTX context;
      SHA256_Init(&context);
      SHA256_Update(&context, messages.data() + i * message_bytes, message_bytes);
      SHA256_Final(digest, &context);
    }
  };
  for (int repetition = -1; repetition < repetitions; ++repetition) {
    double ours = 0;
    double theirs = 0;
    for (int i = 0; i < kChainsPerRepetition; ++i) {
      BlockKeyChain chain(fingerprint, tokens_per_block);
      // In short turns, so that what else the machine does falls on both.
      for (std::size_t at = 0; at < kKeysPerChain; at += kKeysPerTurn) {
        const auto turn =
            std::span(tokens).subspan(at * tokens_per_block, kKeysPerTurn * tokens_per_block);
        ours += Microseconds([&] { chain.Append(turn); });
        theirs += Microseconds([&] { hash_by_libcrypto(at, kKeysPerTurn); });
      }
      digest[0] ^= chain.keys().back().bytes[0];
    }
    const double per_key = 1000.0 / (static_cast<double>(kKeysPerChain) * kChainsPerRepetition);
    if (repetition >= 0) pairs.Add(ours * per_key, theirs * per_key);
  }
  volatile std::uint8_t keep = digest[0];
  (void)keep;
  BenchRow row = RowOf(absl::StrCat("keys.compute.", tokens_per_block, "tokens"), "ns/block", pairs,
                       "libcrypto SHA-256");
  row.target = 1.2;
  row.at_least = false;
  return row;
}

}  // namespace

absl::Status BenchCalls(BenchNode& node, int repetitions, const WorkerMemory& memory,
                        std::vector<BenchRow>* rows) {
  for (const std::size_t count : {1, 32, 256}) {
    const std::vector<BlockKey> keys = node.NewChain(count);
    KAVERN_RETURN_IF_ERROR(StoreChain(node, keys, memory));
    KAVERN_ASSIGN_OR_RETURN(const Pairs fetch, AgainstPing(node, repetitions, [&] {
                              return TimeFetchRelease(node, keys);
                            }));
    KAVERN_ASSIGN_OR_RETURN(const Pairs store, AgainstPing(node, repetitions, [&] {
                              return TimeBeginCommit(node, count, memory);
                            }));
    if (count == 1) rows->push_back(PlainRow("rpc.ping", "us", fetch.references));
    BenchRow row = RowOf(absl::StrCat("control.fetch_release.x", count), "us", fetch, "rpc.ping");
    row.at_least = false;
    if (count == 32) row.target = 2.5;
    rows->push_back(row);
    rows->push_back(RowOf(absl::StrCat("control.begin_commit.x", count), "us", store, "rpc.ping"));
  }
  return absl::OkStatus();
}

absl::Status BenchMatch(BenchNode& node, int repetitions, const WorkerMemory& memory,
                        std::vector<BenchRow>* rows) {
  const Namespace& ns = node.ns(BenchPlane::kOneThread);
  const std::vector<BlockKey> present = node.NewChain(kMatchKeys);
  KAVERN_RETURN_IF_ERROR(StoreChain(node, present, memory));
  const std::vector<BlockKey> absent = node.NewChain(kMatchKeys);
  if (ns.Match(present) != kMatchKeys || ns.Match(absent) != 0) {
    return absl::InternalError("match: the directory does not say what was stored");
  }
  std::vector<double> hits;
  std::vector<double> misses;
  std::size_t matched = 0;
  for (int repetition = -1; repetition < repetitions; ++repetition) {
    const double hit = Microseconds([&] {
      for (int i = 0; i < kMatchesPerRepetition; ++i) matched += ns.Match(present);
    });
    // Ends at its first key: what is measured is a call.
    const double miss = Microseconds([&] {
      for (std::size_t i = 0; i < kMatchKeys; ++i) {
        matched += ns.Match(std::span(absent).subspan(i));
      }
    });
    if (repetition < 0) continue;
    hits.push_back(hit * 1000 / static_cast<double>(kMatchKeys) / kMatchesPerRepetition);
    misses.push_back(miss * 1000 / static_cast<double>(kMatchKeys));
  }
  if (matched != kMatchKeys * kMatchesPerRepetition * static_cast<std::size_t>(repetitions + 1)) {
    return absl::FailedPreconditionError(
        "a block was evicted while it was matched: expected a daemon that nobody else uses");
  }
  BenchRow row = PlainRow("match.hit.x1000", "ns/block", hits);
  row.target = 100;
  row.at_least = false;
  rows->push_back(row);
  rows->push_back(PlainRow("match.miss", "ns/call", misses));
  return absl::OkStatus();
}

void BenchKeys(int repetitions, std::vector<BenchRow>* rows) {
  for (const std::uint32_t tokens : {16u, 512u}) rows->push_back(KeysRow(tokens, repetitions));
}

}  // namespace kavern::cli
