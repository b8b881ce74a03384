#include "service/request_handlers.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <memory>
#include <span>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "service/region_sharer.h"

namespace kavern::service {
namespace {

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

std::uint64_t Milliseconds(std::chrono::milliseconds duration) {
  return static_cast<std::uint64_t>(duration.count());
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

absl::Status RequestHandlers::CheckSharesMemory(const Session& session) {
  if (session.shares_memory()) return absl::OkStatus();
  return absl::FailedPreconditionError("this session cannot map memory: use PutBlocks/GetBlocks");
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
  response->set_lease_bytes_max(session.LeaseBytesMax());
  ToProto(store_.Costs(*added), response->mutable_costs());
  const tiers::ConversationOptions& conversations = store_.conversation_options();
  v1::ConversationLimits* limits = response->mutable_conversation_limits();
  limits->set_priority_max(conversations.priority_max);
  limits->set_ttl_ms_max(Milliseconds(conversations.ttl_max));
  limits->set_ttl_ms_default(Milliseconds(conversations.ttl_default));
  return absl::OkStatus();
}

absl::Status RequestHandlers::Match(Session& session, const v1::MatchRequest& request,
                                    v1::MatchResponse* response) {
  KAVERN_ASSIGN_OR_RETURN(const auto fingerprint, ParseFingerprint(request.fingerprint()));
  KAVERN_ASSIGN_OR_RETURN(const auto ns, session.FindNamespace(fingerprint));
  KAVERN_ASSIGN_OR_RETURN(const std::vector<BlockKey> keys,
                          ParseKeys(request.keys(), limits_.keys_per_request_max));
  const std::vector<Tier> tiers = store_.MatchTiers(*ns, keys);
  response->set_prefix_blocks(static_cast<std::uint32_t>(tiers.size()));
  for (const Tier tier : tiers) response->add_tiers(static_cast<v1::Tier>(tier));
  return absl::OkStatus();
}

absl::Status RequestHandlers::ReportTimings(Session& session,
                                            const v1::ReportTimingsRequest& request,
                                            v1::ReportTimingsResponse* response) {
  KAVERN_ASSIGN_OR_RETURN(const auto fingerprint, ParseFingerprint(request.fingerprint()));
  KAVERN_ASSIGN_OR_RETURN(const auto ns, session.FindNamespace(fingerprint));
  KAVERN_ASSIGN_OR_RETURN(const TurnSamples samples, FromProto(request));
  KAVERN_ASSIGN_OR_RETURN(const TurnCosts costs, store_.ReportTimings(*ns, samples));
  ToProto(costs, response->mutable_costs());
  return absl::OkStatus();
}

// ---- Store ----

absl::Status RequestHandlers::BeginStore(Session& session, const v1::BeginStoreRequest& request,
                                         v1::BeginStoreResponse* response) {
  KAVERN_RETURN_IF_ERROR(CheckNotDraining());
  KAVERN_RETURN_IF_ERROR(CheckSharesMemory(session));
  KAVERN_ASSIGN_OR_RETURN(const auto durability,
                          ParseDurability(request.durability(), store_.has_disk()));
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
                                                  .grant_bytes_max = session.LeaseBytesLeft(),
                                                  .durability = durability}));
  response->set_outcomes(PackOutcomes(grant.outcomes));
  response->set_decline_reason(grant.decline_reason);
  // What exists is durable with a commit, too.
  if (grant.lease.empty() && !grant.lease.has_existing()) return absl::OkStatus();
  return AddGrants(session, std::move(grant), response);
}

namespace {

// A commit is answered when the call that made it has returned, and its blocks are as durable as
// its lease asks for, whichever comes last.
class CommitAnswer {
 public:
  CommitAnswer(v1::CommitStoreResponse* response, RequestHandlers::Done done)
      : response_(response), done_(std::move(done)) {}

  void Durable(const tiers::TieredStore::Durable& durable) {
    response_->set_durable(durable.blocks);
    response_->set_not_durable_reason(durable.reason);
    Arrive();
  }
  void Arrive() {
    if (--left_ == 0) done_(absl::OkStatus());
  }

 private:
  v1::CommitStoreResponse* const response_;
  const RequestHandlers::Done done_;
  std::atomic<int> left_ = 2;
};

}  // namespace

void RequestHandlers::BeginCommit(Session& session, const v1::CommitStoreRequest& request,
                                  v1::CommitStoreResponse* response, Done done) {
  const std::vector<std::uint32_t> checksums(request.checksums().begin(),
                                             request.checksums().end());
  const auto answer = std::make_shared<CommitAnswer>(response, done);
  const auto commit = [&](tiers::WriteLease& lease) -> absl::Status {
    if (checksums.empty() && !lease.empty()) {
      return absl::InvalidArgumentError("checksums: got none, expected one per extent to commit");
    }
    KAVERN_ASSIGN_OR_RETURN(
        const std::uint32_t committed,
        store_.CommitStore(lease, request.first(), checksums,
                           [answer](const auto& durable) { answer->Durable(durable); }));
    response->set_committed(committed);
    response->set_directory_generation(store_.DirectoryGeneration(lease));
    return absl::OkStatus();
  };
  absl::Status status = session.WithWriteLease(request.lease_id(), commit);
  if (status.ok()) {
    answer->Arrive();
  } else {
    done(std::move(status));
  }
}

absl::Status RequestHandlers::CommitStore(Session& session, const v1::CommitStoreRequest& request,
                                          v1::CommitStoreResponse* response) {
  std::promise<absl::Status> ended;
  BeginCommit(session, request, response,
              [&ended](absl::Status status) { ended.set_value(std::move(status)); });
  return ended.get_future().get();
}

absl::Status RequestHandlers::AbortStore(Session& session, const v1::AbortStoreRequest& request,
                                         v1::AbortStoreResponse* /*response*/) {
  if (!session.ReleaseWrite(request.lease_id())) return UnknownLease(request.lease_id());
  return absl::OkStatus();
}

// ---- Release ----

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

// ---- Conversations ----

absl::Status RequestHandlers::UpdateConversation(Session& session,
                                                 const v1::UpdateConversationRequest& request,
                                                 v1::UpdateConversationResponse* response) {
  KAVERN_RETURN_IF_ERROR(CheckNotDraining());
  KAVERN_ASSIGN_OR_RETURN(const auto fingerprint, ParseFingerprint(request.fingerprint()));
  KAVERN_ASSIGN_OR_RETURN(const auto ns, session.FindNamespace(fingerprint));
  tiers::ConversationUpdate update;
  update.name = request.conversation();
  KAVERN_ASSIGN_OR_RETURN(update.leaf, ParseKey("leaf", request.leaf()));
  update.token_count = request.token_count();
  if (request.has_priority()) update.priority = request.priority();
  // Longer than any TTL may be.
  constexpr std::uint64_t kTtlMsMax = std::uint64_t{1} << 53;
  update.ttl = std::chrono::milliseconds(std::min(request.ttl_ms(), kTtlMsMax));
  KAVERN_ASSIGN_OR_RETURN(const tiers::ConversationFacts facts,
                          store_.UpdateConversation(*ns, update));
  response->set_priority(facts.priority);
  response->set_ttl_ms(Milliseconds(facts.ttl));
  response->set_updates(facts.updates);
  return absl::OkStatus();
}

absl::Status RequestHandlers::DescribeConversation(Session& session,
                                                   const v1::DescribeConversationRequest& request,
                                                   v1::DescribeConversationResponse* response) {
  KAVERN_ASSIGN_OR_RETURN(const auto fingerprint, ParseFingerprint(request.fingerprint()));
  KAVERN_ASSIGN_OR_RETURN(const auto ns, session.FindNamespace(fingerprint));
  KAVERN_ASSIGN_OR_RETURN(const tiers::ConversationFacts facts,
                          store_.DescribeConversation(*ns, request.conversation()));
  response->set_leaf(Bytes(facts.leaf));
  response->set_token_count(facts.token_count);
  response->set_priority(facts.priority);
  response->set_ttl_ms(Milliseconds(facts.ttl));
  response->set_updates(facts.updates);
  response->set_age_ms(Milliseconds(facts.age));
  response->set_idle_ms(Milliseconds(facts.idle));
  response->set_leaf_tier(static_cast<v1::Tier>(facts.leaf_tier));
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
  if (status.disk.configured) ToProto(status.disk, response->mutable_nvme());
  const tiers::StoreCounters counters = store_.GetCounters();
  ToProto(counters, response->mutable_counters());
  if (status.disk.configured) {
    response->mutable_nvme()->set_useful_read_bytes(counters.fetch_disk_bytes);
    response->mutable_nvme()->set_scrubbed_bytes(counters.scrubbed_bytes);
    response->mutable_nvme()->set_scrub_passes(counters.scrub_passes);
    response->mutable_nvme()->set_scrub_damaged_blocks(counters.scrub_damaged_blocks);
  }
  const SessionTable::Totals totals = sessions_.GetTotals();
  response->set_sessions(totals.live + totals.fenced);
  response->set_namespaces(status.namespaces);
  response->set_conversations(status.conversations);
  response->set_directory_bytes(status.directory_bytes);
  response->set_leases(totals.leases);
  response->set_quarantined_bytes(totals.quarantined_bytes);
  if (!node_.degraded) return;
  for (const Degradation& one : node_.degraded()) response->add_degraded(one.Sentence());
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
    response->set_conversations(response->conversations() + ns.conversations);
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

absl::Status RequestHandlers::Demote(Session& session, const v1::DemoteRequest& /*request*/,
                                     v1::DemoteResponse* response) {
  if (!session.is_operator()) {
    return absl::PermissionDeniedError("only operators may empty the RAM tier");
  }
  response->set_blocks(store_.Demote());
  return absl::OkStatus();
}

}  // namespace kavern::service
