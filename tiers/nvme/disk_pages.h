// Memory for structures on their way to and from disk.
#ifndef KAVERN_TIERS_NVME_DISK_PAGES_H_
#define KAVERN_TIERS_NVME_DISK_PAGES_H_

#include <cstddef>
#include <memory>
#include <span>

#include "tiers/nvme/block_device.h"

namespace kavern::tiers {

// Page-aligned, and zeros at first.
class DiskPages {
 public:
  explicit DiskPages(std::size_t pages);
  std::span<std::byte> all() const { return {data_.get(), size_}; }
  std::span<std::byte> page(std::size_t i) const { return all().subspan(i * kDiskPage, kDiskPage); }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TIERS_NVME_DISK_PAGES_H_
