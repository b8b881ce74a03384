// Paged KV of engines: tensor layouts, and copies in threads of C++.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <string_view>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "client/kavern/paged_kv.h"
#include "client/python/bindings/handles.h"

namespace kavern::python {
namespace {

// Keeps what the copies read and write alive: the namespace's client and the arrays' owners.
struct PagedKvHandle {
  NamespaceHandle owner;
  nb::object tensors;
  std::unique_ptr<PagedKv> paged;

  PagedKvHandle(NamespaceHandle ns, nb::object arrays, std::unique_ptr<PagedKv> copies)
      : owner(std::move(ns)), tensors(std::move(arrays)), paged(std::move(copies)) {}
  PagedKvHandle(const PagedKvHandle&) = delete;
  PagedKvHandle& operator=(const PagedKvHandle&) = delete;
  ~PagedKvHandle() {
    nb::gil_scoped_release unlocked;
    paged.reset();
  }

  PagedKv& get() const {
    if (paged == nullptr) Check(absl::FailedPreconditionError("it was closed"));
    return *paged;
  }
};

// Seconds that may be 0.
std::chrono::milliseconds PatienceOf(double seconds) {
  if (!(seconds >= 0)) {
    Refuse(absl::StrCat("patience: got ", seconds, ", expected seconds, 0 or more"));
  }
  return std::chrono::milliseconds(static_cast<std::int64_t>(std::min(seconds, 1e6) * 1000));
}

using Layer = std::tuple<std::uintptr_t, std::uint64_t, std::uint64_t>;

// A group's keys, and the pages of each.
using Blocks = std::pair<Keys, std::vector<std::uint32_t>>;

// Of stores, as begin_store returned them.
using Numbers = std::vector<std::uint64_t>;

}  // namespace

void BindPaged(nb::module_& module) {
  nb::class_<TensorLayout>(
      module, "TensorLayout",
      "Paged KV of one layer group as an engine keeps it: per layer a tensor of pages. "
      "kavern.paged.tensor_layout makes one of torch tensors.")
      .def(
          "__init__",
          [](TensorLayout* self, const std::vector<Layer>& layers, std::uint64_t block_count,
             std::uint32_t blocks_per_part) {
            TensorLayout layout;
            layout.block_count = block_count;
            layout.blocks_per_part = blocks_per_part;
            for (const auto& [address, stride, bytes] : layers) {
              // NOLINTNEXTLINE(performance-no-int-to-ptr): addresses come as numbers from Python.
              layout.layers.push_back({reinterpret_cast<std::byte*>(address), stride, bytes});
            }
            Check(layout.Validate());
            new (self) TensorLayout(std::move(layout));
          },
          nb::arg("layers"), nb::arg("block_count"), nb::arg("blocks_per_part") = 1,
          "layers: (address, block_stride, block_bytes) each, in bytes. The memory is the "
          "caller's.")
      .def_prop_ro("part_bytes", &TensorLayout::PartBytes)
      .def_ro("block_count", &TensorLayout::block_count)
      .def_ro("blocks_per_part", &TensorLayout::blocks_per_part);

  nb::class_<PagedResult>(module, "PagedResult", "How a load or store ended.")
      .def_ro("id", &PagedResult::id)
      .def_ro("is_load", &PagedResult::is_load)
      .def_prop_ro(
          "error",
          [](const PagedResult& result) -> nb::object {
            return result.status.ok() ? nb::none() : ExceptionOf(result.status);
          },
          nb::sig("def error(self) -> KavernError | None"), "Of the whole; None: none.")
      .def_prop_ro(
          "errors",
          [](const PagedResult& result) {
            nb::list groups;
            for (const auto& codes : result.codes) groups.append(BlockErrorsOf(codes));
            return groups;
          },
          nb::sig("def errors(self) -> list[list[KavernError | None]]"),
          "Of a load: for every group and key None, or why its pages hold rubbish.")
      .def_prop_ro(
          "tiers",
          [](const PagedResult& result) {
            std::vector<std::vector<std::string_view>> groups;
            for (const auto& tiers : result.tiers) {
              auto& names = groups.emplace_back();
              for (const Tier tier : tiers) names.push_back(TierName(tier));
            }
            return groups;
          },
          "Of a load: for every group and key where the block was, 'hbm', 'ram' or 'nvme'; 'none' "
          "where there is an error.")
      .def_ro("stored_keys", &PagedResult::stored_keys,
              "Of a store: keys from the first on whose parts are stored now.")
      .def_ro("bytes", &PagedResult::bytes, "Copied.")
      .def_ro("seconds", &PagedResult::seconds, "Of a store: without the engine's own work.");

  nb::class_<PagedKvHandle>(
      module, "PagedKv",
      "Copies pages of an engine's KV tensors to Kavern and back, in threads of C++ that hold no "
      "lock of the interpreter. Thread-safe.")
      .def(
          "__init__",
          [](PagedKvHandle* self, const NamespaceHandle& ns, std::vector<TensorLayout> groups,
             nb::object tensors, std::uint32_t shard, double load_deadline, double store_deadline,
             int load_threads, int copy_threads) {
            const PagedKvOptions options{shard, DeadlineOf(load_deadline, "load_deadline"),
                                         DeadlineOf(store_deadline, "store_deadline"), load_threads,
                                         copy_threads};
            auto paged = Take(PagedKv::Create(ns.ns, std::move(groups), options));
            new (self) PagedKvHandle(ns, std::move(tensors), std::move(paged));
          },
          nb::arg("namespace"), nb::arg("groups"), nb::kw_only(), nb::arg("tensors"),
          nb::arg("shard") = 0, nb::arg("load_deadline") = 2.0, nb::arg("store_deadline") = 2.0,
          nb::arg("load_threads") = 2, nb::arg("copy_threads") = 1,
          "groups: one layout per layer group of the namespace. tensors: whatever owns the memory, "
          "kept until it is closed. Deadlines in seconds. Raises InvalidArgumentError.")
      .def(
          "begin_load",
          [](PagedKvHandle& handle, const std::vector<Blocks>& groups) {
            PagedLoad load;
            for (const auto& [keys, blocks] : groups) load.groups.push_back({KeysOf(keys), blocks});
            return Take(handle.get().BeginLoad(std::move(load)));
          },
          nb::arg("groups"),
          "Begins to copy what is stored into pages: per layer group (keys, pages). Returns the "
          "number under which it is reported; until then nobody may touch the pages.")
      .def(
          "begin_store",
          [](PagedKvHandle& handle, const Keys& keys,
             std::vector<std::vector<std::uint32_t>> blocks,
             const std::optional<nb::bytes>& parent) {
            PagedStore store;
            if (parent.has_value()) store.parent = KeyOf("parent", *parent);
            store.keys = KeysOf(keys);
            store.blocks = std::move(blocks);
            return Take(handle.get().BeginStore(std::move(store)));
          },
          nb::arg("keys"), nb::arg("blocks"), nb::kw_only(), nb::arg("parent") = nb::none(),
          "Asks for memory of a store; gather() copies. blocks: the pages of each layer group.")
      .def(
          "layer_written",
          [](PagedKvHandle& handle, std::size_t group, std::size_t layer) {
            PagedKv& paged = handle.get();
            absl::Status status;
            {
              nb::gil_scoped_release unlocked;
              status = paged.LayerWritten(group, layer);
            }
            Check(status);
          },
          nb::arg("group"), nb::arg("layer"),
          "The engine has written the pages of one layer of all stores begun: copies them while "
          "they are in the processor's caches, and leaves the rest to gather(). Raises "
          "InvalidArgumentError for a layer that is not there.")
      .def(
          "gather",
          [](PagedKvHandle& handle, double patience, const std::optional<Numbers>& ids) {
            PagedKv& paged = handle.get();
            const auto wait = PatienceOf(patience);
            absl::Status status;
            {
              nb::gil_scoped_release unlocked;
              if (ids.has_value()) {
                status = paged.GatherStores(*ids, wait);
              } else {
                paged.Gather(wait);
              }
            }
            Check(status);
          },
          nb::arg("patience"), nb::arg("ids") = nb::none(),
          "Copies the pages of all stores begun, or of those with these numbers; they may be "
          "overwritten when it returns. Waits at most `patience` seconds for the daemon. A number "
          "of a "
          "store that has ended is passed over.")
      .def(
          "give_up",
          [](PagedKvHandle& handle, const std::optional<Numbers>& ids) {
            PagedKv& paged = handle.get();
            absl::Status status;
            {
              nb::gil_scoped_release unlocked;
              if (ids.has_value()) {
                status = paged.GiveUpStores(*ids);
              } else {
                paged.GiveUpStores();
              }
            }
            Check(status);
          },
          nb::arg("ids") = nb::none(),
          "Ends all stores begun and not gathered, or those with these numbers: nothing of them is "
          "stored, and they are reported with an error.")
      .def(
          "take_results",
          [](PagedKvHandle& handle, double patience) {
            PagedKv& paged = handle.get();
            const auto wait = PatienceOf(patience);
            nb::gil_scoped_release unlocked;
            return paged.TakeResults(wait);
          },
          nb::arg("patience") = 0.0,
          "What has ended since the last call, each once. While that is nothing, but something is "
          "under way, waits for at most `patience` seconds.")
      .def(
          "drain",
          [](PagedKvHandle& handle, double deadline) {
            PagedKv& paged = handle.get();
            const auto wait = DeadlineOf(deadline);
            nb::gil_scoped_release unlocked;
            return paged.Drain(wait);
          },
          nb::arg("deadline"),
          "Waits until nothing is under way; False: not in `deadline` seconds.")
      .def(
          "close",
          [](PagedKvHandle& handle, Deadline deadline) {
            const auto wait = DeadlineOf(deadline);
            if (handle.paged != nullptr && deadline.has_value()) {
              bool ended = false;
              {
                nb::gil_scoped_release unlocked;
                ended = handle.paged->Drain(wait);
              }
              if (!ended) Check(absl::DeadlineExceededError("not closed: copies are under way"));
            }
            std::unique_ptr<PagedKv> paged = std::move(handle.paged);
            {
              nb::gil_scoped_release unlocked;
              paged.reset();
            }
            handle.tensors = nb::none();
          },
          nb::arg("deadline") = nb::none(),
          "Ends its threads. When it returns nothing reads or writes the tensors any more. None: "
          "waits for the copies under way, of which each ends by load_deadline or store_deadline, "
          "and drops loads that have not begun. With a deadline it waits for all of them; "
          "DeadlineExceededError: they go on, and it is not closed. Not while another thread calls "
          "it.");
}

}  // namespace kavern::python
