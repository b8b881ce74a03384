#include "service/request_handlers.h"

#include <unistd.h>

#include <algorithm>
#include <span>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kavern::service {
namespace {

// Shares the regions of one reply, each once however many extents lie in it.
class RegionSharer {
 public:
  explicit RegionSharer(Session& session) : session_(session) {}

  // The lease of the extent must be alive: it keeps the region from being given up meanwhile.
  absl::Status Share(const tiers::Extent& extent) {
    if (extent.region == last_) return absl::OkStatus();
    last_ = extent.region;
    if (!shared_.insert(last_).second) return absl::OkStatus();
    return session_.ShareRegion(*last_);
  }

 private:
  Session& session_;
  tiers::Region* last_ = nullptr;  // neighbours are common
  absl::flat_hash_set<tiers::Region*> shared_;
};

absl::Status CheckSharesMemory(const Session& session) {
  if (session.shares_memory()) return absl::OkStatus();
  return absl::FailedPreconditionError("this session cannot map memory: use PutBlocks/GetBlocks");
}

absl::Status UnknownLease(std::uint64_t lease_id) {
  return absl::FailedPreconditionError(
      absl::StrCat("lease_id: ", lease_id, " is no write lease that this session holds"));
}

absl::Status AddGrants(Session& session, tiers::StoreGrant grant,
                       v1::BeginStoreResponse* response) {
  RegionSharer sharer(session);
  for (std::size_t i = 0; i < grant.lease.size(); ++i) {
    const tiers::Extent extent = grant.lease.extent(i);
    KAVERN_RETURN_IF_ERROR(sharer.Share(extent));
    ToProto(extent, response->add_extents());
  }
  KAVERN_ASSIGN_OR_RETURN(const std::uint64_t lease_id, session.AddLease(std::move(grant.lease)));
  response->set_lease_id(lease_id);
  return absl::OkStatus();
}

struct ParsedSuspect {
  Session::SharedNamespace ns;
  BlockKey key;
  std::uint32_t shard = 0;
  std::uint32_t group = 0;
};

absl::StatusOr<std::vector<ParsedSuspect>> ParseSuspects(const Session& session,
                                                         const v1::ReleaseRequest& request,
                                                         std::uint64_t keys_max) {
  if (static_cast<std::uint64_t>(request.suspects_size()) > keys_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("suspects: got ", request.suspects_size(),
                     ", expected at most keys_per_request_max = ", keys_max));
  }
  std::vector<ParsedSuspect> suspects;
  absl::flat_hash_set<std::tuple<NamespaceFingerprint, BlockKey, std::uint32_t, std::uint32_t>>
      seen;
  for (const v1::ReleaseRequest::Suspect& proto : request.suspects()) {
    KAVERN_ASSIGN_OR_RETURN(const NamespaceFingerprint fingerprint,
                            ParseFingerprint(proto.fingerprint()));
    ParsedSuspect suspect;
    KAVERN_ASSIGN_OR_RETURN(suspect.ns, session.FindNamespace(fingerprint));
    KAVERN_ASSIGN_OR_RETURN(suspect.key, ParseKey("suspects.key", proto.key()));
    suspect.shard = proto.shard();
    suspect.group = proto.group();
    const KvLayout& layout = suspect.ns->spec().layout;
    if (suspect.shard >= layout.shard_count || suspect.group >= layout.groups.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("suspects: got shard ", suspect.shard, ", group ", suspect.group,
                       ", expected less than ", layout.shard_count, ", ", layout.groups.size()));
    }
    if (!seen.emplace(fingerprint, suspect.key, suspect.shard, suspect.group).second) continue;
    suspects.push_back(std::move(suspect));
  }
  return suspects;
}

}  // namespace

RequestHandlers::RequestHandlers(tiers::TieredStore& store, SessionTable& sessions,
                                 RequestLimits limits, Node node)
    : store_(store),
      sessions_(sessions),
      limits_(limits),
      node_(std::move(node)),
      inflight_(limits.inflight_bytes_max) {}

absl::Status RequestHandlers::CheckNotDraining() const {
  if (!draining_) return absl::OkStatus();
  return absl::UnavailableError("the daemon is draining: go on without the cache");
}

absl::Status RequestHandlers::Ping(Session& /*session*/, const v1::PingRequest& /*request*/,
                                   v1::PingResponse* /*response*/) {
  return absl::OkStatus();
}

absl::Status RequestHandlers::OpenNamespace(Session& session,
                                            const v1::OpenNamespaceRequest& request,
                                            v1::OpenNamespaceResponse* response) {
  if (session.tenant().empty()) {
    return absl::PermissionDeniedError("this session acts for no tenant: it may only administer");
  }
  KAVERN_ASSIGN_OR_RETURN(const NamespaceSpec spec, FromProto(request.spec()));
  KAVERN_ASSIGN_OR_RETURN(tiers::NamespaceRef ns, store_.OpenNamespace(session.tenant(), spec));
  const NamespaceFingerprint fingerprint = ns.fingerprint();
  KAVERN_ASSIGN_OR_RETURN(const bool is_new, session.AddNamespace(std::move(ns)));
  KAVERN_ASSIGN_OR_RETURN(const Session::SharedNamespace added, session.FindNamespace(fingerprint));
  if (session.shares_memory()) {
    // After it was added, so that the announcement, and whatever follows it, reaches this session.
    if (is_new) store_.AnnounceDirectory(*added);
    response->set_directory_generation(store_.DirectoryGeneration(*added));
  }
  std::uint64_t slot_bytes_max = 0;
  for (std::uint32_t group = 0; group < spec.layout.groups.size(); ++group) {
    slot_bytes_max = std::max(slot_bytes_max, spec.layout.SlotBytes(group));
  }
  response->set_fingerprint(Bytes(fingerprint));
  response->set_part_bytes_max(slot_bytes_max);
  response->set_keys_per_request_max(static_cast<std::uint32_t>(limits_.keys_per_request_max));
  return absl::OkStatus();
}

absl::Status RequestHandlers::Match(Session& session, const v1::MatchRequest& request,
                                    v1::MatchResponse* response) {
  KAVERN_ASSIGN_OR_RETURN(const auto fingerprint, ParseFingerprint(request.fingerprint()));
  KAVERN_ASSIGN_OR_RETURN(const auto ns, session.FindNamespace(fingerprint));
  KAVERN_ASSIGN_OR_RETURN(const std::vector<BlockKey> keys,
                          ParseKeys(request.keys(), limits_.keys_per_request_max));
  const std::uint32_t prefix = store_.Match(*ns, keys);
  response->set_prefix_blocks(prefix);
  for (std::uint32_t i = 0; i < prefix; ++i) response->add_tiers(v1::TIER_RAM);
  return absl::OkStatus();
}

// ---- Store ----

absl::Status RequestHandlers::BeginStore(Session& session, const v1::BeginStoreRequest& request,
                                         v1::BeginStoreResponse* response) {
  KAVERN_RETURN_IF_ERROR(CheckNotDraining());
  KAVERN_RETURN_IF_ERROR(CheckSharesMemory(session));
  KAVERN_RETURN_IF_ERROR(CheckDurability(request.durability()));
  if (!request.conversation().empty()) {
    return absl::UnimplementedError(
        "conversation: conversations are not part of this build; expected an empty name");
  }
  KAVERN_ASSIGN_OR_RETURN(const auto fingerprint, ParseFingerprint(request.fingerprint()));
  KAVERN_ASSIGN_OR_RETURN(const auto ns, session.FindNamespace(fingerprint));
  KAVERN_ASSIGN_OR_RETURN(const BlockKey parent, ParseParent(request.parent(), fingerprint));
  KAVERN_ASSIGN_OR_RETURN(const std::vector<BlockKey> keys,
                          ParseKeys(request.keys(), limits_.keys_per_request_max));
  KAVERN_ASSIGN_OR_RETURN(tiers::StoreGrant grant,
                          store_.BeginStore(*ns, {.parent = parent,
                                                  .keys = keys,
                                                  .shard = request.shard(),
                                                  .group = request.group(),
                                                  .grant_bytes_max = session.LeaseBytesLeft()}));
  response->set_outcomes(PackOutcomes(grant.outcomes));
  response->set_decline_reason(grant.decline_reason);
  if (grant.lease.empty()) return absl::OkStatus();
  return AddGrants(session, std::move(grant), response);
}

absl::Status RequestHandlers::CommitStore(Session& session, const v1::CommitStoreRequest& request,
                                          v1::CommitStoreResponse* response) {
  if (request.checksums().empty()) {
    return absl::InvalidArgumentError("checksums: got none, expected one per extent to commit");
  }
  const std::vector<std::uint32_t> checksums(request.checksums().begin(),
                                             request.checksums().end());
  return session.WithWriteLease(request.lease_id(), [&](tiers::WriteLease& lease) -> absl::Status {
    KAVERN_ASSIGN_OR_RETURN(const std::uint32_t committed,
                            store_.CommitStore(lease, request.first(), checksums));
    response->set_committed(committed);
    response->set_directory_generation(store_.DirectoryGeneration(lease));
    return absl::OkStatus();
  });
}

absl::Status RequestHandlers::AbortStore(Session& session, const v1::AbortStoreRequest& request,
                                         v1::AbortStoreResponse* /*response*/) {
  if (!session.ReleaseWrite(request.lease_id())) return UnknownLease(request.lease_id());
  return absl::OkStatus();
}

// ---- Fetch ----

absl::Status RequestHandlers::Fetch(Session& session, const v1::FetchRequest& request,
                                    v1::FetchResponse* response) {
  KAVERN_RETURN_IF_ERROR(CheckNotDraining());
  KAVERN_RETURN_IF_ERROR(CheckSharesMemory(session));
  KAVERN_ASSIGN_OR_RETURN(const auto fingerprint, ParseFingerprint(request.fingerprint()));
  KAVERN_ASSIGN_OR_RETURN(const auto ns, session.FindNamespace(fingerprint));
  KAVERN_ASSIGN_OR_RETURN(const std::vector<BlockKey> keys,
                          ParseKeys(request.keys(), limits_.keys_per_request_max));
  KAVERN_ASSIGN_OR_RETURN(
      tiers::FetchResult result,
      store_.Fetch(*ns, keys, request.shard(), request.group(), session.LeaseBytesLeft()));
  for (const std::uint32_t index : result.missing) {
    v1::FetchResponse::Failed* failed = response->add_failed();
    failed->set_index(index);
    failed->set_code(static_cast<std::int32_t>(absl::StatusCode::kNotFound));
  }
  if (result.lease.empty()) return absl::OkStatus();

  RegionSharer sharer(session);
  response->mutable_ready()->Reserve(static_cast<int>(result.lease.parts().size()));
  for (const tiers::ReadLease::Part& part : result.lease.parts()) {
    KAVERN_RETURN_IF_ERROR(sharer.Share(part.extent));
    v1::FetchResponse::Ready* ready = response->add_ready();
    ready->set_index(part.index);
    ToProto(part.extent, ready->mutable_extent());
    ready->set_checksum(part.checksum);
    ready->set_tier(v1::TIER_RAM);
  }
  KAVERN_ASSIGN_OR_RETURN(const std::uint64_t lease_id, session.AddLease(std::move(result.lease)));
  response->set_lease_id(lease_id);
  return absl::OkStatus();
}

absl::Status RequestHandlers::Release(Session& session, const v1::ReleaseRequest& request,
                                      v1::ReleaseResponse* response) {
  KAVERN_ASSIGN_OR_RETURN(const std::vector<ParsedSuspect> suspects,
                          ParseSuspects(session, request, limits_.keys_per_request_max));
  std::uint32_t released = 0;
  for (const std::uint64_t lease_id : request.lease_ids()) {
    released += session.ReleaseRead(lease_id) ? 1 : 0;
  }
  response->set_released(released);
  response->set_unknown(static_cast<std::uint32_t>(request.lease_ids_size()) - released);
  std::uint32_t dropped = 0;
  std::uint64_t bytes_left = limits_.inflight_bytes_max;
  for (const ParsedSuspect& suspect : suspects) {
    const std::uint64_t bytes = suspect.ns->spec().layout.PartBytes(suspect.group);
    // What is left over stays a suspect of whoever reads it next.
    if (bytes > bytes_left && bytes_left < limits_.inflight_bytes_max) break;
    bytes_left -= std::min(bytes, bytes_left);
    auto damaged = store_.CheckSuspect(*suspect.ns, suspect.key, suspect.shard, suspect.group);
    if (!damaged.ok() && !absl::IsNotFound(damaged.status())) return damaged.status();
    dropped += damaged.ok() && *damaged ? 1 : 0;
  }
  response->set_damaged_dropped(dropped);
  return absl::OkStatus();
}

// ---- Administration ----

absl::Status RequestHandlers::GetStatus(Session& session, const v1::GetStatusRequest& /*request*/,
                                        v1::GetStatusResponse* response) {
  response->set_version(node_.version);
  response->set_incarnation(node_.incarnation);
  response->set_uptime_seconds(
      std::chrono::duration<double>(Clock::System().Now() - node_.started).count());
  response->set_pid(static_cast<std::uint64_t>(::getpid()));
  response->set_ready(node_.ready && node_.ready());
  response->set_draining(draining_);
  if (session.is_operator()) {
    FillNodeStatus(response);
  } else {
    FillTenantStatus(session.tenant(), response);
  }
  return absl::OkStatus();
}

void RequestHandlers::FillNodeStatus(v1::GetStatusResponse* response) const {
  const tiers::StoreStatus status = store_.GetStatus();
  ToProto(status, response->mutable_ram());
  ToProto(store_.GetCounters(), response->mutable_counters());
  const SessionTable::Totals totals = sessions_.GetTotals();
  response->set_sessions(totals.live + totals.fenced);
  response->set_namespaces(status.namespaces);
  response->set_leases(totals.leases);
  response->set_quarantined_bytes(totals.quarantined_bytes);
  if (!node_.degraded) return;
  for (const std::string& sentence : node_.degraded()) response->add_degraded(sentence);
}

void RequestHandlers::FillTenantStatus(const std::string& tenant,
                                       v1::GetStatusResponse* response) const {
  v1::RamStatus* ram = response->mutable_ram();
  const std::uint64_t region_bytes = store_.GetStatus().pool.region_bytes;
  ram->set_region_bytes(region_bytes);
  v1::Counters* counters = response->mutable_counters();
  for (const tiers::NamespaceStatus& ns : store_.ListNamespaces()) {
    if (ns.tenant != tenant) continue;
    std::uint64_t block_slot_bytes = 0;
    for (std::uint32_t group = 0; group < ns.spec.layout.groups.size(); ++group) {
      block_slot_bytes += ns.spec.layout.SlotBytes(group) * ns.spec.layout.shard_count;
    }
    response->set_namespaces(response->namespaces() + 1);
    ram->set_assigned_bytes(ram->assigned_bytes() + ns.regions * region_bytes);
    ram->set_used_bytes(ram->used_bytes() + ns.blocks * block_slot_bytes);
    counters->set_fetch_hit_blocks(counters->fetch_hit_blocks() + ns.fetch_hit_blocks);
    counters->set_fetch_miss_blocks(counters->fetch_miss_blocks() + ns.fetch_miss_blocks);
  }
  for (const std::shared_ptr<Session>& session : sessions_.All()) {
    if (session->tenant() != tenant) continue;
    const Session::Facts facts = session->GetFacts();
    response->set_sessions(response->sessions() + 1);
    response->set_leases(response->leases() + facts.leases);
    ram->set_leased_bytes(ram->leased_bytes() + facts.lease_bytes);
    if (facts.fenced) {
      response->set_quarantined_bytes(response->quarantined_bytes() + facts.lease_bytes);
    }
  }
}

absl::Status RequestHandlers::ListNamespaces(Session& session,
                                             const v1::ListNamespacesRequest& /*request*/,
                                             v1::ListNamespacesResponse* response) {
  for (const tiers::NamespaceStatus& ns : store_.ListNamespaces()) {
    if (session.is_operator() || ns.tenant == session.tenant()) {
      ToProto(ns, response->add_namespaces());
    }
  }
  return absl::OkStatus();
}

absl::Status RequestHandlers::PurgeNamespace(Session& session,
                                             const v1::PurgeNamespaceRequest& request,
                                             v1::PurgeNamespaceResponse* response) {
  KAVERN_ASSIGN_OR_RETURN(const auto fingerprint, ParseFingerprint(request.fingerprint()));
  // Names do not change hands: a fingerprint covers its tenant.
  const std::vector<tiers::NamespaceStatus> all = store_.ListNamespaces();
  const bool visible = std::any_of(all.begin(), all.end(), [&](const auto& ns) {
    return ns.fingerprint == fingerprint &&
           (session.is_operator() || ns.tenant == session.tenant());
  });
  if (!visible) return absl::NotFoundError("fingerprint: no such namespace");
  KAVERN_ASSIGN_OR_RETURN(const std::uint64_t blocks, store_.Purge(fingerprint));
  response->set_blocks(blocks);
  return absl::OkStatus();
}

absl::Status RequestHandlers::Quiesce(Session& session, const v1::QuiesceRequest& /*request*/,
                                      v1::QuiesceResponse* /*response*/) {
  if (!session.is_operator()) {
    return absl::PermissionDeniedError("only operators may wait for the whole node");
  }
  store_.Quiesce();
  return absl::OkStatus();
}

}  // namespace kavern::service
