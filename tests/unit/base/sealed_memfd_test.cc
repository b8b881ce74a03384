#include "base/sealed_memfd.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kavern {
namespace {

using ::testing::HasSubstr;

constexpr std::size_t kBytes = 8192;

UniqueFd Sealed(MemfdWriters writers) {
  auto fd = CreateMemfd("sealed_memfd_test", kBytes, MemfdPages::kNormal);
  EXPECT_TRUE(fd.ok()) << fd.status();
  const absl::Status sealed = SealMemfd(fd->get(), writers);
  EXPECT_TRUE(sealed.ok()) << sealed;
  return *std::move(fd);
}

// What somebody can do who opens the descriptor anew through /proc, with rights that he was not
// given.
UniqueFd Reopened(const UniqueFd& fd) {
  UniqueFd again(open(absl::StrCat("/proc/self/fd/", fd.get()).c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_TRUE(again.valid());
  return again;
}

TEST(SealedMemfd, HasItsSizeIsZeroedAndClosedOnExec) {
  const auto fd = CreateMemfd("sealed_memfd_test", kBytes, MemfdPages::kNormal);
  ASSERT_TRUE(fd.ok()) << fd.status();
  struct stat file {};
  ASSERT_EQ(fstat(fd->get(), &file), 0);
  EXPECT_EQ(static_cast<std::size_t>(file.st_size), kBytes);
  EXPECT_NE(fcntl(fd->get(), F_GETFD) & FD_CLOEXEC, 0);
  const std::string zeroes(kBytes, '\0');
  std::string bytes(kBytes, 'x');
  ASSERT_EQ(pread(fd->get(), bytes.data(), kBytes, 0), static_cast<ssize_t>(kBytes));
  EXPECT_EQ(bytes, zeroes);
}

TEST(SealedMemfd, NobodyCanChangeItsSizeNorTakeTheSealsOff) {
  const UniqueFd fd = Sealed(MemfdWriters::kEveryone);
  for (const int attacker : {fd.get(), Reopened(fd).Release()}) {
    for (const off_t size : {off_t{0}, off_t{4096}, off_t{kBytes + 4096}}) {
      EXPECT_EQ(ftruncate(attacker, size), -1);
      EXPECT_EQ(errno, EPERM);
    }
    EXPECT_EQ(fallocate(attacker, 0, kBytes, 4096), -1);
    EXPECT_EQ(errno, EPERM);
    EXPECT_EQ(fcntl(attacker, F_ADD_SEALS, F_SEAL_WRITE), -1);
    EXPECT_EQ(errno, EPERM);
    if (attacker != fd.get()) close(attacker);
  }
  const absl::Status checked = CheckSealedMemfd(fd.get(), kBytes, MemfdWriters::kEveryone);
  EXPECT_TRUE(checked.ok()) << checked;
}

// The one writable mapping is made before the seal, as the daemon does for a directory segment.
TEST(SealedMemfd, OnlyTheMappingThatWasThereFirstCanWrite) {
  auto fd = CreateMemfd("sealed_memfd_test", kBytes, MemfdPages::kNormal);
  ASSERT_TRUE(fd.ok()) << fd.status();
  auto first = Mapping::Map(fd->get(), kBytes, Mapping::Access::kReadWrite);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(SealMemfd(fd->get(), MemfdWriters::kOnlyThisMapping).ok());

  const UniqueFd again = Reopened(*fd);
  EXPECT_EQ(Mapping::Map(again.get(), kBytes, Mapping::Access::kReadWrite).status().code(),
            absl::StatusCode::kPermissionDenied);
  const char byte = 'x';
  EXPECT_EQ(pwrite(again.get(), &byte, 1, 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(fallocate(again.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
  EXPECT_EQ(errno, EPERM);

  auto reader = Mapping::Map(again.get(), kBytes, Mapping::Access::kReadOnly);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(mprotect(reader->data(), kBytes, PROT_READ | PROT_WRITE), -1);
  first->data()[0] = std::byte{42};
  EXPECT_EQ(reader->data()[0], std::byte{42});
}

TEST(SealedMemfd, ADescriptorWithoutTheSealsIsRefused) {
  const auto open_fd = CreateMemfd("sealed_memfd_test", kBytes, MemfdPages::kNormal);
  ASSERT_TRUE(open_fd.ok());
  const absl::Status unsealed = CheckSealedMemfd(open_fd->get(), kBytes, MemfdWriters::kEveryone);
  EXPECT_EQ(unsealed.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(unsealed.message()), HasSubstr("expected at least"));

  // Each seal but one: whichever is missing, the peer could still do harm.
  const int all = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  for (const int missing : {F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL}) {
    const auto fd = CreateMemfd("sealed_memfd_test", kBytes, MemfdPages::kNormal);
    ASSERT_TRUE(fd.ok());
    ASSERT_EQ(fcntl(fd->get(), F_ADD_SEALS, all & ~missing), 0);
    EXPECT_EQ(CheckSealedMemfd(fd->get(), kBytes, MemfdWriters::kEveryone).code(),
              absl::StatusCode::kPermissionDenied)
        << "without seal " << missing;
  }
  // A region's seals do not do for a directory segment.
  const UniqueFd region = Sealed(MemfdWriters::kEveryone);
  EXPECT_EQ(CheckSealedMemfd(region.get(), kBytes, MemfdWriters::kOnlyThisMapping).code(),
            absl::StatusCode::kPermissionDenied);
  const UniqueFd segment = Sealed(MemfdWriters::kOnlyThisMapping);
  EXPECT_TRUE(CheckSealedMemfd(segment.get(), kBytes, MemfdWriters::kOnlyThisMapping).ok());
}

TEST(SealedMemfd, ADescriptorOfAnotherSizeIsRefused) {
  const UniqueFd fd = Sealed(MemfdWriters::kEveryone);
  for (const std::size_t size : {std::size_t{0}, kBytes - 1, kBytes + 1, SIZE_MAX}) {
    const absl::Status status = CheckSealedMemfd(fd.get(), size, MemfdWriters::kEveryone);
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << size;
    EXPECT_THAT(std::string(status.message()), HasSubstr("has 8192 bytes"));
  }
}

TEST(SealedMemfd, WhatIsNoMemfdIsRefused) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  const UniqueFd file(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(file.valid());
  const UniqueFd device(open("/dev/zero", O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(device.valid());
  for (const int fd : {reader.get(), file.get(), device.get(), -1}) {
    EXPECT_EQ(CheckSealedMemfd(fd, kBytes, MemfdWriters::kEveryone).code(),
              absl::StatusCode::kPermissionDenied);
    EXPECT_FALSE(SealMemfd(fd, MemfdWriters::kEveryone).ok());
  }
}

TEST(SealedMemfd, ASizeThatNoFileCanHaveIsAnError) {
  EXPECT_FALSE(CreateMemfd("sealed_memfd_test", SIZE_MAX, MemfdPages::kNormal).ok());
  EXPECT_FALSE(CreateMemfd("sealed_memfd_test", (SIZE_MAX >> 1) + 1, MemfdPages::kNormal).ok());
}

}  // namespace
}  // namespace kavern
