#include "tests/crash/trace.h"

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <cstring>
#include <fstream>
#include <utility>

namespace kavern::tiers {
namespace {

using Kind = TraceOp::Kind;
using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

TraceOp FileOp(Kind kind, const std::string& path, std::uint64_t offset = 0,
               const Slice& bytes = {}) {
  TraceOp op;
  op.kind = kind;
  op.path = path;
  op.offset = offset;
  const auto data = std::as_bytes(std::span(bytes.data(), bytes.size()));
  op.bytes.assign(data.begin(), data.end());
  return op;
}

class RecordingDevice final : public BlockDevice {
 public:
  RecordingDevice(std::unique_ptr<BlockDevice> base, std::uint32_t number, Trace& trace)
      : base_(std::move(base)), number_(number), trace_(trace) {}

  void Submit(DiskIo io) override {
    if (io.op == DiskIo::Op::kWrite || io.op == DiskIo::Op::kFlush) {
      const bool write = io.op == DiskIo::Op::kWrite;
      TraceOp op;
      op.kind = write ? Kind::kWriteBegins : Kind::kFlushBegins;
      op.device = number_;
      op.id = trace_.NewId();
      op.offset = io.offset;
      for (const auto piece : io.pieces)
        op.bytes.insert(op.bytes.end(), piece.begin(), piece.end());
      TraceOp end;
      end.kind = write ? Kind::kWriteEnds : Kind::kFlushEnds;
      end.device = number_;
      end.id = op.id;
      trace_.Add(std::move(op));
      io.done = [this, end = std::move(end), done = std::move(io.done)](absl::Status status) {
        trace_.Add(end);
        done(std::move(status));
      };
    }
    base_->Submit(std::move(io));
  }
  std::uint64_t size_bytes() const override { return base_->size_bytes(); }
  std::string_view method() const override { return base_->method(); }

 private:
  const std::unique_ptr<BlockDevice> base_;
  const std::uint32_t number_;
  Trace& trace_;
};

class RecordingFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  RecordingFile(std::unique_ptr<rocksdb::FSWritableFile> file, std::string path, std::uint64_t end,
                Trace& trace)
      : FSWritableFileOwnerWrapper(std::move(file)),
        path_(std::move(path)),
        end_(end),
        trace_(trace) {}

  using FSWritableFileOwnerWrapper::Append;
  using FSWritableFileOwnerWrapper::PositionedAppend;
  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* debug) override {
    trace_.Add(FileOp(Kind::kWrite, path_, end_, data));
    end_ += data.size();
    return target()->Append(data, options, debug);
  }
  IOStatus Append(const Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo& /*info*/, IODebugContext* debug) override {
    return Append(data, options, debug);
  }
  IOStatus PositionedAppend(const Slice& data, std::uint64_t offset, const IOOptions& options,
                            IODebugContext* debug) override {
    trace_.Add(FileOp(Kind::kWrite, path_, offset, data));
    end_ = offset + data.size();
    return target()->PositionedAppend(data, offset, options, debug);
  }
  IOStatus PositionedAppend(const Slice& data, std::uint64_t offset, const IOOptions& options,
                            const rocksdb::DataVerificationInfo& /*info*/,
                            IODebugContext* debug) override {
    return PositionedAppend(data, offset, options, debug);
  }
  IOStatus Truncate(std::uint64_t size, const IOOptions& options, IODebugContext* debug) override {
    trace_.Add(FileOp(Kind::kTruncate, path_, size));
    end_ = size;
    return target()->Truncate(size, options, debug);
  }
  // Recorded when they have ended: before that nothing is promised.
  IOStatus Sync(const IOOptions& options, IODebugContext* debug) override {
    IOStatus status = target()->Sync(options, debug);
    if (status.ok()) trace_.Add(FileOp(Kind::kSync, path_));
    return status;
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    IOStatus status = target()->Fsync(options, debug);
    if (status.ok()) trace_.Add(FileOp(Kind::kSync, path_));
    return status;
  }

 private:
  const std::string path_;
  std::uint64_t end_;
  Trace& trace_;
};

class RecordingDirectory final : public rocksdb::FSDirectory {
 public:
  RecordingDirectory(std::unique_ptr<rocksdb::FSDirectory> base, std::string path, Trace& trace)
      : base_(std::move(base)), path_(std::move(path)), trace_(trace) {}
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return Recorded(base_->Fsync(options, debug));
  }
  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* debug,
                               const rocksdb::DirFsyncOptions& directory) override {
    return Recorded(base_->FsyncWithDirOptions(options, debug, directory));
  }
  IOStatus Close(const IOOptions& options, IODebugContext* debug) override {
    return base_->Close(options, debug);
  }

 private:
  IOStatus Recorded(IOStatus status) {
    if (status.ok()) trace_.Add(FileOp(Kind::kSyncDirectory, path_));
    return status;
  }
  const std::unique_ptr<rocksdb::FSDirectory> base_;
  const std::string path_;
  Trace& trace_;
};

class RecordingFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  explicit RecordingFileSystem(Trace& trace)
      : FileSystemWrapper(rocksdb::FileSystem::Default()), trace_(trace) {}
  const char* Name() const override { return "RecordingFileSystem"; }

  IOStatus NewWritableFile(const std::string& path, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                           IODebugContext* debug) override {
    const IOStatus status = target()->NewWritableFile(path, options, file, debug);
    if (!status.ok()) return status;
    trace_.Add(FileOp(Kind::kCreate, path));
    file->reset(new RecordingFile(std::move(*file), path, 0, trace_));
    return status;
  }
  IOStatus ReopenWritableFile(const std::string& path, const FileOptions& options,
                              std::unique_ptr<rocksdb::FSWritableFile>* file,
                              IODebugContext* debug) override {
    const IOStatus status = target()->ReopenWritableFile(path, options, file, debug);
    if (!status.ok()) return status;
    trace_.Add(FileOp(Kind::kReopen, path));
    const std::uint64_t end = (*file)->GetFileSize({}, debug);
    file->reset(new RecordingFile(std::move(*file), path, end, trace_));
    return status;
  }
  IOStatus ReuseWritableFile(const std::string& path, const std::string& old_path,
                             const FileOptions& options,
                             std::unique_ptr<rocksdb::FSWritableFile>* file,
                             IODebugContext* debug) override {
    const IOStatus status = RenameFile(old_path, path, {}, debug);
    return status.ok() ? NewWritableFile(path, options, file, debug) : status;
  }
  IOStatus NewRandomRWFile(const std::string& /*path*/, const FileOptions& /*options*/,
                           std::unique_ptr<rocksdb::FSRandomRWFile>* /*file*/,
                           IODebugContext* /*debug*/) override {
    return IOStatus::NotSupported("not recorded");
  }
  IOStatus NewDirectory(const std::string& path, const IOOptions& options,
                        std::unique_ptr<rocksdb::FSDirectory>* directory,
                        IODebugContext* debug) override {
    const IOStatus status = target()->NewDirectory(path, options, directory, debug);
    if (status.ok()) {
      directory->reset(new RecordingDirectory(std::move(*directory), path, trace_));
    }
    return status;
  }
  IOStatus DeleteFile(const std::string& path, const IOOptions& options,
                      IODebugContext* debug) override {
    const IOStatus status = target()->DeleteFile(path, options, debug);
    if (status.ok()) trace_.Add(FileOp(Kind::kDelete, path));
    return status;
  }
  IOStatus Truncate(const std::string& path, std::size_t size, const IOOptions& options,
                    IODebugContext* debug) override {
    trace_.Add(FileOp(Kind::kTruncate, path, size));
    return target()->Truncate(path, size, options, debug);
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& options,
                      IODebugContext* debug) override {
    const IOStatus status = target()->RenameFile(from, to, options, debug);
    if (status.ok()) Pair(Kind::kRename, from, to);
    return status;
  }
  IOStatus LinkFile(const std::string& from, const std::string& to, const IOOptions& options,
                    IODebugContext* debug) override {
    const IOStatus status = target()->LinkFile(from, to, options, debug);
    if (status.ok()) Pair(Kind::kLink, from, to);
    return status;
  }

 private:
  void Pair(Kind kind, const std::string& from, const std::string& to) {
    TraceOp op = FileOp(kind, from);
    op.other_path = to;
    trace_.Add(std::move(op));
  }
  Trace& trace_;
};

}  // namespace

void Trace::Add(TraceOp op) {
  MutexLock lock(mu_);
  ops_.push_back(std::move(op));
}

std::uint64_t Trace::NewId() {
  MutexLock lock(mu_);
  return ++last_id_;
}

std::size_t Trace::size() const {
  MutexLock lock(mu_);
  return ops_.size();
}

std::vector<TraceOp> Trace::Take() {
  MutexLock lock(mu_);
  return std::move(ops_);
}

OpenDevice Recorded(OpenDevice open, Trace& trace) {
  return [open = std::move(open), &trace](
             const BlockDeviceOptions& options) -> absl::StatusOr<std::unique_ptr<BlockDevice>> {
    auto base = open(options);
    if (!base.ok()) return base;
    return std::make_unique<RecordingDevice>(*std::move(base), DeviceNumber(options), trace);
  };
}

std::unique_ptr<rocksdb::Env> RecordedEnv(Trace& trace) {
  return rocksdb::NewCompositeEnv(std::make_shared<RecordingFileSystem>(trace));
}

void FlipByte(const std::string& path, std::uint64_t offset, std::byte mask, Trace& trace) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  const char flipped = static_cast<char>(file.get() ^ static_cast<char>(mask));
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(flipped);
  trace.Add(FileOp(Kind::kWrite, path, offset, Slice(&flipped, 1)));
}

}  // namespace kavern::tiers
