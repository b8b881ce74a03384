#include "client/store_job.h"

#include <algorithm>
#include <utility>

#include "base/copy_and_checksum.h"
#include "base/status_macros.h"

namespace kavern::client {
namespace {

using Clock = std::chrono::steady_clock;

// The daemon's answer to a store comes in pieces of at most so many keys.
constexpr std::size_t kKeysPerLease = 512;
// Below this, waking other threads takes longer than they would save.
constexpr std::uint64_t kSharedCopyBytesMin = std::uint64_t{8} << 20;

// Adds the time that it lives.
class Timed {
 public:
  explicit Timed(double& seconds) : seconds_(seconds) {}
  ~Timed() { seconds_ += std::chrono::duration<double>(Clock::now() - begin_).count(); }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  double& seconds_;
  const Clock::time_point begin_ = Clock::now();
};

}  // namespace

StoreJob::StoreJob(std::uint64_t id, PagedStore plan, Namespace& ns,
                   std::span<const TensorLayout> groups, std::uint32_t shard)
    : ns_(ns), layouts_(groups), shard_(shard), plan_(std::move(plan)), groups_(groups.size()) {
  result_.id = id;
}

void StoreJob::Lease(std::chrono::milliseconds deadline) {
  const Timed timed(result_.seconds);
  if (absl::Status status = LeaseAll(Clock::now() + deadline); !status.ok()) {
    leases_.clear();
    result_.status = std::move(status);
  }
  ListParts();
}

absl::Status StoreJob::LeaseAll(Clock::time_point until) {
  const std::span<const BlockKey> keys = plan_.keys;
  std::size_t granted = keys.size();  // keys that no group has declined
  for (std::size_t first = 0; first < granted; first += kKeysPerLease) {
    for (std::uint32_t group = 0; group < layouts_.size() && first < granted; ++group) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now());
      if (left <= std::chrono::milliseconds(0)) {
        return absl::DeadlineExceededError("the daemon granted no memory in time");
      }
      StoreRequest request;
      request.parent = first == 0 ? plan_.parent : keys[first - 1];
      request.keys = keys.subspan(first, std::min(kKeysPerLease, granted - first));
      request.shard = shard_;
      request.group = group;
      request.deadline = left;
      KAVERN_ASSIGN_OR_RETURN(StoreLease lease, ns_.BeginStore(request));
      const auto outcomes = lease.outcomes();
      const auto declined = std::find(outcomes.begin(), outcomes.end(), StoreOutcome::kDeclined);
      if (declined != outcomes.end()) {
        granted = first + static_cast<std::size_t>(declined - outcomes.begin());
        result_.status = absl::ResourceExhaustedError(lease.decline_reason());
      }
      leases_.push_back({std::move(lease), group, first, request.keys.size()});
    }
  }
  result_.stored_keys = granted;
  return absl::OkStatus();
}

void StoreJob::ListParts() {
  for (std::size_t l = 0; l < leases_.size(); ++l) {
    Leased& leased = leases_[l];
    const std::size_t pages = layouts_[leased.group].blocks_per_part;
    for (std::size_t i = 0; i < leased.count; ++i) {
      const std::size_t key = leased.first + i;
      if (key >= result_.stored_keys) break;
      if (leased.lease.bytes(i).empty()) continue;  // exists
      leased.has_parts = true;
      Part part{l, i, std::span(plan_.blocks[leased.group]).subspan(key * pages, pages)};
      part.checksum = SeedOf(part);
      groups_[leased.group].parts.push_back(part);
    }
  }
}

std::uint32_t StoreJob::SeedOf(const Part& part) const {
  const Leased& leased = leases_[part.lease];
  return PartChecksumSeed(
      plan_.keys[leased.first + part.in_lease],
      ns_.spec().layout.PartIndex(shard_, static_cast<std::uint32_t>(leased.group)));
}

void StoreJob::CopyLayers(CopyPool& pool, std::size_t group, std::size_t layers) {
  const Timed timed(result_.seconds);
  const TensorLayout& layout = layouts_[group];
  Group& copies = groups_[group];
  if (layers <= copies.layers_copied || copies.parts.empty()) return;
  std::uint64_t bytes = 0;  // of one part
  for (std::size_t layer = copies.layers_copied; layer < layers; ++layer) {
    bytes += layout.layers[layer].block_bytes * layout.blocks_per_part;
  }
  const auto copy = [&](std::size_t i) { CopyPart(copies.parts[i], group, layers); };
  if (copies.parts.size() * bytes < kSharedCopyBytesMin) {
    for (std::size_t i = 0; i < copies.parts.size(); ++i) copy(i);
  } else {
    pool.Run(copies.parts.size(), copy);
  }
  copies.layers_copied = layers;
  copies.bytes_copied += bytes;
}

void StoreJob::CopyPart(Part& part, std::size_t group, std::size_t layers) {
  const TensorLayout& layout = layouts_[group];
  StoreLease& lease = leases_[part.lease].lease;
  const MutableBuffer memory = lease.bytes(part.in_lease);
  if (memory.empty()) return;
  MutableBuffer rest = memory.subspan(groups_[group].bytes_copied);
  for (std::size_t l = groups_[group].layers_copied; l < layers; ++l) {
    const LayerTensor& layer = layout.layers[l];
    for (const std::uint32_t page : part.pages) {
      const ConstBuffer source(layer.base + page * layer.block_stride, layer.block_bytes);
      part.checksum = CopyAndChecksum(rest.first(source.size()), source, part.checksum);
      rest = rest.subspan(source.size());
    }
  }
  // What is not copied whole is not committed, nor is what follows it.
  if (layers == layout.layers.size()) {
    lease.SetChecksum(part.in_lease, part.checksum).IgnoreError();
  }
}

void StoreJob::CopyAnew() {
  for (Group& group : groups_) {
    group.layers_copied = 0;
    group.bytes_copied = 0;
    for (Part& part : group.parts) part.checksum = SeedOf(part);
  }
}

void StoreJob::Commit(std::chrono::milliseconds deadline) {
  const Timed timed(result_.seconds);
  for (const Group& group : groups_) result_.bytes += group.parts.size() * group.bytes_copied;
  for (Leased& leased : leases_) {
    if (!leased.has_parts) continue;
    absl::Status status = leased.lease.Commit(deadline);
    if (status.ok()) continue;
    result_.status = std::move(status);
    result_.stored_keys = std::min(result_.stored_keys, leased.first);
    break;
  }
  if (!result_.status.ok() && !absl::IsResourceExhausted(result_.status)) result_.bytes = 0;
  leases_.clear();
}

void StoreJob::GiveUp(absl::Status why) {
  leases_.clear();
  result_.stored_keys = 0;
  result_.status = std::move(why);
}

}  // namespace kavern::client
