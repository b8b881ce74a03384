// A region: memory that daemon and clients both map, as a sealed memfd.
#ifndef KAVERN_TIERS_RAM_REGION_H_
#define KAVERN_TIERS_RAM_REGION_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace kavern::tiers {

enum class HugePages {
  kOff,
  kAuto,     // transparent: MADV_HUGEPAGE, and MADV_COLLAPSE where shmem THP is off
  kHugetlb,  // MFD_HUGETLB; needs reserved huge pages
};

// Shared ownership: the pool and the namespace that uses it hold it, and so does every session
// whose client has it mapped. Its memory counts against the RAM tier's capacity until the last of
// them lets go; it is given back to the machine then, even while a client that lied about it still
// has it mapped. Not so when the process ends: then clients keep what they have mapped, and their
// leases stay readable (P4).
class Region : public std::enable_shared_from_this<Region> {
 public:
  // When set and true: the memory stays with whoever else maps it.
  using LeaveMemory = std::shared_ptr<const std::atomic<bool>>;

  // Creates, sizes, seals and maps a memfd named "kavern-region-<id>"; the memory is not populated
  // yet. `on_destroy`, if set, runs last in the destructor, on whichever thread drops the last
  // share.
  static absl::StatusOr<std::shared_ptr<Region>> Create(std::uint64_t id, std::uint64_t size_bytes,
                                                        HugePages huge_pages,
                                                        std::function<void()> on_destroy,
                                                        LeaveMemory leave_memory = nullptr);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  // Puts zeroed memory behind bytes [offset, offset + length), in huge pages where it may and the
  // kernel can: charged to this process's memory cgroup, never to a client's. Idempotent; blocks
  // for as long as the kernel takes.
  // ResourceExhausted when there is no memory.
  absl::Status Populate(std::uint64_t offset, std::uint64_t length);

  // Of what was populated, the bytes that became huge pages.
  std::uint64_t huge_page_bytes() const;

  std::uint64_t id() const { return id_; }
  std::uint64_t size_bytes() const { return size_bytes_; }
  int fd() const { return fd_.get(); }
  std::span<std::byte> bytes() const { return {mapping_.data(), mapping_.size()}; }

 private:
  Region(std::uint64_t id, UniqueFd fd, Mapping mapping, HugePages huge_pages,
         std::function<void()> on_destroy, LeaveMemory leave_memory);

  // The whole huge pages of a range that is about to be populated.
  void PopulateHuge(std::uint64_t offset, std::uint64_t length);

  const std::uint64_t id_;
  const std::uint64_t size_bytes_;
  UniqueFd fd_;
  Mapping mapping_;
  const HugePages huge_pages_;
  const std::function<void()> on_destroy_;
  const LeaveMemory leave_memory_;
  std::vector<bool> is_huge_;  // by huge page
  bool huge_refused_ = false;  // the kernel lacks huge pages, or the call
};

// Where one part of a block is. Valid while the lease that gave it lives: a lease pins its slots,
// and a region with a pinned slot is never given up.
struct Extent {
  Region* region = nullptr;
  std::uint64_t offset = 0;  // bytes, a multiple of 4096
  std::uint64_t length = 0;  // bytes of payload

  std::span<std::byte> bytes() const { return region->bytes().subspan(offset, length); }
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_RAM_REGION_H_
