#include "client/cli/command.h"

#include <cstdio>
#include <string>

namespace kavern::cli {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "kavern: %s\n", std::string(status.message()).c_str());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
      return kExitUsage;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      std::fprintf(stderr, "kavern: is kavernd running, and is --address right?\n");
      return kExitUnavailable;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kResourceExhausted:
      return kExitRefused;
    default:
      return kExitFailed;
  }
}

}  // namespace kavern::cli
