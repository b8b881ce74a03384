// SHA-256 truncated to 128 bits: the hash behind block keys and namespace fingerprints. Internal to
// base.
#ifndef KAVERN_BASE_SHA256_H_
#define KAVERN_BASE_SHA256_H_

#include <openssl/sha.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace kavern {

// One message, hashed piece by piece. Allocates nothing and cannot fail: it needs no OpenSSL
// provider, so there is no error that could leave two messages with one digest.
class Sha256 {
 public:
  Sha256();

  void Update(const void* data, std::size_t size_bytes);

  // The first 16 bytes of the digest; the last 16 when the first are all zero, which is the value
  // that stands for "none". Once only.
  std::array<std::uint8_t, 16> Finish();

 private:
  SHA256_CTX context_;
};

}  // namespace kavern

#endif  // KAVERN_BASE_SHA256_H_
