#include "service/session/session.h"

#include <sys/random.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/units.h"

namespace kavern::service {
namespace {

absl::Status FencedError() {
  return absl::UnauthenticatedError("the session's attach connection has ended: attach anew");
}

absl::Status UnknownLeaseError(std::uint64_t lease_id) {
  return absl::FailedPreconditionError(
      absl::StrCat("lease_id: ", lease_id, " is no write lease that this session holds"));
}

// A permutation of the 64-bit numbers (the finalizer of SplitMix64).
std::uint64_t Scatter(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace

Session::Session(SessionToken token, std::string tenant, bool is_operator, PeerCredentials peer,
                 std::string client_name, UniqueFd socket, SessionLimits limits, SteadyTime created)
    : token_(token),
      tenant_(std::move(tenant)),
      is_operator_(is_operator),
      peer_(peer),
      client_name_(std::move(client_name)),
      socket_(std::move(socket)),
      limits_(limits),
      created_(created) {}

Session::~Session() {
  FreeEverything();
}

// ---- Namespaces ----

absl::StatusOr<bool> Session::AddNamespace(tiers::NamespaceRef ns) {
  const NamespaceFingerprint fingerprint = ns.fingerprint();
  auto shared = std::make_shared<const tiers::NamespaceRef>(std::move(ns));
  MutexLock lock(mu_);
  if (fenced_) return FencedError();
  if (held_.namespaces.contains(fingerprint)) return false;
  if (held_.namespaces.size() >= limits_.namespaces_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("this session has namespaces_per_session_max = ", limits_.namespaces_max,
                     " namespaces open"));
  }
  // Moved, so that the reference that a refused call drops is dropped after the lock.
  held_.namespaces[fingerprint].ref = std::move(shared);
  return true;
}

absl::StatusOr<Session::SharedNamespace> Session::FindNamespace(
    const NamespaceFingerprint& fingerprint) const {
  MutexLock lock(mu_);
  const auto it = held_.namespaces.find(fingerprint);
  if (it == held_.namespaces.end()) {
    return absl::FailedPreconditionError(
        "fingerprint: not a namespace that this session has opened; call OpenNamespace first");
  }
  return it->second.ref;
}

bool Session::HasNamespace(const NamespaceFingerprint& fingerprint) const {
  MutexLock lock(mu_);
  return held_.namespaces.contains(fingerprint);
}

// ---- Leases ----

std::uint64_t Session::LeaseBytesLeft() const {
  MutexLock lock(mu_);
  return limits_.lease_bytes_max > lease_bytes_ ? limits_.lease_bytes_max - lease_bytes_ : 0;
}

absl::Status Session::CheckLeaseLimitsLocked(std::uint64_t bytes) const {
  if (gone_) return FencedError();
  if (held_.reads.size() + held_.writes.size() >= limits_.leases_max) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "this session holds leases_per_session_max = ", limits_.leases_max, " leases"));
  }
  if (bytes > limits_.lease_bytes_max || lease_bytes_ > limits_.lease_bytes_max - bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "this session holds ", FormatBytes(lease_bytes_), " under lease; ", FormatBytes(bytes),
        " more would pass lease_bytes_per_session_max = ", FormatBytes(limits_.lease_bytes_max)));
  }
  return absl::OkStatus();
}

// Every session walks the same permutation from a start of its own, so that a lease of another
// session is unknown here rather than mistaken for an own one.
std::uint64_t Session::NextLeaseIdLocked() {
  std::uint64_t start = 0;
  std::memcpy(&start, token_.data(), sizeof(start));
  std::uint64_t id = 0;
  while (id == 0 || held_.reads.contains(id) || held_.writes.contains(id))
    id = Scatter(start + leases_named_++);
  return id;
}

// The parameters of both AddLease are destroyed by the caller, after the lock is given up.
absl::StatusOr<std::uint64_t> Session::AddLease(tiers::ReadLease lease, std::uint64_t bytes_to_come,
                                                std::uint64_t id) {
  const std::uint64_t bytes = lease.bytes() + bytes_to_come;
  MutexLock lock(mu_);
  KAVERN_RETURN_IF_ERROR(CheckLeaseLimitsLocked(bytes));
  if (id == 0) id = NextLeaseIdLocked();
  if (held_.reads.contains(id) || held_.writes.contains(id)) {
    return absl::InvalidArgumentError(absl::StrCat("lease_id: ", id, " is held already"));
  }
  held_.reads[id] = {std::move(lease), bytes};
  lease_bytes_ += bytes;
  if (fenced_) return FencedError();
  return id;
}

absl::StatusOr<std::uint64_t> Session::AddLease(tiers::WriteLease lease) {
  const std::uint64_t bytes = lease.bytes();
  auto cell = std::make_shared<WriteLeaseCell>();
  {
    MutexLock cell_lock(cell->mu);
    cell->lease = std::move(lease);
  }
  MutexLock lock(mu_);
  KAVERN_RETURN_IF_ERROR(CheckLeaseLimitsLocked(bytes));
  const std::uint64_t id = NextLeaseIdLocked();
  held_.writes[id] = {std::move(cell), bytes};
  lease_bytes_ += bytes;
  if (fenced_) return FencedError();
  return id;
}

bool Session::ExtendLease(std::uint64_t lease_id, tiers::ReadLease more,
                          std::uint64_t bytes_to_come) {
  MutexLock lock(mu_);
  const auto it = held_.reads.find(lease_id);
  if (it == held_.reads.end() || fenced_) return false;
  HeldRead& held = it->second;
  held.lease.Append(std::move(more));
  const std::uint64_t bytes = held.lease.bytes() + bytes_to_come;
  lease_bytes_ += bytes - held.bytes;
  held.bytes = bytes;
  return true;
}

bool Session::ReleaseRead(std::uint64_t lease_id) {
  HeldRead ended;
  MutexLock lock(mu_);
  const auto it = held_.reads.find(lease_id);
  if (it == held_.reads.end()) return false;
  ended = std::move(it->second);
  lease_bytes_ -= ended.bytes;
  held_.reads.erase(it);
  return true;
}

absl::Status Session::WithWriteLease(std::uint64_t lease_id,
                                     const std::function<absl::Status(tiers::WriteLease&)>& use) {
  std::shared_ptr<WriteLeaseCell> cell;
  {
    MutexLock lock(mu_);
    const auto it = held_.writes.find(lease_id);
    if (it == held_.writes.end()) return UnknownLeaseError(lease_id);
    cell = it->second.cell;
  }
  MutexLock cell_lock(cell->mu);
  absl::Status status = use(cell->lease);
  const std::uint64_t bytes_left = cell->lease.bytes();

  MutexLock lock(mu_);
  const auto it = held_.writes.find(lease_id);
  if (it == held_.writes.end()) return status;  // ended meanwhile
  lease_bytes_ -= it->second.bytes - bytes_left;
  it->second.bytes = bytes_left;
  if (bytes_left == 0) held_.writes.erase(it);  // `cell` destroys it, after the locks
  return status;
}

bool Session::ReleaseWrite(std::uint64_t lease_id) {
  HeldWrite ended;
  MutexLock lock(mu_);
  const auto it = held_.writes.find(lease_id);
  if (it == held_.writes.end()) return false;
  ended = std::move(it->second);
  lease_bytes_ -= ended.bytes;
  held_.writes.erase(it);
  return true;
}

// ---- Attach messages ----

absl::Status Session::Send(AttachMessage message, SharedDescriptor descriptor) {
  MutexLock lock(mu_);
  return SendLocked(std::move(message), std::move(descriptor));
}

absl::Status Session::SendLocked(AttachMessage message, SharedDescriptor descriptor) {
  if (!socket_.valid()) {
    return absl::FailedPreconditionError("this session has no attach connection");
  }
  if (fenced_) return FencedError();
  if (held_.queue.empty()) {
    auto sent = SendPacket(socket_.get(), message, descriptor.fd);
    if (!sent.ok()) {
      FenceLocked();
      return sent.status();
    }
    if (*sent) return absl::OkStatus();
  }
  if (held_.queue.size() >= limits_.queued_messages_max) {
    queue_overflowed_ = true;
    FenceLocked();
    return absl::ResourceExhaustedError(absl::StrCat(
        "the client leaves queued_messages_per_session_max = ", limits_.queued_messages_max,
        " messages of its attach socket unread"));
  }
  held_.queue.push_back({std::move(message), std::move(descriptor)});
  return absl::OkStatus();
}

absl::StatusOr<bool> Session::FlushQueue() {
  // Descriptors whose messages are out are let go after the lock.
  std::deque<QueuedMessage> sent_messages;
  MutexLock lock(mu_);
  if (fenced_) return FencedError();
  while (!held_.queue.empty()) {
    QueuedMessage& front = held_.queue.front();
    auto sent = SendPacket(socket_.get(), front.message, front.descriptor.fd);
    if (!sent.ok()) {
      FenceLocked();
      return sent.status();
    }
    if (!*sent) return false;
    sent_messages.push_back(std::move(front));
    held_.queue.pop_front();
  }
  return true;
}

absl::Status Session::ShareRegion(tiers::Region& region) {
  auto shared = region.shared_from_this();
  const shm::RegionBody body = {.region_id = region.id(), .size_bytes = region.size_bytes()};
  MutexLock lock(mu_);
  if (fenced_) return FencedError();
  if (held_.regions.contains(region.id())) return absl::OkStatus();
  KAVERN_RETURN_IF_ERROR(
      SendLocked(EncodeAttach(shm::AttachType::kRegion, body), {region.fd(), shared}));
  held_.regions[region.id()] = std::move(shared);
  return absl::OkStatus();
}

bool Session::HoldsRegion(std::uint64_t region_id) const {
  MutexLock lock(mu_);
  return held_.regions.contains(region_id);
}

bool Session::ForgetRegion(std::uint64_t region_id) {
  std::shared_ptr<tiers::Region> ended;
  MutexLock lock(mu_);
  const auto it = held_.regions.find(region_id);
  if (it == held_.regions.end()) return false;
  ended = std::move(it->second);
  held_.regions.erase(it);
  return true;
}

absl::Status Session::SendDirectory(const NamespaceFingerprint& fingerprint,
                                    const DirectoryNews& news) {
  MutexLock lock(mu_);
  const auto it = held_.namespaces.find(fingerprint);
  if (it == held_.namespaces.end() || !socket_.valid()) return absl::OkStatus();
  std::uint64_t& told = it->second.directory_generation;
  if (news.fd == nullptr) {
    if (told == 0 || told > news.generation) return absl::OkStatus();
    told = 0;
    shm::DirectoryGoneBody body{};
    std::memcpy(body.fingerprint, fingerprint.bytes.data(), sizeof(body.fingerprint));
    body.generation = news.generation;
    return SendLocked(EncodeAttach(shm::AttachType::kDirectoryGone, body), {});
  }
  if (told >= news.generation) return absl::OkStatus();
  told = news.generation;
  shm::DirectoryBody body{};
  std::memcpy(body.fingerprint, fingerprint.bytes.data(), sizeof(body.fingerprint));
  body.generation = news.generation;
  body.size_bytes = news.size_bytes;
  return SendLocked(EncodeAttach(shm::AttachType::kDirectory, body), {news.fd->get(), news.fd});
}

// ---- End ----

void Session::FenceLocked() {
  if (fenced_) return;
  fenced_ = true;
  // Also wakes the attach thread, whoever fences.
  if (socket_.valid()) ::shutdown(socket_.get(), SHUT_RDWR);
}

void Session::Fence() {
  std::deque<QueuedMessage> dropped;
  MutexLock lock(mu_);
  FenceLocked();
  dropped.swap(held_.queue);
}

bool Session::fenced() const {
  MutexLock lock(mu_);
  return fenced_;
}

Session::Holdings Session::GoLocked() {
  FenceLocked();
  gone_ = true;
  lease_bytes_ = 0;
  return std::exchange(held_, Holdings{});
}

void Session::FreeEverything() {
  Holdings ended;
  MutexLock lock(mu_);
  ended = GoLocked();
}

bool Session::FreeIfNothingHeld() {
  Holdings ended;
  MutexLock lock(mu_);
  if (!held_.reads.empty() || !held_.writes.empty() || !held_.regions.empty()) return false;
  ended = GoLocked();
  return true;
}

Session::Facts Session::GetFacts() const {
  MutexLock lock(mu_);
  Facts facts;
  facts.leases = held_.reads.size() + held_.writes.size();
  facts.lease_bytes = lease_bytes_;
  facts.region_shares = held_.regions.size();
  facts.namespaces = held_.namespaces.size();
  facts.queued_messages = held_.queue.size();
  facts.fenced = fenced_;
  facts.queue_overflowed = queue_overflowed_;
  facts.created = created_;
  return facts;
}

absl::StatusOr<SessionToken> RandomToken() {
  SessionToken token;
  // Up to 256 bytes come whole, or not at all.
  ssize_t got = 0;
  do {
    got = ::getrandom(token.data(), token.size(), 0);
  } while (got < 0 && errno == EINTR);
  if (got != static_cast<ssize_t>(token.size())) return ErrnoStatus(errno, "getrandom");
  return token;
}

}  // namespace kavern::service
