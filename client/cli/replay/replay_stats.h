// What a replay counts. Plain data: each worker fills its own, and the sums are taken at the end.
#ifndef KAVERN_CLIENT_CLI_REPLAY_REPLAY_STATS_H_
#define KAVERN_CLIENT_CLI_REPLAY_REPLAY_STATS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

namespace kavern::cli {

struct ReplayStats {
  std::uint64_t requests = 0;
  std::uint64_t blocks = 0;          // full blocks of all inputs
  std::uint64_t hit_blocks = 0;      // fetched and verified, in all parts
  std::uint64_t hbm_hit_blocks = 0;  // of hit_blocks, by the tier that had them when they were
  std::uint64_t ram_hit_blocks = 0;  // asked for: the slowest of their parts'
  std::uint64_t nvme_hit_blocks = 0;
  std::uint64_t tokens = 0;  // of all inputs, partial last blocks included
  std::uint64_t hit_tokens = 0;
  double prefill_seconds_saved = 0;  // by the model's FLOPs: of [0, hit tokens) of every request

  std::uint64_t fetched_bytes = 0;
  std::uint64_t stored_bytes = 0;
  std::uint64_t verified_bytes = 0;  // compared with the pattern, byte by byte
  std::uint64_t wrong_bytes = 0;     // reported as fetched, yet not what was stored: must be 0

  std::uint64_t exists_blocks = 0;    // parts that somebody else had stored meanwhile
  std::uint64_t declined_blocks = 0;  // parts refused by quota, admission or back-pressure
  std::uint64_t lost_blocks = 0;      // parts that matched and were gone at the fetch
  std::uint64_t damaged_blocks = 0;   // DATA_LOSS
  std::uint64_t lost_parents = 0;     // stores refused because the parent had been evicted
  std::uint64_t unavailable_calls = 0;
  std::uint64_t failed_calls = 0;  // with any other status
  std::string first_failure;

  // Only where the replay awaits the daemon (ReplayOptions::await_daemon). `restarts` counts what
  // one worker saw, and the others are that worker's and its fellows' requests since the last of
  // them.
  std::uint64_t restarts = 0;
  double away_seconds = 0;  // the longest that a worker waited in all
  std::uint64_t blocks_after = 0;
  std::uint64_t hit_blocks_after = 0;
  std::uint64_t nvme_hit_blocks_after = 0;

  // Seconds per request (fetch and store: of requests that had something to fetch or store).
  std::vector<double> match_seconds;
  std::vector<double> fetch_seconds;
  std::vector<double> store_seconds;

  void Add(const ReplayStats& other);
};

// Between processes.
nlohmann::json ToJson(const ReplayStats& stats);
// False when it is no such object.
bool FromJson(const nlohmann::json& object, ReplayStats* stats);

// The smallest sample that at least `share` of all do not exceed; 0 without samples.
double Percentile(std::vector<double> samples, double share);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_REPLAY_REPLAY_STATS_H_
