// A disk that fails in every way that disks do, stacked on another one.
//
// Deterministic: the same seed and the same order of calls give the same faults. What it lies about
// (misdirected, short and stale I/O) it reports as success.
#ifndef KAVERN_TESTS_FAKES_FAULT_DEVICE_H_
#define KAVERN_TESTS_FAKES_FAULT_DEVICE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "tiers/nvme/block_device.h"

namespace kavern::tiers {

enum class DiskFault : std::uint8_t {
  kLostWrite,         // unflushed, gone with the power
  kTornWrite,         // unflushed, some of its 512-byte sectors gone with the power
  kReorderedWrite,    // unflushed, there although an earlier one is gone
  kMisdirectedWrite,  // its bytes went elsewhere
  kMisdirectedRead,   // the bytes are from elsewhere
  kReadError,
  kWriteError,
  kFlushError,
  kNoSpace,
  kReadOnly,
  kShortRead,  // the memory's second half is not filled
  kStaleRead,  // what was there before the last write
  kStall,      // held until it is released
};
inline constexpr std::size_t kDiskFaults = 13;
std::string_view NameOf(DiskFault fault);

// Counts of faults, shared by the devices of one test.
class FaultCounts {
 public:
  void Add(DiskFault fault, std::uint64_t count = 1);
  std::uint64_t operator[](DiskFault fault) const;

 private:
  mutable Mutex mu_;
  std::array<std::uint64_t, kDiskFaults> counts_ KAVERN_GUARDED_BY(mu_) = {};
};

// Thread-safe.
class FaultDevice final : public BlockDevice {
 public:
  // With `cache`, writes stay in the device's volatile memory until a flush. `counts` must outlive
  // it.
  FaultDevice(std::unique_ptr<BlockDevice> base, std::uint64_t seed, bool cache,
              FaultCounts& counts);
  ~FaultDevice() override;  // releases what stalls; without LosePower() the cache is written

  void Submit(DiskIo io) override;
  // What stalls here ends as Cancelled too.
  void Cancel(std::uint64_t token) override;
  void RegisterMemory(std::span<std::byte> memory) override { base_->RegisterMemory(memory); }
  void UnregisterMemory(std::span<std::byte> memory) override { base_->UnregisterMemory(memory); }
  BlockDeviceFacts facts() const override { return base_->facts(); }
  std::uint64_t size_bytes() const override { return base_->size_bytes(); }
  std::string_view method() const override { return base_->method(); }

  // Every operation that it can befall has the fault with this probability. Only I/O at or behind
  // `from` is touched by misdirected, short and stale I/O.
  void SetRate(DiskFault fault, double rate);
  void SetFaultsFrom(std::uint64_t from);
  // From now on flushes succeed and do nothing.
  void IgnoreFlushes();
  // The power is gone: from now on nothing is read, written or flushed. Of the cache some writes
  // have reached the disk, some in part, and the rest is gone: the destructor sees to that.
  void LosePower();
  // What stalls goes on, and nothing stalls any more.
  void Release();
  std::uint64_t stalled() const;

 private:
  using Page = std::vector<std::byte>;
  struct Write {
    std::uint64_t offset = 0;
    Page bytes;
  };

  bool StrikesLocked(DiskFault fault) KAVERN_REQUIRES(mu_);
  absl::Status RefusalLocked(const DiskIo& io) KAVERN_REQUIRES(mu_);
  std::vector<Write> WhatIsLeft();
  void Read(DiskIo io);
  void WriteThrough(DiskIo io);
  void Flush(DiskIo io);
  void End(DiskIo io, absl::Status status);
  void RememberLocked(std::uint64_t offset, const Page& bytes) KAVERN_REQUIRES(mu_);
  void SubmitOwned(Write write, std::function<void(absl::Status)> done);

  FaultCounts& counts_;
  const bool cache_;
  mutable Mutex mu_;
  std::mt19937_64 random_ KAVERN_GUARDED_BY(mu_);
  std::array<double, kDiskFaults> rates_ KAVERN_GUARDED_BY(mu_) = {};
  std::uint64_t faults_from_ KAVERN_GUARDED_BY(mu_) = 0;
  bool ignore_flushes_ KAVERN_GUARDED_BY(mu_) = false;
  bool power_ KAVERN_GUARDED_BY(mu_) = true;
  bool released_ KAVERN_GUARDED_BY(mu_) = false;
  std::vector<Write> unflushed_ KAVERN_GUARDED_BY(mu_);  // in order
  // Of every page: what was written last, and before that.
  std::map<std::uint64_t, std::array<Page, 2>> history_ KAVERN_GUARDED_BY(mu_);
  std::vector<DiskIo> stalled_ KAVERN_GUARDED_BY(mu_);
  std::unique_ptr<BlockDevice> base_;  // last: its thread uses the rest
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_FAKES_FAULT_DEVICE_H_
