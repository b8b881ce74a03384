// What the files of the extension module share.
#ifndef KAVERN_CLIENT_PYTHON_BINDINGS_BINDINGS_H_
#define KAVERN_CLIENT_PYTHON_BINDINGS_BINDINGS_H_

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/kavern/client.h"

namespace kavern::python {

namespace nb = nanobind;

void BindLayout(nb::module_& module);
void BindLeases(nb::module_& module);
void BindClient(nb::module_& module);
void BindPaged(nb::module_& module);

// ---- Statuses ----

// Raises the exception of kavern.errors that belongs to the code; the interpreter's lock must be
// held. Nothing for OK.
void Check(const absl::Status& status);
// The exception, not raised; `status` is not OK.
nb::object ExceptionOf(const absl::Status& status);
// One per block: None, or the exception.
nb::list BlockErrorsOf(std::span<const absl::StatusCode> codes);

// Raises InvalidArgumentError: "field: got ..., expected ...".
[[noreturn]] void Refuse(const std::string& message);

template <typename T>
T Take(absl::StatusOr<T> result) {
  Check(result.status());
  return *std::move(result);
}

// ---- Arguments ----

// Keys are bytes of length 16 in Python. Others are refused: by the index, or by `name`.
using Keys = std::vector<nb::bytes>;
std::vector<BlockKey> KeysOf(const Keys& keys);
BlockKey KeyOf(const char* name, const nb::bytes& bytes);
nb::bytes BytesOf(const BlockKey& key);
nb::typed<nb::list, nb::bytes> ListOf(std::span<const BlockKey> keys);

// Seconds; none: the client's own deadline. Refused when it is not positive.
using Deadline = std::optional<double>;
std::chrono::milliseconds DeadlineOf(Deadline seconds, const char* name = "deadline");

// What callers hand over: anything with the buffer protocol or DLPack, in this machine's memory,
// contiguous. Shape and element type are the caller's business; bytes are what is kept.
using ReadableArray = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using WritableArray = nb::ndarray<nb::c_contig, nb::device::cpu>;

// For every key its pieces. One array a key may come without the list around it.
template <typename Array>
struct Pieces {
  std::vector<Array> arrays;  // kept alive while their memory is used
  std::vector<std::size_t> pieces_per_key;
};
template <typename Array>
Pieces<Array> PiecesOf(const nb::sequence& buffers);
std::vector<ConstBuffer> BuffersOf(const std::vector<ReadableArray>& arrays);
std::vector<MutableBuffer> BuffersOf(const std::vector<WritableArray>& arrays);

}  // namespace kavern::python

#endif  // KAVERN_CLIENT_PYTHON_BINDINGS_BINDINGS_H_
