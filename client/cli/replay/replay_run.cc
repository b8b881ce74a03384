#include "client/cli/replay/replay_run.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "client/admin_client.h"
#include "client/cli/replay/replay_processes.h"
#include "client/cli/replay/replay_progress.h"
#include "client/cli/replay/replay_worker.h"
#include "client/cli/text_output.h"

namespace kavern::cli {
namespace {

constexpr std::chrono::milliseconds kRedrawInterval(100);

using SteadyTimePoint = std::chrono::steady_clock::time_point;

// One thread: a client, its namespace, and a worker on it.
struct Player {
  std::unique_ptr<Client> client;
  std::shared_ptr<Namespace> ns;
  std::unique_ptr<ReplayWorker> worker;
  std::size_t tenant = 0;
  std::string incarnation;  // of the daemon that it last played against
};

absl::StatusOr<Player> MakePlayer(const ReplayOptions& options, const std::string& name,
                                  std::size_t tenant) {
  Player player;
  player.tenant = tenant;
  ClientOptions client = options.client;
  client.client_name = name;
  if (!options.tenants.empty()) client.tenant = options.tenants[tenant];
  KAVERN_ASSIGN_OR_RETURN(player.client, Client::Create(client));
  KAVERN_RETURN_IF_ERROR(player.client->WaitUntilAttached(client.deadline));
  KAVERN_ASSIGN_OR_RETURN(player.ns, player.client->OpenNamespace(options.layout.spec));
  player.worker = std::make_unique<ReplayWorker>(*player.ns, options.layout.preset);
  player.incarnation = player.client->connection().incarnation_hex;
  return player;
}

// What one process plays: every `count`-th request, from `index` on, for every tenant.
class Share {
 public:
  Share(const ReplayOptions& options, const std::vector<TraceRequest>& trace, std::uint32_t index,
        const ReplayProgress& progress, SteadyTimePoint start)
      : options_(options),
        trace_(trace),
        index_(index),
        progress_(progress.counters()),
        start_(start),
        next_(std::max<std::size_t>(1, options.tenants.size())) {}

  absl::StatusOr<ReplayStats> Play() {
    if (options_.deterministic) {
      KAVERN_ASSIGN_OR_RETURN(
          admin_, client::AdminClient::Connect(options_.client.address, "", kQuiesceDeadline));
      KAVERN_RETURN_IF_ERROR(admin_->Quiesce());
    }
    std::vector<Player> players;
    for (std::size_t tenant = 0; tenant < next_.size(); ++tenant) {
      for (std::uint32_t worker = 0; worker < options_.workers; ++worker) {
        KAVERN_ASSIGN_OR_RETURN(
            Player player,
            MakePlayer(options_, absl::StrCat("replay-", index_, "-", worker), tenant));
        players.push_back(std::move(player));
      }
    }
    std::vector<std::thread> threads;
    for (Player& player : players) threads.emplace_back([&] { PlayThread(player); });
    for (std::thread& thread : threads) thread.join();
    ReplayStats stats;
    for (const Player& player : players) stats.Add(player.worker->stats());
    MutexLock lock(mu_);
    KAVERN_RETURN_IF_ERROR(quiesce_status_);
    return stats;
  }

 private:
  static constexpr std::chrono::milliseconds kQuiesceDeadline{60000};

  void PlayThread(Player& player) {
    for (;;) {
      const std::size_t at = index_ + next_[player.tenant]++ * options_.processes;
      if (at >= trace_.size()) return;
      if (options_.speedup > 0) {
        const std::chrono::duration<double, std::milli> offset(
            static_cast<double>(trace_[at].timestamp_ms) / options_.speedup);
        std::this_thread::sleep_until(start_ +
                                      std::chrono::duration_cast<std::chrono::nanoseconds>(offset));
      }
      if (options_.await_daemon.count() > 0) AwaitDaemon(player);
      const ReplayStats& stats = player.worker->stats();
      const std::uint64_t blocks = stats.blocks;
      const std::uint64_t hits = stats.hit_blocks;
      const std::uint64_t bytes = stats.fetched_bytes + stats.stored_bytes;
      const std::uint64_t wrong = stats.wrong_bytes;
      player.worker->Play(trace_[at]);
      progress_.blocks += stats.blocks - blocks;
      progress_.hit_blocks += stats.hit_blocks - hits;
      progress_.bytes += stats.fetched_bytes + stats.stored_bytes - bytes;
      progress_.wrong_bytes += stats.wrong_bytes - wrong;
      ++progress_.requests;
      if (admin_ != nullptr && !Quiesce()) return;
    }
  }

  void AwaitDaemon(Player& player) const {
    const SteadyTimePoint began = std::chrono::steady_clock::now();
    if (!player.client->WaitUntilAttached(options_.await_daemon).ok()) return;
    const std::string incarnation = player.client->connection().incarnation_hex;
    if (incarnation == player.incarnation) return;
    player.incarnation = incarnation;
    const std::chrono::duration<double> away = std::chrono::steady_clock::now() - began;
    player.worker->NoteRestart(away.count());
  }

  bool Quiesce() {
    const absl::Status status = admin_->Quiesce();
    if (status.ok()) return true;
    MutexLock lock(mu_);
    quiesce_status_ = status;
    return false;
  }

  const ReplayOptions& options_;
  const std::vector<TraceRequest>& trace_;
  const std::uint32_t index_;
  ReplayProgress::Counters& progress_;
  const SteadyTimePoint start_;
  std::vector<std::atomic<std::size_t>> next_;  // per tenant: requests of this share handed out
  std::unique_ptr<client::AdminClient> admin_;  // deterministic only
  Mutex mu_;
  absl::Status quiesce_status_ KAVERN_GUARDED_BY(mu_);
};

// Runs `play` in a thread of its own, and `redraw` in this one until it is done.
absl::StatusOr<ReplayStats> PlayHere(const std::function<absl::StatusOr<ReplayStats>()>& play,
                                     const std::function<void()>& redraw) {
  absl::StatusOr<ReplayStats> result;
  Mutex mu;
  CondVar changed;
  bool done = false;
  std::thread player([&] {
    auto played = play();
    MutexLock lock(mu);
    result = std::move(played);
    done = true;
    changed.NotifyAll();
  });
  {
    MutexLock lock(mu);
    while (!done) {
      changed.WaitUntil(mu, std::chrono::steady_clock::now() + kRedrawInterval);
      redraw();
    }
  }
  player.join();
  return result;
}

// Nothing of the replay depends on the answer: without one there is none in the report.
void AskForRecovery(const ReplayOptions& options, ReplayResult* result) {
  const auto admin =
      client::AdminClient::Connect(options.client.address, "", options.client.deadline);
  if (!admin.ok()) return;
  const auto status = (*admin)->GetStatus();
  if (!status.ok()) return;
  result->recovered_parts = status->nvme().recovered_blocks();
  result->recovery_seconds = status->nvme().recovery_seconds();
}

}  // namespace

absl::StatusOr<ReplayResult> RunReplay(const ReplayOptions& options,
                                       const std::vector<TraceRequest>& trace) {
  KAVERN_ASSIGN_OR_RETURN(const ReplayProgress progress, ReplayProgress::Create());
  const std::size_t tenants = std::max<std::size_t>(1, options.tenants.size());
  const SteadyTimePoint start = std::chrono::steady_clock::now();
  ProgressBar bar("replay", trace.size() * tenants, options.show_progress);
  const auto redraw = [&] { bar.Update(progress.counters().requests, progress.Note()); };
  const auto play = [&](std::uint32_t index) {
    return Share(options, trace, index, progress, start).Play();
  };

  ReplayResult result;
  if (options.processes == 1) {
    KAVERN_ASSIGN_OR_RETURN(result.stats, PlayHere([&] { return play(0); }, redraw));
  } else {
    KAVERN_ASSIGN_OR_RETURN(result.stats,
                            PlayInProcesses(options.processes, play, kRedrawInterval, redraw));
  }
  redraw();
  bar.Finish();
  result.wall_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const double seconds : result.stats.fetch_seconds) result.fetch_seconds += seconds;
  for (const double seconds : result.stats.store_seconds) result.store_seconds += seconds;
  if (result.stats.restarts > 0) AskForRecovery(options, &result);
  return result;
}

}  // namespace kavern::cli
