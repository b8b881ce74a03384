#include "service/degraded.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "base/units.h"

namespace kavern::service {
namespace {

void AddRam(const DaemonConfig& config, const tiers::StoreStatus& status,
            std::vector<Degradation>& all) {
  const tiers::RegionPool::Status& pool = status.pool;
  if (!pool.waiting_for.empty()) {
    all.push_back({"ram", absl::StrCat(FormatBytes(pool.existing_bytes), " of ",
                                       FormatBytes(pool.capacity_bytes), " populated; waiting for ",
                                       pool.waiting_for)});
  }
  if (config.ram.huge_pages != "off" && pool.ready_bytes > 0 && pool.huge_page_bytes == 0) {
    all.push_back(
        {"ram.huge_pages", "the kernel gives none, copies are slower; see kavern doctor"});
  }
}

void AddDevice(const tiers::DeviceFacts& device, std::vector<Degradation>& all) {
  if (!device.healthy) {
    all.push_back({absl::StrCat("nvme device ", device.path),
                   absl::StrCat("out of use, its blocks are misses: ", device.last_error)});
  }
  if (!device.io.registration_refusal.empty()) {
    all.push_back(
        {absl::StrCat("nvme registration on ", device.path),
         absl::StrCat("I/O costs more processor time: ", device.io.registration_refusal)});
  }
}

void AddDisk(const DaemonConfig& config, const tiers::DiskStatus& disk,
             std::vector<Degradation>& all) {
  if (!disk.failure.empty()) {
    all.push_back({"nvme", absl::StrCat("out of use: ", disk.failure)});
  }
  if (!disk.catalog_failure.empty()) {
    all.push_back(
        {"nvme.catalog",
         absl::StrCat("nothing new is kept on disk until the next start: ", disk.catalog_failure)});
  }
  if (disk.unreadable_segments > 0) {
    all.push_back({"nvme segments", absl::StrCat(disk.unreadable_segments,
                                                 " cannot be read, their blocks are misses")});
  }
  if (disk.configured && config.nvme.io == "auto" && disk.method != "io_uring") {
    all.push_back({"nvme.io", "the kernel refuses io_uring, threads take over; see kavern doctor"});
  }
  if (disk.waits_for_budget) {
    all.push_back({"nvme.write_budget",
                   absl::StrCat("used up; ", disk.write_back_blocks, " blocks wait in RAM")});
  }
  for (const tiers::DeviceFacts& device : disk.devices) AddDevice(device, all);
  if (disk.recovering) all.push_back({"nvme recovery", "what is on disk is still being read"});
}

}  // namespace

std::vector<Degradation> Degradations(const DaemonConfig& config,
                                      const tiers::StoreStatus& status) {
  std::vector<Degradation> all;
  AddRam(config, status, all);
  AddDisk(config, status.disk, all);
  if (status.namespaces_degraded > 0) {
    all.push_back({"directory", absl::StrCat(status.namespaces_degraded,
                                             " namespaces lack keys in theirs, which match as "
                                             "misses")});
  }
  return all;
}

std::vector<Degradation> NotAmong(std::span<const Degradation> these,
                                  std::span<const Degradation> others) {
  std::vector<Degradation> result;
  std::copy_if(these.begin(), these.end(), std::back_inserter(result), [&](const auto& one) {
    return std::none_of(others.begin(), others.end(),
                        [&](const Degradation& other) { return other.what == one.what; });
  });
  return result;
}

}  // namespace kavern::service
