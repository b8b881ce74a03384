// A disk in memory: what it holds outlives the device that stands before it.
#ifndef KAVERN_TESTS_FAKES_MEMORY_DEVICE_H_
#define KAVERN_TESTS_FAKES_MEMORY_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string_view>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "tiers/nvme/block_device.h"

namespace kavern::tiers {

using DiskImage = std::vector<std::byte>;

// One thread, in order. Nobody else touches the image while the device lives.
class MemoryDevice final : public BlockDevice {
 public:
  explicit MemoryDevice(std::shared_ptr<DiskImage> image);
  ~MemoryDevice() override;

  void Submit(DiskIo io) override;
  std::uint64_t size_bytes() const override { return image_->size(); }
  std::string_view method() const override { return "threads"; }

 private:
  void Loop();

  const std::shared_ptr<DiskImage> image_;  // shared with whoever puts the next device before it
  Mutex mu_;
  CondVar changed_;
  std::deque<DiskIo> queue_ KAVERN_GUARDED_BY(mu_);
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_FAKES_MEMORY_DEVICE_H_
