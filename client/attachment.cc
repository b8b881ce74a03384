#include "client/attachment.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/named_thread.h"
#include "base/sealed_memfd.h"
#include "base/status_macros.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace kavern::client {
namespace {

// A NUL-padded field; not necessarily NUL-terminated.
template <std::size_t N>
std::string FieldText(const char (&field)[N]) {
  return std::string(field, strnlen(field, N));
}

template <std::size_t N>
void SetField(char (&field)[N], const std::string& text) {
  std::memcpy(field, text.data(), std::min(text.size(), N));
}

absl::Status Malformed(const char* what) {
  return absl::UnavailableError(absl::StrCat("attach socket: the daemon sent ", what));
}

}  // namespace

MappedRegion::MappedRegion(Mapping mapping, std::function<void()> on_unmapped)
    : mapping_(std::move(mapping)), on_unmapped_(std::move(on_unmapped)) {}

MappedRegion::~MappedRegion() {
  mapping_.Reset();
  on_unmapped_();
}

std::span<std::byte> MappedRegion::Extent(std::uint64_t offset, std::uint64_t length) const {
  if (offset > mapping_.size() || length > mapping_.size() - offset) return {};
  return {mapping_.data() + offset, length};
}

struct Attachment::Wire {
  UniqueFd socket;
  UniqueFd wake;  // an eventfd that ends the reading thread

  // One packet, whole or not at all; never waits. A full socket means a daemon that does not read:
  // the connection is as good as gone.
  absl::Status Send(shm::AttachType type, const void* body, std::size_t body_bytes) const {
    std::array<std::byte, shm::kAttachMessageBytesMax> packet{};
    const shm::AttachHeader header = {shm::kAttachMagic, shm::kShmVersion,
                                      static_cast<std::uint16_t>(type),
                                      static_cast<std::uint32_t>(body_bytes), 0};
    std::memcpy(packet.data(), &header, sizeof(header));
    std::memcpy(packet.data() + sizeof(header), body, body_bytes);
    if (send(socket.get(), packet.data(), sizeof(header) + body_bytes,
             MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
      return ErrnoStatus(errno, "attach socket: send");
    }
    return absl::OkStatus();
  }
};

struct Attachment::Message {
  shm::AttachType type;
  std::vector<std::byte> body;
  UniqueFd fd;

  // The body as `Body`, when it has exactly its size.
  template <typename Body>
  absl::StatusOr<Body> As() const {
    Body value;
    if (body.size() != sizeof(value)) return Malformed("a message of a wrong size");
    std::memcpy(&value, body.data(), sizeof(value));
    return value;
  }
};

Attachment::Attachment(Options options)
    : options_(std::move(options)), wire_(std::make_shared<Wire>()) {}

absl::StatusOr<std::shared_ptr<Attachment>> Attachment::Connect(const Options& options) {
  std::shared_ptr<Attachment> attachment(new Attachment(options));
  KAVERN_RETURN_IF_ERROR(attachment->Handshake());
  attachment->reader_ = NamedThread("kavern-attach", [raw = attachment.get()] { raw->ReadLoop(); });
  return attachment;
}

Attachment::~Attachment() {
  Close();
  if (reader_.joinable()) reader_.join();
  // Regions tell the daemon that they are unmapped: it is not to count them against its capacity.
  MutexLock lock(mu_);
  regions_.clear();
}

absl::Status Attachment::Handshake() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (options_.socket_path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("address: ", options_.socket_path, " is too long for a socket"));
  }
  std::memcpy(address.sun_path, options_.socket_path.c_str(), options_.socket_path.size() + 1);
  wire_->socket = UniqueFd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  wire_->wake = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wire_->socket.valid() || !wire_->wake.valid()) return ErrnoStatus(errno, "attach socket");
  if (connect(wire_->socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) !=
      0) {
    return absl::UnavailableError(ErrnoStatus(errno, options_.socket_path).message());
  }
  shm::HelloBody hello{};
  SetField(hello.tenant, options_.tenant);
  SetField(hello.client_name, options_.client_name);
  KAVERN_RETURN_IF_ERROR(wire_->Send(shm::AttachType::kHello, &hello, sizeof(hello)));

  KAVERN_ASSIGN_OR_RETURN(const Message answer,
                          Receive(std::chrono::steady_clock::now() + options_.deadline));
  if (answer.type == shm::AttachType::kReject) {
    KAVERN_ASSIGN_OR_RETURN(const auto reject, answer.As<shm::RejectBody>());
    const bool known = reject.code > 0 && reject.code <= 16;
    return absl::Status(
        known ? static_cast<absl::StatusCode>(reject.code) : absl::StatusCode::kPermissionDenied,
        FieldText(reject.message));
  }
  if (answer.type != shm::AttachType::kWelcome) return Malformed("no welcome");
  KAVERN_ASSIGN_OR_RETURN(const auto welcome, answer.As<shm::WelcomeBody>());
  session_token_.assign(reinterpret_cast<const char*>(welcome.session_token),
                        sizeof(welcome.session_token));
  incarnation_.assign(reinterpret_cast<const char*>(welcome.incarnation),
                      sizeof(welcome.incarnation));
  tenant_ = FieldText(welcome.tenant);
  return absl::OkStatus();
}

absl::StatusOr<Attachment::Message> Attachment::Receive(SteadyTime deadline) {
  for (;;) {
    std::array<std::byte, shm::kAttachMessageBytesMax> packet;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(4 * sizeof(int))> control{};
    iovec vector = {packet.data(), packet.size()};
    msghdr header{};
    header.msg_iov = &vector;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    const ssize_t size = recvmsg(wire_->socket.get(), &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) {
      std::array<pollfd, 2> fds = {
          {{wire_->socket.get(), POLLIN, 0}, {wire_->wake.get(), POLLIN, 0}}};
      int timeout_ms = -1;
      if (deadline != SteadyTime::max()) {
        const auto left = deadline - std::chrono::steady_clock::now();
        timeout_ms = static_cast<int>(
            std::max<std::int64_t>(0, std::chrono::ceil<std::chrono::milliseconds>(left).count()));
      }
      const int ready = poll(fds.data(), fds.size(), timeout_ms);
      if (ready == 0) return absl::DeadlineExceededError("attach socket: no answer in time");
      if (fds[1].revents != 0) return absl::UnavailableError("attach socket: closed");
      continue;
    }
    // Whatever came with the packet is owned from here on, so that nothing leaks.
    Message message;
    int descriptors = 0;
    for (cmsghdr* part = size > 0 ? CMSG_FIRSTHDR(&header) : nullptr; part != nullptr;
         part = CMSG_NXTHDR(&header, part)) {
      if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
      const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i, ++descriptors) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
        message.fd = UniqueFd(fd);
      }
    }
    if (size <= 0) return absl::UnavailableError("attach socket: the daemon closed the connection");
    shm::AttachHeader head;
    if (static_cast<std::size_t>(size) < sizeof(head) || descriptors > 1 ||
        (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
      return Malformed("a malformed packet");
    }
    std::memcpy(&head, packet.data(), sizeof(head));
    if (head.magic != shm::kAttachMagic || head.version != shm::kShmVersion ||
        head.body_bytes != static_cast<std::size_t>(size) - sizeof(head)) {
      return Malformed("a message of another version");
    }
    message.type = static_cast<shm::AttachType>(head.type);
    message.body.assign(packet.begin() + sizeof(head), packet.begin() + size);
    return message;
  }
}

void Attachment::ReadLoop() {
  for (;;) {
    auto message = Receive(SteadyTime::max());
    if (!message.ok() || !Handle(*message).ok()) break;
  }
  End();
}

absl::Status Attachment::Handle(Message& message) {
  switch (message.type) {
    case shm::AttachType::kRegion:
      return AddRegion(message);
    case shm::AttachType::kDirectory:
      return AddDirectory(message);
    case shm::AttachType::kRegionRetired: {
      KAVERN_ASSIGN_OR_RETURN(const auto body, message.As<shm::RegionIdBody>());
      RetireRegion(body.region_id);
      return absl::OkStatus();
    }
    case shm::AttachType::kDirectoryGone: {
      KAVERN_ASSIGN_OR_RETURN(const auto body, message.As<shm::DirectoryGoneBody>());
      DropDirectory(body);
      return absl::OkStatus();
    }
    case shm::AttachType::kDraining: {
      MutexLock lock(mu_);
      draining_ = true;
      return absl::OkStatus();
    }
    default:
      return Malformed("a message of an unknown type");
  }
}

absl::Status Attachment::AddRegion(Message& message) {
  KAVERN_ASSIGN_OR_RETURN(const auto body, message.As<shm::RegionBody>());
  KAVERN_RETURN_IF_ERROR(
      CheckSealedMemfd(message.fd.get(), body.size_bytes, MemfdWriters::kEveryone));
  KAVERN_ASSIGN_OR_RETURN(Mapping mapping, Mapping::Map(message.fd.get(), body.size_bytes,
                                                        Mapping::Access::kReadWrite));
  // The daemon has put memory behind every page; this only fills our page table, here rather than
  // under the first copy. KV does not belong into core files.
  madvise(mapping.data(), mapping.size(), MADV_DONTDUMP);
  madvise(mapping.data(), mapping.size(), MADV_POPULATE_WRITE);
  const auto mapped_bytes = options_.mapped_bytes;
  mapped_bytes->fetch_add(body.size_bytes);
  auto on_unmapped = [wire = wire_, mapped_bytes, body] {
    mapped_bytes->fetch_sub(body.size_bytes);
    const shm::RegionIdBody unmapped = {body.region_id};
    // A daemon that is gone does not need to know.
    wire->Send(shm::AttachType::kRegionUnmapped, &unmapped, sizeof(unmapped)).IgnoreError();
  };
  auto region = std::make_shared<MappedRegion>(std::move(mapping), std::move(on_unmapped));
  MutexLock lock(mu_);
  regions_[body.region_id] = std::move(region);
  changed_.NotifyAll();
  return absl::OkStatus();
}

void Attachment::RetireRegion(std::uint64_t region_id) {
  std::shared_ptr<MappedRegion> region;  // unmapped after the lock was let go
  MutexLock lock(mu_);
  const auto it = regions_.find(region_id);
  if (it == regions_.end()) return;
  region = std::move(it->second);
  regions_.erase(it);
}

absl::Status Attachment::AddDirectory(Message& message) {
  KAVERN_ASSIGN_OR_RETURN(const auto body, message.As<shm::DirectoryBody>());
  KAVERN_RETURN_IF_ERROR(
      CheckSealedMemfd(message.fd.get(), body.size_bytes, MemfdWriters::kOnlyThisMapping));
  KAVERN_ASSIGN_OR_RETURN(
      Mapping mapping, Mapping::Map(message.fd.get(), body.size_bytes, Mapping::Access::kReadOnly));
  NamespaceFingerprint fingerprint;
  std::memcpy(fingerprint.bytes.data(), body.fingerprint, sizeof(body.fingerprint));
  KAVERN_ASSIGN_OR_RETURN(
      DirectoryReader reader,
      DirectoryReader::Create(std::move(mapping), fingerprint, body.generation));
  auto shared = std::make_shared<const DirectoryReader>(std::move(reader));
  MutexLock lock(mu_);
  std::shared_ptr<const DirectoryReader>& present = directories_[fingerprint];
  if (present == nullptr || present->generation() < body.generation) present = std::move(shared);
  changed_.NotifyAll();
  return absl::OkStatus();
}

void Attachment::DropDirectory(const shm::DirectoryGoneBody& gone) {
  NamespaceFingerprint fingerprint;
  std::memcpy(fingerprint.bytes.data(), gone.fingerprint, sizeof(gone.fingerprint));
  MutexLock lock(mu_);
  const auto it = directories_.find(fingerprint);
  if (it != directories_.end() && it->second->generation() <= gone.generation) {
    directories_.erase(it);
  }
}

void Attachment::End() {
  // Regions without a lease go now: a daemon that restarts waits for their memory.
  absl::flat_hash_map<std::uint64_t, std::shared_ptr<MappedRegion>> regions;
  MutexLock lock(mu_);
  ended_ = true;
  regions.swap(regions_);
  directories_.clear();
  changed_.NotifyAll();
}

void Attachment::Close() {
  const std::uint64_t one = 1;
  // Cannot fail but for a full counter, and then the thread is awake already.
  [[maybe_unused]] const ssize_t written = write(wire_->wake.get(), &one, sizeof(one));
}

bool Attachment::ended() const {
  MutexLock lock(mu_);
  return ended_;
}

bool Attachment::draining() const {
  MutexLock lock(mu_);
  return draining_;
}

void Attachment::WaitUntilEnded() {
  MutexLock lock(mu_);
  while (!ended_) changed_.Wait(mu_);
}

absl::StatusOr<std::shared_ptr<MappedRegion>> Attachment::WaitForRegion(std::uint64_t region_id,
                                                                        SteadyTime deadline) {
  MutexLock lock(mu_);
  for (;;) {
    if (const auto it = regions_.find(region_id); it != regions_.end()) return it->second;
    if (ended_) return absl::UnavailableError("the daemon closed the connection");
    if (!changed_.WaitUntil(mu_, deadline)) {
      return absl::DeadlineExceededError(
          absl::StrCat("region ", region_id, " did not arrive in time"));
    }
  }
}

bool Attachment::WaitForDirectory(const NamespaceFingerprint& fingerprint, std::uint64_t generation,
                                  SteadyTime deadline) {
  MutexLock lock(mu_);
  for (;;) {
    const auto it = directories_.find(fingerprint);
    if (it != directories_.end() && it->second->generation() >= generation) return true;
    if (ended_ || !changed_.WaitUntil(mu_, deadline)) return false;
  }
}

std::shared_ptr<const DirectoryReader> Attachment::Directory(
    const NamespaceFingerprint& fingerprint) const {
  MutexLock lock(mu_);
  const auto it = directories_.find(fingerprint);
  return it == directories_.end() ? nullptr : it->second;
}

}  // namespace kavern::client
