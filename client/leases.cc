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

// In a forked child the memory and the threads behind a lease do not exist, and its socket is the
// parent's. Its state is left as it is there: taking it apart would unmap what the child has mapped
// since, join threads that are not there, and tell the daemon that the parent let go.
template <typename State>
void Drop(std::unique_ptr<State> state) {
  if (state != nullptr && !state->core->CheckProcess().ok()) {
    [[maybe_unused]] auto* leaked = state.release();
  }
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
    Drop(std::exchange(state_, std::move(other.state_)));
  }
  return *this;
}
StoreLease::~StoreLease() {
  Abort();
  Drop(std::move(state_));
}

std::span<const StoreOutcome> StoreLease::outcomes() const {
  return state_ == nullptr ? std::span<const StoreOutcome>() : state_->outcomes;
}

const std::string& StoreLease::decline_reason() const {
  static const std::string* const none = new std::string;
  return state_ == nullptr ? *none : state_->decline_reason;
}

std::uint64_t StoreLease::durable_blocks() const {
  return state_ == nullptr ? 0 : state_->durable_blocks;
}

const std::string& StoreLease::not_durable_reason() const {
  static const std::string* const none = new std::string;
  return state_ == nullptr ? *none : state_->not_durable_reason;
}

MutableBuffer StoreLease::bytes(std::size_t i) const {
  if (state_ == nullptr || state_->lease_id == 0 || i >= state_->parts.size()) return {};
  if (!state_->core->CheckProcess().ok()) return {};
  return state_->parts[i].memory.bytes;
}

absl::Status StoreLease::Fill(std::size_t i, std::span<const ConstBuffer> pieces) {
  if (state_ != nullptr) KAVERN_RETURN_IF_ERROR(state_->core->CheckProcess());
  const MutableBuffer part = bytes(i);
  if (part.empty()) return NoLease();
  KAVERN_RETURN_IF_ERROR(CheckPieces(pieces, state_->part_bytes));
  const std::uint32_t seed = PartChecksumSeed(state_->parts[i].key, state_->part_index);
  return SetChecksum(i, GatherInto(part, pieces, seed));
}

absl::Status StoreLease::SetChecksum(std::size_t i, std::uint32_t checksum) {
  if (state_ != nullptr) KAVERN_RETURN_IF_ERROR(state_->core->CheckProcess());
  if (bytes(i).empty()) return NoLease();
  state_->parts[i].checksum = checksum;
  state_->parts[i].filled = true;
  return absl::OkStatus();
}

absl::Status StoreLease::Commit(std::chrono::milliseconds deadline) {
  if (state_ == nullptr || state_->lease_id == 0) return NoLease();
  client::ClientCore& core = *state_->core;
  KAVERN_RETURN_IF_ERROR(core.CheckProcess());
  const client::CallContext context = core.Context(state_->attachment.get(), deadline);
  v1::CommitStoreRequest request;
  request.set_lease_id(state_->lease_id);
  std::size_t filled = 0;
  while (filled < state_->granted.size() && state_->parts[state_->granted[filled]].filled) {
    request.add_checksums(state_->parts[state_->granted[filled]].checksum);
    ++filled;
  }
  // A lease without any part is of a strict store of blocks that exist.
  if (filled == 0 && !state_->granted.empty()) {
    state_->GiveBack(context);
    return absl::FailedPreconditionError("no part of the lease was filled from its start on");
  }
  v1::CommitStoreResponse response;
  absl::Status status = core.control().CommitStore(context, request, &response);
  state_->durable_blocks = response.durable();
  state_->not_durable_reason = response.not_durable_reason();
  if (status.ok() && filled == state_->granted.size()) {
    state_->TakeLease();  // the daemon ended it with its last block
  } else {
    state_->GiveBack(context);
  }
  if (status.ok() && response.directory_generation() != 0) {
    state_->attachment->WaitForDirectory(state_->fingerprint, response.directory_generation(),
                                         context.deadline);
  }
  if (absl::IsUnauthenticated(status)) {
    return absl::UnavailableError("the session ended before the commit: nothing was stored");
  }
  return status;
}

void StoreLease::Abort(std::chrono::milliseconds deadline) {
  if (state_ == nullptr || state_->lease_id == 0) return;
  if (!state_->core->CheckProcess().ok()) return;
  state_->GiveBack(state_->core->Context(state_->attachment.get(), deadline));
}

std::uint64_t StoreLease::State::TakeLease() {
  for (Part& part : parts) part.memory = {};
  return std::exchange(lease_id, 0);
}

void StoreLease::State::GiveBack(const client::CallContext& context) {
  v1::AbortStoreRequest request;
  request.set_lease_id(TakeLease());
  if (attachment->ended()) return;  // the daemon frees it with the session
  v1::AbortStoreResponse response;
  const absl::Status status = core->control().AbortStore(context, request, &response);
  if (!client::IsNotDelivered(status)) return;
  client::PendingRelease release;
  release.attachment = attachment;
  release.lease_id = request.lease_id();
  release.is_store = true;
  core->ReleaseLater(std::move(release));
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
  if (state_ != nullptr && state_->lease_id != 0 && state_->core->CheckProcess().ok()) {
    state_->core->ReleaseLater(state_->TakeRelease());
  }
  Drop(std::move(state_));
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
  if (!state_->core->CheckProcess().ok()) return {};
  return state_->parts[i].memory.bytes;
}

Tier FetchLease::tier(std::size_t i) const {
  return i < size() ? state_->parts[i].tier : Tier::kNone;
}

std::uint32_t FetchLease::checksum(std::size_t i) const {
  return i < size() ? state_->parts[i].checksum : 0;
}

absl::Status FetchLease::State::TakeFailed(const v1::FetchResponse::Failed& failed) {
  if (failed.index() >= parts.size()) {
    return absl::InternalError("failed: the daemon sent an index out of range");
  }
  parts[failed.index()].code = static_cast<absl::StatusCode>(failed.code());
  parts[failed.index()].answered = true;
  return absl::OkStatus();
}

absl::Status FetchLease::State::TakeReady(const v1::FetchResponse::Ready& ready,
                                          SteadyTime deadline) {
  if (ready.index() >= parts.size()) {
    return absl::InternalError("ready: the daemon sent an index out of range");
  }
  const v1::Extent& extent = ready.extent();
  KAVERN_ASSIGN_OR_RETURN(const auto region,
                          attachment->WaitForRegion(extent.region_id(), deadline));
  Part& part = parts[ready.index()];
  part.memory = {region, region->Extent(extent.offset(), extent.length())};
  part.checksum = ready.checksum();
  part.code = absl::StatusCode::kOk;
  part.tier = client::TierOf(ready.tier());
  part.answered = true;
  if (part.memory.bytes.size() != part_bytes) {
    return absl::InternalError("ready: the daemon sent an extent that is not a part's");
  }
  return absl::OkStatus();
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
  if (state_ != nullptr) KAVERN_RETURN_IF_ERROR(state_->core->CheckProcess());
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

absl::Status FetchLease::Release(std::chrono::milliseconds deadline) {
  if (state_ == nullptr || state_->lease_id == 0) return NoLease();
  client::ClientCore& core = *state_->core;
  KAVERN_RETURN_IF_ERROR(core.CheckProcess());
  return core.ReleaseNow(state_->TakeRelease(), core.Until(deadline));
}

}  // namespace kavern
