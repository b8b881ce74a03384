// The client and its namespaces.
#include <nanobind/stl/string_view.h>

#include <exception>
#include <string_view>

#include "client/python/bindings/handles.h"

namespace kavern::python {
namespace {

// Ends the client's threads, which never need the interpreter, without its lock.
void Destroy(Client* client) {
  if (PyGILState_Check() == 0) {
    delete client;
    return;
  }
  nb::gil_scoped_release unlocked;
  delete client;
}

struct ClientHandle {
  std::shared_ptr<Client> client;  // none once it was closed

  // Another thread may close the handle meanwhile: the caller holds the client for its call.
  std::shared_ptr<Client> get() const {
    if (client == nullptr) Check(absl::FailedPreconditionError("the client was closed"));
    return client;
  }

  // The last to let go ends the client, by the deadline.
  void Close(Deadline deadline) {
    const auto wait = DeadlineOf(deadline);
    const std::shared_ptr<Client> closed = std::move(client);
    if (closed.use_count() != 1) return;
    nb::gil_scoped_release unlocked;
    closed->Close(wait);
  }
};

std::shared_ptr<Client> MakeClient(const ClientOptions& options) {
  absl::StatusOr<std::unique_ptr<Client>> client;
  {
    nb::gil_scoped_release unlocked;
    client = Client::Create(options);
  }
  return {Take(std::move(client)).release(), Destroy};
}

NamespaceHandle OpenNamespace(ClientHandle& handle, const NamespaceSpec& spec, Deadline deadline) {
  const std::shared_ptr<Client> client = handle.get();
  const auto wait = DeadlineOf(deadline);
  absl::StatusOr<std::shared_ptr<Namespace>> ns;
  {
    nb::gil_scoped_release unlocked;
    ns = client->OpenNamespace(spec, wait);
  }
  return {client, Take(std::move(ns))};
}

void CheckBuffers(std::size_t keys, std::size_t buffers) {
  if (keys == buffers) return;
  Refuse("buffers: got " + std::to_string(buffers) + " entries, expected " + std::to_string(keys) +
         ", one for every key");
}

StoreRequest RequestOf(const std::vector<BlockKey>& keys, const std::optional<nb::bytes>& parent,
                       std::uint32_t shard, std::uint32_t group, Deadline deadline,
                       Durability durability) {
  StoreRequest request;
  if (parent.has_value()) request.parent = KeyOf("parent", *parent);
  request.keys = keys;
  request.shard = shard;
  request.group = group;
  request.deadline = DeadlineOf(deadline);
  request.durability = durability;
  return request;
}

// For every key an array or a list of them.
using Buffers = nb::typed<nb::sequence, nb::object>;

StoreResult Store(NamespaceHandle& handle, const Keys& keys, const Buffers& buffers,
                  const std::optional<nb::bytes>& parent, std::uint32_t shard, std::uint32_t group,
                  Deadline deadline, Durability durability) {
  const std::vector<BlockKey> block_keys = KeysOf(keys);
  const auto pieces = PiecesOf<ReadableArray>(buffers);
  CheckBuffers(keys.size(), pieces.pieces_per_key.size());
  const auto sources = BuffersOf(pieces.arrays);
  const StoreRequest request = RequestOf(block_keys, parent, shard, group, deadline, durability);
  absl::StatusOr<StoreResult> result;
  {
    nb::gil_scoped_release unlocked;
    result = handle.ns->Store(request, sources);
  }
  return Take(std::move(result));
}

FetchResult FetchInto(NamespaceHandle& handle, const Keys& keys, const Buffers& buffers,
                      std::uint32_t shard, std::uint32_t group, Deadline deadline) {
  const std::vector<BlockKey> block_keys = KeysOf(keys);
  const auto pieces = PiecesOf<WritableArray>(buffers);
  CheckBuffers(keys.size(), pieces.pieces_per_key.size());
  const auto targets = BuffersOf(pieces.arrays);
  const FetchRequest request{block_keys, shard, group, DeadlineOf(deadline)};
  absl::StatusOr<FetchResult> result;
  {
    nb::gil_scoped_release unlocked;
    result = handle.ns->FetchInto(request, targets);
  }
  return Take(std::move(result));
}

std::unique_ptr<StoreLeaseHandle> BeginStore(NamespaceHandle& handle, const Keys& keys,
                                             const std::optional<nb::bytes>& parent,
                                             std::uint32_t shard, std::uint32_t group,
                                             Deadline deadline, Durability durability) {
  const std::vector<BlockKey> block_keys = KeysOf(keys);
  const StoreRequest request = RequestOf(block_keys, parent, shard, group, deadline, durability);
  absl::StatusOr<StoreLease> lease;
  {
    nb::gil_scoped_release unlocked;
    lease = handle.ns->BeginStore(request);
  }
  return std::make_unique<StoreLeaseHandle>(handle, Take(std::move(lease)), keys.size());
}

std::unique_ptr<FetchLeaseHandle> Fetch(NamespaceHandle& handle, const Keys& keys,
                                        std::uint32_t shard, std::uint32_t group,
                                        Deadline deadline) {
  const std::vector<BlockKey> block_keys = KeysOf(keys);
  const FetchRequest request{block_keys, shard, group, DeadlineOf(deadline)};
  absl::StatusOr<FetchLease> lease;
  {
    nb::gil_scoped_release unlocked;
    lease = handle.ns->Fetch(request);
  }
  return std::make_unique<FetchLeaseHandle>(handle, Take(std::move(lease)), keys.size());
}

std::size_t Match(NamespaceHandle& handle, const Keys& keys, Deadline deadline) {
  const std::vector<BlockKey> block_keys = KeysOf(keys);
  const auto wait = DeadlineOf(deadline);
  nb::gil_scoped_release unlocked;
  return handle.ns->Match(block_keys, wait);
}

std::vector<std::string_view> NamesOf(const std::vector<Tier>& tiers) {
  std::vector<std::string_view> names;
  names.reserve(tiers.size());
  for (const Tier tier : tiers) names.push_back(TierName(tier));
  return names;
}

std::vector<std::string_view> MatchTiers(NamespaceHandle& handle, const Keys& keys,
                                         Deadline deadline) {
  const std::vector<BlockKey> block_keys = KeysOf(keys);
  const auto wait = DeadlineOf(deadline);
  nb::gil_scoped_release unlocked;
  return NamesOf(handle.ns->MatchTiers(block_keys, wait));
}

// Called with the progress; False ends the prefetch.
using OnProgress = nb::typed<nb::callable, nb::object(PrefetchProgress)>;

PrefetchProgress Prefetch(NamespaceHandle& handle, const Keys& keys, Deadline deadline,
                          const std::optional<OnProgress>& on_progress) {
  const std::vector<BlockKey> block_keys = KeysOf(keys);
  std::exception_ptr raised;
  PrefetchRequest request{block_keys, DeadlineOf(deadline)};
  if (on_progress.has_value()) {
    request.on_progress = [&](const PrefetchProgress& progress) {
      nb::gil_scoped_acquire locked;
      try {
        return !(*on_progress)(progress).is(nb::handle(Py_False));
      } catch (...) {  // Python's own: it passes the client's threads by, and goes on below.
        raised = std::current_exception();
        return false;
      }
    };
  }
  absl::StatusOr<PrefetchProgress> result;
  {
    nb::gil_scoped_release unlocked;
    result = handle.ns->Prefetch(request);
  }
  if (raised != nullptr) std::rethrow_exception(raised);
  return Take(std::move(result));
}

void BindResults(nb::module_& module) {
  nb::class_<StoreResult>(module, "StoreResult", "What became of a store's blocks.")
      .def_ro("outcomes", &StoreResult::outcomes, "One per key; declined ones are last.")
      .def_ro("decline_reason", &StoreResult::decline_reason, "Empty: nothing was declined.")
      .def_ro("stored_bytes", &StoreResult::stored_bytes,
              "Copied by this call: of one shard and layer group.")
      .def_ro("durable_blocks", &StoreResult::durable_blocks,
              "Of a strict store: of those that are stored or exist.")
      .def_ro("not_durable_reason", &StoreResult::not_durable_reason,
              "Of a strict store: why not all of these.");
  nb::class_<FetchResult>(module, "FetchResult", "What was fetched, block by block.")
      .def_prop_ro(
          "errors", [](const FetchResult& result) { return BlockErrorsOf(result.codes); },
          nb::sig("def errors(self) -> list[KavernError | None]"),
          "One per key: None where its arrays hold the bytes stored, else why they hold rubbish: "
          "NotFoundError a miss, DataLossError a checksum that failed.")
      .def_prop_ro(
          "tiers", [](const FetchResult& result) { return NamesOf(result.tiers); },
          "One per key: 'hbm', 'ram' or 'nvme', where the block was when it was asked for; 'none' "
          "where there is an error.")
      .def_ro("fetched_blocks", &FetchResult::fetched_blocks, "Keys without an error.")
      .def_ro("fetched_bytes", &FetchResult::fetched_bytes, "Copied: of one shard and layer group.")
      .def_prop_ro("all_ok", &FetchResult::all_ok, "No key has an error.");
  nb::class_<PrefetchProgress>(module, "PrefetchProgress", "How far a prefetch came.")
      .def_ro("ready", &PrefetchProgress::ready, "Blocks that are in RAM.")
      .def_ro("failed", &PrefetchProgress::failed, "Not cached at all, unreadable, or no room.")
      .def_ro("total", &PrefetchProgress::total, "Blocks asked for.");
  nb::class_<ConnectionInfo>(module, "ConnectionInfo",
                             "What the client itself knows of its connection over shared memory; "
                             "of TCP nothing.")
      .def_ro("attached", &ConnectionInfo::attached, "Whether calls reach the daemon now.")
      .def_ro("tenant", &ConnectionInfo::tenant,
              "Whose blocks it shares, as the daemon told; empty while it is not attached.")
      .def_ro("incarnation", &ConnectionInfo::incarnation_hex,
              "The daemon's run, in hex: another one after each restart. Empty while it is not "
              "attached.")
      .def_ro("attach_count", &ConnectionInfo::attach_count,
              "Successful attaches so far: above 1 after a restart.")
      .def_ro("mapped_bytes", &ConnectionInfo::mapped_bytes,
              "Of the daemon's memory that this process has mapped, that of former runs included "
              "while leases hold it.");
}

void BindNamespace(nb::module_& module) {
  nb::class_<NamespaceHandle> ns(
      module, "Namespace",
      "An open namespace. Thread-safe. Usable over daemon restarts: calls raise UnavailableError "
      "while the daemon is away. Every deadline is in seconds; None: the client's.");
  BindConversations(module, ns);
  BindPlan(module, ns);
  ns.def_prop_ro(
        "fingerprint",
        [](const NamespaceHandle& handle) {
          const auto& bytes = handle.ns->fingerprint().bytes;
          return nb::bytes(bytes.data(), bytes.size());
        },
        "16 bytes that stand for tenant and spec: the parent of every first block.")
      .def_prop_ro(
          "spec", [](const NamespaceHandle& handle) { return handle.ns->spec(); },
          "As it was opened.")
      .def(
          "chain",
          [](const NamespaceHandle& handle) {
            return BlockKeyChain(handle.ns->fingerprint(),
                                 handle.ns->spec().layout.tokens_per_block);
          },
          "The keys of a new conversation in this namespace.")
      .def("match", &Match, nb::arg("keys"), nb::kw_only(), nb::arg("deadline") = nb::none(),
           "Length of the longest cached prefix of keys: read from shared memory, no RPC. A hint: "
           "a fetch tells for certain. 0 while the daemon is away. Over TCP it is a call, which "
           "the deadline is of; 0 when it is not answered by then.")
      .def("match_tiers", &MatchTiers, nb::arg("keys"), nb::kw_only(),
           nb::arg("deadline") = nb::none(),
           "The same, as the fastest tier of each block of that prefix: 'hbm', 'ram' or 'nvme'.")
      .def(
          "prefetch", &Prefetch, nb::arg("keys"), nb::kw_only(), nb::arg("deadline") = nb::none(),
          nb::arg("on_progress") = nb::none(),
          "Brings blocks from disk into the daemon's RAM, so that a fetch soon after finds them "
          "there. Returns when all are there or have failed. on_progress: called now and then with "
          "a PrefetchProgress; where it returns False the rest is not brought (CancelledError).")
      .def("store", &Store, nb::arg("keys"), nb::arg("buffers"), nb::kw_only(),
           nb::arg("parent") = nb::none(), nb::arg("shard") = 0, nb::arg("group") = 0,
           nb::arg("deadline") = nb::none(), nb::arg("durability") = Durability::kConfigured,
           "Stores one part per key, copied and checksummed in one pass. buffers: for each key an "
           "array, or a list of arrays which end to end are part_bytes long. parent: the key "
           "before keys[0]; None at the start of a chain. With Durability.STRICT it returns once "
           "the blocks are on disk and flushed, or will not be.")
      .def("fetch_into", &FetchInto, nb::arg("keys"), nb::arg("buffers"), nb::kw_only(),
           nb::arg("shard") = 0, nb::arg("group") = 0, nb::arg("deadline") = nb::none(),
           "Fetches one part per key into writable arrays (as in store), verified.")
      .def("begin_store", &BeginStore, nb::arg("keys"), nb::kw_only(),
           nb::arg("parent") = nb::none(), nb::arg("shard") = 0, nb::arg("group") = 0,
           nb::arg("deadline") = nb::none(), nb::arg("durability") = Durability::kConfigured,
           "Store in three steps: lease, fill, commit. FailedPreconditionError on TCP.")
      .def("fetch", &Fetch, nb::arg("keys"), nb::kw_only(), nb::arg("shard") = 0,
           nb::arg("group") = 0, nb::arg("deadline") = nb::none(),
           "Fetch in three steps: lease, copy, release. FailedPreconditionError on TCP.");
}

}  // namespace

void BindClient(nb::module_& module) {
  BindResults(module);
  BindNamespace(module);
  nb::class_<ClientHandle>(
      module, "Client",
      "A connection to one daemon. Thread-safe. In a forked child it raises "
      "FailedPreconditionError, and so does making another there: spawn workers, or fork them "
      "before the first client is made. A context manager, which closes it. Every deadline is in "
      "seconds; None: the client's own.")
      .def(
          "__init__",
          [](ClientHandle* self, const std::string& address, const std::string& tenant,
             const std::string& client_name, double deadline, int copy_threads,
             bool verify_checksums, bool release_in_background, bool any_processor) {
            ClientOptions options;
            options.address = address;
            options.tenant = tenant;
            options.client_name = client_name;
            options.deadline = DeadlineOf(deadline);
            options.copy_threads = copy_threads;
            options.verify_checksums = verify_checksums;
            options.release_in_background = release_in_background;
            options.any_processor = any_processor;
            new (self) ClientHandle{MakeClient(options)};
          },
          nb::arg("address") = ClientOptions().address, nb::kw_only(), nb::arg("tenant") = "",
          nb::arg("client_name") = "python", nb::arg("deadline") = 5.0, nb::arg("copy_threads") = 1,
          nb::arg("verify_checksums") = true, nb::arg("release_in_background") = true,
          nb::arg("any_processor") = false,
          "Never waits for the daemon. address: unix:///path (shared memory) or "
          "tcp://127.0.0.1:port. deadline: seconds, of every call that brings none. copy_threads: "
          "threads that copy one batch, the calling one included. any_processor: its threads run "
          "on "
          "every processor of the cpuset, also where the calling thread is bound to one.")
      .def(
          "wait_until_attached",
          [](ClientHandle& handle, double deadline) {
            const std::shared_ptr<Client> client = handle.get();
            const auto wait = DeadlineOf(deadline);
            absl::Status status;
            {
              nb::gil_scoped_release unlocked;
              status = client->WaitUntilAttached(wait);
            }
            Check(status);
          },
          nb::arg("deadline") = 5.0,
          "DeadlineExceededError: no daemon in time. One that refused until then: the error that "
          "it "
          "gave, such as PermissionDeniedError.")
      .def("open_namespace", &OpenNamespace, nb::arg("spec"), nb::kw_only(),
           nb::arg("deadline") = nb::none(),
           "UnavailableError when the client has never been attached: call wait_until_attached.")
      .def(
          "open_namespace_of_config",
          [](ClientHandle& handle, const nb::object& config, std::uint32_t tokens_per_block,
             Deadline deadline, const nb::kwargs& names) {
            const nb::object spec_of = nb::module_::import_("kavern.hf").attr("spec_of_config");
            const nb::object spec = spec_of(config, tokens_per_block, **names);
            return OpenNamespace(handle, nb::cast<const NamespaceSpec&>(spec), deadline);
          },
          nb::arg("config"), nb::arg("tokens_per_block"), nb::kw_only(),
          nb::arg("deadline") = nb::none(), nb::arg("names"),
          nb::sig("def open_namespace_of_config(self, config: str | os.PathLike[str] | "
                  "collections.abc.Mapping[str, object], tokens_per_block: int, *, "
                  "model: str | None = None, weights_revision: str | None = None, "
                  "revision: str | None = None, tensor_parallel_size: int = 1, "
                  "kv_dtype: str | None = None, adapter: str = '', engine_layout: str = '', "
                  "epoch: int = 0, deadline: float | None = None) -> Namespace"),
          "The namespace of a Hugging Face model: of its folder, its name in the local cache, or "
          "its configuration. As open_namespace of kavern.hf.spec_of_config, which says what the "
          "arguments mean; the deadline is of the call to the daemon, not of reading weights.")
      .def(
          "ping",
          [](ClientHandle& handle, Deadline deadline) {
            const std::shared_ptr<Client> client = handle.get();
            const auto wait = DeadlineOf(deadline);
            absl::Status status;
            {
              nb::gil_scoped_release unlocked;
              status = client->Ping(wait);
            }
            Check(status);
          },
          nb::arg("deadline") = nb::none(), "One empty round trip.")
      .def_prop_ro(
          "connection", [](const ClientHandle& handle) { return handle.get()->connection(); },
          "How it stands now; asks nobody.")
      .def(
          "close", &ClientHandle::Close, nb::arg("deadline") = nb::none(),
          "Lets go of the daemon once its namespaces and leases are gone, too. Within the deadline "
          "the daemon is told of leases that were given back; an attach under way ends first, "
          "which takes a second at most. Idempotent.")
      .def(
          "__enter__", [](nb::object self) { return self; },
          nb::sig("def __enter__(self) -> Client"))
      .def(
          "__exit__",
          [](ClientHandle& handle, const nb::object&, const nb::object&, const nb::object&) {
            handle.Close(std::nullopt);
          },
          nb::arg("type").none(), nb::arg("value").none(), nb::arg("traceback").none());
}

}  // namespace kavern::python
