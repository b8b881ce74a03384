// A store whose disks end reads when the test says so, and fetches from it.
#ifndef KAVERN_TESTS_UNIT_TIERS_FETCH_FIXTURE_H_
#define KAVERN_TESTS_UNIT_TIERS_FETCH_FIXTURE_H_

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "gtest/gtest.h"
#include "tests/unit/tiers/disk_fixture.h"

namespace kavern::tiers {

// Reads that wait for the test, of all devices of a store.
class ReadGate {
 public:
  // From now on reads of slots are held. Others go on, and so do writes.
  void Close() {
    MutexLock lock(mu_);
    closed_ = true;
  }
  // All that is held goes on, and what comes.
  void Open() {
    MutexLock lock(mu_);
    closed_ = false;
    while (!held_.empty()) LetOneGo(std::nullopt);
  }
  // True: the gate keeps it.
  bool Hold(BlockDevice* device, DiskIo& io) {
    MutexLock lock(mu_);
    if (!closed_ || io.op != DiskIo::Op::kRead) return false;
    held_.emplace_back(device, std::move(io));
    changed_.NotifyAll();
    return true;
  }
  std::size_t held() const {
    MutexLock lock(mu_);
    return held_.size();
  }
  // What is asked of the last read that is held.
  IoPriority last_priority() const {
    MutexLock lock(mu_);
    return held_.back().second.priority;
  }
  SteadyTime last_deadline() const {
    MutexLock lock(mu_);
    return held_.back().second.deadline;
  }
  // From now on what is held is queued, and not the kernel's: it can be cancelled.
  void LetCancel() {
    MutexLock lock(mu_);
    cancels_ = true;
  }
  void Cancel(std::uint64_t token) {
    std::vector<DiskIo> ended;
    {
      MutexLock lock(mu_);
      if (!cancels_) return;
      std::erase_if(held_, [&](auto& held) {
        if (held.second.token != token) return false;
        ended.push_back(std::move(held.second));
        return true;
      });
    }
    for (DiskIo& io : ended) io.done(absl::CancelledError("cancelled"));
  }
  // The read that has waited longest, or its failure.
  void ReleaseOne(std::optional<absl::Status> failure = std::nullopt) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    MutexLock lock(mu_);
    // What one read has made room for is begun after it is counted.
    while (held_.empty() && changed_.WaitUntil(mu_, give_up)) {
    }
    ASSERT_FALSE(held_.empty());
    LetOneGo(std::move(failure));
  }

 private:
  void LetOneGo(std::optional<absl::Status> failure) KAVERN_REQUIRES(mu_) {
    auto [device, io] = std::move(held_.front());
    held_.pop_front();
    mu_.Unlock();
    if (failure.has_value()) {
      io.done(*std::move(failure));
    } else {
      // It stands for what the kernel has had all the time.
      io.deadline = SteadyTime::max();
      io.token = 0;
      device->Submit(std::move(io));
    }
    mu_.Lock();
  }

  mutable Mutex mu_;
  CondVar changed_;
  bool closed_ KAVERN_GUARDED_BY(mu_) = false;
  bool cancels_ KAVERN_GUARDED_BY(mu_) = false;
  std::deque<std::pair<BlockDevice*, DiskIo>> held_ KAVERN_GUARDED_BY(mu_);
};

class HeldDevice final : public BlockDevice {
 public:
  HeldDevice(std::unique_ptr<BlockDevice> device, ReadGate& gate)
      : device_(std::move(device)), gate_(gate) {}

  void Submit(DiskIo io) override {
    if (!gate_.Hold(device_.get(), io)) device_->Submit(std::move(io));
  }
  void Cancel(std::uint64_t token) override { gate_.Cancel(token); }
  std::uint64_t size_bytes() const override { return device_->size_bytes(); }
  std::string_view method() const override { return device_->method(); }

 private:
  const std::unique_ptr<BlockDevice> device_;
  ReadGate& gate_;
};

// The events of one fetch as they come.
class FetchEvents {
 public:
  FetchSink Sink() {
    return [this](FetchEvent event) {
      EXPECT_FALSE(inside_.exchange(true)) << "events of one fetch overlap";
      MutexLock lock(mu_);
      EXPECT_FALSE(over_) << "an event after the last";
      over_ = event.last;
      events_.push_back(std::move(event));
      inside_ = false;
      changed_.NotifyAll();
    };
  }
  // Waits until `count` keys were answered, and hands out what has come since the last call.
  FetchEvent Await(std::size_t count) {
    FetchEvent all;
    MutexLock lock(mu_);
    while (Answered() < count && changed_.WaitUntil(mu_, give_up_)) {
    }
    EXPECT_EQ(Answered(), count);
    answered_before_ = Answered();
    for (FetchEvent& event : events_) {
      all.lease.Append(std::move(event.lease));
      all.failed.insert(all.failed.end(), event.failed.begin(), event.failed.end());
      all.bytes_to_come = event.bytes_to_come;
      all.last = event.last;
    }
    events_.clear();
    return all;
  }
  std::size_t count() const {
    MutexLock lock(mu_);
    return events_.size();
  }

 private:
  std::size_t Answered() const KAVERN_REQUIRES(mu_) {
    std::size_t answered = answered_before_;
    for (const FetchEvent& event : events_) {
      answered += event.lease.parts().size() + event.failed.size();
    }
    return answered;
  }

  const SteadyTime give_up_ = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  std::atomic<bool> inside_ = false;
  mutable Mutex mu_;
  CondVar changed_;
  std::deque<FetchEvent> events_ KAVERN_GUARDED_BY(mu_);
  std::size_t answered_before_ KAVERN_GUARDED_BY(mu_) = 0;
  bool over_ KAVERN_GUARDED_BY(mu_) = false;
};

class FetchFixture : public DiskFixture {
 protected:
  void StartHeld(std::uint64_t regions = 1,
                 const std::function<void(TieredStoreOptions&)>& change = {}) {
    StartWithDisk(regions, 16, [&](TieredStoreOptions& options) {
      options.disk->store.io_uring = false;
      options.disk->store.open =
          [this](const BlockDeviceOptions& open) -> absl::StatusOr<std::unique_ptr<BlockDevice>> {
        auto device = OpenBlockDevice(open);
        if (!device.ok()) return device.status();
        return std::make_unique<HeldDevice>(*std::move(device), gate_);
      };
      if (change) change(options);
    });
  }
  // 64 blocks on disk in chains of 8 from the root, the last 16 of them in RAM too; reads wait.
  NamespaceRef Prepare() {
    NamespaceRef ns = Open(SpecOf("m"));
    keys_ = StoreChains(ns, 1, 64);
    gate_.Close();
    return ns;
  }
  FetchTicket Begin(const NamespaceRef& ns, std::span<const BlockKey> keys, FetchEvents& events,
                    SteadyTime deadline = SteadyTime::max()) {
    auto ticket = store_->FetchAsync(ns, {.keys = keys, .deadline = deadline}, events.Sink());
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    return *std::move(ticket);
  }
  void TearDown() override {
    gate_.Open();
    DiskFixture::TearDown();
  }

  ReadGate gate_;
  std::vector<BlockKey> keys_;
};

}  // namespace kavern::tiers

#endif  // KAVERN_TESTS_UNIT_TIERS_FETCH_FIXTURE_H_
