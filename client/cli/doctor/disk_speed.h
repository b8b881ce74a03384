// How fast a disk is, in a few seconds: what `kavern doctor` measures.
#ifndef KAVERN_CLIENT_CLI_DOCTOR_DISK_SPEED_H_
#define KAVERN_CLIENT_CLI_DOCTOR_DISK_SPEED_H_

#include <chrono>
#include <cstdint>
#include <string>

namespace kavern::cli {

// Errors are errno values; 0 means that it worked.
struct DiskSpeed {
  std::string error;        // nothing was measured; empty: it was
  std::string file_system;  // "ext4"; a number where the name is not known
  // Direct I/O of 2 MiB blocks, eight at a time; writes are flushed and go where something is
  // written already.
  double read_bytes_per_second = 0;
  double write_bytes_per_second = 0;
  // A direct write of 4 KiB and its flush, one at a time.
  double flush_p50_seconds = 0;
  double flush_p99_seconds = 0;
  int uring_error = 0;     // of a direct read over io_uring
  int register_error = 0;  // of registering kRegisteredBytes of a memfd with io_uring
};

inline constexpr std::uint64_t kDiskSpeedRegisteredBytes = std::uint64_t{64} << 20;

struct DiskSpeedOptions {
  std::uint64_t file_bytes_max = std::uint64_t{1} << 30;
  // Of each of the measurements: writing anew, overwriting, reading, flushing.
  std::chrono::milliseconds patience{1100};
};

// Takes at most an eighth of the free space, in a file that has lost its name before anything is
// written to it: however the process ends, nothing is left.
DiskSpeed MeasureDiskSpeed(const std::string& directory, const DiskSpeedOptions& options = {});

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_DOCTOR_DISK_SPEED_H_
