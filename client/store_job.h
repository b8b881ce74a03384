// One store of pages between Begin and its report.
#ifndef KAVERN_CLIENT_STORE_JOB_H_
#define KAVERN_CLIENT_STORE_JOB_H_

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "client/copy_pool.h"
#include "client/kavern/paged_kv.h"

namespace kavern::client {

// Leases, copies and commits, in this order; one thread at a time.
class StoreJob {
 public:
  // `plan` was checked against `groups`, which outlives this, as `ns` does.
  StoreJob(std::uint64_t id, PagedStore plan, Namespace& ns, std::span<const TensorLayout> groups,
           std::uint32_t shard);

  std::uint64_t id() const { return result_.id; }

  // Asks the daemon for memory; where that fails, there is nothing to copy.
  void Lease(std::chrono::milliseconds deadline);

  // Copies what was not copied yet of the first `layers` layers of a group, of every part.
  void CopyLayers(CopyPool& pool, std::size_t group, std::size_t layers);
  // What was copied is not right any more, and is copied anew.
  void CopyAnew();

  // Publishes what is copied whole.
  void Commit(std::chrono::milliseconds deadline);
  // Gives the memory back.
  void GiveUp(absl::Status why);

  // After Commit() or GiveUp().
  PagedResult TakeResult() { return std::move(result_); }

 private:
  // Of one group, at most kKeysPerLease keys of the plan.
  struct Leased {
    StoreLease lease;
    std::size_t group = 0;
    std::size_t first = 0;  // key of the plan
    std::size_t count = 0;
    bool has_parts = false;
  };
  // Memory to fill.
  struct Part {
    std::size_t lease = 0;
    std::size_t in_lease = 0;
    std::span<const std::uint32_t> pages;
    std::uint32_t checksum = 0;  // of the layers copied so far
  };
  // What was granted of one group.
  struct Group {
    std::vector<Part> parts;
    std::size_t layers_copied = 0;
    std::uint64_t bytes_copied = 0;  // of each part
  };

  absl::Status LeaseAll(std::chrono::steady_clock::time_point until);
  void ListParts();
  std::uint32_t SeedOf(const Part& part) const;
  void CopyPart(Part& part, std::size_t group, std::size_t layers);

  Namespace& ns_;
  const std::span<const TensorLayout> layouts_;
  const std::uint32_t shard_;
  const PagedStore plan_;
  std::vector<Leased> leases_;  // fewer where the daemon declined
  std::vector<Group> groups_;
  PagedResult result_;
};

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_STORE_JOB_H_
