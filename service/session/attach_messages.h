// The attach socket's packets: from shm_layout.h's structs to bytes and back. Pure.
#ifndef KAVERN_SERVICE_SESSION_ATTACH_MESSAGES_H_
#define KAVERN_SERVICE_SESSION_ATTACH_MESSAGES_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/kavern/v1/shm_layout.h"

namespace kavern::service {

using AttachMessage = std::vector<std::byte>;

// Header, then `body_bytes` of body; at most shm::kAttachMessageBytesMax in all.
AttachMessage EncodeAttach(shm::AttachType type, std::span<const std::byte> body);

template <typename Body>
AttachMessage EncodeAttach(shm::AttachType type, const Body& body) {
  static_assert(std::is_trivially_copyable_v<Body> &&
                sizeof(Body) + sizeof(shm::AttachHeader) <= shm::kAttachMessageBytesMax);
  return EncodeAttach(type, std::as_bytes(std::span(&body, 1)));
}

// The reason why an attach was refused; a long message is cut.
AttachMessage EncodeReject(const absl::Status& status);

struct Hello {
  std::string tenant;
  std::string client_name;  // printable ASCII; anything else became '?'
};
struct RegionUnmapped {
  std::uint64_t region_id = 0;
};

// What a client may say. InvalidArgument says what is wrong: too short, a foreign magic, version or
// type, a body of another size than its type's, text without its NUL.
absl::StatusOr<std::variant<Hello, RegionUnmapped>> DecodeFromClient(
    std::span<const std::byte> packet);

// Copies `text` into a NUL-padded field; what does not fit, with one NUL, is cut.
template <std::size_t N>
void CopyPadded(std::string_view text, char (&field)[N]) {
  std::memset(field, 0, N);
  std::memcpy(field, text.data(), text.size() < N ? text.size() : N - 1);
}

}  // namespace kavern::service

#endif  // KAVERN_SERVICE_SESSION_ATTACH_MESSAGES_H_
