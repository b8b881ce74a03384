#include "client/cli/replay/trace.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace kavern::cli {
namespace {

using nlohmann::json;

constexpr std::uint64_t kTokensMax = std::uint64_t{1} << 32;
constexpr std::size_t kRequestsMax = 50'000'000;

// The unsigned number `field` of `object`.
absl::StatusOr<std::uint64_t> Number(const json& object, const char* field) {
  const auto it = object.find(field);
  if (it == object.end() || !it->is_number_integer() || it->get<std::int64_t>() < 0 ||
      it->get<std::uint64_t>() > kTokensMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": expected a whole number, 0 to ", kTokensMax));
  }
  return it->get<std::uint64_t>();
}

absl::StatusOr<TraceRequest> ParseRequest(const std::string& line) {
  const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("expected one JSON object");
  TraceRequest request;
  const std::pair<const char*, std::uint64_t*> numbers[] = {
      {"timestamp", &request.timestamp_ms},
      {"input_length", &request.input_length},
      {"output_length", &request.output_length},
  };
  for (const auto& [field, target] : numbers) {
    const auto number = Number(object, field);
    if (!number.ok()) return number.status();
    *target = *number;
  }
  const auto ids = object.find("hash_ids");
  if (ids == object.end() || !ids->is_array()) {
    return absl::InvalidArgumentError("hash_ids: expected a list");
  }
  for (const json& id : *ids) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0) {
      return absl::InvalidArgumentError("hash_ids: expected whole numbers");
    }
    request.hash_ids.push_back(id.get<std::uint64_t>());
  }
  const std::uint64_t blocks = (request.input_length + kTraceBlockTokens - 1) / kTraceBlockTokens;
  if (request.hash_ids.size() != blocks) {
    return absl::InvalidArgumentError(absl::StrCat("hash_ids: got ", request.hash_ids.size(),
                                                   ", expected ", blocks, " for ",
                                                   request.input_length, " tokens of input"));
  }
  return request;
}

}  // namespace

absl::StatusOr<std::vector<TraceRequest>> ReadTrace(std::istream& in, const std::string& name) {
  std::vector<TraceRequest> requests;
  std::string line;
  for (std::size_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    auto request = ParseRequest(line);
    if (!request.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ":", number, ": ", request.status().message()));
    }
    if (requests.size() >= kRequestsMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": more than ", kRequestsMax, " requests"));
    }
    requests.push_back(*std::move(request));
  }
  if (requests.empty()) return absl::InvalidArgumentError(absl::StrCat(name, ": has no request"));
  return requests;
}

absl::StatusOr<std::vector<TraceRequest>> ReadTraceFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened for reading"));
  return ReadTrace(file, path);
}

void WriteTrace(const std::vector<TraceRequest>& requests, std::ostream& out) {
  for (const TraceRequest& request : requests) {
    out << "{\"timestamp\": " << request.timestamp_ms
        << ", \"input_length\": " << request.input_length
        << ", \"output_length\": " << request.output_length << ", \"hash_ids\": [";
    const char* separator = "";
    for (const std::uint64_t id : request.hash_ids) {
      out << separator << id;
      separator = ", ";
    }
    out << "]}\n";
  }
}

}  // namespace kavern::cli
