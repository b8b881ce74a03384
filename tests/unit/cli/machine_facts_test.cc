#include "client/cli/doctor/machine_facts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/units.h"

namespace kavern::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;

// A directory that stands for the root of a machine's file systems.
class MachineFactsTest : public ::testing::Test {
 protected:
  MachineFactsTest() {
    std::string path = (fs::temp_directory_path() / "kavern-doctor-XXXXXX").string();
    root_ = mkdtemp(path.data());
  }
  ~MachineFactsTest() override { fs::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ + path).substr(0, (root_ + path).rfind('/')));
    std::ofstream(root_ + path) << text;
  }
  MachineFacts Read(std::uint64_t daemon_pid = 0) {
    return ReadMachineFacts(root_, root_, daemon_pid);
  }

  std::string root_;
};

TEST_F(MachineFactsTest, ReadsTheFilesOfAMachine) {
  Write("/proc/sys/kernel/osrelease", "5.15.0-91-generic\n");
  Write("/proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu sse4_2 avx2\nbugs\t: none\n");
  Write("/proc/meminfo",
        "MemTotal:       16384 kB\nMemFree: 1 kB\nMemAvailable:    8192 kB\nSwapTotal:  1024 kB\n");
  Write("/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "always within_size advise [never] deny force\n");
  Write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "12\n");
  Write("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "5\n");
  Write("/proc/sys/kernel/io_uring_disabled", "1\n");
  Write("/proc/self/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max open files            1024                 4096                 files     \n"
        "Max locked memory         8388608              unlimited            bytes     \n");
  const MachineFacts facts = Read();
  EXPECT_EQ(facts.kernel.release, "5.15.0-91-generic");
  EXPECT_EQ(facts.kernel.major, 5);
  EXPECT_EQ(facts.kernel.minor, 15);
  EXPECT_TRUE(facts.processor.x86);
  EXPECT_THAT(facts.processor.flags, Contains("avx2"));
  EXPECT_EQ(facts.memory.total_bytes, 16 * kMiB);
  EXPECT_EQ(facts.memory.available_bytes, 8 * kMiB);
  EXPECT_EQ(facts.memory.swap_bytes, kMiB);
  EXPECT_EQ(facts.huge_pages.shmem_enabled, "never");
  EXPECT_EQ(facts.huge_pages.pool_pages, 12u);
  EXPECT_EQ(facts.huge_pages.pool_free_pages, 5u);
  EXPECT_EQ(facts.io_uring.disabled, 1);
  EXPECT_EQ(facts.limits.owner, "this shell");
  EXPECT_EQ(facts.limits.open_files_hard, 4096u);
  EXPECT_EQ(facts.limits.memlock_soft_bytes, 8 * kMiB);
}

TEST_F(MachineFactsTest, KeepsTheTightestCgroupLimitUpToTheRoot) {
  // Version 2: the group itself has none, its parent 4 MiB, the root 8 MiB.
  Write("/proc/self/cgroup", "0::/kube/pod/worker\n");
  Write("/sys/fs/cgroup/kube/pod/worker/memory.max", "max\n");
  Write("/sys/fs/cgroup/kube/pod/memory.max", "4194304\n");
  Write("/sys/fs/cgroup/memory.max", "8388608\n");
  const MachineFacts facts = Read();
  EXPECT_EQ(facts.memory.cgroup_limit_bytes, 4 * kMiB);
  EXPECT_EQ(facts.memory.cgroup_file, root_ + "/sys/fs/cgroup/kube/pod/memory.max");
}

TEST_F(MachineFactsTest, ReadsACgroupOfVersionOneAndTakesAHugeNumberForNone) {
  Write("/proc/self/cgroup", "5:cpu:/\n4:memory,hugetlb:/docker/7\n0::/\n");
  Write("/sys/fs/cgroup/memory/docker/7/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(Read().memory.cgroup_limit_bytes, std::nullopt);
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n");
  EXPECT_EQ(Read().memory.cgroup_limit_bytes, kMiB);
}

TEST_F(MachineFactsTest, TakesTheLimitsOfTheDaemonAndOfNoOtherProcessWithItsNumber) {
  Write("/proc/self/limits",
        "Max open files            1                 2                 files\n");
  Write("/proc/17/limits", "Max open files            3                 4                 files\n");
  Write("/proc/17/comm", "bash\n");
  EXPECT_EQ(Read(17).limits.open_files_hard, 2u);
  Write("/proc/17/comm", "kavernd\n");
  EXPECT_EQ(Read(17).limits.open_files_hard, 4u);
  EXPECT_EQ(Read(17).limits.owner, "kavernd (pid 17)");
}

TEST_F(MachineFactsTest, SurvivesAMachineWithoutAnyOfTheFiles) {
  const MachineFacts facts = Read(17);
  EXPECT_EQ(facts.memory.total_bytes, 0u);
  EXPECT_EQ(facts.memory.cgroup_limit_bytes, std::nullopt);
  EXPECT_EQ(facts.huge_pages.shmem_enabled, "");
  EXPECT_EQ(facts.limits.owner, "this shell");
}

TEST_F(MachineFactsTest, SurvivesRubbishInTheFiles) {
  const std::string rubbish =
      std::string("]max[ :::\n") + '\0' + "\xff 0:x\n::\n1:memory:relative/path\n";
  for (const char* path :
       {"/proc/sys/kernel/osrelease", "/proc/cpuinfo", "/proc/meminfo", "/proc/self/cgroup",
        "/proc/self/limits", "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "/proc/sys/kernel/io_uring_disabled"}) {
    Write(path, rubbish);
  }
  const MachineFacts facts = Read();
  EXPECT_EQ(facts.memory.total_bytes, 0u);
  EXPECT_EQ(facts.memory.cgroup_limit_bytes, std::nullopt);
  EXPECT_EQ(facts.huge_pages.shmem_enabled, "");
}

TEST_F(MachineFactsTest, LeavesNothingInTheDirectoryThatItTried) {
  const MachineFacts facts = Read();
  EXPECT_EQ(facts.disk.error, "");
  EXPECT_GT(facts.disk.free_bytes, 0u);
  EXPECT_TRUE(fs::is_empty(root_));
  EXPECT_NE(ReadMachineFacts("", root_ + "/missing", 0).disk.error, "");
}

}  // namespace
}  // namespace kavern::cli
