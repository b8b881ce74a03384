#include "client/cli/replay/replay_stats.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace kavern::cli {
namespace {

struct Counter {
  const char* name;
  std::uint64_t ReplayStats::*value;
};
constexpr Counter kCounters[] = {
    {"requests", &ReplayStats::requests},
    {"blocks", &ReplayStats::blocks},
    {"hit_blocks", &ReplayStats::hit_blocks},
    {"hbm_hit_blocks", &ReplayStats::hbm_hit_blocks},
    {"ram_hit_blocks", &ReplayStats::ram_hit_blocks},
    {"nvme_hit_blocks", &ReplayStats::nvme_hit_blocks},
    {"tokens", &ReplayStats::tokens},
    {"hit_tokens", &ReplayStats::hit_tokens},
    {"fetched_bytes", &ReplayStats::fetched_bytes},
    {"stored_bytes", &ReplayStats::stored_bytes},
    {"verified_bytes", &ReplayStats::verified_bytes},
    {"wrong_bytes", &ReplayStats::wrong_bytes},
    {"exists_blocks", &ReplayStats::exists_blocks},
    {"declined_blocks", &ReplayStats::declined_blocks},
    {"lost_blocks", &ReplayStats::lost_blocks},
    {"damaged_blocks", &ReplayStats::damaged_blocks},
    {"lost_parents", &ReplayStats::lost_parents},
    {"unavailable_calls", &ReplayStats::unavailable_calls},
    {"failed_calls", &ReplayStats::failed_calls},
    {"blocks_after", &ReplayStats::blocks_after},
    {"hit_blocks_after", &ReplayStats::hit_blocks_after},
    {"nvme_hit_blocks_after", &ReplayStats::nvme_hit_blocks_after},
};

struct Samples {
  const char* name;
  std::vector<double> ReplayStats::*values;
};
constexpr Samples kSamples[] = {
    {"match_seconds", &ReplayStats::match_seconds},
    {"fetch_seconds", &ReplayStats::fetch_seconds},
    {"store_seconds", &ReplayStats::store_seconds},
};

}  // namespace

void ReplayStats::Add(const ReplayStats& other) {
  for (const Counter& counter : kCounters) this->*counter.value += other.*counter.value;
  for (const Samples& samples : kSamples) {
    auto& mine = this->*samples.values;
    const auto& theirs = other.*samples.values;
    mine.insert(mine.end(), theirs.begin(), theirs.end());
  }
  prefill_seconds_saved += other.prefill_seconds_saved;
  // Seen by every worker, not one after the other.
  restarts = std::max(restarts, other.restarts);
  away_seconds = std::max(away_seconds, other.away_seconds);
  if (first_failure.empty()) first_failure = other.first_failure;
}

nlohmann::json ToJson(const ReplayStats& stats) {
  nlohmann::json object;
  for (const Counter& counter : kCounters) object[counter.name] = stats.*counter.value;
  for (const Samples& samples : kSamples) object[samples.name] = stats.*samples.values;
  object["prefill_seconds_saved"] = stats.prefill_seconds_saved;
  object["restarts"] = stats.restarts;
  object["away_seconds"] = stats.away_seconds;
  object["first_failure"] = stats.first_failure;
  return object;
}

bool FromJson(const nlohmann::json& object, ReplayStats* stats) {
  try {
    for (const Counter& counter : kCounters) object.at(counter.name).get_to(stats->*counter.value);
    for (const Samples& samples : kSamples) object.at(samples.name).get_to(stats->*samples.values);
    object.at("prefill_seconds_saved").get_to(stats->prefill_seconds_saved);
    object.at("restarts").get_to(stats->restarts);
    object.at("away_seconds").get_to(stats->away_seconds);
    object.at("first_failure").get_to(stats->first_failure);
  } catch (const nlohmann::json::exception&) {
    return false;
  }
  return true;
}

double Percentile(std::vector<double> samples, double share) {
  if (samples.empty()) return 0;
  const double rank = std::ceil(share * static_cast<double>(samples.size()));
  const std::size_t index =
      std::min(samples.size() - 1, static_cast<std::size_t>(std::max(1.0, rank)) - 1);
  std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(index),
                   samples.end());
  return samples[index];
}

}  // namespace kavern::cli
