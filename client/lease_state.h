// What the public lease classes hide.
#ifndef KAVERN_CLIENT_LEASE_STATE_H_
#define KAVERN_CLIENT_LEASE_STATE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/client_impl.h"
#include "client/kavern/client.h"

namespace kavern {

// Where a part lies in this process, and the region that keeps it mapped.
struct MappedPart {
  std::shared_ptr<client::MappedRegion> region;
  MutableBuffer bytes;  // empty: none
};

struct StoreLease::State {
  struct Part {
    BlockKey key;
    MappedPart memory;
    std::uint32_t checksum = 0;
    bool filled = false;
  };

  std::shared_ptr<client::ClientCore> core;
  std::shared_ptr<client::Attachment> attachment;
  std::uint64_t lease_id = 0;  // 0: nothing is held (any more)
  std::uint32_t part_index = 0;
  std::uint64_t part_bytes = 0;
  NamespaceFingerprint fingerprint;
  std::vector<StoreOutcome> outcomes;
  std::string decline_reason;
  std::uint64_t durable_blocks = 0;
  std::string not_durable_reason;
  std::vector<Part> parts;           // one per requested key
  std::vector<std::size_t> granted;  // indices of the granted ones, in order

  // Ends the lease on this side: its number, and no memory any more.
  std::uint64_t TakeLease();
  // Ends it on both sides: by the context's deadline, or in the background where the daemon does
  // not answer by then.
  void GiveBack(const client::CallContext& context);
};

struct FetchLease::State {
  struct Part {
    BlockKey key;
    MappedPart memory;
    std::uint32_t checksum = 0;
    absl::StatusCode code = absl::StatusCode::kNotFound;
    Tier tier = Tier::kNone;  // that it came from
    bool answered = false;
  };

  std::shared_ptr<client::ClientCore> core;
  std::shared_ptr<client::Attachment> attachment;
  std::uint64_t lease_id = 0;  // 0: nothing is held (any more)
  NamespaceFingerprint fingerprint;
  std::uint32_t shard = 0;
  std::uint32_t group = 0;
  std::uint32_t part_index = 0;
  std::uint64_t part_bytes = 0;
  std::vector<Part> parts;  // one per requested key
  std::vector<std::size_t> damaged;

  // What the daemon says of one part. Internal: what it must not say; or as
  // Attachment::WaitForRegion.
  absl::Status TakeFailed(const v1::FetchResponse::Failed& failed);
  absl::Status TakeReady(const v1::FetchResponse::Ready& ready, SteadyTime deadline);
  // Copies part `i` out and compares checksums; notes a damaged one. Parts may be copied from
  // several threads at a time: `damage` is each thread's own place to note it.
  absl::Status CopyOut(std::size_t i, std::span<const MutableBuffer> pieces, bool* damage) const;
  client::PendingRelease TakeRelease();
};

// Copies `pieces`, end to end, to or from one contiguous part, continuing the checksum.
std::uint32_t GatherInto(MutableBuffer part, std::span<const ConstBuffer> pieces,
                         std::uint32_t seed);
std::uint32_t ScatterFrom(ConstBuffer part, std::span<const MutableBuffer> pieces,
                          std::uint32_t seed);

}  // namespace kavern

#endif  // KAVERN_CLIENT_LEASE_STATE_H_
