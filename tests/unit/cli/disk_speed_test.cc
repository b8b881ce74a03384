// What `kavern doctor` does to a disk. Not how fast it is: that is the disk's.
#include "client/cli/doctor/disk_speed.h"

#include <gtest/gtest.h>
#include <sys/statvfs.h>

#include <filesystem>

#include "tests/fakes/temp_directory.h"

namespace kavern::cli {
namespace {

TEST(DiskSpeedTest, MeasuresEverythingOfASmallFileAndLeavesNothingBehind) {
  const TempDirectory directory;
  DiskSpeedOptions options;
  options.file_bytes_max = 32 << 20;
  options.patience = std::chrono::milliseconds(100);
  const DiskSpeed speed = MeasureDiskSpeed(directory.path(), options);
  if (speed.error == "Invalid argument") GTEST_SKIP() << "no direct I/O in the temporary directory";
  EXPECT_EQ(speed.error, "");
  EXPECT_NE(speed.file_system, "");
  EXPECT_GT(speed.read_bytes_per_second, 0);
  EXPECT_GT(speed.write_bytes_per_second, 0);
  EXPECT_GT(speed.flush_p50_seconds, 0);
  EXPECT_GE(speed.flush_p99_seconds, speed.flush_p50_seconds);
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

TEST(DiskSpeedTest, SaysWhyADirectoryCannotBeMeasured) {
  const TempDirectory directory;
  EXPECT_NE(MeasureDiskSpeed(directory.path() / "missing").error, "");
  DiskSpeedOptions options;
  options.file_bytes_max = 4096;
  EXPECT_NE(MeasureDiskSpeed(directory.path(), options).error.find("too little space"),
            std::string::npos);
}

}  // namespace
}  // namespace kavern::cli
