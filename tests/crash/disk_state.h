// What the disks may hold after a power cut, computed from a trace.
//
// The model. A device's write that no flush covers may be there, not be there, or be there in some
// of its 512-byte sectors; a flush covers what had ended before it began. Of a file, what is
// written behind the last sync may be cut anywhere, and be zeros from some sector on. Creating,
// renaming, linking and deleting reaches the disk in order, and for certain with a sync of the
// directory (whatever directory: there is one).
//
// What it does not model: file systems that reorder changes of directories, or keep later bytes of
// a file but not earlier ones; sectors that rot; devices that lie about a flush (but for Ignore(),
// which is how the harness itself is tested).
#ifndef KAVERN_TESTS_CRASH_DISK_STATE_H_
#define KAVERN_TESTS_CRASH_DISK_STATE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/crash/crash_store.h"
#include "tests/crash/trace.h"
#include "tests/fakes/fault_device.h"

namespace kavern::tiers {

class DiskState {
 public:
  DiskState() : images_(EmptyImages()) {}
  // From now on flushes of devices, or syncs of files, make nothing durable.
  void Ignore(bool flushes, bool syncs) {
    ignore_flushes_ = flushes;
    ignore_syncs_ = syncs;
  }

  // The next operation of the trace changes what was written, what of it is there for certain, or
  // nothing.
  enum class Effect : std::uint8_t { kNone, kWritten, kDurable };
  Effect Apply(const TraceOp& op);

  enum class Cut : std::uint8_t {
    kNothingLost,     // as after SIGKILL
    kAllLost,         // all that need not be there
    kSomeLostOrTorn,  // by `seed`
  };
  // Files go to `directory` under the last part of their paths.
  DiskImages Materialise(Cut cut, std::uint64_t seed, const std::string& directory,
                         FaultCounts& counts) const;

 private:
  struct Pending {  // a device's write
    std::uint64_t id = 0;
    std::uint64_t offset = 0;
    std::vector<std::byte> bytes;
    bool ended = false;
    std::uint64_t flush = 0;  // that covers it, once that has ended
  };
  struct FileWrite {
    std::uint64_t offset = 0;
    std::vector<std::byte> bytes;
    bool truncates = false;  // to `offset`
  };
  struct File {
    std::vector<std::byte> synced;
    std::vector<FileWrite> unsynced;  // in order
  };
  using Names = std::map<std::string, std::shared_ptr<File>>;  // files may have several names
  struct NameChange {
    std::string path;
    std::string other_path;
    std::shared_ptr<File> file;  // created
    TraceOp::Kind kind = TraceOp::Kind::kCreate;
  };

  static void Change(Names& names, const NameChange& change);
  static void Overwrite(std::vector<std::byte>& bytes, const FileWrite& write);
  void ApplyToFile(const TraceOp& op);

  bool ignore_flushes_ = false;
  bool ignore_syncs_ = false;
  DiskImages images_;  // what is there for certain
  std::map<std::uint32_t, std::deque<Pending>> pending_;
  Names names_;         // as the program sees them
  Names synced_names_;  // as they are there for certain
  std::vector<NameChange> unsynced_names_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_CRASH_DISK_STATE_H_
