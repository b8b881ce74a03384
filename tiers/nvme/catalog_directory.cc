#include "tiers/nvme/catalog_directory.h"

#include <fcntl.h>
#include <rocksdb/env.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <span>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"

namespace kavern::tiers {
namespace {

constexpr char kMarkFile[] = "/KAVERN";
constexpr char kLockFile[] = "/LOCK";
// Of a directory that is a database.
constexpr char kCurrentFile[] = "/CURRENT";

// RocksDB's files by their names, but for its lock and its logs for humans.
bool IsOfDatabase(const std::string& name) {
  if (name == "CURRENT" || name == "IDENTITY") return true;
  if (absl::StartsWith(name, "MANIFEST-") || absl::StartsWith(name, "OPTIONS-")) return true;
  if (name.empty() || !absl::ascii_isdigit(static_cast<unsigned char>(name[0]))) return false;
  return absl::EndsWith(name, ".log") || absl::EndsWith(name, ".sst") ||
         absl::EndsWith(name, ".blob") || absl::EndsWith(name, ".dbtmp");
}

absl::StatusOr<std::vector<std::string>> FilesOfDatabase(const std::string& path,
                                                         rocksdb::Env* env) {
  std::vector<std::string> names;
  KAVERN_RETURN_IF_ERROR(CatalogStatus(env->GetChildren(path, &names)));
  std::erase_if(names, [](const std::string& name) { return !IsOfDatabase(name); });
  return names;
}

// RocksDB names the system's errors by their texts only.
bool Says(const rocksdb::Status& status, int error) {
  return absl::StrContains(status.ToString(), std::generic_category().message(error));
}

bool SaysLocked(const rocksdb::Status& status) {
  const std::string text = status.ToString();
  return absl::StrContains(text, "While lock file") ||
         absl::StrContains(text, "lock hold by current process");
}

// OK: may be used, or is not there.
absl::Status CheckAccess(const std::string& path) {
  if (faccessat(AT_FDCWD, path.c_str(), R_OK | W_OK | X_OK, AT_EACCESS) == 0 || errno == ENOENT) {
    return absl::OkStatus();
  }
  return ErrnoStatus(errno, absl::StrCat("nvme.catalog: ", path));
}

}  // namespace

absl::Status CatalogStatus(const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const std::string text = absl::StrCat("catalog: ", status.ToString());
  if (SaysLocked(status)) return absl::FailedPreconditionError(text);
  if (status.IsNoSpace()) return absl::ResourceExhaustedError(text);
  if (Says(status, EACCES) || Says(status, EPERM)) return absl::PermissionDeniedError(text);
  // Some flipped bits read as a version or an option that is not supported, or as an offset that no
  // file has; a file that is missing is an I/O error to RocksDB.
  const bool damage = status.IsCorruption() || status.IsNotFound() || status.IsNotSupported() ||
                      status.IsInvalidArgument() || status.IsPathNotFound() || Says(status, EINVAL);
  return damage ? absl::DataLossError(text) : absl::InternalError(text);
}

CatalogDirectory::CatalogDirectory(std::string path, rocksdb::Env* env, rocksdb::FileLock* lock)
    : path_(std::move(path)), env_(env), lock_(lock) {}

CatalogDirectory::~CatalogDirectory() {
  env_->UnlockFile(lock_).PermitUncheckedError();
}

absl::StatusOr<bool> CatalogDirectory::IsThere(const std::string& path, rocksdb::Env* env) {
  KAVERN_RETURN_IF_ERROR(CheckAccess(path));
  if (!env->FileExists(path).ok()) return false;
  if (env->FileExists(path + kMarkFile).ok()) return true;
  KAVERN_ASSIGN_OR_RETURN(const auto files, FilesOfDatabase(path, env));
  return !files.empty();
}

absl::StatusOr<std::unique_ptr<CatalogDirectory>> CatalogDirectory::Lock(
    const std::string& path, rocksdb::Env* env, std::chrono::milliseconds patience) {
  KAVERN_RETURN_IF_ERROR(CheckAccess(path));
  if (const rocksdb::Status made = env->CreateDirIfMissing(path); !made.ok()) {
    return absl::InternalError(absl::StrCat("nvme.catalog: ", made.ToString()));
  }
  const auto give_up = std::chrono::steady_clock::now() + patience;
  for (;;) {
    rocksdb::FileLock* lock = nullptr;
    const rocksdb::Status locked = env->LockFile(path + kLockFile, &lock);
    if (locked.ok()) {
      return std::unique_ptr<CatalogDirectory>(new CatalogDirectory(path, env, lock));
    }
    if (!SaysLocked(locked)) return CatalogStatus(locked);
    if (std::chrono::steady_clock::now() >= give_up) {
      return absl::FailedPreconditionError(
          absl::StrCat("nvme.catalog: ", path,
                       ": another process has it. Every daemon needs a catalog of its own: stop "
                       "that one, or name another directory"));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

absl::StatusOr<std::optional<disk::Uuid>> CatalogDirectory::ReadMark() const {
  std::string bytes;
  const rocksdb::Status read = rocksdb::ReadFileToString(env_, path_ + kMarkFile, &bytes);
  if (read.IsNotFound() || read.IsPathNotFound()) return std::nullopt;
  KAVERN_RETURN_IF_ERROR(CatalogStatus(read));
  const auto mark = disk::ParseCatalogMark(std::as_bytes(std::span(bytes)));
  if (mark.ok()) return std::optional(mark->store);
  if (!absl::IsFailedPrecondition(mark.status())) return std::nullopt;
  return absl::FailedPreconditionError(
      absl::StrCat("nvme.catalog: ", path_, ": ", mark.status().message()));
}

absl::Status CatalogDirectory::Mark(const disk::Uuid& store) {
  const disk::CatalogMark mark = disk::CatalogMark::Make(store);
  std::unique_ptr<rocksdb::WritableFile> file;
  KAVERN_RETURN_IF_ERROR(CatalogStatus(env_->NewWritableFile(path_ + kMarkFile, &file, {})));
  const rocksdb::Slice bytes(reinterpret_cast<const char*>(&mark), sizeof(mark));
  KAVERN_RETURN_IF_ERROR(CatalogStatus(file->Append(bytes)));
  KAVERN_RETURN_IF_ERROR(CatalogStatus(file->Sync()));
  KAVERN_RETURN_IF_ERROR(CatalogStatus(file->Close()));
  std::unique_ptr<rocksdb::Directory> directory;
  KAVERN_RETURN_IF_ERROR(CatalogStatus(env_->NewDirectory(path_, &directory)));
  return CatalogStatus(directory->Fsync());
}

absl::StatusOr<bool> CatalogDirectory::HasDatabase() const {
  KAVERN_ASSIGN_OR_RETURN(const auto files, FilesOfDatabase(path_, env_));
  return !files.empty();
}

bool CatalogDirectory::HasCurrent() const {
  return env_->FileExists(path_ + kCurrentFile).ok();
}

absl::Status CatalogDirectory::Empty() {
  if (HasCurrent()) {
    KAVERN_RETURN_IF_ERROR(CatalogStatus(env_->DeleteFile(path_ + kCurrentFile)));
    std::unique_ptr<rocksdb::Directory> directory;
    KAVERN_RETURN_IF_ERROR(CatalogStatus(env_->NewDirectory(path_, &directory)));
    KAVERN_RETURN_IF_ERROR(CatalogStatus(directory->Fsync()));
  }
  KAVERN_ASSIGN_OR_RETURN(const auto files, FilesOfDatabase(path_, env_));
  for (const std::string& name : files) {
    KAVERN_RETURN_IF_ERROR(CatalogStatus(env_->DeleteFile(absl::StrCat(path_, "/", name))));
  }
  return absl::OkStatus();
}

}  // namespace kavern::tiers
