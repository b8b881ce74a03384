#include "tests/fakes/fault_file_system.h"

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <string>
#include <utility>

namespace kavern::tiers {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

class FaultFileSystemImpl final : public rocksdb::FileSystemWrapper {
 public:
  explicit FaultFileSystemImpl(FaultFileSystem& owner)
      : FileSystemWrapper(rocksdb::FileSystem::Default()), owner_(owner) {}
  const char* Name() const override { return "FaultFileSystem"; }

  // What an operation that makes something larger, or only changes something, is answered.
  IOStatus Refusal(bool grows) const {
    const FaultFileSystem::Mode mode = owner_.mode_;
    if (mode == FaultFileSystem::Mode::kSound) return IOStatus::OK();
    if (mode == FaultFileSystem::Mode::kNoSpace && !grows) return IOStatus::OK();
    ++owner_.counts_[static_cast<std::size_t>(mode)];
    if (mode == FaultFileSystem::Mode::kNoSpace) return IOStatus::NoSpace("No space left");
    if (mode == FaultFileSystem::Mode::kReadOnly) return IOStatus::IOError("Read-only file system");
    return IOStatus::IOError("Input/output error");
  }

  class File final : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    File(std::unique_ptr<rocksdb::FSWritableFile> file, const FaultFileSystemImpl& system)
        : FSWritableFileOwnerWrapper(std::move(file)), system_(system) {}
    IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* debug) override {
      const IOStatus refusal = system_.Refusal(true);
      return refusal.ok() ? target()->Append(data, options, debug) : refusal;
    }
    IOStatus Append(const Slice& data, const IOOptions& options,
                    const rocksdb::DataVerificationInfo& /*info*/, IODebugContext* debug) override {
      return Append(data, options, debug);
    }
    IOStatus Sync(const IOOptions& options, IODebugContext* debug) override {
      const IOStatus refusal = system_.Refusal(false);
      return refusal.ok() ? target()->Sync(options, debug) : refusal;
    }
    IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
      const IOStatus refusal = system_.Refusal(false);
      return refusal.ok() ? target()->Fsync(options, debug) : refusal;
    }

    // RocksDB reserves 17 MiB for each log, which files that are memory fill with zeros.
    void PrepareWrite(std::size_t /*offset*/, std::size_t /*size*/, const IOOptions& /*options*/,
                      IODebugContext* /*debug*/) override {}

   private:
    const FaultFileSystemImpl& system_;
  };

  IOStatus NewWritableFile(const std::string& path, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                           IODebugContext* debug) override {
    IOStatus status = Refusal(true);
    if (status.ok()) status = target()->NewWritableFile(path, options, file, debug);
    if (status.ok()) file->reset(new File(std::move(*file), *this));
    return status;
  }
  IOStatus DeleteFile(const std::string& path, const IOOptions& options,
                      IODebugContext* debug) override {
    const IOStatus refusal = Refusal(false);
    return refusal.ok() ? target()->DeleteFile(path, options, debug) : refusal;
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& options,
                      IODebugContext* debug) override {
    const IOStatus refusal = Refusal(false);
    return refusal.ok() ? target()->RenameFile(from, to, options, debug) : refusal;
  }

 private:
  FaultFileSystem& owner_;
};

FaultFileSystem::FaultFileSystem()
    : env_(rocksdb::NewCompositeEnv(std::make_shared<FaultFileSystemImpl>(*this))) {}

FaultFileSystem::~FaultFileSystem() = default;

}  // namespace kavern::tiers
