#include "client/turn_timings.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <initializer_list>
#include <utility>

#include "base/named_thread.h"
#include "client/wire_convert.h"

namespace kavern::client {
namespace {

constexpr std::chrono::milliseconds kGatherInterval(50);
constexpr std::chrono::milliseconds kAskInterval(1000);
// Of one report; also what the end of a client may wait for one.
constexpr std::chrono::milliseconds kReportPatience(1000);
// Less says what a call costs, and nothing of the bytes.
constexpr std::uint64_t kSampleBytesMin = 64 << 10;

bool IsSane(std::initializer_list<double> coefficients) {
  return std::all_of(coefficients.begin(), coefficients.end(),
                     [](double c) { return std::isfinite(c) && c >= 0; });
}

void Update(const v1::PrefillCost& told, PrefillCost* known) {
  PrefillCost cost{told.fixed_ms(), told.ms_per_token(), told.ms_per_square_token(), told.samples(),
                   told.measured()};
  if (!IsSane({cost.fixed_ms, cost.ms_per_token, cost.ms_per_square_token})) return;
  if (cost.measured || !known->measured) *known = cost;
}

void Update(const v1::TransferCost& told, TransferCost* known) {
  TransferCost cost{told.fixed_ms(), told.ms_per_byte(), told.samples(), told.measured()};
  if (!IsSane({cost.fixed_ms, cost.ms_per_byte})) return;
  if (cost.measured || !known->measured) *known = cost;
}

}  // namespace

// ---- TurnTimings ----

void TurnTimings::Opened(const NamespaceFingerprint& fingerprint,
                         const std::shared_ptr<Attachment>& attachment,
                         const v1::TurnCosts& costs) {
  {
    MutexLock lock(mu_);
    fingerprint_ = fingerprint;
    shared_memory_ = attachment != nullptr;
    attachment_ = attachment;
  }
  Told(costs);
}

void TurnTimings::Told(const v1::TurnCosts& costs) {
  MutexLock lock(mu_);
  asked_ = std::chrono::steady_clock::now();
  Update(costs.prefill(), &costs_.prefill);
  for (const v1::TransferCost& cost : costs.transfers()) {
    const Tier tier = TierOf(cost.tier());
    if (tier != Tier::kNone) Update(cost, &costs_.of(tier));
  }
}

bool TurnTimings::Add(const PrefillSample& sample) {
  MutexLock lock(mu_);
  if (!RoomLocked()) return false;
  waiting_.prefills.push_back(sample);
  return waiting_.size() == 1;
}

bool TurnTimings::Add(const TransferSample& sample) {
  MutexLock lock(mu_);
  if (!RoomLocked()) return false;
  waiting_.transfers.push_back(sample);
  return waiting_.size() == 1;
}

void TurnTimings::AddOwn(const TransferSample& sample) {
  MutexLock lock(mu_);
  own_[static_cast<std::size_t>(sample.tier)].Add(sample);
}

TurnCosts TurnTimings::Costs(bool own_transfers) const {
  MutexLock lock(mu_);
  TurnCosts costs = costs_;
  if (!own_transfers) return costs;
  for (std::size_t i = 0; i < own_.size(); ++i) costs.tiers[i] = own_[i].Cost();
  return costs;
}

bool TurnTimings::AskIfOld(SteadyTime now) {
  MutexLock lock(mu_);
  if (now - asked_ < kAskInterval) return false;
  asked_ = now;
  asks_ = true;
  return waiting_.size() == 0;
}

std::optional<TurnTimings::Report> TurnTimings::Take() {
  bool asks = false;
  TurnSamples samples;
  Report report;
  {
    MutexLock lock(mu_);
    samples = std::exchange(waiting_, {});
    asks = std::exchange(asks_, false);
    report.attachment = attachment_.lock();
    if (shared_memory_ && (report.attachment == nullptr || report.attachment->ended())) {
      return std::nullopt;
    }
    report.request.set_fingerprint(PackFingerprint(fingerprint_));
  }
  if (samples.size() == 0 && !asks) return std::nullopt;
  for (const PrefillSample& sample : samples.prefills) {
    v1::PrefillTiming* timing = report.request.add_prefills();
    timing->set_begin_token(sample.begin_token);
    timing->set_end_token(sample.end_token);
    timing->set_ms(sample.ms);
  }
  for (const TransferSample& sample : samples.transfers) {
    v1::TransferTiming* timing = report.request.add_transfers();
    timing->set_tier(static_cast<v1::Tier>(sample.tier));
    timing->set_bytes(sample.bytes);
    timing->set_ms(sample.ms);
  }
  return report;
}

// ---- TimingReporter ----

TimingReporter::TimingReporter(Send send) : send_(std::move(send)) {
  thread_ = NamedThread("kavern-timings", [this] { Loop(); });
}

TimingReporter::~TimingReporter() {
  Stop(std::chrono::steady_clock::now());
}

void TimingReporter::Wake(std::shared_ptr<TurnTimings> timings) {
  MutexLock lock(mu_);
  if (stop_) return;
  due_.push_back(std::move(timings));
  changed_.NotifyAll();
}

void TimingReporter::Stop(SteadyTime until) {
  {
    MutexLock lock(mu_);
    if (!stop_) stop_until_ = until;
    stop_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void TimingReporter::Loop() {
  for (;;) {
    std::vector<std::shared_ptr<TurnTimings>> due;
    {
      MutexLock lock(mu_);
      while (!stop_ && due_.empty()) changed_.Wait(mu_);
      const auto gathered = std::chrono::steady_clock::now() + kGatherInterval;
      while (!stop_ && changed_.WaitUntil(mu_, gathered)) {
      }
      if (due_.empty()) return;
      due.swap(due_);
    }
    for (const std::shared_ptr<TurnTimings>& timings : due) {
      SteadyTime until = std::chrono::steady_clock::now() + kReportPatience;
      {
        MutexLock lock(mu_);
        if (stop_) until = std::min(until, stop_until_);
      }
      if (std::chrono::steady_clock::now() >= until) return;
      const std::optional<TurnTimings::Report> report = timings->Take();
      if (!report.has_value()) continue;
      if (const auto costs = send_(*report, until); costs.ok()) timings->Told(*costs);
    }
  }
}

// ---- TransferSampler ----

void TransferSampler::Add(std::span<const Tier> tiers, std::uint64_t bytes, SteadyDuration took) {
  const Tier tier = tiers.empty() ? Tier::kNone : tiers.front();
  const bool one_tier = (tier == Tier::kRam || tier == Tier::kNvme) &&
                        std::all_of(tiers.begin(), tiers.end(), [&](Tier t) { return t == tier; });
  if (!one_tier || tier != run_.tier) EndRun();
  if (!one_tier) return;
  run_.tier = tier;
  run_.bytes += bytes;
  run_.ms += std::chrono::duration<double, std::milli>(took).count();
}

void TransferSampler::EndRun() {
  if (run_.bytes >= kSampleBytesMin && run_.Validate().ok()) samples_.push_back(run_);
  run_ = {};
}

std::vector<TransferSample> TransferSampler::Take() {
  EndRun();
  return std::exchange(samples_, {});
}

}  // namespace kavern::client
