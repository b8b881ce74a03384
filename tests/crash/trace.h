// One ordered record of all that a store does to its disks: writes and flushes of the devices, and
// what RocksDB does to its files.
#ifndef KAVERN_TESTS_CRASH_TRACE_H_
#define KAVERN_TESTS_CRASH_TRACE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "tests/crash/crash_store.h"
#include "tiers/nvme/block_device.h"

namespace rocksdb {
class Env;
}

namespace kavern::tiers {

struct TraceOp {
  enum class Kind : std::uint8_t {
    // Devices. A write may reach the disk once it has begun, and a flush is for those that had
    // ended when it began. `id` pairs beginning and end.
    kWriteBegins,
    kWriteEnds,
    kFlushBegins,
    kFlushEnds,
    // Files, by `path`.
    kCreate,    // empty, also where there was one
    kReopen,    // to append, or empty where there was none
    kWrite,     // `bytes` at `offset`
    kTruncate,  // to `offset` bytes
    kSync,
    kRename,  // to `other_path`
    kLink,    // as `other_path`
    kDelete,
    kSyncDirectory,
  };
  Kind kind = Kind::kCreate;
  std::uint32_t device = 0;
  std::uint64_t id = 0;
  std::uint64_t offset = 0;
  std::string path;
  std::string other_path;
  std::vector<std::byte> bytes;
};

// Thread-safe.
class Trace {
 public:
  void Add(TraceOp op);
  std::uint64_t NewId();
  std::size_t size() const;
  // Nobody may record any more.
  std::vector<TraceOp> Take();

 private:
  mutable Mutex mu_;
  std::vector<TraceOp> ops_ KAVERN_GUARDED_BY(mu_);
  std::uint64_t last_id_ KAVERN_GUARDED_BY(mu_) = 0;
};

// `trace` must outlive what is made here.
OpenDevice Recorded(OpenDevice open, Trace& trace);
// The system's files, recorded. RocksDB's own log for humans is not.
std::unique_ptr<rocksdb::Env> RecordedEnv(Trace& trace);
// Overwrites one byte of a closed file, recorded.
void FlipByte(const std::string& path, std::uint64_t offset, std::byte mask, Trace& trace);

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_CRASH_TRACE_H_
