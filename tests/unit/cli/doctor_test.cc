#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <string>
#include <vector>

#include "base/units.h"
#include "client/cli/doctor/checks.h"

namespace kavern::cli {
namespace {

using ::testing::HasSubstr;

// A machine on which nothing is to be done.
MachineFacts GoodMachine() {
  MachineFacts facts;
  facts.kernel.release = "6.1.0-18-amd64";
  facts.kernel.major = 6;
  facts.kernel.minor = 1;
  facts.processor.x86 = true;
  facts.processor.flags = {"sse4_2", "pclmulqdq", "avx2", "avx512f"};
  facts.memory.total_bytes = 64 * kGiB;
  facts.memory.available_bytes = 60 * kGiB;
  facts.huge_pages.shmem_enabled = "advise";
  facts.io_uring.disabled = 0;
  facts.limits.owner = "kavernd (pid 17)";
  facts.limits.open_files_hard = 1048576;
  facts.limits.memlock_soft_bytes = kUnlimited;
  facts.disk.directory = "/var/tmp";
  facts.disk.free_bytes = 100 * kGiB;
  DiskSpeed speed;
  speed.file_system = "ext4";
  speed.read_bytes_per_second = 3e9;
  speed.write_bytes_per_second = 2e9;
  speed.flush_p50_seconds = 0.0005;
  speed.flush_p99_seconds = 0.002;
  facts.disk.speed = speed;
  facts.daemon.address = "unix:///run/kavern/kavern.sock";
  facts.daemon.version = "1.2.3";
  facts.daemon.ready = true;
  return facts;
}

Check Judge(const MachineFacts& facts, const std::string& name, std::uint64_t ram_bytes = 0) {
  for (Check& check : JudgeMachine(facts, ram_bytes)) {
    if (check.name == name) return check;
  }
  ADD_FAILURE() << "no check called " << name;
  return {};
}

TEST(Doctor, AGoodMachineGetsNoAdviceAndEveryCheckSaysWhyItMatters) {
  const std::vector<Check> checks = JudgeMachine(GoodMachine(), 32 * kGiB);
  EXPECT_EQ(checks.size(), 16u);
  for (const Check& check : checks) {
    EXPECT_EQ(check.result, CheckResult::kOk) << check.name << ": " << check.found;
    EXPECT_EQ(check.advice, "") << check.name;
    EXPECT_NE(check.found, "") << check.name;
    EXPECT_NE(check.matters, "") << check.name;
  }
}

struct Illness {
  const char* name;  // of the test
  void (*change)(MachineFacts&);
  const char* check;
  CheckResult result;
  const char* found;
  const char* advice;
};

class DoctorFinds : public ::testing::TestWithParam<Illness> {};

TEST_P(DoctorFinds, TheOneThingThatIsWrong) {
  // A good machine with one change: its check says so and what to do, and no other check changes.
  const Illness& illness = GetParam();
  MachineFacts facts = GoodMachine();
  illness.change(facts);
  for (const Check& check : JudgeMachine(facts, 0)) {
    if (check.name != illness.check) {
      EXPECT_EQ(check.result, CheckResult::kOk) << check.name << ": " << check.found;
      continue;
    }
    EXPECT_EQ(check.result, illness.result);
    EXPECT_THAT(check.found, HasSubstr(illness.found));
    EXPECT_THAT(check.advice, HasSubstr(illness.advice));
    EXPECT_NE(check.advice, "");
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, DoctorFinds,
    ::testing::Values(
        Illness{"KernelTooOld",
                [](MachineFacts& facts) {
                  facts.kernel.release = "4.19.0";
                  facts.kernel.major = 4;
                  facts.kernel.minor = 19;
                },
                "kernel", CheckResult::kFail, "4.19.0", "5.3"},
        Illness{"KernelWithoutCollapse",
                [](MachineFacts& facts) {
                  facts.kernel.release = "5.15.0";
                  facts.kernel.major = 5;
                  facts.kernel.minor = 15;
                },
                "kernel", CheckResult::kWarn, "5.15.0", "6.1"},
        Illness{"PidfdFiltered", [](MachineFacts& facts) { facts.kernel.pidfd_error = EPERM; },
                "pidfd", CheckResult::kFail, "no pidfd", "pidfd_open"},
        Illness{"NoSeals", [](MachineFacts& facts) { facts.kernel.memfd_error = "sealing failed"; },
                "shared memory", CheckResult::kFail, "sealing failed", "F_SEAL_FUTURE_WRITE"},
        Illness{"NoAvx2", [](MachineFacts& facts) { facts.processor.flags.erase("avx2"); }, "cpu",
                CheckResult::kWarn, "lacks avx2", "-cpu host"},
        Illness{"ForeignProcessor",
                [](MachineFacts& facts) {
                  facts.processor.x86 = false;
                  facts.processor.flags = {"asimd"};
                },
                "cpu", CheckResult::kWarn, "portable", "memcpy"},
        Illness{"TinyCgroup",
                [](MachineFacts& facts) {
                  facts.memory.cgroup_limit_bytes = 512 * kMiB;
                  facts.memory.cgroup_file = "/sys/fs/cgroup/memory.max";
                },
                "memory", CheckResult::kFail, "512 MiB (/sys/fs/cgroup/memory.max)", "MemoryMax"},
        Illness{"NoMeminfo", [](MachineFacts& facts) { facts.memory = {}; }, "memory",
                CheckResult::kFail, "/proc/meminfo", "/proc"},
        Illness{"Swap", [](MachineFacts& facts) { facts.memory.swap_bytes = 2 * kGiB; }, "swap",
                CheckResult::kWarn, "2 GiB", "swapoff"},
        Illness{"HugePagesOff",
                [](MachineFacts& facts) {
                  facts.huge_pages.shmem_enabled = "never";
                  facts.huge_pages.collapse_error = EINVAL;
                },
                "huge pages", CheckResult::kWarn, "never", "shmem_enabled"},
        Illness{"HugePagesFragmented",
                [](MachineFacts& facts) { facts.huge_pages.collapse_error = ENOMEM; }, "huge pages",
                CheckResult::kWarn, "MADV_COLLAPSE", "compact_memory"},
        Illness{"MemlockLow",
                [](MachineFacts& facts) { facts.limits.memlock_soft_bytes = 8 * kMiB; }, "memlock",
                CheckResult::kWarn, "8 MiB for kavernd (pid 17)", "LimitMEMLOCK"},
        Illness{"OpenFilesLow", [](MachineFacts& facts) { facts.limits.open_files_hard = 4096; },
                "open files", CheckResult::kWarn, "4096", "LimitNOFILE"},
        Illness{"OpenFilesTooLow", [](MachineFacts& facts) { facts.limits.open_files_hard = 256; },
                "open files", CheckResult::kFail, "256", "LimitNOFILE"},
        Illness{"UringFiltered", [](MachineFacts& facts) { facts.io_uring.setup_error = EPERM; },
                "io_uring", CheckResult::kWarn, "io_uring_setup", "seccomp"},
        Illness{"UringDisabled",
                [](MachineFacts& facts) {
                  facts.io_uring.setup_error = EPERM;
                  facts.io_uring.disabled = 2;
                },
                "io_uring", CheckResult::kWarn, "io_uring_disabled is 2", "sysctl"},
        Illness{"NoUring",
                [](MachineFacts& facts) {
                  facts.io_uring.setup_error = ENOSYS;
                  facts.io_uring.disabled.reset();
                },
                "io_uring", CheckResult::kWarn, "io_uring_setup", "CONFIG_IO_URING"},
        Illness{"DiskUnwritable", [](MachineFacts& facts) { facts.disk.error = "no such file"; },
                "disk", CheckResult::kWarn, "no such file", "--dir"},
        Illness{"ChosenDiskUnwritable",
                [](MachineFacts& facts) {
                  facts.disk.error = "no such file";
                  facts.disk.chosen = true;
                },
                "disk", CheckResult::kFail, "no such file", "--dir"},
        Illness{"NoDirectIo", [](MachineFacts& facts) { facts.disk.direct_io_error = EINVAL; },
                "disk", CheckResult::kWarn, "O_DIRECT", "--dir"},
        Illness{"DiskFull", [](MachineFacts& facts) { facts.disk.free_bytes = kMiB; }, "disk",
                CheckResult::kWarn, "1 MiB free", "--dir"},
        Illness{"DiskSlowerThanRecompute",
                [](MachineFacts& facts) { facts.disk.speed->read_bytes_per_second = 2e8; },
                "disk speed", CheckResult::kWarn, "reads 0.20 GB/s", "faster disk"},
        Illness{"DiskFlushesSlowly",
                [](MachineFacts& facts) { facts.disk.speed->flush_p99_seconds = 0.25; },
                "disk flush", CheckResult::kWarn, "250.00 ms (p99)", "nvme.batch_interval"},
        Illness{"DiskWithoutUring",
                [](MachineFacts& facts) { facts.disk.speed->uring_error = EOPNOTSUPP; },
                "disk io_uring", CheckResult::kWarn, "an O_DIRECT read fails", "ext4"},
        Illness{"BuffersCannotBeRegistered",
                [](MachineFacts& facts) { facts.disk.speed->register_error = ENOMEM; },
                "disk io_uring", CheckResult::kWarn, "registering 64 MiB", "LimitMEMLOCK"},
        Illness{"DaemonAbsent",
                [](MachineFacts& facts) {
                  facts.daemon.error = "nobody listens";
                  facts.daemon.absent = true;
                },
                "daemon", CheckResult::kWarn, "nobody listens", "systemctl start"},
        Illness{"DaemonRefuses",
                [](MachineFacts& facts) { facts.daemon.error = "uid 7 is no tenant"; }, "daemon",
                CheckResult::kFail, "uid 7 is no tenant", "journalctl"},
        Illness{"DaemonNotReady", [](MachineFacts& facts) { facts.daemon.ready = false; }, "daemon",
                CheckResult::kWarn, "not ready", "Wait"},
        Illness{
            "DaemonDegraded",
            [](MachineFacts& facts) { facts.daemon.degraded = {"ram: 1 GiB of 4 GiB populated"}; },
            "daemon", CheckResult::kWarn, "ram: 1 GiB of 4 GiB", "OPERATIONS.md"}),
    [](const auto& illness) { return std::string(illness.param.name); });

TEST(Doctor, TheCapacityAskedForMustFitTheCgroupAndTheReserve) {
  // 64 GiB of memory, 60 available; the cgroup may use 16. One GiB stays free.
  MachineFacts facts = GoodMachine();
  EXPECT_EQ(Judge(facts, "memory", 63 * kGiB + 1).result, CheckResult::kFail);
  EXPECT_EQ(Judge(facts, "memory", 63 * kGiB).result, CheckResult::kWarn) << "not free yet";
  EXPECT_EQ(Judge(facts, "memory", 59 * kGiB).result, CheckResult::kOk);
  facts.memory.cgroup_limit_bytes = 16 * kGiB;
  EXPECT_EQ(Judge(facts, "memory", 15 * kGiB).result, CheckResult::kOk);
  const Check check = Judge(facts, "memory", 15 * kGiB + 1);
  EXPECT_EQ(check.result, CheckResult::kFail);
  EXPECT_THAT(check.advice, HasSubstr("at most 15 GiB"));
}

TEST(Doctor, AHugetlbPoolTooSmallForTheCapacityIsAWarningWithTheNumberToSet) {
  // 100 pages of 2 MiB, 40 taken by others; 256 MiB wanted: 128 pages more than those.
  MachineFacts facts = GoodMachine();
  facts.huge_pages.pool_pages = 100;
  facts.huge_pages.pool_free_pages = 60;
  EXPECT_EQ(Judge(facts, "hugetlb pool", 120 * kMiB).result, CheckResult::kOk);
  const Check check = Judge(facts, "hugetlb pool", 256 * kMiB);
  EXPECT_EQ(check.result, CheckResult::kWarn);
  EXPECT_THAT(check.advice, HasSubstr("vm.nr_hugepages=168"));
}

TEST(Doctor, ADiskThatWasNotMeasuredIsNoWarningAndOneThatCannotBeIs) {
  MachineFacts facts = GoodMachine();
  facts.disk.speed.reset();
  EXPECT_EQ(Judge(facts, "disk speed").result, CheckResult::kOk);
  EXPECT_EQ(Judge(facts, "disk flush").found, "not measured");
  facts.disk.speed.emplace().error = "too little space to measure with: 1 MiB";
  EXPECT_EQ(Judge(facts, "disk speed").result, CheckResult::kWarn);
  EXPECT_THAT(Judge(facts, "disk io_uring").found, HasSubstr("too little space"));
}

TEST(Doctor, ShmemEnabledIsEnoughOnAKernelWithoutCollapse) {
  MachineFacts facts = GoodMachine();
  facts.huge_pages.collapse_error = EINVAL;
  EXPECT_EQ(Judge(facts, "huge pages").result, CheckResult::kOk);
}

}  // namespace
}  // namespace kavern::cli
