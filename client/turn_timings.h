// Timings that this process measures, on their way to the daemon, and what the daemon makes of all
// that it was told: with that a client plans without a call.
#ifndef KAVERN_CLIENT_TURN_TIMINGS_H_
#define KAVERN_CLIENT_TURN_TIMINGS_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/tier.h"
#include "base/turn_costs.h"
#include "client/attachment.h"
#include "kavern/v1/kavern.pb.h"

namespace kavern::client {

// Of one namespace. Thread-safe; nothing waits for the daemon.
class TurnTimings {
 public:
  // The namespace was opened in the session of `attachment` (nullptr: TCP): reports go there from
  // now on.
  void Opened(const NamespaceFingerprint& fingerprint,
              const std::shared_ptr<Attachment>& attachment, const v1::TurnCosts& costs);
  // The daemon's answer. What it has not measured (any more: it restarted) stays as it was.
  void Told(const v1::TurnCosts& costs);

  // Samples are valid. True: the first that waits, so somebody is to be told that there is one.
  // What is beyond TurnSamples::kMax is dropped.
  bool Add(const PrefillSample& sample);
  bool Add(const TransferSample& sample);
  // A transfer by messages, of which the daemon is not told: its estimates are of shared memory.
  void AddOwn(const TransferSample& sample);

  // `own_transfers`: with those of AddOwn in place of the daemon's.
  TurnCosts Costs(bool own_transfers) const;
  // True: the daemon was not asked for a while, so somebody is to be told that it should be. Others
  // measure what this process plans with: an engine's scheduler fetches nothing itself.
  bool AskIfOld(SteadyTime now);

  // What waits, or a question, and the session that it goes to. Empty where there is none of them;
  // of a session that ended what was measured is dropped.
  struct Report {
    v1::ReportTimingsRequest request;
    std::shared_ptr<Attachment> attachment;  // nullptr: TCP
  };
  std::optional<Report> Take();

 private:
  bool RoomLocked() const KAVERN_REQUIRES(mu_) { return waiting_.size() < TurnSamples::kMax; }

  mutable Mutex mu_;
  NamespaceFingerprint fingerprint_ KAVERN_GUARDED_BY(mu_);
  bool shared_memory_ KAVERN_GUARDED_BY(mu_) = false;
  std::weak_ptr<Attachment> attachment_ KAVERN_GUARDED_BY(mu_);
  TurnSamples waiting_ KAVERN_GUARDED_BY(mu_);
  bool asks_ KAVERN_GUARDED_BY(mu_) = false;  // with or without samples
  SteadyTime asked_ KAVERN_GUARDED_BY(mu_);   // or answered
  TurnCosts costs_ KAVERN_GUARDED_BY(mu_);
  std::array<TransferFit, kTierCount> own_ KAVERN_GUARDED_BY(mu_);
};

// Reports what waits, in a thread of its own: a daemon that is slow to answer holds up neither
// callers nor the end of leases. What cannot be told is dropped.
class TimingReporter {
 public:
  // Calls the daemon, until then at most; runs on the reporter's thread.
  using Send = std::function<absl::StatusOr<v1::TurnCosts>(const TurnTimings::Report&, SteadyTime)>;
  explicit TimingReporter(Send send);
  ~TimingReporter();

  // There is something to report; it is gathered for a moment, and told with what came meanwhile.
  void Wake(std::shared_ptr<TurnTimings> timings);
  // Tells what waits, once and until then at most, and joins the thread, whose call under way ends
  // first. Idempotent.
  void Stop(SteadyTime until);

 private:
  void Loop();

  const Send send_;
  Mutex mu_;
  CondVar changed_;
  bool stop_ KAVERN_GUARDED_BY(mu_) = false;
  SteadyTime stop_until_ KAVERN_GUARDED_BY(mu_) = {};
  std::vector<std::shared_ptr<TurnTimings>> due_ KAVERN_GUARDED_BY(mu_);
  std::thread thread_;
};

// Samples out of the batches of one fetch. What came whole from one tier can be attributed, and so
// can batches of the same tier that follow each other; of a batch that came from two tiers, failed
// in part or is tiny nobody can say what it measured.
class TransferSampler {
 public:
  // A batch whose keys came from `tiers` (kNone: it did not come), `bytes` together.
  void Add(std::span<const Tier> tiers, std::uint64_t bytes, SteadyDuration took);
  // After the last batch.
  std::vector<TransferSample> Take();

 private:
  void EndRun();

  TransferSample run_;
  std::vector<TransferSample> samples_;
};

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_TURN_TIMINGS_H_
