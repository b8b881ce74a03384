#include "service/session/attach_messages.h"

#include <optional>

#include "absl/strings/str_cat.h"

namespace kavern::service {
namespace {

template <typename Body>
absl::StatusOr<Body> ReadBody(std::span<const std::byte> bytes) {
  if (bytes.size() != sizeof(Body)) {
    return absl::InvalidArgumentError(absl::StrCat("attach message: a body of ", bytes.size(),
                                                   " bytes, expected ", sizeof(Body)));
  }
  Body body;
  std::memcpy(&body, bytes.data(), sizeof(body));
  return body;
}

template <std::size_t N>
std::optional<std::string> ReadPadded(const char (&field)[N]) {
  const void* end = std::memchr(field, 0, N);
  if (end == nullptr) return std::nullopt;
  return std::string(field, static_cast<const char*>(end));
}

// Client names reach logs and terminals.
std::string Printable(std::string text) {
  for (char& c : text) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return text;
}

absl::StatusOr<Hello> DecodeHello(std::span<const std::byte> bytes) {
  auto body = ReadBody<shm::HelloBody>(bytes);
  if (!body.ok()) return body.status();
  std::optional<std::string> tenant = ReadPadded(body->tenant);
  std::optional<std::string> client_name = ReadPadded(body->client_name);
  if (!tenant || !client_name) {
    return absl::InvalidArgumentError("hello: expected tenant and client_name to end with a NUL");
  }
  return Hello{*tenant, Printable(*std::move(client_name))};
}

}  // namespace

AttachMessage EncodeAttach(shm::AttachType type, std::span<const std::byte> body) {
  const shm::AttachHeader header = {
      .magic = shm::kAttachMagic,
      .version = static_cast<std::uint16_t>(shm::kShmVersion),
      .type = static_cast<std::uint16_t>(type),
      .body_bytes = static_cast<std::uint32_t>(body.size()),
      .reserved = 0,
  };
  AttachMessage message(sizeof(header) + body.size());
  std::memcpy(message.data(), &header, sizeof(header));
  if (!body.empty()) std::memcpy(message.data() + sizeof(header), body.data(), body.size());
  return message;
}

AttachMessage EncodeReject(const absl::Status& status) {
  shm::RejectBody body{};
  body.code = static_cast<std::int32_t>(status.code());
  CopyPadded(std::string(status.message()), body.message);
  return EncodeAttach(shm::AttachType::kReject, body);
}

absl::StatusOr<std::variant<Hello, RegionUnmapped>> DecodeFromClient(
    std::span<const std::byte> packet) {
  shm::AttachHeader header;
  if (packet.size() < sizeof(header)) {
    return absl::InvalidArgumentError(absl::StrCat("attach message: ", packet.size(),
                                                   " bytes, expected at least ", sizeof(header)));
  }
  std::memcpy(&header, packet.data(), sizeof(header));
  const std::span<const std::byte> body = packet.subspan(sizeof(header));
  if (header.magic != shm::kAttachMagic) {
    return absl::InvalidArgumentError("attach message: foreign magic");
  }
  if (header.version != shm::kShmVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("attach message: version ", header.version, ", expected ", shm::kShmVersion));
  }
  if (header.body_bytes != body.size()) {
    return absl::InvalidArgumentError(absl::StrCat("attach message: body_bytes ", header.body_bytes,
                                                   ", but ", body.size(), " bytes follow"));
  }
  switch (static_cast<shm::AttachType>(header.type)) {
    case shm::AttachType::kHello: {
      auto hello = DecodeHello(body);
      if (!hello.ok()) return hello.status();
      return *std::move(hello);
    }
    case shm::AttachType::kRegionUnmapped: {
      auto unmapped = ReadBody<shm::RegionIdBody>(body);
      if (!unmapped.ok()) return unmapped.status();
      return RegionUnmapped{unmapped->region_id};
    }
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("attach message: type ", header.type, " is not a client's to send"));
  }
}

}  // namespace kavern::service
