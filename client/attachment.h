// One attach connection: the session with one incarnation of the daemon, and the memory that came
// with it.
#ifndef KAVERN_CLIENT_ATTACHMENT_H_
#define KAVERN_CLIENT_ATTACHMENT_H_

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/block_key.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "client/directory_reader.h"
#include "proto/kavern/v1/shm_layout.h"

namespace kavern::client {

// A region as this process maps it. Shared by the attachment and by every lease in it: it is
// unmapped when the daemon gave it up (or is gone) and the last lease has ended.
class MappedRegion {
 public:
  // `on_unmapped` runs after the memory was unmapped, on whichever thread drops the last share.
  MappedRegion(Mapping mapping, std::function<void()> on_unmapped);
  ~MappedRegion();
  MappedRegion(const MappedRegion&) = delete;
  MappedRegion& operator=(const MappedRegion&) = delete;

  // The bytes of an extent; empty when it does not lie in the region.
  std::span<std::byte> Extent(std::uint64_t offset, std::uint64_t length) const;

 private:
  Mapping mapping_;
  const std::function<void()> on_unmapped_;
};

// Thread-safe. A thread of its own reads the socket; it ends with the connection.
class Attachment {
 public:
  struct Options {
    std::string socket_path;
    std::string tenant;
    std::string client_name;
    std::chrono::milliseconds deadline{5000};
    // Bytes of regions that all attachments of a client map. Shared: a lease may outlive the
    // client.
    std::shared_ptr<std::atomic<std::uint64_t>> mapped_bytes;
  };

  // Connects, says hello, waits for the welcome. Unavailable: no daemon, or it hung up. What a
  // daemon rejects comes with the daemon's own status (PermissionDenied: no tenant for this user;
  // ResourceExhausted: too many sessions).
  static absl::StatusOr<std::shared_ptr<Attachment>> Connect(const Options& options);
  // Closes the connection and joins the thread.
  ~Attachment();

  const std::string& session_token() const { return session_token_; }
  const std::string& tenant() const { return tenant_; }
  const std::string& incarnation() const { return incarnation_; }  // 16 bytes

  // The daemon closed the connection, or sent what it must not.
  bool ended() const;
  bool draining() const;
  // Blocks until it ended, or until Close() was called.
  void WaitUntilEnded();
  // Ends the connection from this side: calls fail from now on, mappings under lease stay.
  void Close();

  // The mapping of a region that an RPC reply named: its descriptor was sent before the reply, but
  // may still be on its way through the reading thread. Unavailable when the connection ended,
  // DeadlineExceeded.
  absl::StatusOr<std::shared_ptr<MappedRegion>> WaitForRegion(std::uint64_t region_id,
                                                              SteadyTime deadline);

  // Waits for a directory segment of this generation or a later one; false when `deadline` passed
  // or the connection ended first.
  bool WaitForDirectory(const NamespaceFingerprint& fingerprint, std::uint64_t generation,
                        SteadyTime deadline);

  // The newest directory segment of the namespace, or nullptr when it has none: then nothing is
  // cached.
  std::shared_ptr<const DirectoryReader> Directory(const NamespaceFingerprint& fingerprint) const;

 private:
  // The socket, shared with the regions that still have to say that they are unmapped.
  struct Wire;
  struct Message;

  explicit Attachment(Options options);

  absl::Status Handshake();
  void ReadLoop();
  // One message. DeadlineExceeded; Unavailable at the end of file, after Close(), or for a
  // malformed one.
  absl::StatusOr<Message> Receive(SteadyTime deadline);
  absl::Status Handle(Message& message);
  absl::Status AddRegion(Message& message);
  absl::Status AddDirectory(Message& message);
  void RetireRegion(std::uint64_t region_id);
  void DropDirectory(const shm::DirectoryGoneBody& gone);
  void End();

  const Options options_;
  std::shared_ptr<Wire> wire_;
  std::string session_token_;
  std::string tenant_;
  std::string incarnation_;

  mutable Mutex mu_;
  CondVar changed_;
  bool ended_ KAVERN_GUARDED_BY(mu_) = false;
  bool draining_ KAVERN_GUARDED_BY(mu_) = false;
  absl::flat_hash_map<std::uint64_t, std::shared_ptr<MappedRegion>> regions_ KAVERN_GUARDED_BY(mu_);
  absl::flat_hash_map<NamespaceFingerprint, std::shared_ptr<const DirectoryReader>> directories_
      KAVERN_GUARDED_BY(mu_);
  std::thread reader_;
};

}  // namespace kavern::client

#endif  // KAVERN_CLIENT_ATTACHMENT_H_
