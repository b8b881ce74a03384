#include "tiers/ram/memory_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "base/units.h"

namespace kavern::tiers {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Optional;

// A directory that stands for the root of a machine with 64 GiB, 48 of them available.
class MemoryLimits : public ::testing::Test {
 protected:
  MemoryLimits() {
    std::string name = (std::filesystem::temp_directory_path() / "memory_limits_XXXXXX").string();
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
    Write("/proc/meminfo",
          "MemTotal:       67108864 kB\n"
          "MemFree:         1048576 kB\n"
          "MemAvailable:   50331648 kB\n");
  }
  ~MemoryLimits() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::string file = root_ + path;
    std::filesystem::create_directories(std::filesystem::path(file).parent_path());
    std::ofstream(file) << text;
  }

  MemoryFacts Read() {
    const auto facts = ReadMemoryFacts(root_);
    EXPECT_TRUE(facts.ok()) << facts.status();
    return facts.value_or(MemoryFacts());
  }

  std::string root_;
};

TEST_F(MemoryLimits, AMachineWithoutCgroupsHasNoLimitButItsMemory) {
  const MemoryFacts facts = Read();
  EXPECT_EQ(facts.machine_total_bytes, 64 * kGiB);
  EXPECT_EQ(facts.machine_available_bytes, 48 * kGiB);
  EXPECT_EQ(facts.cgroup_limit_bytes, std::nullopt);
  EXPECT_EQ(facts.cgroup_free_bytes, std::nullopt);
}

TEST_F(MemoryLimits, AMachineWithoutMeminfoIsAnErrorAndNotOneWithoutMemory) {
  Write("/proc/meminfo", "");
  EXPECT_EQ(ReadMemoryFacts(root_).status().code(), absl::StatusCode::kInternal);
  Write("/proc/meminfo", "MemTotal: many kB\nMemAvailable");
  EXPECT_EQ(ReadMemoryFacts(root_).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(ReadMemoryFacts(root_ + "/nowhere").status().code(), absl::StatusCode::kInternal);
}

TEST_F(MemoryLimits, Version2LimitIsReadWithWhatIsFreeBelowIt) {
  Write("/proc/self/cgroup", "0::/system.slice/kavernd.service\n");
  const std::string group = "/sys/fs/cgroup/system.slice/kavernd.service/";
  Write(group + "memory.max", "8589934592\n");
  Write(group + "memory.current", "3221225472\n");
  // The first gibibyte is page cache: the kernel takes it back when it is needed.
  Write(group + "memory.stat", "anon 2147483648\ninactive_file 1073741824\nactive_file 7\n");
  const MemoryFacts facts = Read();
  EXPECT_THAT(facts.cgroup_limit_bytes, Optional(8 * kGiB));
  EXPECT_THAT(facts.cgroup_free_bytes, Optional(6 * kGiB));
  EXPECT_THAT(facts.cgroup_path, EndsWith("/kavernd.service/memory.max"));
}

TEST_F(MemoryLimits, TheTightestLimitOnTheWayUpCountsAndSoDoesTheLeastFree) {
  Write("/proc/self/cgroup", "0::/pod/worker/kavernd\n");
  const std::string mount = "/sys/fs/cgroup";
  Write(mount + "/pod/worker/kavernd/memory.max", "34359738368\n");
  Write(mount + "/pod/worker/kavernd/memory.current", "1073741824\n");
  Write(mount + "/pod/worker/memory.max", "max\n");
  // A wider limit than the one below has less left under it, because siblings use it.
  Write(mount + "/pod/memory.max", "51539607552\n");
  Write(mount + "/pod/memory.current", "49392123904\n");
  const MemoryFacts facts = Read();
  EXPECT_THAT(facts.cgroup_limit_bytes, Optional(32 * kGiB));
  EXPECT_THAT(facts.cgroup_path, EndsWith("/pod/worker/kavernd/memory.max"));
  EXPECT_THAT(facts.cgroup_free_bytes, Optional(2 * kGiB));
}

// In a container with the host's /proc/self/cgroup, the path does not exist below the mount; the
// container's own group is the mount's root.
TEST_F(MemoryLimits, AContainerFindsItsLimitAtTheMount) {
  Write("/proc/self/cgroup", "0::/kubepods/burstable/pod1/abcdef\n");
  Write("/sys/fs/cgroup/memory.max", "17179869184\n");
  Write("/sys/fs/cgroup/memory.current", "4096\n");
  EXPECT_THAT(Read().cgroup_limit_bytes, Optional(16 * kGiB));
  Write("/proc/self/cgroup", "0::/\n");
  EXPECT_THAT(Read().cgroup_limit_bytes, Optional(16 * kGiB));
}

TEST_F(MemoryLimits, Version1AndHybridReadTheMemoryController) {
  Write("/proc/self/cgroup",
        "12:cpu,cpuacct:/jobs\n"
        "7:memory:/jobs/kavernd\n"
        "0::/jobs\n");
  Write("/sys/fs/cgroup/memory/jobs/kavernd/memory.limit_in_bytes", "9223372036854771712\n");
  Write("/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "12884901888\n");
  Write("/sys/fs/cgroup/memory/jobs/memory.usage_in_bytes", "5368709120\n");
  Write("/sys/fs/cgroup/memory/jobs/memory.stat",
        "inactive_file 1\ntotal_inactive_file 1073741824\n");
  const MemoryFacts facts = Read();
  EXPECT_THAT(facts.cgroup_limit_bytes, Optional(12 * kGiB));
  EXPECT_THAT(facts.cgroup_free_bytes, Optional(8 * kGiB));
  EXPECT_THAT(facts.cgroup_path, EndsWith("/jobs/memory.limit_in_bytes"));
}

TEST_F(MemoryLimits, MoreUsedThanAllowedLeavesNothingFreeAndDoesNotWrapAround) {
  Write("/proc/self/cgroup", "0::/k\n");
  Write("/sys/fs/cgroup/k/memory.max", "1073741824\n");
  Write("/sys/fs/cgroup/k/memory.current", "2147483648\n");
  EXPECT_THAT(Read().cgroup_free_bytes, Optional(0U));
  // More cache than use: the two were read one after the other.
  Write("/sys/fs/cgroup/k/memory.stat", "inactive_file 4294967296\n");
  EXPECT_THAT(Read().cgroup_free_bytes, Optional(kGiB));
}

TEST_F(MemoryLimits, LinesThatNoKernelWritesMeanNoLimit) {
  for (const char* text :
       {"", "\n\n", "0::", "0::relative/path", "0", ":::", "0:memory",
        "x:memory:", "1:memory:no/slash", "0::/../../..", "0::////", "\xff\xfe:\x01:\x02"}) {
    Write("/proc/self/cgroup", text);
    Write("/sys/fs/cgroup/k/memory.max", "1");
    EXPECT_EQ(Read().cgroup_limit_bytes, std::nullopt) << "\"" << text << "\"";
  }
  Write("/proc/self/cgroup", "0::/k\n");
  for (const char* limit : {"", "max", "maximum\n", "-1", "99999999999999999999999", "1.5"}) {
    Write("/sys/fs/cgroup/k/memory.max", limit);
    EXPECT_EQ(Read().cgroup_limit_bytes, std::nullopt) << "\"" << limit << "\"";
  }
}

TEST(ReadMemoryFacts, ReadsTheRealMachine) {
  const auto facts = ReadMemoryFacts();
  ASSERT_TRUE(facts.ok()) << facts.status();
  EXPECT_GT(facts->machine_total_bytes, 64 * kMiB);
  EXPECT_LE(facts->machine_available_bytes, facts->machine_total_bytes);
}

TEST(CheckCapacity, RefusesWhatCanNeverFitAndSaysTheNumbers) {
  MemoryFacts facts;
  facts.machine_total_bytes = 64 * kGiB;
  facts.machine_available_bytes = 0;  // in use at the moment: no reason
  EXPECT_TRUE(CheckCapacity(facts, 62 * kGiB, 2 * kGiB).ok());
  const absl::Status machine = CheckCapacity(facts, 62 * kGiB + 1, 2 * kGiB);
  EXPECT_EQ(machine.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(machine.message()), HasSubstr("2 GiB of reserve do not fit"));
  EXPECT_THAT(std::string(machine.message()), HasSubstr("the machine's memory, 64 GiB"));

  facts.cgroup_limit_bytes = 8 * kGiB;
  facts.cgroup_free_bytes = 0;
  facts.cgroup_path = "/sys/fs/cgroup/k/memory.max";
  EXPECT_TRUE(CheckCapacity(facts, 7 * kGiB, kGiB).ok());
  const absl::Status group = CheckCapacity(facts, 8 * kGiB, kGiB);
  EXPECT_EQ(group.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(group.message()),
      HasSubstr(
          "ram.capacity: 8 GiB and 1 GiB of reserve do not fit into the memory cgroup's limit "
          "(/sys/fs/cgroup/k/memory.max), 8 GiB"));
}

TEST(CheckCapacity, SumsBeyond64BitsDoNotWrapAround) {
  MemoryFacts facts;
  facts.machine_total_bytes = 64 * kGiB;
  EXPECT_FALSE(CheckCapacity(facts, UINT64_MAX, 1).ok());
  EXPECT_FALSE(CheckCapacity(facts, 1, UINT64_MAX).ok());
  EXPECT_FALSE(CheckCapacity(facts, UINT64_MAX, UINT64_MAX).ok());
}

TEST(PopulatableBytes, IsTheLessOfMachineAndCgroupBesideTheReserve) {
  MemoryFacts facts;
  facts.machine_total_bytes = 64 * kGiB;
  facts.machine_available_bytes = 10 * kGiB;
  EXPECT_EQ(PopulatableBytes(facts, kGiB), 9 * kGiB);
  facts.cgroup_free_bytes = 4 * kGiB;
  EXPECT_EQ(PopulatableBytes(facts, kGiB), 3 * kGiB);
  EXPECT_EQ(PopulatableBytes(facts, 4 * kGiB), 0U);
  EXPECT_EQ(PopulatableBytes(facts, UINT64_MAX), 0U);
}

}  // namespace
}  // namespace kavern::tiers
