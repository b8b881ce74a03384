// Leases: the daemon's memory as arrays, without a copy, and never longer than the lease.
#include <nanobind/stl/string_view.h>

#include "client/python/bindings/handles.h"

namespace kavern::python {
namespace {

using ReadView = nb::ndarray<nb::array_api, const std::uint8_t, nb::ndim<1>, nb::device::cpu>;
using WriteView = nb::ndarray<nb::array_api, std::uint8_t, nb::ndim<1>, nb::device::cpu>;

void CheckIndex(std::size_t index, std::size_t size) {
  if (index >= size) throw nb::index_error("key index out of range");
}

template <typename View, typename Bytes, typename Handle>
View ViewOf(Bytes bytes, Handle& handle) {
  const nb::object owner =
      nb::cast(new ViewOwner(nb::find(handle), handle.views()), nb::rv_policy::take_ownership);
  return View(bytes.data(), {bytes.size()}, owner);
}

ReadView ViewPart(FetchLeaseHandle& handle, std::size_t i) {
  CheckIndex(i, handle.size());
  absl::Status status;
  const ConstBuffer bytes = handle.BeginView([&](FetchLease& lease) {
    status = handle.over() ? LeaseIsOver() : lease.status(i);
    return status.ok() ? lease.bytes(i) : ConstBuffer();
  });
  Check(status);
  if (bytes.empty()) {
    Check(
        absl::FailedPreconditionError("the lease is of the process that this one is forked from"));
  }
  return ViewOf<ReadView>(bytes, handle);
}

WriteView ViewGranted(StoreLeaseHandle& handle, std::size_t i) {
  CheckIndex(i, handle.size());
  const MutableBuffer bytes = handle.BeginView([&](StoreLease& lease) { return lease.bytes(i); });
  if (bytes.empty()) {
    Check(absl::FailedPreconditionError("this part was not granted, or the lease is over"));
  }
  return ViewOf<WriteView>(bytes, handle);
}

// `pieces`: one array, or a list of them.
template <typename Array>
Pieces<Array> PiecesOfOne(const nb::object& pieces) {
  nb::list one;
  one.append(pieces);
  return PiecesOf<Array>(nb::borrow<nb::sequence>(one));
}

void Fill(StoreLeaseHandle& handle, std::size_t i, const nb::object& pieces) {
  CheckIndex(i, handle.size());
  const auto arrays = PiecesOfOne<ReadableArray>(pieces);
  const auto buffers = BuffersOf(arrays.arrays);
  Check(handle.With([&](StoreLease& lease) { return lease.Fill(i, buffers); }));
}

void CopyTo(FetchLeaseHandle& handle, std::size_t i, const nb::object& pieces) {
  CheckIndex(i, handle.size());
  const auto arrays = PiecesOfOne<WritableArray>(pieces);
  const auto buffers = BuffersOf(arrays.arrays);
  Check(handle.WhileHeld([&](FetchLease& lease) { return lease.CopyTo(i, buffers); }));
}

// The end of a `with` block. After an exception of the body its traceback may hold views: the
// lease then ends with the last of them.
bool FailedBody(const nb::object& exception_type) {
  return !exception_type.is_none();
}

}  // namespace

void BindLeases(nb::module_& module) {
  nb::class_<ViewOwner>(module, "_ViewOwner");

  nb::enum_<StoreOutcome>(module, "StoreOutcome", "What became of one key of a store.")
      .value("STORED", StoreOutcome::kStored, "stored; of a lease: granted, to be filled")
      .value("EXISTS", StoreOutcome::kExists, "it was there before")
      .value("DECLINED", StoreOutcome::kDeclined, "refused; all that follow it are, too");

  nb::enum_<Durability>(module, "Durability",
                        "What a stored block survives, where the daemon has an NVMe tier.")
      .value("CONFIGURED", Durability::kConfigured, "the daemon's choice")
      .value("NONE", Durability::kNone, "the daemon's death, not a power cut")
      .value("BATCH", Durability::kBatch, "a power cut too, some time after the store")
      .value("STRICT", Durability::kStrict, "the store waits until it does");

  nb::class_<FetchLeaseHandle>(
      module, "FetchLease",
      "A read lease: parts in the daemon's memory that stay put until it is released. A context "
      "manager; dropping it releases it, too. After that all but its length raises "
      "FailedPreconditionError.")
      .def("__len__", &FetchLeaseHandle::size)
      .def(
          "status",
          [](FetchLeaseHandle& handle, std::size_t i) -> nb::object {
            CheckIndex(i, handle.size());
            const absl::Status status =
                handle.WhileHeld([&](FetchLease& lease) { return lease.status(i); });
            return status.ok() ? nb::none() : ExceptionOf(status);
          },
          nb::arg("i"), nb::sig("def status(self, i: int) -> KavernError | None"),
          "None when the part of key i is readable, else the exception that says why not.")
      .def("__getitem__", &ViewPart, nb::arg("i"),
           "The part's bytes in shared memory as a read-only array of bytes, without a copy: "
           "numpy.asarray, torch.from_dlpack and memoryview take it. Not verified: another "
           "process of the same tenant could be writing there; copy_to verifies. While such an "
           "array lives the lease cannot be released. A forked child must not touch it: the memory "
           "is not mapped there.")
      .def(
          "checksum",
          [](FetchLeaseHandle& handle, std::size_t i) {
            CheckIndex(i, handle.size());
            return handle.WhileHeld([&](FetchLease& lease) { return lease.checksum(i); });
          },
          nb::arg("i"), "What CRC32C of the bytes must be, seeded by key and part.")
      .def(
          "tier",
          [](FetchLeaseHandle& handle, std::size_t i) {
            CheckIndex(i, handle.size());
            return TierName(handle.WhileHeld([&](FetchLease& lease) { return lease.tier(i); }));
          },
          nb::arg("i"),
          "'hbm', 'ram' or 'nvme': where the part was when it was asked for; 'none' when it is not "
          "readable.")
      .def("copy_to", &CopyTo, nb::arg("i"), nb::arg("pieces"),
           "Copies the part of key i into one array or a list of them, end to end, and verifies "
           "the bytes copied. DataLossError: they are not what was stored, and the arrays hold "
           "rubbish.")
      .def(
          "release",
          [](FetchLeaseHandle& handle, Deadline deadline) {
            const auto wait = DeadlineOf(deadline);
            Check(handle.End([&](FetchLease& lease) { return lease.Release(wait); }));
          },
          nb::arg("deadline") = nb::none(),
          "Releases now, and waits for the daemon's answer. DeadlineExceededError: it is told in "
          "the background; the lease is over all the same. BufferError while arrays of the leased "
          "memory are alive; FailedPreconditionError when it was released before.")
      .def(
          "__enter__", [](nb::object self) { return self; },
          nb::sig("def __enter__(self) -> FetchLease"))
      .def(
          "__exit__",
          [](FetchLeaseHandle& handle, const nb::object& type, const nb::object& /*value*/,
             const nb::object& /*traceback*/) {
            if (FailedBody(type) && handle.views()->load() > 0) return;
            (void)handle.End([](FetchLease& lease) {
              lease = FetchLease();
              return absl::OkStatus();
            });
          },
          nb::arg("type").none(), nb::arg("value").none(), nb::arg("traceback").none());

  nb::class_<StoreLeaseHandle>(
      module, "StoreLease",
      "A write lease: memory of the daemon to fill. A context manager, which gives back what was "
      "not committed; dropping it does, too.")
      .def("__len__", &StoreLeaseHandle::size)
      .def_prop_ro(
          "outcomes",
          [](StoreLeaseHandle& handle) {
            return handle.With([](StoreLease& lease) {
              const auto outcomes = lease.outcomes();
              return std::vector<StoreOutcome>(outcomes.begin(), outcomes.end());
            });
          },
          "One per key. STORED: granted, to be filled.")
      .def_prop_ro("decline_reason",
                   [](StoreLeaseHandle& handle) {
                     return handle.With([](StoreLease& lease) { return lease.decline_reason(); });
                   })
      .def_prop_ro(
          "durable_blocks",
          [](StoreLeaseHandle& handle) {
            return handle.With([](StoreLease& lease) { return lease.durable_blocks(); });
          },
          "After a strict commit: how many of the blocks that it published or that existed are on "
          "disk with all their ancestors, and flushed.")
      .def_prop_ro(
          "not_durable_reason",
          [](StoreLeaseHandle& handle) {
            return handle.With([](StoreLease& lease) { return lease.not_durable_reason(); });
          },
          "After a strict commit: why not all.")
      .def("__getitem__", &ViewGranted, nb::arg("i"),
           "The part's memory as a writable array of bytes, without a copy. Who writes there "
           "gives the checksum himself (set_checksum); fill does both. While such an array lives "
           "the lease can be neither committed nor aborted.")
      .def("fill", &Fill, nb::arg("i"), nb::arg("pieces"),
           "Copies one array or a list of them, end to end, into the part of key i, and notes its "
           "checksum. InvalidArgumentError when they are not part_bytes long.")
      .def(
          "set_checksum",
          [](StoreLeaseHandle& handle, std::size_t i, std::uint32_t checksum) {
            CheckIndex(i, handle.size());
            Check(handle.With([&](StoreLease& lease) { return lease.SetChecksum(i, checksum); }));
          },
          nb::arg("i"), nb::arg("checksum"),
          "For memory that the caller wrote itself: CRC32C, seeded by key and part.")
      .def(
          "commit",
          [](StoreLeaseHandle& handle, Deadline deadline) {
            const auto wait = DeadlineOf(deadline);
            Check(handle.End([&](StoreLease& lease) { return lease.Commit(wait); }));
          },
          nb::arg("deadline") = nb::none(),
          "Publishes the parts that were filled, up to the first that was not. With "
          "Durability.STRICT it is for the keys that exist, too, and to be called also where all "
          "of them do. UnavailableError: the daemon is gone; all was stored, or nothing. "
          "BufferError while arrays of the leased memory are alive.")
      .def(
          "abort",
          [](StoreLeaseHandle& handle, Deadline deadline) {
            const auto wait = DeadlineOf(deadline);
            Check(handle.End([&](StoreLease& lease) {
              lease.Abort(wait);
              return absl::OkStatus();
            }));
          },
          nb::arg("deadline") = nb::none(),
          "Gives back what was not committed. A daemon that does not answer by the deadline is "
          "told "
          "in the background. BufferError while arrays of the leased memory are alive.")
      .def(
          "__enter__", [](nb::object self) { return self; },
          nb::sig("def __enter__(self) -> StoreLease"))
      .def(
          "__exit__",
          [](StoreLeaseHandle& handle, const nb::object& type, const nb::object& /*value*/,
             const nb::object& /*traceback*/) {
            if (FailedBody(type) && handle.views()->load() > 0) return;
            Check(handle.End([](StoreLease& lease) {
              lease.Abort();
              return absl::OkStatus();
            }));
          },
          nb::arg("type").none(), nb::arg("value").none(), nb::arg("traceback").none());
}

}  // namespace kavern::python
