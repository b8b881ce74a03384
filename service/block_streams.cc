// PutBlocks and GetBlocks: payload through the daemon, for workers that cannot map its memory.

#include <algorithm>
#include <cstring>
#include <future>
#include <optional>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/copy_and_checksum.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "service/request_handlers.h"

namespace kavern::service {
namespace {

constexpr std::size_t kPieceBytesMax = kMiB;

// Which part of which blocks a stream carries.
struct StreamTarget {
  Session::SharedNamespace ns;
  std::vector<BlockKey> keys;
  std::uint32_t shard = 0;
  std::uint32_t group = 0;

  const KvLayout& layout() const { return ns->spec().layout; }
  std::uint64_t part_bytes() const { return layout().PartBytes(group); }
  std::uint64_t slot_bytes() const { return layout().SlotBytes(group); }
  std::uint32_t seed(const BlockKey& key) const {
    return PartChecksumSeed(key, layout().PartIndex(shard, group));
  }
};

// `Message` is a PutBlocksRequest.Header or a GetBlocksRequest.
template <typename Message>
absl::StatusOr<StreamTarget> ParseTarget(const Session& session, const Message& message,
                                         std::uint64_t keys_max) {
  StreamTarget target;
  KAVERN_ASSIGN_OR_RETURN(const auto fingerprint, ParseFingerprint(message.fingerprint()));
  KAVERN_ASSIGN_OR_RETURN(target.ns, session.FindNamespace(fingerprint));
  KAVERN_ASSIGN_OR_RETURN(target.keys, ParseKeys(message.keys(), keys_max));
  target.shard = message.shard();
  target.group = message.group();
  if (target.shard >= target.layout().shard_count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shard: got ", target.shard, ", expected less than ", target.layout().shard_count));
  }
  if (target.group >= target.layout().groups.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "group: got ", target.group, ", expected less than ", target.layout().groups.size()));
  }
  return target;
}

absl::StatusOr<ByteBudget::Reservation> Reserve(ByteBudget& budget, std::uint64_t bytes) {
  if (auto reservation = budget.Reserve(bytes)) return *std::move(reservation);
  return absl::ResourceExhaustedError(absl::StrCat(
      "this stream needs ", FormatBytes(bytes), " in flight, beside ", FormatBytes(budget.used()),
      " of others; inflight_bytes_max = ", FormatBytes(budget.bytes_max())));
}

class PutStream final : public RequestHandlers::Put {
 public:
  PutStream(tiers::TieredStore& store, std::shared_ptr<Session> session, StreamTarget target,
            std::vector<std::uint32_t> expected, tiers::StoreGrant grant,
            ByteBudget::Reservation reservation)
      : store_(store),
        session_(std::move(session)),
        target_(std::move(target)),
        expected_(std::move(expected)),
        part_bytes_(target_.part_bytes()),
        reservation_(std::move(reservation)),
        grant_(std::move(grant)) {
    for (std::size_t i = 0; i < grant_.lease.size(); ++i) {
      sums_.push_back(target_.seed(grant_.lease.key(i)));
    }
  }

  absl::Status Append(std::string_view data) override {
    if (data.size() > kPieceBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("data: got ", data.size(), " bytes, expected at most ", kPieceBytesMax));
    }
    if (data.size() > TotalBytes() - received_) return WrongLength(received_ + data.size());
    std::span<const std::byte> rest = std::as_bytes(std::span(data.data(), data.size()));
    while (!rest.empty()) {
      const std::uint64_t offset = received_ % part_bytes_;
      const std::size_t take = std::min<std::uint64_t>(rest.size(), part_bytes_ - offset);
      Take(received_ / part_bytes_, offset, rest.first(take));
      rest = rest.subspan(take);
      received_ += take;
    }
    return absl::OkStatus();
  }

  absl::Status Finish(v1::PutBlocksResponse* response) override {
    if (received_ != TotalBytes()) return WrongLength(received_);
    if (session_->fenced()) {
      return absl::UnauthenticatedError("the session ended before its blocks were stored");
    }
    KAVERN_RETURN_IF_ERROR(Verify());
    if (!grant_.lease.empty() || grant_.lease.has_existing()) {
      std::promise<tiers::TieredStore::Durable> told;
      KAVERN_RETURN_IF_ERROR(store_
                                 .CommitStore(grant_.lease, 0, sums_,
                                              [&told](tiers::TieredStore::Durable durable) {
                                                told.set_value(std::move(durable));
                                              })
                                 .status());
      // For strict stores until they are durable, nvme.write_timeout at most.
      const tiers::TieredStore::Durable durable = told.get_future().get();
      response->set_durable(durable.blocks);
      response->set_not_durable_reason(durable.reason);
    }
    response->set_outcomes(PackOutcomes(grant_.outcomes));
    response->set_decline_reason(grant_.decline_reason);
    return absl::OkStatus();
  }

 private:
  std::uint64_t TotalBytes() const { return part_bytes_ * target_.keys.size(); }

  absl::Status WrongLength(std::uint64_t got) const {
    return absl::InvalidArgumentError(absl::StrCat("data: got ", got, " bytes, expected ",
                                                   TotalBytes(), " for ", target_.keys.size(),
                                                   " keys"));
  }

  bool Granted(std::size_t key) const {
    return grant_.outcomes[key] == tiers::StoreOutcome::kGranted;
  }

  // Data arrives in order, so the extent in use is the one of the last granted key that was begun.
  void Take(std::size_t key, std::uint64_t offset, std::span<const std::byte> piece) {
    if (!Granted(key)) return;
    if (offset == 0) ++begun_;
    const std::size_t i = begun_ - 1;
    const std::span<std::byte> to = grant_.lease.extent(i).bytes().subspan(offset, piece.size());
    sums_[i] = CopyAndChecksum(to, piece, sums_[i]);
  }

  absl::Status Verify() const {
    std::size_t i = 0;
    for (std::size_t key = 0; key < target_.keys.size(); ++key) {
      if (!Granted(key)) continue;
      if (sums_[i++] != expected_[key]) {
        return absl::DataLossError(absl::StrCat("checksums[", key, "]: the data of key ",
                                                target_.keys[key].ToHex(),
                                                " failed its checksum; nothing was stored"));
      }
    }
    return absl::OkStatus();
  }

  tiers::TieredStore& store_;
  const std::shared_ptr<Session> session_;
  const StreamTarget target_;
  const std::vector<std::uint32_t> expected_;  // one per key
  const std::uint64_t part_bytes_;
  const ByteBudget::Reservation reservation_;
  tiers::StoreGrant grant_;
  std::vector<std::uint32_t> sums_;  // one per extent of the lease, so far
  std::size_t begun_ = 0;            // extents that data has reached
  std::uint64_t received_ = 0;
};

class GetStream final : public RequestHandlers::Get {
 public:
  GetStream(tiers::TieredStore& store, StreamTarget target, ByteBudget::Reservation reservation)
      : store_(store),
        target_(std::move(target)),
        part_bytes_(target_.part_bytes()),
        reservation_(std::move(reservation)),
        buffer_(std::make_unique_for_overwrite<std::byte[]>(part_bytes_)) {}

  bool Next(v1::GetBlocksResponse* response) override {
    if (index_ == target_.keys.size()) return false;
    response->set_index(static_cast<std::uint32_t>(index_));
    if (handed_out_ == 0) {
      auto checksum = Load(target_.keys[index_]);
      if (!checksum.ok()) {
        response->set_code(static_cast<std::int32_t>(checksum.status().code()));
        ++index_;
        return true;
      }
      response->set_checksum(*checksum);
      response->set_tier(tier_);
    }
    const std::size_t size = std::min<std::uint64_t>(kPieceBytesMax, part_bytes_ - handed_out_);
    response->set_offset(handed_out_);
    response->set_data(buffer_.get() + handed_out_, size);
    handed_out_ += size;
    if (handed_out_ == part_bytes_) {
      handed_out_ = 0;
      ++index_;
    }
    return true;
  }

 private:
  // Copies the block's part into the buffer. The bytes that were checksummed are the bytes of the
  // copy: a client that maps the extent cannot change them any more.
  absl::StatusOr<std::uint32_t> Load(const BlockKey& key) {
    {
      KAVERN_ASSIGN_OR_RETURN(
          const tiers::FetchEvent fetched,
          store_.FetchAll(*target_.ns,
                          {.keys = {&key, 1}, .shard = target_.shard, .group = target_.group}));
      if (fetched.lease.empty()) return absl::Status(fetched.failed.front().code, "not to be had");
      const tiers::ReadLease::Part& part = fetched.lease.parts().front();
      tier_ = part.from_disk ? v1::TIER_NVME : v1::TIER_RAM;
      const std::uint32_t sum =
          CopyAndChecksum({buffer_.get(), part_bytes_}, part.extent.bytes(), target_.seed(key));
      if (sum == part.checksum) return sum;
    }
    store_.CheckSuspect(*target_.ns, key, target_.shard, target_.group).IgnoreError();
    return absl::DataLossError("the block failed its checksum");
  }

  tiers::TieredStore& store_;
  const StreamTarget target_;
  const std::uint64_t part_bytes_;
  const ByteBudget::Reservation reservation_;
  const std::unique_ptr<std::byte[]> buffer_;
  std::size_t index_ = 0;
  v1::Tier tier_ = v1::TIER_UNSPECIFIED;  // that the block in the buffer came from
  std::uint64_t handed_out_ = 0;          // of it
};

}  // namespace

absl::StatusOr<std::unique_ptr<RequestHandlers::Put>> RequestHandlers::BeginPut(
    std::shared_ptr<Session> session, const v1::PutBlocksRequest::Header& header) {
  KAVERN_RETURN_IF_ERROR(CheckNotDraining());
  KAVERN_ASSIGN_OR_RETURN(const auto durability,
                          ParseDurability(header.durability(), store_.has_disk()));
  KAVERN_ASSIGN_OR_RETURN(StreamTarget target,
                          ParseTarget(*session, header, limits_.keys_per_request_max));
  KAVERN_ASSIGN_OR_RETURN(const BlockKey parent,
                          ParseParent(header.parent(), target.ns->fingerprint()));
  if (static_cast<std::size_t>(header.checksums_size()) != target.keys.size()) {
    return absl::InvalidArgumentError(absl::StrCat("checksums: got ", header.checksums_size(),
                                                   ", expected one per key, ", target.keys.size()));
  }
  // Slots, not payload: a small part pins a whole one until the stream ends.
  KAVERN_ASSIGN_OR_RETURN(ByteBudget::Reservation reservation,
                          Reserve(inflight_, target.slot_bytes() * target.keys.size()));
  KAVERN_ASSIGN_OR_RETURN(tiers::StoreGrant grant,
                          store_.BeginStore(*target.ns, {.parent = parent,
                                                         .keys = target.keys,
                                                         .shard = target.shard,
                                                         .group = target.group,
                                                         .grant_bytes_max = UINT64_MAX,
                                                         .durability = durability}));
  return std::make_unique<PutStream>(
      store_, std::move(session), std::move(target),
      std::vector<std::uint32_t>(header.checksums().begin(), header.checksums().end()),
      std::move(grant), std::move(reservation));
}

absl::StatusOr<std::unique_ptr<RequestHandlers::Get>> RequestHandlers::BeginGet(
    const std::shared_ptr<Session>& session, const v1::GetBlocksRequest& request) {
  KAVERN_RETURN_IF_ERROR(CheckNotDraining());
  KAVERN_ASSIGN_OR_RETURN(StreamTarget target,
                          ParseTarget(*session, request, limits_.keys_per_request_max));
  KAVERN_ASSIGN_OR_RETURN(ByteBudget::Reservation reservation,
                          Reserve(inflight_, target.part_bytes()));
  return std::make_unique<GetStream>(store_, std::move(target), std::move(reservation));
}

}  // namespace kavern::service
