#include "tests/crash/disk_state.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

namespace kavern::tiers {
namespace {

using Kind = TraceOp::Kind;

constexpr std::size_t kSector = 512;

}  // namespace

DiskState::Effect DiskState::Apply(const TraceOp& op) {
  std::deque<Pending>& pending = pending_[op.device];
  switch (op.kind) {
    case Kind::kWriteBegins:
      pending.push_back({op.id, op.offset, op.bytes});
      return Effect::kWritten;
    case Kind::kWriteEnds:
      for (Pending& write : pending) write.ended = write.ended || write.id == op.id;
      return Effect::kNone;
    case Kind::kFlushBegins:
      for (Pending& write : pending) {
        if (write.ended && write.flush == 0) write.flush = op.id;
      }
      return Effect::kNone;
    case Kind::kFlushEnds: {
      if (ignore_flushes_) return Effect::kNone;
      std::deque<Pending> left;
      for (Pending& write : pending) {
        // A later flush may end first, and covers what an earlier one does.
        if (write.flush != 0 && write.flush <= op.id) {
          std::memcpy(images_[op.device]->data() + write.offset, write.bytes.data(),
                      write.bytes.size());
        } else {
          left.push_back(std::move(write));
        }
      }
      pending = std::move(left);
      return Effect::kDurable;
    }
    default:
      ApplyToFile(op);
      return op.kind == Kind::kSync || op.kind == Kind::kSyncDirectory ? Effect::kDurable
                                                                       : Effect::kWritten;
  }
}

void DiskState::Change(Names& names, const NameChange& change) {
  const auto found = names.find(change.path);
  switch (change.kind) {
    case Kind::kCreate:
      names[change.path] = change.file;
      break;
    case Kind::kRename:
      if (found == names.end()) break;
      names[change.other_path] = found->second;
      names.erase(change.path);
      break;
    case Kind::kLink:
      if (found != names.end()) names[change.other_path] = found->second;
      break;
    default:
      names.erase(change.path);
  }
}

void DiskState::Overwrite(std::vector<std::byte>& bytes, const FileWrite& write) {
  if (write.truncates) {
    bytes.resize(write.offset);
    return;
  }
  if (bytes.size() < write.offset + write.bytes.size()) {
    bytes.resize(write.offset + write.bytes.size());
  }
  std::copy(write.bytes.begin(), write.bytes.end(),
            bytes.begin() + static_cast<std::ptrdiff_t>(write.offset));
}

void DiskState::ApplyToFile(const TraceOp& op) {
  if (op.kind == Kind::kSyncDirectory) {
    if (ignore_syncs_) return;
    for (const NameChange& change : unsynced_names_) Change(synced_names_, change);
    unsynced_names_.clear();
    return;
  }
  const auto found = names_.find(op.path);
  if (op.kind == Kind::kWrite || op.kind == Kind::kTruncate || op.kind == Kind::kSync) {
    if (found == names_.end()) return;
    File& file = *found->second;
    if (op.kind != Kind::kSync) {
      file.unsynced.push_back({op.offset, op.bytes, op.kind == Kind::kTruncate});
    } else if (!ignore_syncs_) {
      for (const FileWrite& write : file.unsynced) Overwrite(file.synced, write);
      file.unsynced.clear();
    }
    return;
  }
  if (op.kind == Kind::kReopen && found != names_.end()) return;
  NameChange change = {op.path, op.other_path, nullptr, op.kind};
  if (op.kind == Kind::kCreate || op.kind == Kind::kReopen) {
    change.kind = Kind::kCreate;
    change.file = std::make_shared<File>();
  }
  Change(names_, change);
  unsynced_names_.push_back(std::move(change));
}

DiskImages DiskState::Materialise(Cut cut, std::uint64_t seed, const std::string& directory,
                                  FaultCounts& counts) const {
  std::mt19937_64 random(seed);
  DiskImages images;
  for (const auto& image : images_) images.push_back(std::make_shared<DiskImage>(*image));
  for (const auto& [device, writes] : pending_) {
    std::byte* disk = images[device]->data();
    bool lost = false;
    for (const Pending& write : writes) {
      const std::uint64_t fate = cut == Cut::kNothingLost ? 2
                                 : cut == Cut::kAllLost   ? 0
                                                          : random() % 3;
      if (fate == 0) {
        counts.Add(DiskFault::kLostWrite);
        lost = true;
      } else if (fate == 1) {
        counts.Add(DiskFault::kTornWrite);
        for (std::size_t at = 0; at < write.bytes.size(); at += kSector) {
          if (random() % 2 == 0) continue;
          std::memcpy(disk + write.offset + at, write.bytes.data() + at, kSector);
        }
      } else {
        if (lost) counts.Add(DiskFault::kReorderedWrite);
        std::memcpy(disk + write.offset, write.bytes.data(), write.bytes.size());
      }
    }
  }

  Names names = synced_names_;
  std::size_t kept = unsynced_names_.size();
  if (cut == Cut::kAllLost) kept = 0;
  if (cut == Cut::kSomeLostOrTorn) kept = random() % (kept + 1);
  for (std::size_t i = 0; i < kept; ++i) Change(names, unsynced_names_[i]);
  std::filesystem::create_directories(directory);
  for (const auto& [path, file] : names) {
    std::vector<std::byte> bytes = file->synced;
    if (cut != Cut::kAllLost) {
      for (const FileWrite& write : file->unsynced) Overwrite(bytes, write);
    }
    if (cut == Cut::kSomeLostOrTorn && bytes.size() > file->synced.size()) {
      const std::size_t from = file->synced.size();
      std::size_t end = from + random() % (bytes.size() - from + 1);
      bytes.resize(end);
      // The file has grown, but its last sectors were not written.
      if (random() % 4 == 0 && end > from) {
        const std::size_t zero =
            std::max(from, (from + random() % (end - from)) / kSector * kSector);
        std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(zero), bytes.end(), std::byte{0});
      }
    }
    std::ofstream out(std::filesystem::path(directory) / std::filesystem::path(path).filename(),
                      std::ios::binary);
    out.write(reinterpret_cast<const char*>(bytes.data()),
              static_cast<std::streamsize>(bytes.size()));
  }
  return images;
}

}  // namespace kavern::tiers
