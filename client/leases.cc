#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/copy_and_checksum.h"
#include "base/status_macros.h"
#include "client/lease_state.h"
#include "client/wire_convert.h"

namespace kavern {
namespace {

template <typename Buffer>
std::uint64_t TotalBytes(std::span<const Buffer> pieces) {
  return std::accumulate(pieces.begin(), pieces.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const Buffer& piece) { return sum + piece.size(); });
}

template <typename Buffer>
absl::Status CheckPieces(std::span<const Buffer> pieces, std::uint64_t part_bytes) {
  const std::uint64_t total = TotalBytes(pieces);
  if (total == part_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("pieces: got ", total, " bytes, expected ", part_bytes));
}

absl::Status NoLease() {
  return absl::FailedPreconditionError("the lease was committed, aborted or released before");
}

}  // namespace

std::uint32_t GatherInto(MutableBuffer part, std::span<const ConstBuffer> pieces,
                         std::uint32_t seed) {
  for (const ConstBuffer piece : pieces) {
    seed = CopyAndChecksum(part.first(piece.size()), piece, seed);
    part = part.subspan(piece.size());
  }
  return seed;
}

std::uint32_t ScatterFrom(ConstBuffer part, std::span<const MutableBuffer> pieces,
                          std::uint32_t seed) {
  for (const MutableBuffer piece : pieces) {
    seed = CopyAndChecksum(piece, part.first(piece.size()), seed);
    part = part.subspan(piece.size());
  }
  return seed;
}

// ---- StoreLease ----

StoreLease::StoreLease() = default;
StoreLease::StoreLease(StoreLease&&) noexcept = default;
StoreLease& StoreLease::operator=(StoreLease&& other) noexcept {
  if (this != &other) {
    Abort();
    state_ = std::move(other.state_);
  }
  return *this;
}
StoreLease::~StoreLease() {
  Abort();
}

std::span<const StoreOutcome> StoreLease::outcomes() const {
  return state_ == nullptr ? std::span<const StoreOutcome>() : state_->outcomes;
}

const std::string& StoreLease::decline_reason() const {
  static const std::string* const none = new std::string;
  return state_ == nullptr ? *none : state_->decline_reason;
}

MutableBuffer StoreLease::bytes(std::size_t i) const {
  if (state_ == nullptr || state_->lease_id == 0 || i >= state_->parts.size()) return {};
  return state_->parts[i].memory.bytes;
}

absl::Status StoreLease::Fill(std::size_t i, std::span<const ConstBuffer> pieces) {
  const MutableBuffer part = bytes(i);
  if (part.empty()) return NoLease();
  KAVERN_RETURN_IF_ERROR(CheckPieces(pieces, state_->part_bytes));
  const std::uint32_t seed = PartChecksumSeed(state_->parts[i].key, state_->part_index);
  return SetChecksum(i, GatherInto(part, pieces, seed));
}

absl::Status StoreLease::SetChecksum(std::size_t i, std::uint32_t checksum) {
  if (bytes(i).empty()) return NoLease();
  state_->parts[i].checksum = checksum;
  state_->parts[i].filled = true;
  return absl::OkStatus();
}

absl::Status StoreLease::Commit(std::chrono::milliseconds deadline) {
  if (state_ == nullptr || state_->lease_id == 0) return NoLease();
  client::ClientCore& core = *state_->core;
  KAVERN_RETURN_IF_ERROR(core.CheckProcess());
  v1::CommitStoreRequest request;
  request.set_lease_id(state_->lease_id);
  std::size_t filled = 0;
  while (filled < state_->granted.size() && state_->parts[state_->granted[filled]].filled) {
    request.add_checksums(state_->parts[state_->granted[filled]].checksum);
    ++filled;
  }
  if (filled == 0) {
    Abort();
    return absl::FailedPreconditionError("no part of the lease was filled from its start on");
  }
  const client::CallContext context = core.Context(state_->attachment.get(), deadline);
  v1::CommitStoreResponse response;
  absl::Status status = core.control().CommitStore(context, request, &response);
  if (status.ok() && filled == state_->granted.size()) {
    state_->lease_id = 0;  // the daemon ended it with its last block
  } else {
    Abort();
  }
  for (State::Part& part : state_->parts) part.memory = {};
  if (status.ok() && response.directory_generation() != 0) {
    state_->attachment->WaitForDirectory(state_->fingerprint, response.directory_generation(),
                                         context.deadline);
  }
  if (absl::IsUnauthenticated(status)) {
    return absl::UnavailableError("the session ended before the commit: nothing was stored");
  }
  return status;
}

void StoreLease::Abort() {
  if (state_ == nullptr || state_->lease_id == 0) return;
  const std::uint64_t lease_id = std::exchange(state_->lease_id, 0);
  for (State::Part& part : state_->parts) part.memory = {};
  if (!state_->core->CheckProcess().ok() || state_->attachment->ended()) return;
  v1::AbortStoreRequest request;
  request.set_lease_id(lease_id);
  v1::AbortStoreResponse response;
  // If the daemon cannot hear it now, it frees the lease when the session ends.
  state_->core->control()
      .AbortStore(state_->core->Context(state_->attachment.get(), std::chrono::milliseconds(0)),
                  request, &response)
      .IgnoreError();
}

// ---- FetchLease ----

FetchLease::FetchLease() = default;
FetchLease::FetchLease(FetchLease&&) noexcept = default;
FetchLease& FetchLease::operator=(FetchLease&& other) noexcept {
  if (this != &other) {
    FetchLease ended(std::move(*this));
    state_ = std::move(other.state_);
  }
  return *this;
}

FetchLease::~FetchLease() {
  if (state_ == nullptr || state_->lease_id == 0) return;
  if (!state_->core->CheckProcess().ok()) return;
  state_->core->ReleaseLater(state_->TakeRelease());
}

std::size_t FetchLease::size() const {
  return state_ == nullptr ? 0 : state_->parts.size();
}

absl::Status FetchLease::status(std::size_t i) const {
  if (i >= size()) return absl::InvalidArgumentError("no such key in the lease");
  const absl::StatusCode code = state_->parts[i].code;
  if (code == absl::StatusCode::kOk) return absl::OkStatus();
  return {code, absl::StrCat("block ", state_->parts[i].key.ToHex(), ": ",
                             absl::StatusCodeToString(code))};
}

ConstBuffer FetchLease::bytes(std::size_t i) const {
  if (state_ == nullptr || state_->lease_id == 0 || i >= state_->parts.size()) return {};
  return state_->parts[i].memory.bytes;
}

std::uint32_t FetchLease::checksum(std::size_t i) const {
  return i < size() ? state_->parts[i].checksum : 0;
}

absl::Status FetchLease::State::CopyOut(std::size_t i, std::span<const MutableBuffer> pieces,
                                        bool* damage) const {
  const Part& part = parts[i];
  const std::uint32_t seed = PartChecksumSeed(part.key, part_index);
  const std::uint32_t actual = ScatterFrom(part.memory.bytes, pieces, seed);
  if (actual == part.checksum || !core->options().verify_checksums) return absl::OkStatus();
  *damage = true;
  return absl::DataLossError(
      absl::StrCat("block ", part.key.ToHex(), ": bytes failed their checksum"));
}

client::PendingRelease FetchLease::State::TakeRelease() {
  client::PendingRelease release;
  release.attachment = attachment;
  release.lease_id = std::exchange(lease_id, 0);
  for (const std::size_t i : damaged) {
    v1::ReleaseRequest::Suspect suspect;
    suspect.set_fingerprint(client::PackFingerprint(fingerprint));
    suspect.set_key(client::PackKey(parts[i].key));
    suspect.set_shard(shard);
    suspect.set_group(group);
    release.suspects.push_back(std::move(suspect));
  }
  for (Part& part : parts) part.memory = {};
  return release;
}

absl::Status FetchLease::CopyTo(std::size_t i, std::span<const MutableBuffer> pieces) {
  if (bytes(i).empty()) return i < size() && !status(i).ok() ? status(i) : NoLease();
  KAVERN_RETURN_IF_ERROR(CheckPieces(pieces, state_->part_bytes));
  bool damage = false;
  absl::Status status = state_->CopyOut(i, pieces, &damage);
  if (damage) {
    state_->damaged.push_back(i);
    state_->parts[i].code = absl::StatusCode::kDataLoss;
  }
  return status;
}

absl::Status FetchLease::Release() {
  if (state_ == nullptr || state_->lease_id == 0) return NoLease();
  client::ClientCore& core = *state_->core;
  KAVERN_RETURN_IF_ERROR(core.CheckProcess());
  const client::PendingRelease release = state_->TakeRelease();
  absl::Status status = core.ReleaseNow(release, std::chrono::milliseconds(0));
  // A daemon that was too slow still holds the lease; one that is gone, or forgot the session, does
  // not.
  if (absl::IsDeadlineExceeded(status)) core.ReleaseLater(release);
  return status;
}

}  // namespace kavern
