#include "base/unique_fd.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kavern {
namespace {

using ::testing::HasSubstr;

constexpr std::size_t kPage = 4096;

bool IsOpen(int fd) {
  return fcntl(fd, F_GETFD) >= 0;
}

// mincore answers ENOMEM for addresses that nothing is mapped at.
bool IsMapped(void* address) {
  unsigned char resident = 0;
  return mincore(address, kPage, &resident) == 0 || errno != ENOMEM;
}

UniqueFd MemoryFile(std::size_t size_bytes = kPage) {
  UniqueFd fd(memfd_create("unique_fd_test", MFD_CLOEXEC));
  EXPECT_TRUE(fd.valid());
  EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(size_bytes)), 0);
  return fd;
}

// The test runs alone in its process: no other thread opens a file and takes the number.
TEST(UniqueFd, ClosesOnceWhoeverOwnsItLast) {
  int number = -1;
  {
    UniqueFd first = MemoryFile();
    number = first.get();
    UniqueFd second(std::move(first));
    EXPECT_FALSE(first.valid());  // NOLINT(bugprone-use-after-move,clang-analyzer-cplusplus.Move):
                                  // the state after a move is the contract
    UniqueFd third;
    third = std::move(second);
    EXPECT_EQ(third.get(), number);
    EXPECT_TRUE(IsOpen(number));
  }
  EXPECT_FALSE(IsOpen(number));
}

TEST(UniqueFd, AssigningClosesWhatWasHeldBefore) {
  UniqueFd kept = MemoryFile();
  const int kept_number = kept.get();
  UniqueFd target = MemoryFile();
  const int old_number = target.get();
  target = std::move(kept);
  EXPECT_FALSE(IsOpen(old_number));
  EXPECT_TRUE(IsOpen(kept_number));
  UniqueFd& same = target;
  target = std::move(same);
  EXPECT_EQ(target.get(), kept_number);
  EXPECT_TRUE(IsOpen(kept_number));
}

TEST(UniqueFd, ReleaseGivesTheDescriptorAwayOpen) {
  UniqueFd fd = MemoryFile();
  const int number = fd.Release();
  EXPECT_FALSE(fd.valid());
  fd.Reset();
  EXPECT_TRUE(IsOpen(number));
  UniqueFd again(number);
  again.Reset();
  EXPECT_FALSE(again.valid());
  EXPECT_FALSE(IsOpen(number));
}

TEST(Mapping, TwoMappingsOfOneFileSeeEachOthersBytesAfterTheDescriptorIsClosed) {
  UniqueFd fd = MemoryFile();
  auto writer = Mapping::Map(fd.get(), kPage, Mapping::Access::kReadWrite);
  auto reader = Mapping::Map(fd.get(), kPage, Mapping::Access::kReadOnly);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(reader.ok()) << reader.status();
  fd.Reset();
  writer->data()[kPage - 1] = std::byte{42};
  EXPECT_EQ(reader->data()[kPage - 1], std::byte{42});
  EXPECT_EQ(writer->size(), kPage);
}

TEST(Mapping, UnmapsOnceWhoeverOwnsItLast) {
  const UniqueFd fd = MemoryFile();
  void* address = nullptr;
  {
    Mapping first = Mapping::Map(fd.get(), kPage, Mapping::Access::kReadOnly).value();
    address = first.data();
    Mapping second(std::move(first));
    EXPECT_FALSE(first.valid());  // NOLINT(bugprone-use-after-move,clang-analyzer-cplusplus.Move):
                                  // the state after a move is the contract
    EXPECT_EQ(first.size(), 0u);
    Mapping third = Mapping::Map(fd.get(), kPage, Mapping::Access::kReadOnly).value();
    void* const replaced = third.data();
    third = std::move(second);
    EXPECT_EQ(third.data(), address);
    EXPECT_FALSE(IsMapped(replaced));
    EXPECT_TRUE(IsMapped(address));
  }
  EXPECT_FALSE(IsMapped(address));
}

// Sizes around 2 MiB, a multiple and not; several at once, so that luck cannot align them all.
TEST(Mapping, ALargeOneStartsAtAHugePageBoundaryAndIsWholeAndWritable) {
  constexpr std::size_t kHuge = std::size_t{2} << 20;
  std::vector<Mapping> mappings;
  for (const std::size_t size : {kHuge, kHuge + kPage, 3 * kHuge + 1, kHuge}) {
    const UniqueFd fd = MemoryFile(size);
    auto mapping = Mapping::Map(fd.get(), size, Mapping::Access::kReadWrite);
    ASSERT_TRUE(mapping.ok()) << mapping.status();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(mapping->data()) % kHuge, 0u);
    EXPECT_EQ(mapping->size(), size);
    mapping->data()[0] = mapping->data()[size - 1] = std::byte{1};
    mappings.push_back(*std::move(mapping));
  }
}

// The child asks the kernel about the address and exits with the answer.
// What a fork() inherited would keep a retired region's memory alive.
TEST(Mapping, AForkedChildDoesNotInheritIt) {
  const UniqueFd fd = MemoryFile();
  const Mapping mapping = Mapping::Map(fd.get(), kPage, Mapping::Access::kReadWrite).value();
  ASSERT_TRUE(IsMapped(mapping.data()));
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(IsMapped(mapping.data()) ? 1 : 0);
  int wait_status = 0;
  ASSERT_EQ(waitpid(child, &wait_status, 0), child);
  ASSERT_TRUE(WIFEXITED(wait_status));
  EXPECT_EQ(WEXITSTATUS(wait_status), 0);
}

TEST(Mapping, WhatTheKernelRefusesIsAStatusThatNamesTheReason) {
  const auto bad_fd = Mapping::Map(-1, kPage, Mapping::Access::kReadOnly);
  EXPECT_EQ(bad_fd.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(bad_fd.status().message()), HasSubstr("Bad file descriptor"));

  const UniqueFd fd = MemoryFile();
  EXPECT_EQ(Mapping::Map(fd.get(), 0, Mapping::Access::kReadOnly).status().code(),
            absl::StatusCode::kInternal);
  const auto too_large =
      Mapping::Map(fd.get(), std::size_t{1} << 60, Mapping::Access::kReadOnly).status();
  EXPECT_EQ(too_large.code(), absl::StatusCode::kResourceExhausted) << too_large;

  const UniqueFd read_only(open("/dev/zero", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(read_only.valid());
  EXPECT_EQ(Mapping::Map(read_only.get(), kPage, Mapping::Access::kReadWrite).status().code(),
            absl::StatusCode::kPermissionDenied);
}

TEST(ErrnoStatus, EveryKindOfFailureHasItsOwnCode) {
  using absl::StatusCode;
  const std::pair<int, StatusCode> cases[] = {
      {ENOMEM, StatusCode::kResourceExhausted}, {ENOSPC, StatusCode::kResourceExhausted},
      {EMFILE, StatusCode::kResourceExhausted}, {ENFILE, StatusCode::kResourceExhausted},
      {EAGAIN, StatusCode::kResourceExhausted}, {EACCES, StatusCode::kPermissionDenied},
      {EPERM, StatusCode::kPermissionDenied},   {ENOENT, StatusCode::kNotFound},
      {ECONNREFUSED, StatusCode::kUnavailable}, {ECONNRESET, StatusCode::kUnavailable},
      {EPIPE, StatusCode::kUnavailable},        {EIO, StatusCode::kInternal},
      {EINVAL, StatusCode::kInternal},
  };
  for (const auto& [error, code] : cases) {
    EXPECT_EQ(ErrnoStatus(error, "mmap of region 7").code(), code) << error;
  }
  const absl::Status status = ErrnoStatus(ENOSPC, "mmap of region 7");
  EXPECT_EQ(std::string(status.message()), "mmap of region 7: No space left on device");
}

}  // namespace
}  // namespace kavern
