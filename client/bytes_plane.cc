// The remote data plane of a namespace: bytes in messages.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/copy_and_checksum.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "client/namespace_impl.h"
#include "client/wire_convert.h"

namespace kavern {
namespace {

constexpr std::size_t kPieceBytesMax = kMiB;

// Walks over buffers as if they were one.
class Cursor {
 public:
  explicit Cursor(std::span<const ConstBuffer> buffers) : buffers_(buffers) {}

  // Appends at most `bytes` to `out`; false at the end.
  bool Take(std::size_t bytes, std::string* out) {
    while (!buffers_.empty() && bytes > 0) {
      const ConstBuffer rest = buffers_.front().subspan(offset_);
      const std::size_t taken = std::min(bytes, rest.size());
      out->append(reinterpret_cast<const char*>(rest.data()), taken);
      bytes -= taken;
      offset_ += taken;
      if (offset_ == buffers_.front().size()) {
        buffers_ = buffers_.subspan(1);
        offset_ = 0;
      }
    }
    return !out->empty();
  }

 private:
  std::span<const ConstBuffer> buffers_;
  std::size_t offset_ = 0;
};

// Writes bytes at an offset of several buffers as if they were one. False: past their end.
bool WriteAt(std::span<const MutableBuffer> buffers, std::uint64_t offset, std::string_view data) {
  for (const MutableBuffer buffer : buffers) {
    if (offset >= buffer.size()) {
      offset -= buffer.size();
      continue;
    }
    const std::size_t size = std::min<std::size_t>(data.size(), buffer.size() - offset);
    std::memcpy(buffer.data() + offset, data.data(), size);
    data.remove_prefix(size);
    offset = 0;
    if (data.empty()) return true;
  }
  return data.empty();
}

// A block of a GetBlocks stream as it arrives: pieces in order.
struct Incoming {
  std::uint32_t expected = 0;  // checksum
  std::uint32_t actual = 0;
  std::uint64_t received = 0;
  Tier tier = Tier::kNone;
};

}  // namespace

absl::StatusOr<StoreResult> NamespaceImpl::PutBytes(const StoreRequest& request,
                                                    std::span<const ConstBuffer> buffers,
                                                    std::size_t pieces) {
  KAVERN_ASSIGN_OR_RETURN(const auto attachment, Ready());
  client::ClientCore& core = *client_.core();
  const std::uint32_t part = spec_.layout.PartIndex(request.shard, request.group);
  v1::PutBlocksRequest first;
  v1::PutBlocksRequest::Header& header = *first.mutable_header();
  header.set_fingerprint(client::PackFingerprint(fingerprint_));
  if (!request.parent.IsZero()) header.set_parent(client::PackKey(request.parent));
  header.set_keys(client::PackKeys(request.keys));
  header.set_shard(request.shard);
  header.set_group(request.group);
  header.set_durability(static_cast<v1::Durability>(request.durability));
  for (std::size_t i = 0; i < request.keys.size(); ++i) {
    std::uint32_t checksum = PartChecksumSeed(request.keys[i], part);
    for (const ConstBuffer piece : buffers.subspan(i * pieces, pieces)) {
      checksum = Crc32c(piece, checksum);
    }
    header.add_checksums(checksum);
  }
  Cursor cursor(buffers);
  bool header_sent = false;
  const auto next = [&](v1::PutBlocksRequest* message) {
    if (!header_sent) {
      header_sent = true;
      message->Swap(&first);
      return true;
    }
    return cursor.Take(kPieceBytesMax, message->mutable_data());
  };
  v1::PutBlocksResponse response;
  KAVERN_RETURN_IF_ERROR(client_.Judge(
      attachment,
      core.control().PutBlocks(core.Context(attachment.get(), request.deadline), next, &response)));
  if (response.outcomes().size() != request.keys.size()) {
    return absl::InternalError("outcomes: the daemon sent another number than keys");
  }
  StoreResult result;
  result.decline_reason = response.decline_reason();
  result.durable_blocks = response.durable();
  result.not_durable_reason = response.not_durable_reason();
  for (const char outcome : response.outcomes()) {
    result.outcomes.push_back(static_cast<StoreOutcome>(outcome));
    if (result.outcomes.back() == StoreOutcome::kStored) {
      result.stored_bytes += spec_.layout.PartBytes(request.group);
    }
  }
  return result;
}

absl::StatusOr<FetchResult> NamespaceImpl::GetBytes(const FetchRequest& request,
                                                    std::span<const MutableBuffer> buffers,
                                                    std::size_t pieces) {
  KAVERN_ASSIGN_OR_RETURN(const auto attachment, Ready());
  client::ClientCore& core = *client_.core();
  const std::uint64_t part_bytes = spec_.layout.PartBytes(request.group);
  const std::uint32_t part = spec_.layout.PartIndex(request.shard, request.group);
  v1::GetBlocksRequest message;
  message.set_fingerprint(client::PackFingerprint(fingerprint_));
  message.set_keys(client::PackKeys(request.keys));
  message.set_shard(request.shard);
  message.set_group(request.group);

  FetchResult result;
  result.codes.assign(request.keys.size(), absl::StatusCode::kNotFound);
  result.tiers.assign(request.keys.size(), Tier::kNone);
  std::vector<Incoming> incoming(request.keys.size());
  const auto on_message = [&](const v1::GetBlocksResponse& response) {
    if (response.index() >= incoming.size()) return;
    if (response.code() != 0) {
      result.codes[response.index()] = static_cast<absl::StatusCode>(response.code());
      return;
    }
    Incoming& block = incoming[response.index()];
    if (response.offset() == 0) {
      block.expected = response.checksum();
      block.actual = PartChecksumSeed(request.keys[response.index()], part);
      block.received = 0;
      block.tier = client::TierOf(response.tier());
    }
    const std::string& data = response.data();
    const auto target = buffers.subspan(response.index() * pieces, pieces);
    // A piece out of place leaves the block short, and so unread.
    if (response.offset() != block.received || !WriteAt(target, response.offset(), data)) return;
    block.actual = Crc32c(std::as_bytes(std::span(data.data(), data.size())), block.actual);
    block.received += data.size();
  };
  KAVERN_RETURN_IF_ERROR(client_.Judge(
      attachment, core.control().GetBlocks(core.Context(attachment.get(), request.deadline),
                                           message, on_message)));
  for (std::size_t i = 0; i < incoming.size(); ++i) {
    if (incoming[i].received == 0) continue;
    const bool whole = incoming[i].received == part_bytes;
    const bool intact =
        incoming[i].actual == incoming[i].expected || !core.options().verify_checksums;
    result.codes[i] = whole && intact ? absl::StatusCode::kOk : absl::StatusCode::kDataLoss;
    if (whole && intact) result.tiers[i] = incoming[i].tier;
    result.fetched_blocks += whole && intact ? 1 : 0;
  }
  result.fetched_bytes = result.fetched_blocks * part_bytes;
  return result;
}

}  // namespace kavern
