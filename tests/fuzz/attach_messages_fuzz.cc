// What a client may send on the attach socket.
#include "fuzz_input.h"
#include "service/session/attach_messages.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using kavern::fuzz::Require;
  const auto decoded = kavern::service::DecodeFromClient(std::as_bytes(std::span(data, size)));
  if (!decoded.ok()) {
    Require(!decoded.status().message().empty(), "a refusal says why");
    return 0;
  }
  if (const auto* hello = std::get_if<kavern::service::Hello>(&*decoded)) {
    for (const char c : hello->client_name) {
      Require(c >= ' ' && c <= '~', "a client's name can be printed");
    }
  }
  return 0;
}
