// libcrypto's SHA256_* functions are deprecated in favour of EVP, and used here all the same. A
// 16-token block is a message of 88 bytes; keys are computed for every block of every turn.
// Measured on such a message, OpenSSL 3.0: 113 ns with these, 210 ns with a reused EVP_MD_CTX, 280
// ns with EVP_Digest, 740 ns with SHA256() (which fetches the algorithm anew). The instructions
// underneath are the same.
#define OPENSSL_SUPPRESS_DEPRECATED

#include "base/sha256.h"

#include <algorithm>

namespace kavern {

Sha256::Sha256() {
  SHA256_Init(&context_);
}

void Sha256::Update(const void* data, std::size_t size_bytes) {
  SHA256_Update(&context_, data, size_bytes);
}

std::array<std::uint8_t, 16> Sha256::Finish() {
  std::array<std::uint8_t, SHA256_DIGEST_LENGTH> digest;
  SHA256_Final(digest.data(), &context_);
  std::array<std::uint8_t, 16> half;
  std::copy_n(digest.begin(), half.size(), half.begin());
  if (half == std::array<std::uint8_t, 16>{}) {
    std::copy_n(digest.begin() + half.size(), half.size(), half.begin());
  }
  return half;
}

}  // namespace kavern
