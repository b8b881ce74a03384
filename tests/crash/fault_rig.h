// A store over faulty devices and faulty files, to be opened again and again.
#ifndef KAVERN_TESTS_CRASH_FAULT_RIG_H_
#define KAVERN_TESTS_CRASH_FAULT_RIG_H_

#include <memory>
#include <utility>
#include <vector>

#include "tests/crash/crash_store.h"
#include "tests/fakes/fault_device.h"
#include "tests/fakes/fault_file_system.h"
#include "tests/fakes/temp_directory.h"

namespace kavern::tiers {

class FaultRig {
 public:
  explicit FaultRig(std::uint64_t seed, bool cache = true)
      : seed_(seed), cache_(cache), directory_(MemoryPath()), images_(EmptyImages()) {
    options_.directory = directory_.path();
    options_.catalog_env = files_.env();
    options_.open =
        [this](const BlockDeviceOptions& options) -> absl::StatusOr<std::unique_ptr<BlockDevice>> {
      const std::uint32_t number = DeviceNumber(options);
      auto device = std::make_unique<FaultDevice>(std::make_unique<MemoryDevice>(images_[number]),
                                                  ++seed_, cache_, counts_);
      device->SetFaultsFrom(disk::kSegmentsOffset);
      devices_.resize(kCrashDevices);
      devices_[number] = device.get();
      return device;
    };
  }

  absl::StatusOr<std::unique_ptr<CrashStore>> Open() { return CrashStore::Open(options_); }

  CrashStoreOptions& options() { return options_; }
  FaultFileSystem& files() { return files_; }
  FaultCounts& counts() { return counts_; }
  // Of the store that is open.
  FaultDevice& device(std::uint32_t i) { return *devices_[i]; }
  void SetRate(DiskFault fault, double rate) {
    for (FaultDevice* device : devices_) device->SetRate(fault, rate);
  }

 private:
  std::uint64_t seed_;
  const bool cache_;
  const TempDirectory directory_;
  const DiskImages images_;
  FaultFileSystem files_;
  FaultCounts counts_;
  std::vector<FaultDevice*> devices_;  // the store's
  CrashStoreOptions options_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_CRASH_FAULT_RIG_H_
