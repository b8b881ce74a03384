#include "tiers/nvme/disk_pages.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace kavern::tiers {

void DiskPages::Free::operator()(std::byte* data) const {
  std::free(data);  // NOLINT(cppcoreguidelines-no-malloc): what aligned_alloc gave
}

DiskPages::DiskPages(std::size_t pages)
    : data_(static_cast<std::byte*>(std::aligned_alloc(kDiskPage, pages * kDiskPage))),
      size_(pages * kDiskPage) {
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_.get(), 0, size_);
}

}  // namespace kavern::tiers
