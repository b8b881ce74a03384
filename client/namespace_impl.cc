#include "client/namespace_impl.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/copy_and_checksum.h"
#include "base/status_macros.h"
#include "client/wire_convert.h"

namespace kavern {

using client::Attachment;
using client::CallContext;
using client::ClientCore;

namespace {

// As many fetches or stores at a time share what a session may pin.
constexpr std::uint64_t kFetchesPerQuota = 4;

}  // namespace

NamespaceImpl::NamespaceImpl(ClientImpl& client, const NamespaceSpec& spec)
    : client_(client), spec_(spec) {}

absl::Status NamespaceImpl::OpenOn(const std::shared_ptr<Attachment>& attachment,
                                   std::chrono::milliseconds deadline) {
  ClientCore& core = *client_.core();
  v1::OpenNamespaceRequest request;
  client::FillSpec(spec_, request.mutable_spec());
  v1::OpenNamespaceResponse response;
  const CallContext context = core.Context(attachment.get(), deadline);
  absl::Status status = core.control().OpenNamespace(context, request, &response);
  NamespaceFingerprint fingerprint;
  if (status.ok() && response.fingerprint().size() != fingerprint.bytes.size()) {
    status = absl::InternalError("fingerprint: the daemon sent none of 16 bytes");
  }
  if (status.ok()) {
    std::memcpy(fingerprint.bytes.data(), response.fingerprint().data(), fingerprint.bytes.size());
    if (attachment != nullptr && fingerprint != Fingerprint(attachment->tenant(), spec_)) {
      status = absl::FailedPreconditionError("fingerprint: the daemon computes it another way");
    }
  }

  MutexLock lock(mu_);
  if (status.ok() && opened_ && fingerprint != fingerprint_) {
    status = absl::FailedPreconditionError(
        "the daemon restarted with another tenant for this process: open the namespace anew");
  }
  opened_on_ = attachment;
  open_status_ = status;
  if (!status.ok()) return status;
  if (!opened_) fingerprint_ = fingerprint;
  opened_ = true;
  keys_per_request_max_ = std::max<std::uint32_t>(1, response.keys_per_request_max());
  lease_bytes_max_ = response.lease_bytes_max();
  const v1::ConversationLimits& limits = response.conversation_limits();
  conversation_limits_ = {limits.priority_max(), std::chrono::milliseconds(limits.ttl_ms_max()),
                          std::chrono::milliseconds(limits.ttl_ms_default())};
  timings_->Opened(fingerprint_, attachment, response.costs());
  if (attachment != nullptr && response.directory_generation() != 0) {
    attachment->WaitForDirectory(fingerprint_, response.directory_generation(), context.deadline);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Attachment>> NamespaceImpl::Ready() const {
  KAVERN_ASSIGN_OR_RETURN(std::shared_ptr<Attachment> attachment, client_.Attached());
  MutexLock lock(mu_);
  if (opened_on_.lock() != attachment) {
    return absl::UnavailableError("the namespace is being opened again");
  }
  if (!open_status_.ok()) return open_status_;
  return attachment;
}

absl::Status NamespaceImpl::CheckPart(std::uint32_t shard, std::uint32_t group) const {
  if (shard >= spec_.layout.shard_count || group >= spec_.layout.groups.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("shard, group: got ", shard, ", ", group, ", expected less than ",
                     spec_.layout.shard_count, ", ", spec_.layout.groups.size()));
  }
  return absl::OkStatus();
}

std::size_t NamespaceImpl::KeysPerRequest(std::uint32_t group) const {
  const std::size_t allowed = keys_per_request_max_;
  const std::uint64_t lease_bytes_max = lease_bytes_max_;
  if (lease_bytes_max == 0) return allowed;
  const std::uint64_t pinned = lease_bytes_max / kFetchesPerQuota / spec_.layout.SlotBytes(group);
  return std::clamp<std::uint64_t>(pinned, 1, allowed);
}

template <typename Buffer>
absl::StatusOr<std::size_t> NamespaceImpl::PiecesPerKey(std::size_t keys,
                                                        std::span<const Buffer> buffers,
                                                        std::uint32_t group) const {
  if (keys == 0) return absl::InvalidArgumentError("keys: got none, expected at least one");
  if (buffers.empty() || buffers.size() % keys != 0) {
    return absl::InvalidArgumentError(absl::StrCat("buffers: got ", buffers.size(), " for ", keys,
                                                   " keys, expected as many for every key"));
  }
  const std::size_t pieces = buffers.size() / keys;
  const std::uint64_t part_bytes = spec_.layout.PartBytes(group);
  for (std::size_t key = 0; key < keys; ++key) {
    std::uint64_t total = 0;
    for (const Buffer& piece : buffers.subspan(key * pieces, pieces)) total += piece.size();
    if (total != part_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("buffers: those of key ", key, " have ", total,
                                                     " bytes, expected ", part_bytes));
    }
  }
  return pieces;
}

bool NamespaceImpl::UsesBytesPlane() const {
  if (client_.core()->options().force_bytes_plane) return true;
  const auto attachment = client_.Attached();
  return attachment.ok() && *attachment == nullptr;
}

std::size_t NamespaceImpl::Match(std::span<const BlockKey> keys,
                                 std::chrono::milliseconds deadline) const {
  const auto attachment = Ready();
  if (!attachment.ok() || keys.empty()) return 0;
  if (*attachment != nullptr) {
    const auto directory = (*attachment)->Directory(fingerprint_);
    return directory == nullptr ? 0 : directory->MatchPrefix(keys);
  }
  return MatchByCalls(keys, deadline).size();
}

std::vector<Tier> NamespaceImpl::MatchTiers(std::span<const BlockKey> keys,
                                            std::chrono::milliseconds deadline) const {
  const auto attachment = Ready();
  if (!attachment.ok() || keys.empty()) return {};
  if (*attachment != nullptr) {
    const auto directory = (*attachment)->Directory(fingerprint_);
    return directory == nullptr ? std::vector<Tier>() : directory->MatchTiers(keys);
  }
  return MatchByCalls(keys, deadline);
}

std::vector<Tier> NamespaceImpl::MatchByCalls(std::span<const BlockKey> keys,
                                              std::chrono::milliseconds deadline) const {
  ClientCore& core = *client_.core();
  const SteadyTime until = core.Until(deadline);
  std::vector<Tier> tiers;
  while (tiers.size() < keys.size()) {
    const auto asked = keys.subspan(
        tiers.size(), std::min<std::size_t>(keys.size() - tiers.size(), keys_per_request_max_));
    v1::MatchRequest request;
    request.set_fingerprint(client::PackFingerprint(fingerprint_));
    request.set_keys(client::PackKeys(asked));
    v1::MatchResponse response;
    if (!core.control()
             .Match(core.Context(nullptr, client::Left(until)), request, &response)
             .ok()) {
      return {};
    }
    std::size_t there = 0;
    for (const int value : response.tiers()) {
      const Tier tier = client::TierOf(value);
      if (tier == Tier::kNone || there == asked.size()) break;  // no answer of ours
      tiers.push_back(tier);
      ++there;
    }
    if (there < asked.size()) break;
  }
  return tiers;
}

absl::StatusOr<StoreLease> NamespaceImpl::BeginStore(const StoreRequest& request) {
  KAVERN_RETURN_IF_ERROR(CheckPart(request.shard, request.group));
  KAVERN_ASSIGN_OR_RETURN(const std::shared_ptr<Attachment> attachment, Ready());
  if (attachment == nullptr) {
    return absl::FailedPreconditionError("tcp: no shared memory; use Store");
  }
  ClientCore& core = *client_.core();
  v1::BeginStoreRequest message;
  message.set_fingerprint(client::PackFingerprint(fingerprint_));
  if (!request.parent.IsZero()) message.set_parent(client::PackKey(request.parent));
  message.set_keys(client::PackKeys(request.keys));
  message.set_shard(request.shard);
  message.set_group(request.group);
  message.set_durability(static_cast<v1::Durability>(request.durability));
  v1::BeginStoreResponse response;
  const CallContext context = core.Context(attachment.get(), request.deadline);
  KAVERN_RETURN_IF_ERROR(
      client_.Judge(attachment, core.control().BeginStore(context, message, &response)));

  auto state = std::make_unique<StoreLease::State>();
  state->core = client_.core();
  state->attachment = attachment;
  state->lease_id = response.lease_id();
  state->fingerprint = fingerprint_;
  state->part_index = spec_.layout.PartIndex(request.shard, request.group);
  state->part_bytes = spec_.layout.PartBytes(request.group);
  state->decline_reason = response.decline_reason();
  StoreLease lease;
  lease.state_ = std::move(state);  // from here on, an early return gives the lease back
  StoreLease::State& held = *lease.state_;
  if (response.outcomes().size() != request.keys.size()) {
    return absl::InternalError("outcomes: the daemon sent another number than keys");
  }
  int next_extent = 0;
  for (std::size_t i = 0; i < request.keys.size(); ++i) {
    const auto outcome = static_cast<StoreOutcome>(response.outcomes()[i]);
    held.outcomes.push_back(outcome);
    StoreLease::State::Part& part = held.parts.emplace_back();
    part.key = request.keys[i];
    if (outcome != StoreOutcome::kStored) continue;
    if (next_extent >= response.extents_size()) {
      return absl::InternalError("extents: the daemon sent fewer than it granted");
    }
    const v1::Extent& extent = response.extents(next_extent++);
    KAVERN_ASSIGN_OR_RETURN(part.memory.region,
                            attachment->WaitForRegion(extent.region_id(), context.deadline));
    part.memory.bytes = part.memory.region->Extent(extent.offset(), extent.length());
    if (part.memory.bytes.size() != held.part_bytes) {
      return absl::InternalError("extents: the daemon sent one that is not a part's");
    }
    held.granted.push_back(i);
  }
  return lease;
}

namespace {

// Unlike any other of this session: a name that another lease has would be refused.
std::uint64_t NewLeaseId() {
  thread_local std::mt19937_64 random(std::uint64_t{std::random_device{}()} << 32 |
                                      std::random_device{}());
  return std::uniform_int_distribution<std::uint64_t>(1)(random);
}

}  // namespace

absl::StatusOr<FetchLease> NamespaceImpl::Fetch(const FetchRequest& request) {
  return FetchEach(request, [](FetchLease::State&, std::span<const std::size_t>) {});
}

absl::StatusOr<FetchLease> NamespaceImpl::FetchEach(const FetchRequest& request,
                                                    const OnReady& on_ready) {
  KAVERN_RETURN_IF_ERROR(CheckPart(request.shard, request.group));
  KAVERN_ASSIGN_OR_RETURN(const std::shared_ptr<Attachment> attachment, Ready());
  if (attachment == nullptr) {
    return absl::FailedPreconditionError("tcp: no shared memory; use FetchInto");
  }
  ClientCore& core = *client_.core();
  v1::FetchRequest message;
  message.set_fingerprint(client::PackFingerprint(fingerprint_));
  message.set_keys(client::PackKeys(request.keys));
  message.set_shard(request.shard);
  message.set_group(request.group);

  FetchLease lease;
  lease.state_ = std::make_unique<FetchLease::State>();
  FetchLease::State& held = *lease.state_;
  held.core = client_.core();
  held.attachment = attachment;
  held.fingerprint = fingerprint_;
  held.shard = request.shard;
  held.group = request.group;
  held.part_index = spec_.layout.PartIndex(request.shard, request.group);
  held.part_bytes = spec_.layout.PartBytes(request.group);
  held.parts.resize(request.keys.size());
  for (std::size_t i = 0; i < request.keys.size(); ++i) held.parts[i].key = request.keys[i];

  const CallContext context = core.Context(attachment.get(), request.deadline);
  const std::uint64_t lease_id = NewLeaseId();
  message.set_lease_id(lease_id);
  absl::Status wrong;
  std::vector<std::size_t> readable;
  const auto on_message = [&](const v1::FetchResponse& response) {
    if (response.lease_id() != 0) held.lease_id = response.lease_id();
    for (const auto& failed : response.failed()) {
      if (wrong.ok()) wrong = held.TakeFailed(failed);
    }
    readable.clear();
    for (const auto& ready : response.ready()) {
      if (wrong.ok()) wrong = held.TakeReady(ready, context.deadline);
      readable.push_back(ready.index());
    }
    if (wrong.ok() && !readable.empty()) on_ready(held, readable);
  };
  const std::uint64_t owed = core.OwedReleases();
  absl::Status ended = core.control().Fetch(context, message, on_message);
  if (absl::IsResourceExhausted(ended) && owed != 0) {
    // Not "no" yet: what is refused may be the room of leases that this client has given back, and
    // that the daemon had not heard of.
    core.WaitForReleases(owed, context.deadline);
    ended = core.control().Fetch(context, message, on_message);
  }
  // Perhaps there is a lease that nobody could tell of.
  if (absl::IsDeadlineExceeded(ended) || absl::IsCancelled(ended)) held.lease_id = lease_id;
  // What has come until the deadline has come.
  const bool some = std::any_of(held.parts.begin(), held.parts.end(),
                                [](const FetchLease::State::Part& part) { return part.answered; });
  if (!(some && absl::IsDeadlineExceeded(ended))) {
    KAVERN_RETURN_IF_ERROR(client_.Judge(attachment, ended));
  }
  KAVERN_RETURN_IF_ERROR(wrong);
  for (FetchLease::State::Part& part : held.parts) {
    if (!part.answered) part.code = absl::StatusCode::kDeadlineExceeded;
  }
  return lease;
}

absl::StatusOr<StoreResult> NamespaceImpl::Store(const StoreRequest& request,
                                                 std::span<const ConstBuffer> buffers) {
  KAVERN_RETURN_IF_ERROR(CheckPart(request.shard, request.group));
  KAVERN_ASSIGN_OR_RETURN(const std::size_t pieces,
                          PiecesPerKey(request.keys.size(), buffers, request.group));
  StoreResult total;
  total.outcomes.assign(request.keys.size(), StoreOutcome::kDeclined);
  const SteadyTime until = client_.core()->Until(request.deadline);
  StoreRequest batch = request;
  for (std::size_t done = 0; done < request.keys.size();) {
    const std::size_t count = std::min(request.keys.size() - done, KeysPerRequest(request.group));
    batch.keys = request.keys.subspan(done, count);
    if (done > 0) batch.parent = request.keys[done - 1];
    batch.deadline = client::Left(until);
    const auto batch_buffers = buffers.subspan(done * pieces, count * pieces);
    KAVERN_ASSIGN_OR_RETURN(const StoreResult result,
                            UsesBytesPlane() ? PutBytes(batch, batch_buffers, pieces)
                                             : StoreBatch(batch, batch_buffers, pieces));
    std::copy(result.outcomes.begin(), result.outcomes.end(),
              total.outcomes.begin() + static_cast<std::ptrdiff_t>(done));
    total.stored_bytes += result.stored_bytes;
    total.durable_blocks += result.durable_blocks;
    if (total.not_durable_reason.empty()) total.not_durable_reason = result.not_durable_reason;
    done += count;
    if (result.outcomes.back() == StoreOutcome::kDeclined) {
      total.decline_reason = result.decline_reason;
      break;  // what follows would have no parent
    }
  }
  return total;
}

absl::StatusOr<StoreResult> NamespaceImpl::StoreBatch(const StoreRequest& request,
                                                      std::span<const ConstBuffer> buffers,
                                                      std::size_t pieces) {
  const SteadyTime until = client_.core()->Until(request.deadline);
  KAVERN_ASSIGN_OR_RETURN(StoreLease lease, BeginStore(request));
  StoreLease::State& held = *lease.state_;
  StoreResult result;
  result.outcomes = held.outcomes;
  result.decline_reason = held.decline_reason;
  if (held.lease_id == 0) return result;
  client_.core()->copy_pool().Run(held.granted.size(), [&](std::size_t n) {
    StoreLease::State::Part& part = held.parts[held.granted[n]];
    part.checksum = GatherInto(part.memory.bytes, buffers.subspan(held.granted[n] * pieces, pieces),
                               PartChecksumSeed(part.key, held.part_index));
    part.filled = true;
  });
  result.stored_bytes = held.granted.size() * held.part_bytes;
  KAVERN_RETURN_IF_ERROR(lease.Commit(client::Left(until)));
  result.durable_blocks = lease.durable_blocks();
  result.not_durable_reason = lease.not_durable_reason();
  return result;
}

absl::StatusOr<FetchResult> NamespaceImpl::FetchInto(const FetchRequest& request,
                                                     std::span<const MutableBuffer> buffers) {
  KAVERN_RETURN_IF_ERROR(CheckPart(request.shard, request.group));
  KAVERN_ASSIGN_OR_RETURN(const std::size_t pieces,
                          PiecesPerKey(request.keys.size(), buffers, request.group));
  FetchResult total;
  client::TransferSampler sampler;
  const SteadyTime until = client_.core()->Until(request.deadline);
  FetchRequest batch = request;
  for (std::size_t done = 0; done < request.keys.size();) {
    const std::size_t count = std::min(request.keys.size() - done, KeysPerRequest(request.group));
    batch.keys = request.keys.subspan(done, count);
    batch.deadline = client::Left(until);
    const auto batch_buffers = buffers.subspan(done * pieces, count * pieces);
    const SteadyTime begin = std::chrono::steady_clock::now();
    KAVERN_ASSIGN_OR_RETURN(const FetchResult result,
                            UsesBytesPlane() ? GetBytes(batch, batch_buffers, pieces)
                                             : FetchBatch(batch, batch_buffers, pieces));
    sampler.Add(result.tiers, result.fetched_bytes, std::chrono::steady_clock::now() - begin);
    total.codes.insert(total.codes.end(), result.codes.begin(), result.codes.end());
    total.tiers.insert(total.tiers.end(), result.tiers.begin(), result.tiers.end());
    total.fetched_blocks += result.fetched_blocks;
    total.fetched_bytes += result.fetched_bytes;
    done += count;
  }
  ReportTransfers(sampler.Take());
  return total;
}

absl::StatusOr<FetchResult> NamespaceImpl::FetchBatch(const FetchRequest& request,
                                                      std::span<const MutableBuffer> buffers,
                                                      std::size_t pieces) {
  const SteadyTime until = client_.core()->Until(request.deadline);
  // One byte each: neighbours are written by different threads.
  std::vector<std::uint8_t> damaged(request.keys.size(), 0);
  const auto copy = [&](FetchLease::State& state, std::span<const std::size_t> readable) {
    client_.core()->copy_pool().Run(readable.size(), [&](std::size_t n) {
      const std::size_t i = readable[n];
      bool damage = false;
      state.CopyOut(i, buffers.subspan(i * pieces, pieces), &damage).IgnoreError();
      damaged[i] = damage ? 1 : 0;
    });
  };
  KAVERN_ASSIGN_OR_RETURN(FetchLease lease, FetchEach(request, copy));
  FetchLease::State& held = *lease.state_;
  FetchResult result;
  for (std::size_t i = 0; i < damaged.size(); ++i) {
    if (damaged[i] == 0) continue;
    held.damaged.push_back(i);
    held.parts[i].code = absl::StatusCode::kDataLoss;
    held.parts[i].tier = Tier::kNone;
  }
  for (const FetchLease::State::Part& part : held.parts) {
    result.codes.push_back(part.code);
    result.tiers.push_back(part.tier);
    result.fetched_blocks += part.code == absl::StatusCode::kOk ? 1 : 0;
  }
  result.fetched_bytes = result.fetched_blocks * held.part_bytes;
  // The bytes are copied and verified: whatever becomes of the release, they are right.
  // Damage is told at once, so that this caller's next Match does not find the block.
  const bool later = held.damaged.empty() && client_.core()->options().release_in_background;
  if (held.lease_id != 0 && later) {
    client_.core()->ReleaseLater(held.TakeRelease());
  } else if (held.lease_id != 0) {
    client_.core()->ReleaseNow(held.TakeRelease(), until).IgnoreError();
  }
  return result;
}

absl::StatusOr<PrefetchProgress> NamespaceImpl::Prefetch(const PrefetchRequest& request) {
  if (request.keys.empty()) {
    return absl::InvalidArgumentError("keys: got none, expected at least one");
  }
  KAVERN_ASSIGN_OR_RETURN(const std::shared_ptr<Attachment> attachment, Ready());
  ClientCore& core = *client_.core();
  const SteadyTime until = core.Until(request.deadline);
  PrefetchProgress sum;  // of the batches before
  sum.total = request.keys.size();
  for (std::size_t done = 0; done < request.keys.size();) {
    const std::size_t count =
        std::min<std::size_t>(request.keys.size() - done, keys_per_request_max_);
    v1::PrefetchRequest message;
    message.set_fingerprint(client::PackFingerprint(fingerprint_));
    message.set_keys(client::PackKeys(request.keys.subspan(done, count)));
    message.set_target(v1::TIER_RAM);
    PrefetchProgress now = sum;
    const auto on_message = [&](const v1::PrefetchResponse& response) {
      now.ready = sum.ready + response.done();
      now.failed = sum.failed + response.failed();
      return !request.on_progress || request.on_progress(now);
    };
    KAVERN_RETURN_IF_ERROR(client_.Judge(
        attachment, core.control().Prefetch(core.Context(attachment.get(), client::Left(until)),
                                            message, on_message)));
    sum = now;
    done += count;
  }
  return sum;
}

}  // namespace kavern
