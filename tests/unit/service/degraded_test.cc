// Every degraded mode is told by a sentence, logged by its name, and has a metric; a healthy daemon
// has none. Says nothing about when the store reports them.
#include "service/degraded.h"

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "service/node_metrics.h"

namespace kavern::service {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr char kDevice[] = "/dev/disk/by-path/pci-0000:01:00.0-nvme-1";

tiers::StoreStatus Healthy() {
  tiers::StoreStatus status;
  status.pool.capacity_bytes = 64 << 20;
  status.pool.existing_bytes = 64 << 20;
  status.pool.ready_bytes = 1 << 20;
  status.pool.huge_page_bytes = 64 << 20;
  status.disk.configured = true;
  status.disk.method = "io_uring";
  tiers::DeviceFacts device;
  device.path = kDevice;
  device.method = "io_uring";
  device.io.registered_bytes = 64 << 20;
  status.disk.devices = {device};
  return status;
}

// Values by family, and where there are labels by the last of them: "family value-of-label".
std::map<std::string, double> SamplesOf(const std::vector<prometheus::MetricFamily>& families) {
  std::map<std::string, double> samples;
  for (const prometheus::MetricFamily& family : families) {
    for (const prometheus::ClientMetric& metric : family.metric) {
      std::string name = family.name;
      if (!metric.label.empty()) name += " " + metric.label.back().value;
      samples[name] = metric.gauge.value;
    }
  }
  return samples;
}

TEST(DegradedTest, AHealthyDaemonIsNot) {
  EXPECT_THAT(Degradations({}, Healthy()), IsEmpty());
  const auto samples = SamplesOf(DegradedMetrics({}));
  EXPECT_EQ(samples.at("kavern_degraded"), 0);
  EXPECT_THAT(samples, SizeIs(1));
}

struct Mode {
  const char* name;
  std::function<void(tiers::StoreStatus&)> breaks;
  std::string what;
  const char* detail;
  // Of the store's own metrics, if it has one: what a healthy daemon has there, and this one.
  std::string metric = {};
  double healthy = 0;
  double degraded = 0;
};

class DegradedModeTest : public testing::TestWithParam<Mode> {};

TEST_P(DegradedModeTest, IsToldAndMeasuredByItsName) {
  const Mode& mode = GetParam();
  tiers::StoreStatus status = Healthy();
  if (!mode.metric.empty()) {
    EXPECT_EQ(SamplesOf(StoreMetrics(status, {})).at(mode.metric), mode.healthy);
  }
  mode.breaks(status);
  const std::vector<Degradation> found = Degradations({}, status);
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_EQ(found[0].what, mode.what);
  EXPECT_THAT(found[0].detail, HasSubstr(mode.detail));
  EXPECT_EQ(found[0].Sentence(), mode.what + ": " + found[0].detail);
  const auto samples = SamplesOf(DegradedMetrics(found));
  EXPECT_EQ(samples.at("kavern_degraded"), 1);
  EXPECT_EQ(samples.at("kavern_degraded_feature " + mode.what), 1);
  if (!mode.metric.empty()) {
    EXPECT_EQ(SamplesOf(StoreMetrics(status, {})).at(mode.metric), mode.degraded);
  }
}

std::vector<Mode> Modes() {
  using Status = tiers::StoreStatus;
  return {
      {"Ram", [](Status& s) { s.pool.waiting_for = "memory"; }, "ram",
       "64 MiB of 64 MiB populated; waiting for memory", "kavern_ram_waiting", 0, 1},
      {"HugePages", [](Status& s) { s.pool.huge_page_bytes = 0; }, "ram.huge_pages",
       "copies are slower", "kavern_ram_huge_page_bytes", 64 << 20, 0},
      {"Nvme", [](Status& s) { s.disk.failure = "every device failed"; }, "nvme",
       "out of use: every device failed"},
      {"Catalog", [](Status& s) { s.disk.catalog_failure = "No space left"; }, "nvme.catalog",
       "until the next start: No space left", "kavern_nvme_catalog_healthy", 1, 0},
      {"Segments", [](Status& s) { s.disk.unreadable_segments = 3; }, "nvme segments",
       "3 cannot be read", "kavern_nvme_unreadable_segments", 0, 3},
      {"Threads", [](Status& s) { s.disk.method = "threads"; }, "nvme.io", "threads take over"},
      {"Budget",
       [](Status& s) {
         s.disk.waits_for_budget = true;
         s.disk.write_back_blocks = 7;
       },
       "nvme.write_budget", "7 blocks wait in RAM", "kavern_nvme_waits_for_write_budget", 0, 1},
      {"Device",
       [](Status& s) {
         s.disk.devices[0].healthy = false;
         s.disk.devices[0].last_error = "Input/output error";
       },
       std::string("nvme device ") + kDevice, "misses: Input/output error",
       std::string("kavern_nvme_device_healthy ") + kDevice, 1, 0},
      {"Registration",
       [](Status& s) {
         s.disk.devices[0].io.registration_refusal = "Cannot allocate memory";
         s.disk.devices[0].io.registered_bytes = 0;
       },
       std::string("nvme registration on ") + kDevice, "processor time: Cannot allocate memory",
       "kavern_nvme_registered_bytes", 64 << 20, 0},
      {"Recovery", [](Status& s) { s.disk.recovering = true; }, "nvme recovery", "still being read",
       "kavern_nvme_recovering", 0, 1},
      {"Directory", [](Status& s) { s.namespaces_degraded = 2; }, "directory",
       "2 namespaces lack keys"},
  };
}

INSTANTIATE_TEST_SUITE_P(Modes, DegradedModeTest, testing::ValuesIn(Modes()),
                         [](const auto& mode) { return std::string(mode.param.name); });

TEST(DegradedTest, WhatWasConfiguredSoIsNotDegraded) {
  DaemonConfig config;
  config.nvme.io = "threads";
  config.ram.huge_pages = "off";
  tiers::StoreStatus status = Healthy();
  status.disk.method = "threads";
  status.pool.huge_page_bytes = 0;
  EXPECT_THAT(Degradations(config, status), IsEmpty());
  status.disk = {};                                  // no NVMe tier at all
  EXPECT_THAT(Degradations({}, status), SizeIs(1));  // its huge pages
}

std::vector<std::string> NamesOf(const std::vector<Degradation>& all) {
  std::vector<std::string> names;
  for (const Degradation& one : all) names.push_back(one.what);
  return names;
}

// A path may have colons, as those by bus have: the second device is logged like the first.
TEST(DegradedTest, EachDeviceBeginsAndEndsByItself) {
  tiers::StoreStatus status = Healthy();
  tiers::DeviceFacts other = status.disk.devices[0];
  other.path = "/dev/disk/by-path/pci-0000:02:00.0-nvme-1";
  status.disk.devices.push_back(other);
  const auto none = Degradations({}, status);
  status.disk.devices[0].healthy = false;
  const auto one = Degradations({}, status);
  status.disk.devices[1].healthy = false;
  const auto both = Degradations({}, status);
  EXPECT_THAT(NamesOf(NotAmong(one, none)), ElementsAre(std::string("nvme device ") + kDevice));
  EXPECT_THAT(NamesOf(NotAmong(both, one)), ElementsAre("nvme device " + other.path));
  EXPECT_THAT(NamesOf(NotAmong(both, both)), IsEmpty());
  EXPECT_THAT(NamesOf(NotAmong(both, none)), SizeIs(2));
}

// The numbers of a sentence move while it lasts.
TEST(DegradedTest, AChangedNumberIsNoNews) {
  tiers::StoreStatus status = Healthy();
  status.disk.waits_for_budget = true;
  const auto before = Degradations({}, status);
  status.disk.write_back_blocks = 100;
  EXPECT_THAT(NotAmong(Degradations({}, status), before), IsEmpty());
}

}  // namespace
}  // namespace kavern::service
