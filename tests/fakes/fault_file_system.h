// The system's files, until they fail: for RocksDB's. No space is reserved for what is not written.
#ifndef KAVERN_TESTS_FAKES_FAULT_FILE_SYSTEM_H_
#define KAVERN_TESTS_FAKES_FAULT_FILE_SYSTEM_H_

#include <atomic>
#include <cstdint>
#include <memory>

namespace rocksdb {
class Env;
}

namespace kavern::tiers {

// Thread-safe. Must outlive what is opened through `env`.
class FaultFileSystem {
 public:
  enum class Mode : std::uint8_t {
    kSound,
    kNoSpace,   // nothing grows
    kReadOnly,  // nothing changes
    kError,     // whatever would change something fails
  };
  FaultFileSystem();
  ~FaultFileSystem();

  rocksdb::Env* env() const { return env_.get(); }
  void Set(Mode mode) { mode_ = mode; }
  std::uint64_t faults(Mode mode) const { return counts_[static_cast<std::size_t>(mode)]; }

 private:
  friend class FaultFileSystemImpl;
  std::atomic<Mode> mode_ = Mode::kSound;
  std::atomic<std::uint64_t> counts_[4] = {};
  std::unique_ptr<rocksdb::Env> env_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_FAKES_FAULT_FILE_SYSTEM_H_
