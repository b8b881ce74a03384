#include "client/cli/replay/replay_worker.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <span>
#include <string>

#include "absl/strings/match.h"
#include "client/cli/replay/payload_pattern.h"

namespace kavern::cli {
namespace {

constexpr std::uint64_t kBatchBytes = std::uint64_t{64} << 20;
constexpr std::uint64_t kBatchBlocksMax = 256;

using Tokens = std::array<std::uint32_t, kTraceBlockTokens>;

Tokens TokensOf(std::uint64_t hash_id) {
  Tokens tokens;
  std::uint64_t state = hash_id * 0x9e3779b97f4a7c15 + 1;
  for (std::uint32_t& token : tokens) {
    state = state * 6364136223846793005 + 1442695040888963407;
    token = static_cast<std::uint32_t>(state >> 47);
  }
  return tokens;
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::vector<BlockKey> RequestKeys(const NamespaceFingerprint& fingerprint,
                                  const TraceRequest& request) {
  std::vector<BlockKey> keys;
  BlockKey parent = fingerprint.RootKey();
  for (std::size_t i = 0; i < request.FullBlocks(); ++i) {
    parent = ComputeBlockKey(parent, TokensOf(request.hash_ids[i]));
    keys.push_back(parent);
  }
  return keys;
}

ReplayWorker::ReplayWorker(Namespace& ns, std::optional<ModelPreset> preset)
    : ns_(ns), preset_(preset), layout_(ns.spec().layout) {
  std::uint64_t part_bytes = 1;
  for (std::uint32_t group = 0; group < layout_.groups.size(); ++group) {
    part_bytes = std::max(part_bytes, layout_.PartBytes(group));
  }
  batch_blocks_ = std::clamp<std::uint64_t>(kBatchBytes / part_bytes, 1, kBatchBlocksMax);
  memory_.resize(batch_blocks_ * part_bytes);
}

void ReplayWorker::NoteRestart(double away_seconds) {
  ++stats_.restarts;
  stats_.away_seconds += away_seconds;
  stats_.blocks_after = 0;
  stats_.hit_blocks_after = 0;
  stats_.nvme_hit_blocks_after = 0;
}

void ReplayWorker::Play(const TraceRequest& request) {
  const std::uint64_t nvme_hits = stats_.nvme_hit_blocks;
  keys_ = RequestKeys(ns_.fingerprint(), request);
  ++stats_.requests;
  stats_.blocks += keys_.size();
  stats_.tokens += request.input_length;

  const auto start = std::chrono::steady_clock::now();
  const std::size_t matched = ns_.Match(keys_);
  stats_.match_seconds.push_back(SecondsSince(start));

  const std::size_t hits = FetchPrefix(matched);
  stats_.hit_blocks += hits;
  stats_.hit_tokens += hits * kTraceBlockTokens;
  if (preset_.has_value()) {
    stats_.prefill_seconds_saved +=
        preset_->PrefillMs(0, hits * kTraceBlockTokens, kReferenceFlopsPerSecond) / 1e3;
  }
  if (stats_.restarts > 0) {
    stats_.blocks_after += keys_.size();
    stats_.hit_blocks_after += hits;
    stats_.nvme_hit_blocks_after += stats_.nvme_hit_blocks - nvme_hits;
  }
  StoreFrom(hits);
}

void ReplayWorker::Count(const absl::Status& status) {
  if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) {
    ++stats_.unavailable_calls;
  } else if (absl::IsInvalidArgument(status) && absl::StartsWith(status.message(), "parent:")) {
    ++stats_.lost_parents;
  } else {
    ++stats_.failed_calls;
    if (stats_.first_failure.empty()) stats_.first_failure = status.ToString();
  }
}

// ---- Fetch ----

std::size_t ReplayWorker::FetchPrefix(std::size_t matched) {
  if (matched == 0) return 0;
  call_seconds_ = 0;
  std::size_t whole = 0;
  while (whole < matched) {
    const std::size_t count = std::min(batch_blocks_, matched - whole);
    const std::size_t got = FetchBatch(std::span(keys_).subspan(whole, count));
    whole += got;
    if (got < count) break;
  }
  stats_.fetch_seconds.push_back(call_seconds_);
  return whole;
}

std::size_t ReplayWorker::FetchBatch(std::span<const BlockKey> keys) {
  std::size_t whole = keys.size();
  tiers_.assign(keys.size(), Tier::kNone);
  for (std::uint32_t shard = 0; shard < layout_.shard_count; ++shard) {
    for (std::uint32_t group = 0; group < layout_.groups.size(); ++group) {
      if (whole == 0) return 0;
      whole = FetchPart(keys.first(whole), shard, group);
    }
  }
  for (const Tier tier : std::span(tiers_).first(whole)) {
    stats_.hbm_hit_blocks += tier == Tier::kHbm ? 1 : 0;
    stats_.ram_hit_blocks += tier == Tier::kRam ? 1 : 0;
    stats_.nvme_hit_blocks += tier == Tier::kNvme ? 1 : 0;
  }
  return whole;
}

std::size_t ReplayWorker::FetchPart(std::span<const BlockKey> keys, std::uint32_t shard,
                                    std::uint32_t group) {
  const std::uint64_t part_bytes = layout_.PartBytes(group);
  std::vector<MutableBuffer> buffers;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    buffers.push_back(std::span(memory_).subspan(i * part_bytes, part_bytes));
  }
  const auto start = std::chrono::steady_clock::now();
  const auto fetched = ns_.FetchInto({.keys = keys, .shard = shard, .group = group}, buffers);
  call_seconds_ += SecondsSince(start);
  if (!fetched.ok()) {
    Count(fetched.status());
    return 0;
  }
  stats_.fetched_bytes += fetched->fetched_bytes;

  const std::uint32_t part = layout_.PartIndex(shard, group);
  std::size_t whole = 0;
  bool prefix = true;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (fetched->codes[i] == absl::StatusCode::kOk) {
      stats_.wrong_bytes += CountWrongBytes(keys[i], part, buffers[i]);
      stats_.verified_bytes += part_bytes;
      // The first part brings the block to RAM for the others.
      tiers_[i] = std::max(tiers_[i], fetched->tiers[i]);
      whole += prefix ? 1 : 0;
      continue;
    }
    prefix = false;
    ++(fetched->codes[i] == absl::StatusCode::kDataLoss ? stats_.damaged_blocks
                                                        : stats_.lost_blocks);
  }
  return whole;
}

// ---- Store ----

void ReplayWorker::StoreFrom(std::size_t first) {
  if (first == keys_.size()) return;
  call_seconds_ = 0;
  while (first < keys_.size()) {
    const std::size_t count = std::min(batch_blocks_, keys_.size() - first);
    const BlockKey parent = first == 0 ? ns_.fingerprint().RootKey() : keys_[first - 1];
    if (!StoreBatch(parent, std::span(keys_).subspan(first, count))) break;
    first += count;
  }
  stats_.store_seconds.push_back(call_seconds_);
}

bool ReplayWorker::StoreBatch(const BlockKey& parent, std::span<const BlockKey> keys) {
  for (std::uint32_t shard = 0; shard < layout_.shard_count; ++shard) {
    for (std::uint32_t group = 0; group < layout_.groups.size(); ++group) {
      if (!StorePart(parent, keys, shard, group)) return false;
    }
  }
  return true;
}

bool ReplayWorker::StorePart(const BlockKey& parent, std::span<const BlockKey> keys,
                             std::uint32_t shard, std::uint32_t group) {
  const std::uint64_t part_bytes = layout_.PartBytes(group);
  const std::uint32_t part = layout_.PartIndex(shard, group);
  std::vector<ConstBuffer> buffers;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const MutableBuffer buffer = std::span(memory_).subspan(i * part_bytes, part_bytes);
    FillPattern(keys[i], part, buffer);
    buffers.push_back(buffer);
  }
  const auto start = std::chrono::steady_clock::now();
  const auto stored =
      ns_.Store({.parent = parent, .keys = keys, .shard = shard, .group = group}, buffers);
  call_seconds_ += SecondsSince(start);
  if (!stored.ok()) {
    Count(stored.status());
    return false;
  }
  stats_.stored_bytes += stored->stored_bytes;
  const auto count = [&](StoreOutcome outcome) {
    return static_cast<std::uint64_t>(
        std::count(stored->outcomes.begin(), stored->outcomes.end(), outcome));
  };
  stats_.exists_blocks += count(StoreOutcome::kExists);
  const std::uint64_t declined = count(StoreOutcome::kDeclined);
  stats_.declined_blocks += declined;
  return declined == 0;
}

}  // namespace kavern::cli
