#include "service/session/attach_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/named_thread.h"
#include "base/status_macros.h"
#include "service/session/attach_messages.h"

namespace kavern::service {
namespace {

// One connection's share of a turn, so that a client that floods does not keep the others waiting.
constexpr int kPacketsPerTurn = 64;
constexpr int kAcceptsPerTurn = 64;
// How long to leave new connections alone when the process is out of descriptors or memory.
constexpr std::chrono::milliseconds kAcceptPause{100};
// Edges, so that nobody has to switch write interest on and off when a message is queued.
constexpr std::uint32_t kSocketEvents = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;

void Wake(const UniqueFd& wakeup) {
  const std::uint64_t one = 1;
  // Fails only when the counter is full: the thread is being woken then.
  [[maybe_unused]] const ssize_t written = ::write(wakeup.get(), &one, sizeof(one));
}

}  // namespace

absl::StatusOr<std::unique_ptr<AttachLoop>> AttachLoop::Create(AttachServerOptions options,
                                                               const TenantMap& tenants,
                                                               SessionTable& sessions) {
  auto loop = std::unique_ptr<AttachLoop>(new AttachLoop(std::move(options), tenants, sessions));
  KAVERN_ASSIGN_OR_RETURN(loop->incarnation_, RandomToken());
  loop->epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!loop->epoll_.valid()) return ErrnoStatus(errno, "epoll_create1");
  loop->wakeup_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!loop->wakeup_.valid()) return ErrnoStatus(errno, "eventfd");
  const AttachServerOptions& o = loop->options_;
  KAVERN_ASSIGN_OR_RETURN(loop->listener_,
                          ListeningSocket::Create(o.socket_path, o.socket_mode, o.socket_group));
  KAVERN_RETURN_IF_ERROR(
      loop->Watch(loop->wakeup_.get(), Source::kWakeup, 0, EPOLLIN, EPOLL_CTL_ADD));
  KAVERN_RETURN_IF_ERROR(
      loop->Watch(loop->listener_.fd(), Source::kListener, 0, EPOLLIN, EPOLL_CTL_ADD));
  return loop;
}

void AttachLoop::Start() {
  thread_ = NamedThread("attach", [this] { Run(); });
}

void AttachLoop::Drain() {
  MutexLock lock(mu_);
  drain_ = true;
  Wake(wakeup_);
}

void AttachLoop::Stop() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    Wake(wakeup_);
  }
  if (thread_.joinable()) thread_.join();
  listener_.Close();
  for (const std::shared_ptr<Session>& session : sessions_.All()) {
    session->FreeEverything();
    sessions_.Remove(session->token());
  }
  connections_.clear();
  handshakes_.clear();
}

void AttachLoop::AddNews(const std::function<void(StoreNews&)>& add) {
  MutexLock lock(mu_);
  if (stop_) return;
  const bool idle = news_.empty();
  add(news_);
  if (idle) Wake(wakeup_);
}

AttachServer::Counters AttachLoop::GetCounters() const {
  return {accepted_.load(), rejected_.load(), fenced_by_protocol_.load(), ended_.load(),
          accept_pauses_.load()};
}

// ---- The loop ----

absl::Status AttachLoop::Watch(int fd, Source source, std::uint64_t id, std::uint32_t events,
                               int operation) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = id * 4 + static_cast<std::uint64_t>(source);
  if (::epoll_ctl(epoll_.get(), operation, fd, &event) != 0) {
    return ErrnoStatus(errno, "epoll_ctl");
  }
  return absl::OkStatus();
}

void AttachLoop::Run() {
  std::array<epoll_event, 64> events;
  do {
    const int ready = ::epoll_wait(epoll_.get(), events.data(), events.size(), TimeoutMs());
    for (int i = 0; i < ready; ++i) Dispatch(events[i].data.u64, events[i].events);
    ExpireTimers();
  } while (HandleRequests());
}

int AttachLoop::TimeoutMs() const {
  std::optional<SteadyTime> next = accept_again_at_;
  if (!handshakes_.empty()) {
    const SteadyTime deadline = connections_.at(*handshakes_.begin())->hello_deadline;
    next = next ? std::min(*next, deadline) : deadline;
  }
  if (!next) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next - options_.clock->Now());
  return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 60'000));
}

void AttachLoop::Dispatch(std::uint64_t tag, std::uint32_t events) {
  const std::uint64_t id = tag / 4;
  switch (static_cast<Source>(tag % 4)) {
    case Source::kListener:
      AcceptSome();
      return;
    case Source::kWakeup: {
      std::uint64_t count = 0;
      [[maybe_unused]] const ssize_t got = ::read(wakeup_.get(), &count, sizeof(count));
      return;
    }
    case Source::kSocket:
      OnSocket(id, events);
      return;
    case Source::kProcess:
      OnProcessExit(id);
      return;
  }
}

bool AttachLoop::HandleRequests() {
  StoreNews news;
  bool drain = false;
  {
    MutexLock lock(mu_);
    if (stop_) return false;
    std::swap(news, news_);
    drain = std::exchange(drain_, false);
  }
  Deliver(news);
  if (drain) BeginDrain();
  return true;
}

// A send that fails has fenced its session; the shutdown of its socket comes back as an event.
void AttachLoop::Deliver(const StoreNews& news) {
  if (news.empty()) return;
  for (const std::shared_ptr<Session>& session : sessions_.All()) {
    for (const std::uint64_t region_id : news.retired_regions()) {
      if (!session->HoldsRegion(region_id)) continue;
      session->Send(EncodeAttach(shm::AttachType::kRegionRetired, shm::RegionIdBody{region_id}))
          .IgnoreError();
    }
    for (const auto& [fingerprint, directory] : news.directories()) {
      session->SendDirectory(fingerprint, directory).IgnoreError();
    }
  }
}

void AttachLoop::BeginDrain() {
  listener_.Close();
  accept_again_at_.reset();
  while (!handshakes_.empty()) {
    Reject(*handshakes_.begin(), absl::UnavailableError("the daemon is draining"));
  }
  for (const std::shared_ptr<Session>& session : sessions_.All()) {
    session->Send(EncodeAttach(shm::AttachType::kDraining, std::span<const std::byte>()))
        .IgnoreError();
  }
}

// ---- Handshakes ----

void AttachLoop::AcceptSome() {
  for (int i = 0; i < kAcceptsPerTurn && listener_.open() && !accept_again_at_; ++i) {
    UniqueFd socket(::accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket.valid()) {
      AddHandshake(std::move(socket));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      return;
    } else if (errno != EINTR && errno != ECONNABORTED) {
      PauseAccepting();
    }
  }
}

void AttachLoop::PauseAccepting() {
  // The listener stays readable while nothing can be accepted: watching it would be a busy loop.
  Watch(listener_.fd(), Source::kListener, 0, 0, EPOLL_CTL_MOD).IgnoreError();
  accept_again_at_ = options_.clock->Now() + kAcceptPause;
  ++accept_pauses_;
}

void AttachLoop::ExpireTimers() {
  const SteadyTime now = options_.clock->Now();
  while (!handshakes_.empty() && connections_.at(*handshakes_.begin())->hello_deadline <= now) {
    Reject(*handshakes_.begin(), absl::DeadlineExceededError("no hello within hello_timeout"));
  }
  if (accept_again_at_ && *accept_again_at_ <= now) {
    accept_again_at_.reset();
    Watch(listener_.fd(), Source::kListener, 0, EPOLLIN, EPOLL_CTL_MOD).IgnoreError();
  }
}

void AttachLoop::AddHandshake(UniqueFd socket) {
  while (handshakes_.size() >= options_.handshakes_max) {
    Reject(*handshakes_.begin(),
           absl::ResourceExhaustedError("too many connections without a hello"));
  }
  const std::uint64_t id = ++last_id_;
  auto connection = std::make_unique<Connection>();
  connection->socket = std::move(socket);
  connection->hello_deadline = options_.clock->Now() + options_.hello_timeout;
  Connection& added = *connection;
  connections_[id] = std::move(connection);
  handshakes_.insert(id);

  // The pidfd is taken now, while the process that connected is most likely alive.
  auto peer = GetPeerCredentials(added.fd());
  if (!peer.ok()) return Reject(id, peer.status());
  added.peer = *peer;
  auto pidfd = OpenPeerPidfd(added.fd(), *peer);
  if (!pidfd.ok()) return Reject(id, pidfd.status());
  added.pidfd = *std::move(pidfd);
  const absl::Status watched = Watch(added.fd(), Source::kSocket, id, kSocketEvents, EPOLL_CTL_ADD);
  if (!watched.ok()) Reject(id, watched);
}

void AttachLoop::Reject(std::uint64_t id, const absl::Status& status) {
  ++rejected_;
  // Best effort: closing says the same, with less detail.
  SendPacket(connections_.at(id)->fd(), EncodeReject(status), -1).IgnoreError();
  DropHandshake(id);
}

void AttachLoop::DropHandshake(std::uint64_t id) {
  handshakes_.erase(id);
  connections_.erase(id);
}

// ---- Connections ----

void AttachLoop::OnSocket(std::uint64_t id, std::uint32_t events) {
  const auto it = connections_.find(id);
  if (it == connections_.end()) return;
  Connection& connection = *it->second;
  if ((events & EPOLLOUT) != 0 && connection.session != nullptr) {
    // A failure is met again by the receive below.
    connection.session->FlushQueue().IgnoreError();
  }
  ReceivedPacket packet;
  for (int i = 0; i < kPacketsPerTurn; ++i) {
    ReceivePacket(connection.fd(), packet);
    switch (packet.kind) {
      case ReceivedPacket::Kind::kNothing:
        return;
      case ReceivedPacket::Kind::kEnd:
        return EndConnection(id, connection, End::kEndOfFile);
      case ReceivedPacket::Kind::kNotAllowed:
        return EndConnection(id, connection, End::kProtocol);
      case ReceivedPacket::Kind::kPacket:
        if (!OnPacket(id, connection, packet)) return;
    }
  }
  // There may be more, and its edge is spent: ask for another.
  Watch(connection.fd(), Source::kSocket, id, kSocketEvents, EPOLL_CTL_MOD).IgnoreError();
}

bool AttachLoop::OnPacket(std::uint64_t id, Connection& connection, const ReceivedPacket& packet) {
  const auto message = DecodeFromClient(packet.bytes());
  if (connection.session == nullptr) {
    const Hello* hello = message.ok() ? std::get_if<Hello>(&*message) : nullptr;
    if (hello == nullptr) {
      Reject(id, message.ok() ? absl::InvalidArgumentError("attach message: expected a hello first")
                              : message.status());
      return false;
    }
    const absl::Status greeted = Greet(id, connection, *hello);
    if (!greeted.ok()) Reject(id, greeted);
    return greeted.ok();
  }
  const RegionUnmapped* unmapped = message.ok() ? std::get_if<RegionUnmapped>(&*message) : nullptr;
  if (unmapped == nullptr) {
    EndConnection(id, connection, End::kProtocol);
    return false;
  }
  // A region that it never had: nothing to forget, and nobody is harmed.
  connection.session->ForgetRegion(unmapped->region_id);
  return true;
}

absl::Status AttachLoop::Greet(std::uint64_t id, Connection& connection, const Hello& hello) {
  KAVERN_ASSIGN_OR_RETURN(std::string tenant, tenants_.Resolve(connection.peer, hello.tenant));
  KAVERN_ASSIGN_OR_RETURN(const SessionToken token, RandomToken());
  KAVERN_RETURN_IF_ERROR(
      Watch(connection.pidfd.get(), Source::kProcess, id, EPOLLIN, EPOLL_CTL_ADD));
  connection.session = std::make_shared<Session>(
      token, tenant, tenants_.IsOperator(connection.peer), connection.peer, hello.client_name,
      std::move(connection.socket), options_.session_limits, options_.clock->Now());
  Session& session = *connection.session;
  // In the table before the welcome: the client's first call may be faster than this thread.
  KAVERN_RETURN_IF_ERROR(sessions_.Add(connection.session));
  handshakes_.erase(id);
  ++accepted_;

  shm::WelcomeBody welcome{};
  std::memcpy(welcome.session_token, token.data(), token.size());
  std::memcpy(welcome.incarnation, incarnation_.data(), incarnation_.size());
  CopyPadded(tenant, welcome.tenant);
  welcome.daemon_pid = static_cast<std::uint64_t>(::getpid());
  welcome.operator_rights = session.is_operator() ? 1 : 0;
  // A client that is gone already: its end comes as an event.
  session.Send(EncodeAttach(shm::AttachType::kWelcome, welcome)).IgnoreError();
  return absl::OkStatus();
}

void AttachLoop::EndConnection(std::uint64_t id, Connection& connection, End end) {
  if (connection.session == nullptr) {
    ++rejected_;
    return DropHandshake(id);
  }
  Session& session = *connection.session;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection.fd(), nullptr);
  session.Fence();
  if (end == End::kProtocol || session.GetFacts().queue_overflowed) ++fenced_by_protocol_;
  if (session.FreeIfNothingHeld()) Forget(id);
}

void AttachLoop::OnProcessExit(std::uint64_t id) {
  const auto it = connections_.find(id);
  if (it == connections_.end()) return;
  it->second->session->FreeEverything();
  Forget(id);
}

void AttachLoop::Forget(std::uint64_t id) {
  const auto it = connections_.find(id);
  sessions_.Remove(it->second->session->token());
  connections_.erase(it);
  ++ended_;
}

}  // namespace kavern::service
