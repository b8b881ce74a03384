// fio, as the reference for what a disk can do.
#ifndef KAVERN_CLIENT_CLI_BENCH_FIO_H_
#define KAVERN_CLIENT_CLI_BENCH_FIO_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kavern::cli {

// Sequential direct I/O over io_uring.
struct FioJob {
  bool write = false;
  std::uint64_t block_bytes = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  std::uint64_t depth = 32;
  // Writes between two flushes; 0: one at the end, which there is in any case.
  std::uint64_t writes_per_flush = 0;
};

struct FioResult {
  double bytes_per_second = 0;  // flushes included
  double cpu_seconds = 0;       // user and system, of the job itself
};

// Runs the jobs at the same time, each over its part of `file`. NotFound: there is no fio in PATH.
absl::StatusOr<std::vector<FioResult>> RunFio(const std::string& file,
                                              std::span<const FioJob> jobs);

// Makes `file`, of so many bytes, all of them written, incompressible and flushed.
absl::Status PrepareFioFile(const std::string& file, std::uint64_t bytes);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_BENCH_FIO_H_
