#include "tiers/ram/region.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/sealed_memfd.h"
#include "base/status_macros.h"
#include "base/units.h"

// Newer than some of the headers that this is built against.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace kavern::tiers {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kHugePageBytes = 2 * kMiB;

}  // namespace

absl::StatusOr<std::shared_ptr<Region>> Region::Create(std::uint64_t id, std::uint64_t size_bytes,
                                                       HugePages huge_pages,
                                                       std::function<void()> on_destroy,
                                                       LeaveMemory leave_memory) {
  const std::string name = absl::StrCat("kavern-region-", id);
  KAVERN_ASSIGN_OR_RETURN(
      UniqueFd fd,
      CreateMemfd(name.c_str(), size_bytes,
                  huge_pages == HugePages::kHugetlb ? MemfdPages::kHugetlb : MemfdPages::kNormal));
  KAVERN_RETURN_IF_ERROR(SealMemfd(fd.get(), MemfdWriters::kEveryone));
  KAVERN_ASSIGN_OR_RETURN(Mapping mapping,
                          Mapping::Map(fd.get(), size_bytes, Mapping::Access::kReadWrite));
  // KV is conversations: it does not belong into core files.
  madvise(mapping.data(), mapping.size(), MADV_DONTDUMP);
  if (huge_pages == HugePages::kAuto) madvise(mapping.data(), mapping.size(), MADV_HUGEPAGE);
  return std::shared_ptr<Region>(new Region(id, std::move(fd), std::move(mapping), huge_pages,
                                            std::move(on_destroy), std::move(leave_memory)));
}

Region::Region(std::uint64_t id, UniqueFd fd, Mapping mapping, HugePages huge_pages,
               std::function<void()> on_destroy, LeaveMemory leave_memory)
    : id_(id),
      size_bytes_(mapping.size()),
      fd_(std::move(fd)),
      mapping_(std::move(mapping)),
      huge_pages_(huge_pages),
      on_destroy_(std::move(on_destroy)),
      leave_memory_(std::move(leave_memory)),
      is_huge_(size_bytes_ / kHugePageBytes, false) {}

Region::~Region() {
  // The memory must be gone before anybody is told that it is: also where a client that said that
  // it unmapped the region still maps it. It finds zeroes, which its own memory cgroup pays for.
  mapping_.Reset();
  if (leave_memory_ == nullptr || !*leave_memory_) {
    fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
              static_cast<off_t>(size_bytes_));
  }
  fd_.Reset();
  if (on_destroy_) on_destroy_();
}

absl::Status Region::Populate(std::uint64_t offset, std::uint64_t length) {
  if (huge_pages_ == HugePages::kAuto) PopulateHuge(offset, length);
  std::byte* const begin = mapping_.data() + offset;
  if (madvise(begin, length, MADV_POPULATE_WRITE) == 0) return absl::OkStatus();
  if (errno != EINVAL) {
    return ErrnoStatus(errno, absl::StrCat("populating ", FormatBytes(length), " of a region"));
  }
  // Before Linux 5.14: touch every page. Safe while no client has the region.
  for (std::uint64_t at = 0; at < length; at += kPageBytes) {
    *reinterpret_cast<volatile std::byte*>(begin + at) = std::byte{0};
  }
  return absl::OkStatus();
}

void Region::PopulateHuge(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t end = offset + length;
  for (std::uint64_t at = AlignUp(offset, kHugePageBytes); at + kHugePageBytes <= end;
       at += kHugePageBytes) {
    if (huge_refused_) return;
    std::byte* const page = mapping_.data() + at;
    // The kernel collapses no hole, but takes one page for a start: the others come as one zeroed
    // huge page, and need not be copied into it.
    huge_refused_ = madvise(page, kPageBytes, MADV_POPULATE_WRITE) != 0 ||
                    madvise(page, kHugePageBytes, MADV_COLLAPSE) != 0;
    is_huge_[at / kHugePageBytes] = !huge_refused_;
  }
}

std::uint64_t Region::huge_page_bytes() const {
  if (huge_pages_ == HugePages::kHugetlb) return size_bytes();
  const auto huge = std::count(is_huge_.begin(), is_huge_.end(), true);
  return static_cast<std::uint64_t>(huge) * kHugePageBytes;
}

}  // namespace kavern::tiers
