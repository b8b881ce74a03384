#include "tiers/write_back_queue.h"

#include <algorithm>
#include <utility>

namespace kavern::tiers {
namespace {

constexpr std::uint64_t kSweepMin = 1024;

}  // namespace

WriteBackQueue::WriteBackQueue(const Options& options, Facts facts)
    : options_(options), facts_(std::move(facts)), sweep_at_(kSweepMin) {}

void WriteBackQueue::Push(Entry entry) {
  bytes_ += entry.bytes;
  auto& queue = entry.durability == DiskDurability::kStrict ? strict_ : waiting_;
  queue.push_back(std::move(entry));
}

void WriteBackQueue::DropUseless(std::deque<Entry>& queue, std::deque<Entry>* lost) {
  while (!queue.empty() && !facts_(queue.front()).has_value()) {
    bytes_ -= queue.front().bytes;
    lost->push_back(std::move(queue.front()));
    queue.pop_front();
  }
}

void WriteBackQueue::Sweep(std::deque<Entry>* lost) {
  if (waiting_.size() < sweep_at_) return;
  std::deque<Entry> kept;
  for (Entry& entry : waiting_) {
    const bool useful = facts_(entry).has_value();
    if (!useful) bytes_ -= entry.bytes;
    (useful ? kept : *lost).push_back(std::move(entry));
  }
  waiting_ = std::move(kept);
  sweep_at_ = std::max(kSweepMin, 2 * static_cast<std::uint64_t>(waiting_.size()));
}

const WriteBackQueue::Entry* WriteBackQueue::Due(SteadyTime now, bool hurry,
                                                 std::deque<Entry>* lost) {
  Sweep(lost);
  DropUseless(strict_, lost);
  if (!strict_.empty()) return &strict_.front();
  // What was used since it was queued waits anew, each at most once a call: where all of them were,
  // the oldest is due all the same.
  for (std::size_t turns = waiting_.size();; --turns) {
    DropUseless(waiting_, lost);
    if (waiting_.empty()) return nullptr;
    Entry& first = waiting_.front();
    if (hurry || options_.mode == WriteBackMode::kEager) return &first;
    const bool idle =
        options_.mode == WriteBackMode::kIdle && now - first.since >= options_.idle_time;
    if (!idle && !IsOverfull()) return nullptr;
    const UseSequence last_use = facts_(first).value_or(first.last_use);
    if (last_use == first.last_use || turns == 0) return &first;
    Entry again = std::move(first);
    waiting_.pop_front();
    again.last_use = last_use;
    again.since = now;
    waiting_.push_back(std::move(again));
  }
}

WriteBackQueue::Entry WriteBackQueue::Pop() {
  auto& queue = strict_.empty() ? waiting_ : strict_;
  Entry entry = std::move(queue.front());
  queue.pop_front();
  bytes_ -= entry.bytes;
  return entry;
}

std::optional<SteadyTime> WriteBackQueue::NextAt() const {
  if (options_.mode != WriteBackMode::kIdle || waiting_.empty()) return std::nullopt;
  return waiting_.front().since + options_.idle_time;
}

}  // namespace kavern::tiers
