// Kavern's client library: keep the KV blocks of conversations in kavernd, and take them back.
//
//   auto client = kavern::Client::Create({.address = "unix:///run/kavern/kavern.sock"});
//   (*client)->WaitUntilAttached(std::chrono::seconds(5));  // not OK: no daemon in time
//   auto ns = (*client)->OpenNamespace(spec);              // model + layout: who may share blocks
//   kavern::BlockKeyChain chain((*ns)->fingerprint(), spec.layout.tokens_per_block);
//   chain.Append(token_ids);
//   std::size_t cached = (*ns)->Match(chain.keys());       // shared memory, no RPC
//   if (cached > 0) {
//     (*ns)->FetchInto({.keys = chain.keys().first(cached)}, buffers);  // copied and verified
//   }
//   ... prefill the rest ...
//   (*ns)->Store({.parent = ..., .keys = chain.keys().subspan(cached)}, new_buffers);
//
// A cache may forget: every call may answer NotFound, ResourceExhausted or Unavailable, and the
// worker then recomputes. It never lies: bytes that a call reports as fetched are the bytes stored
// under that key.
//
// Statuses: NotFound a miss; ResourceExhausted refused by quota, admission or back-pressure, do not
// retry at once; DataLoss the bytes failed their checksum and the block was dropped;
// FailedPrecondition the namespace or lease is not valid (any more); Unavailable the daemon is
// down, go on without the cache (the client re-attaches by itself); DeadlineExceeded;
// PermissionDenied; InvalidArgument names the field. No exception leaves this library.
#ifndef KAVERN_CLIENT_KAVERN_CLIENT_H_
#define KAVERN_CLIENT_KAVERN_CLIENT_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "base/kv_layout.h"
#include "base/namespace_spec.h"
#include "base/tier.h"
#include "base/turn_plan.h"

namespace kavern {

struct ClientOptions {
  // "unix:///run/kavern/kavern.sock": shared memory on this node. "tcp://127.0.0.1:7420": bytes
  // over gRPC.
  std::string address = "unix:///run/kavern/kavern.sock";
  // Which of the tenants that this process's credentials map to; empty: the first.
  std::string tenant;
  // Shown in the daemon's logs and session list.
  std::string client_name;
  // Of every call that does not bring its own.
  std::chrono::milliseconds deadline{5000};
  // Threads that copy one batch, the calling one included. 1: no thread is started.
  int copy_threads = 1;
  // Compare every fetched part with its checksum. Off is for measuring what it costs.
  bool verify_checksums = true;
  // FetchInto returns when the bytes are copied, and the daemon hears in the background that the
  // lease is over. Off: it waits for the daemon's answer, so that what it pinned can be evicted
  // when it returns.
  bool release_in_background = true;
  // The client's threads run on every processor of the process's cpuset, also where the thread that
  // creates it is bound to one, as inference engines bind theirs.
  bool any_processor = false;
  // Also move bytes over gRPC where shared memory is there. For measuring.
  bool force_bytes_plane = false;
};

using ConstBuffer = std::span<const std::byte>;
using MutableBuffer = std::span<std::byte>;

// What a stored block survives, where the daemon has an NVMe tier (nvme.durability there).
enum class Durability : std::uint8_t {
  kConfigured = 0,  // the daemon's choice
  kNone = 1,        // the daemon's death, not a power cut
  kBatch = 2,       // a power cut too, some time after the store
  kStrict = 3,      // the store waits until it does
};

// What a batch call does, and to which part of the blocks. Spans are borrowed for the length of the
// call.
struct StoreRequest {
  BlockKey parent = {};                 // key before keys[0]; zero for the start of a chain
  std::span<const BlockKey> keys = {};  // parent before child
  std::uint32_t shard = 0;
  std::uint32_t group = 0;
  std::chrono::milliseconds deadline{0};  // 0: ClientOptions::deadline
  // InvalidArgument for kBatch and kStrict where the daemon has no NVMe tier.
  Durability durability = Durability::kConfigured;
};
struct FetchRequest {
  std::span<const BlockKey> keys = {};
  std::uint32_t shard = 0;
  std::uint32_t group = 0;
  std::chrono::milliseconds deadline{0};
};

enum class StoreOutcome : std::uint8_t { kStored = 1, kExists = 2, kDeclined = 3 };

// A write lease: memory of the daemon to fill. Move-only; dropping it gives back what was not
// committed. Use from one thread at a time.
class StoreLease {
 public:
  StoreLease();
  StoreLease(StoreLease&&) noexcept;
  StoreLease& operator=(StoreLease&&) noexcept;
  ~StoreLease();

  // One per requested key, in order. kStored: granted, bytes(i) is to be filled. Declined ones are
  // last.
  std::span<const StoreOutcome> outcomes() const;
  const std::string& decline_reason() const;

  // Memory of the part of requested key `i`, PartBytes long; empty when it was not granted, and
  // once the lease was committed or aborted.
  MutableBuffer bytes(std::size_t i) const;

  // Copies `pieces`, end to end, into the part of key `i`, and notes its checksum for Commit().
  // InvalidArgument when they are not PartBytes long. Different keys may be filled from several
  // threads at a time.
  absl::Status Fill(std::size_t i, std::span<const ConstBuffer> pieces);
  // The caller has written bytes(i) itself (a GPU copy): notes its checksum, Crc32c continued from
  // PartChecksumSeed.
  absl::Status SetChecksum(std::size_t i, std::uint32_t checksum);

  // Publishes the parts that were filled, up to the first that was not (a block without its
  // ancestors is useless), and gives back the others. A Match of this client then finds them.
  // FailedPrecondition when the lease is not valid any more or nothing was filled; Unavailable when
  // the daemon is gone: nothing was stored then, or all was.
  //
  // Of a strict store it returns when the blocks published and those that existed are on disk with
  // all their ancestors, and flushed, or will not be: durable_blocks() says how many are, and
  // not_durable_reason() why not all. So it is to be called also where all of them exist; without
  // a strict store that is FailedPrecondition. After DeadlineExceeded they are published, durable
  // or not.
  absl::Status Commit(std::chrono::milliseconds deadline = std::chrono::milliseconds{0});
  std::uint64_t durable_blocks() const;
  const std::string& not_durable_reason() const;
  // Gives back what was not committed. A daemon that does not answer by the deadline is told in the
  // background.
  void Abort(std::chrono::milliseconds deadline = std::chrono::milliseconds{0});

 private:
  friend class NamespaceImpl;
  struct State;
  std::unique_ptr<State> state_;
};

// A read lease: parts in the daemon's memory that stay put until it is released. Move-only;
// dropping it releases it (in the background, batched with others). Use from one thread at a time.
class FetchLease {
 public:
  FetchLease();
  FetchLease(FetchLease&&) noexcept;
  FetchLease& operator=(FetchLease&&) noexcept;
  ~FetchLease();

  std::size_t size() const;
  // OK when the part of key `i` is readable, else why not.
  absl::Status status(std::size_t i) const;

  // The part's bytes in shared memory, unverified: another process of the same tenant could be
  // writing there. Empty when it is not readable, and once the lease was released.
  ConstBuffer bytes(std::size_t i) const;
  // What Crc32c of the bytes must be, continued from PartChecksumSeed.
  std::uint32_t checksum(std::size_t i) const;
  // Where the part was when it was asked for; kNone when it is not readable.
  Tier tier(std::size_t i) const;

  // Copies the part of key `i` into `pieces`, end to end, and verifies the bytes copied. DataLoss:
  // they are not what was stored; `pieces` then hold rubbish, and the daemon is told.
  // InvalidArgument when pieces are not PartBytes long.
  absl::Status CopyTo(std::size_t i, std::span<const MutableBuffer> pieces);

  // Releases now, and waits for the daemon's answer. The lease is over whatever it says:
  // DeadlineExceeded means that the daemon is told in the background.
  absl::Status Release(std::chrono::milliseconds deadline = std::chrono::milliseconds{0});

 private:
  friend class NamespaceImpl;
  struct State;
  std::unique_ptr<State> state_;
};

struct StoreResult {
  std::vector<StoreOutcome> outcomes;  // one per key; declined ones are last
  std::string decline_reason;
  std::uint64_t stored_bytes = 0;
  std::uint64_t durable_blocks = 0;  // of a strict store: of those that are stored or exist
  std::string not_durable_reason;    // of a strict store: why not all of these
};

struct FetchResult {
  std::vector<absl::StatusCode>
      codes;  // one per key; buffers of a key that is not kOk hold rubbish
  // One per key: where the block was when it was asked for; kNone where it is not kOk.
  std::vector<Tier> tiers;
  std::uint64_t fetched_blocks = 0;
  std::uint64_t fetched_bytes = 0;

  bool all_ok() const { return fetched_blocks == codes.size(); }
};

struct PrefetchProgress {
  std::uint64_t ready = 0;   // blocks that are in RAM, or were when they were looked for
  std::uint64_t failed = 0;  // not cached at all, unreadable, or no room for them
  std::uint64_t total = 0;   // blocks asked for
};
struct PrefetchRequest {
  std::span<const BlockKey> keys = {};
  std::chrono::milliseconds deadline{0};  // 0: ClientOptions::deadline
  // Called now and then, on the calling thread. False: what has not begun is not brought any more.
  std::function<bool(const PrefetchProgress&)> on_progress = nullptr;
};

// A turn that is about to be computed.
struct PlanRequest {
  // Of its full blocks from the first token on, those that may come from the cache: an engine that
  // always computes the last token leaves out the block that has it.
  std::span<const BlockKey> keys = {};
  std::uint64_t token_count = 0;          // of the whole turn
  std::uint64_t engine_tokens = 0;        // the first ones, which the engine has itself
  std::chrono::milliseconds deadline{0};  // as Match's
};
// What an engine measured: the KV of tokens [begin_token, end_token) was computed in `duration`,
// that of the tokens before them being in place.
struct PrefillTiming {
  std::uint64_t begin_token = 0;
  std::uint64_t end_token = 0;
  std::chrono::duration<double, std::milli> duration{0};
};

// What a client says of a chain of blocks: it is a conversation, it has a name, and it matters so
// much for so long. Of a namespace's blocks in the daemon's RAM those of a lower priority leave
// first; blocks of no conversation are at 50. Once the TTL is over they leave before all others.
// A restarted daemon knows no conversations: they are told again.
struct ConversationUpdate {
  std::string name;                            // 1 to 256 bytes, UTF-8; of this namespace
  BlockKey leaf = {};                          // key of its last block
  std::uint64_t token_count = 0;               // up to the end of that block
  std::optional<std::uint32_t> priority = {};  // 0 to 100; nullopt: 50
  std::chrono::milliseconds ttl{0};            // from now on; 0: as the daemon is configured
  std::chrono::milliseconds deadline{0};       // 0: ClientOptions::deadline
};
// What the daemon made of it.
struct ConversationTerms {
  std::uint32_t priority = 0;
  std::chrono::milliseconds ttl{0};
  std::uint64_t updates = 0;  // of this conversation, this one included
};
struct ConversationInfo {
  BlockKey leaf = {};
  Tier leaf_tier = Tier::kNone;  // kNone: the leaf was evicted since
  std::uint64_t token_count = 0;
  std::uint32_t priority = 0;
  std::chrono::milliseconds ttl{0};  // what is left of it
  std::uint64_t updates = 0;
  std::chrono::milliseconds age{0};   // since the first update
  std::chrono::milliseconds idle{0};  // since the last
};
// The daemon lowers to these what is beyond them.
struct ConversationLimits {
  std::uint32_t priority_max = 0;
  std::chrono::milliseconds ttl_max{0};
  std::chrono::milliseconds ttl_default{0};
};

// An open namespace. Thread-safe. Stays usable over daemon restarts: calls answer Unavailable while
// the daemon is away. May not outlive the Client.
class Namespace {
 public:
  virtual ~Namespace() = default;

  virtual const NamespaceFingerprint& fingerprint() const = 0;
  virtual const NamespaceSpec& spec() const = 0;

  // Length of the longest cached prefix of `keys`: read from shared memory, no RPC, no lock that
  // the daemon could hold. A hint: Fetch tells for certain. 0 while the daemon is away. (On TCP:
  // an RPC for every limits.keys_per_request_max keys, which the deadline is of; 0 when they are
  // not answered by then.)
  virtual std::size_t Match(std::span<const BlockKey> keys,
                            std::chrono::milliseconds deadline = std::chrono::milliseconds{
                                0}) const = 0;
  // The same, saying of each block of that prefix the fastest tier that has it.
  virtual std::vector<Tier> MatchTiers(
      std::span<const BlockKey> keys,
      std::chrono::milliseconds deadline = std::chrono::milliseconds{0}) const = 0;

  // Store in three steps, for callers that copy themselves: lease, fill, commit. FailedPrecondition
  // on TCP.
  virtual absl::StatusOr<StoreLease> BeginStore(const StoreRequest& request) = 0;
  // Fetch in three steps: lease, copy, release. Returns when every block is readable or has failed:
  // where some come from disk, FetchInto is faster, because it copies while others are read.
  // FailedPrecondition on TCP.
  virtual absl::StatusOr<FetchLease> Fetch(const FetchRequest& request) = 0;

  // Stores one part per key, copying and checksumming in one pass on copy_threads threads.
  // `buffers`: for each key in order its pieces, as many for every key; a key's pieces end to end
  // are PartBytes long.
  virtual absl::StatusOr<StoreResult> Store(const StoreRequest& request,
                                            std::span<const ConstBuffer> buffers) = 0;
  // Fetches one part per key into `buffers` (as in Store), verified. Blocks in RAM are copied at
  // once, those on disk as they are read. The status is for the whole batch (daemon away, bad
  // request); each block has its own code: NotFound a miss, DataLoss damaged and dropped,
  // ResourceExhausted no room in the daemon's RAM, DeadlineExceeded the disk was too slow,
  // Unavailable the disk cannot be read.
  virtual absl::StatusOr<FetchResult> FetchInto(const FetchRequest& request,
                                                std::span<const MutableBuffer> buffers) = 0;

  // What of a turn to fetch, from which tier, and what to compute, with the predicted milliseconds
  // of each; the caller may follow it or not. As Match: read from shared memory, no RPC, a hint;
  // nothing is cached while the daemon is away. (On TCP: RPCs, as Match.)
  //
  // The costs are those measured in this namespace by all clients of the node, and asked for in the
  // background: prefills by whoever calls ReportPrefill, fetches by FetchInto itself (on TCP: of
  // this client alone). Until there are a few samples the plan says so (TurnPlan::measured) and
  // recommends all that is cached. Every 32nd plan of this object that would leave cached blocks
  // aside recommends them once more (TurnPlan::probe), so that a tier that was slow is measured
  // again. InvalidArgument: more keys than full blocks, engine_tokens above token_count, or more
  // than 2^24 tokens.
  virtual absl::StatusOr<TurnPlan> Plan(const PlanRequest& request) = 0;
  // Tells the daemon in the background: never waits for it, and what it cannot be told is dropped.
  // InvalidArgument names the field of a timing that no machine can have measured.
  virtual absl::Status ReportPrefill(const PrefillTiming& timing) = 0;

  // Brings blocks from disk into the daemon's RAM, all their parts, so that a fetch soon after
  // finds them there; leases nothing. Waits behind every fetch, and never evicts what was used
  // since. Returns when all are there or have failed. Cancelled: on_progress said so.
  // DeadlineExceeded: what had not begun by then is not brought.
  virtual absl::StatusOr<PrefetchProgress> Prefetch(const PrefetchRequest& request) = 0;

  // Names a chain, or says anew what the name means. NotFound: the leaf is not cached (any more);
  // InvalidArgument: a bad name or priority, or a token_count that is not that of whole blocks.
  virtual absl::StatusOr<ConversationTerms> UpdateConversation(
      const ConversationUpdate& update) = 0;
  // NotFound: never named, ended by its TTL, or forgotten because there are too many.
  virtual absl::StatusOr<ConversationInfo> DescribeConversation(
      const std::string& name,
      std::chrono::milliseconds deadline = std::chrono::milliseconds{0}) = 0;
  // As told when the namespace was opened last; no RPC.
  virtual ConversationLimits conversation_limits() const = 0;

  Namespace(const Namespace&) = delete;
  Namespace& operator=(const Namespace&) = delete;

 protected:
  Namespace() = default;
};

// What the client itself knows; cheap.
struct ConnectionInfo {
  bool attached = false;
  std::string tenant;
  std::string incarnation_hex;     // of the daemon, changes when it restarts
  std::uint64_t attach_count = 0;  // successful attaches so far: above 1 after a restart
  std::uint64_t mapped_bytes = 0;  // of regions, those of former incarnations included
};

// A connection to one daemon. Thread-safe. Calls on it answer FailedPrecondition in a forked child,
// which cannot make its own either, for gRPC does not survive a fork: spawn workers, or fork them
// before the first client is made. A deadline of 0 is ClientOptions::deadline, but in
// WaitUntilAttached: that looks once.
class Client {
 public:
  // Never waits for the daemon: when it is away, calls answer Unavailable at once and the client
  // goes on attaching in the background. InvalidArgument for a bad option; FailedPrecondition in a
  // child forked from a process that made one.
  static absl::StatusOr<std::unique_ptr<Client>> Create(ClientOptions options);
  // Closes it, if that was not done.
  virtual ~Client() = default;

  // Ends the session. Within the deadline the daemon is told of leases that were given back in the
  // background; what it does not hear of it keeps until this process has ended. An attach or a
  // release under way ends first, which takes a second at most. Like the destructor it waits for no
  // call of other threads: there may be none. Afterwards calls answer FailedPrecondition.
  virtual void Close(std::chrono::milliseconds deadline = std::chrono::milliseconds{0}) = 0;

  // Waits until the client is attached. DeadlineExceeded: no daemon in time. One that refuses says
  // so by its own code, at the deadline too: PermissionDenied, InvalidArgument, ResourceExhausted.
  virtual absl::Status WaitUntilAttached(std::chrono::milliseconds deadline) = 0;

  // Unavailable when the client has never been attached (WaitUntilAttached): the tenant, and so
  // every key, is unknown before.
  virtual absl::StatusOr<std::shared_ptr<Namespace>> OpenNamespace(
      const NamespaceSpec& spec,
      std::chrono::milliseconds deadline = std::chrono::milliseconds{0}) = 0;

  // One empty round trip.
  virtual absl::Status Ping(std::chrono::milliseconds deadline = std::chrono::milliseconds{0}) = 0;

  virtual ConnectionInfo connection() const = 0;

  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

 protected:
  Client() = default;
};

}  // namespace kavern

#endif  // KAVERN_CLIENT_KAVERN_CLIENT_H_
