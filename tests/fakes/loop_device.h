// A loop device of one test's own, as a disk of the machine.
#ifndef KAVERN_TESTS_FAKES_LOOP_DEVICE_H_
#define KAVERN_TESTS_FAKES_LOOP_DEVICE_H_

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace kavern {

// Gone when it is destroyed and nobody else has it open.
class LoopDevice {
 public:
  // Over a file that is there, in sectors of 4 KiB. Fails where the system lets nobody make one.
  static absl::StatusOr<LoopDevice> Over(const std::string& file) {
    const UniqueFd control(open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    if (!control.valid()) return ErrnoStatus(errno, "/dev/loop-control");
    const UniqueFd backing(open(file.c_str(), O_RDWR | O_CLOEXEC));
    if (!backing.valid()) return ErrnoStatus(errno, file);
    loop_config config = {};
    config.fd = static_cast<std::uint32_t>(backing.get());
    config.block_size = 4096;
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    for (int tries_left = 100;; --tries_left) {
      const int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
      if (number < 0) return ErrnoStatus(errno, "/dev/loop-control");
      std::string path = "/dev/loop" + std::to_string(number);
      UniqueFd loop(open(path.c_str(), O_RDWR | O_CLOEXEC));
      if (!loop.valid()) return ErrnoStatus(errno, path);
      if (ioctl(loop.get(), LOOP_CONFIGURE, &config) == 0) {
        return LoopDevice(std::move(path), std::move(loop));
      }
      // Busy: a test beside this one was told of the same, and was faster.
      if (errno != EBUSY || tries_left == 0) return ErrnoStatus(errno, path);
    }
  }

  const std::string& path() const { return path_; }

 private:
  LoopDevice(std::string path, UniqueFd loop) : path_(std::move(path)), loop_(std::move(loop)) {}

  std::string path_;
  UniqueFd loop_;
};

}  // namespace kavern

#endif  // KAVERN_TESTS_FAKES_LOOP_DEVICE_H_
