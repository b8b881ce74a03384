// Statuses become exceptions, arguments become the client's types.
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/python/bindings/bindings.h"

namespace kavern::python {

nb::object ExceptionOf(const absl::Status& status) {
  const nb::object make = nb::module_::import_("kavern.errors").attr("from_code");
  return make(static_cast<int>(status.code()), std::string(status.message()));
}

namespace {

const char* WhyBlockFailed(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kNotFound:
      return "the block is not there";
    case absl::StatusCode::kDataLoss:
      return "the block's checksum failed";
    case absl::StatusCode::kResourceExhausted:
      return "the daemon's RAM has no room for the block";
    case absl::StatusCode::kDeadlineExceeded:
      return "the block came too late";
    default:
      return "the block cannot be read";
  }
}

}  // namespace

nb::list BlockErrorsOf(std::span<const absl::StatusCode> codes) {
  nb::list errors;
  for (const absl::StatusCode code : codes) {
    errors.append(code == absl::StatusCode::kOk
                      ? nb::none()
                      : ExceptionOf(absl::Status(code, WhyBlockFailed(code))));
  }
  return errors;
}

void Check(const absl::Status& status) {
  if (status.ok()) return;
  const nb::object exception = ExceptionOf(status);
  PyErr_SetObject(exception.type().ptr(), exception.ptr());
  throw nb::python_error();
}

void Refuse(const std::string& message) {
  Check(absl::InvalidArgumentError(message));
  std::abort();  // never reached: it raised
}

namespace {

std::string WrongSize(const nb::bytes& bytes) {
  return absl::StrCat(": got ", bytes.size(), " bytes, expected ", BlockKey::kSize);
}

}  // namespace

std::vector<BlockKey> KeysOf(const Keys& keys) {
  std::vector<BlockKey> out(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (keys[i].size() != BlockKey::kSize) {
      Refuse(absl::StrCat("keys[", i, "]", WrongSize(keys[i])));
    }
    std::memcpy(out[i].bytes.data(), keys[i].c_str(), BlockKey::kSize);
  }
  return out;
}

BlockKey KeyOf(const char* name, const nb::bytes& bytes) {
  if (bytes.size() != BlockKey::kSize) Refuse(name + WrongSize(bytes));
  BlockKey key;
  std::memcpy(key.bytes.data(), bytes.c_str(), BlockKey::kSize);
  return key;
}

nb::bytes BytesOf(const BlockKey& key) {
  return nb::bytes(key.bytes.data(), key.bytes.size());
}

nb::typed<nb::list, nb::bytes> ListOf(std::span<const BlockKey> keys) {
  nb::typed<nb::list, nb::bytes> list;
  for (const BlockKey& key : keys) list.append(BytesOf(key));
  return list;
}

std::chrono::milliseconds DeadlineOf(Deadline seconds, const char* name) {
  if (!seconds.has_value()) return std::chrono::milliseconds(0);
  constexpr double kSecondsMax = 1e9;
  if (!(*seconds > 0) || *seconds > kSecondsMax) {
    Refuse(absl::StrCat(name, ": got ", *seconds, ", expected seconds above 0, at most 1e9"));
  }
  // Not 0, which would mean the default.
  return std::chrono::milliseconds(static_cast<std::int64_t>(std::ceil(*seconds * 1000)));
}

namespace {

template <typename Array>
Array ArrayOf(nb::handle object, std::size_t key) {
  Array array;
  // Not converted: a copy made on the way would be what is fetched into.
  if (nb::try_cast(object, array, /*convert=*/false) && array.is_valid()) return array;
  const bool readable = std::is_same_v<Array, ReadableArray>;
  throw nb::type_error(
      absl::StrCat(
          "buffers[", key, "]: expected ", readable ? "" : "writable, ",
          "contiguous memory of this machine: an object with the buffer protocol or DLPack")
          .c_str());
}

bool IsListOfPieces(nb::handle object) {
  return nb::isinstance<nb::list>(object) || nb::isinstance<nb::tuple>(object);
}

}  // namespace

template <typename Array>
Pieces<Array> PiecesOf(const nb::sequence& buffers) {
  Pieces<Array> pieces;
  for (const nb::handle entry : buffers) {
    const std::size_t key = pieces.pieces_per_key.size();
    const std::size_t before = pieces.arrays.size();
    if (IsListOfPieces(entry)) {
      for (const nb::handle piece : entry) pieces.arrays.push_back(ArrayOf<Array>(piece, key));
    } else {
      pieces.arrays.push_back(ArrayOf<Array>(entry, key));
    }
    pieces.pieces_per_key.push_back(pieces.arrays.size() - before);
    if (pieces.pieces_per_key.back() != pieces.pieces_per_key.front()) {
      Refuse(absl::StrCat("buffers[", key, "]: got ", pieces.pieces_per_key.back(),
                          " pieces, expected ", pieces.pieces_per_key.front(),
                          " as for the key before"));
    }
  }
  return pieces;
}

template Pieces<ReadableArray> PiecesOf(const nb::sequence& buffers);
template Pieces<WritableArray> PiecesOf(const nb::sequence& buffers);

std::vector<ConstBuffer> BuffersOf(const std::vector<ReadableArray>& arrays) {
  std::vector<ConstBuffer> buffers;
  buffers.reserve(arrays.size());
  for (const ReadableArray& array : arrays) {
    buffers.emplace_back(static_cast<const std::byte*>(array.data()), array.nbytes());
  }
  return buffers;
}

std::vector<MutableBuffer> BuffersOf(const std::vector<WritableArray>& arrays) {
  std::vector<MutableBuffer> buffers;
  buffers.reserve(arrays.size());
  for (const WritableArray& array : arrays) {
    buffers.emplace_back(static_cast<std::byte*>(array.data()), array.nbytes());
  }
  return buffers;
}

}  // namespace kavern::python
