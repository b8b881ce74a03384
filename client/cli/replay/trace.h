// Traces of requests in the format that was published with Mooncake (FAST 2025): one JSON object a
// line.
#ifndef KAVERN_CLIENT_CLI_REPLAY_TRACE_H_
#define KAVERN_CLIENT_CLI_REPLAY_TRACE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <istream>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kavern::cli {

// Tokens that one hash id stands for.
inline constexpr std::uint32_t kTraceBlockTokens = 512;

struct TraceRequest {
  std::uint64_t timestamp_ms = 0;   // since the start of the trace
  std::uint64_t input_length = 0;   // tokens
  std::uint64_t output_length = 0;  // tokens
  // One id per 512-token block of the input, each standing for the whole prefix up to its end. The
  // last block may be partial.
  std::vector<std::uint64_t> hash_ids;

  // Blocks that are full: a KV block holds exactly kTraceBlockTokens tokens, so a partial last one
  // is neither matched nor stored.
  std::size_t FullBlocks() const {
    return std::min<std::size_t>(hash_ids.size(), input_length / kTraceBlockTokens);
  }
};

// Reads requests until the end; InvalidArgument names the line, the field and what was expected.
// `name` is for messages. Blank lines are skipped.
absl::StatusOr<std::vector<TraceRequest>> ReadTrace(std::istream& in, const std::string& name);
// The same from a file; NotFound when it cannot be opened.
absl::StatusOr<std::vector<TraceRequest>> ReadTraceFile(const std::string& path);

void WriteTrace(const std::vector<TraceRequest>& requests, std::ostream& out);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_REPLAY_TRACE_H_
