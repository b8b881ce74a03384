#include "base/copy_and_checksum.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>

#include "base/copy_kernels.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace kavern {
namespace internal {

std::uint32_t RawCrc32c(const std::byte* data, std::size_t size, std::uint32_t state) {
  // The library's length is an int; its interface is not const-correct.
  constexpr std::size_t kPieceMax = std::size_t{1} << 30;
  while (size > 0) {
    const std::size_t piece = std::min(size, kPieceMax);
    state = crc32_iscsi(reinterpret_cast<unsigned char*>(const_cast<std::byte*>(data)),
                        static_cast<int>(piece), state);
    data += piece;
    size -= piece;
  }
  return state;
}

}  // namespace internal

namespace {

using internal::kChunkBytes;
using internal::kVectorAlignment;

// Below this a copy stays in the cache, where its reader will want it; above, ordinary stores would
// read the destination from memory first and push out everything else.
constexpr std::size_t kStreamBytesMin = std::size_t{16} * 1024;

// Any size and alignment, through the same private buffer: every source byte is loaded once.
std::uint32_t CopyPlain(std::byte* destination, const std::byte* source, std::size_t size,
                        std::uint32_t state) {
  std::array<std::byte, kChunkBytes> buffer;
  while (size > 0) {
    const std::size_t piece = std::min(size, buffer.size());
    std::memcpy(buffer.data(), source, piece);
    state = internal::RawCrc32c(buffer.data(), piece, state);
    std::memcpy(destination, buffer.data(), piece);
    source += piece;
    destination += piece;
    size -= piece;
  }
  return state;
}

std::uint32_t CopyStreaming(internal::ChunkKernel kernel, std::byte* destination,
                            const std::byte* source, std::size_t size, std::uint32_t state) {
  const auto address = reinterpret_cast<std::uintptr_t>(destination);
  const std::size_t head = (kVectorAlignment - address % kVectorAlignment) % kVectorAlignment;
  state = CopyPlain(destination, source, head, state);
  const std::size_t chunks = (size - head) / kChunkBytes;
  state = kernel(destination + head, source + head, chunks, state);
#if defined(__x86_64__)
  // Non-temporal stores are weakly ordered: whoever is told of the copy must find it done.
  _mm_sfence();
#endif
  const std::size_t done = head + chunks * kChunkBytes;
  return CopyPlain(destination + done, source + done, size - done, state);
}

internal::ChunkKernel ChunkKernelOf(CopyKernel kernel) {
  switch (kernel) {
    case CopyKernel::kPortable:
      return nullptr;
    case CopyKernel::kAvx2:
      return internal::Avx2ChunkKernel();
    case CopyKernel::kAvx512:
      return internal::Avx512ChunkKernel();
  }
  return nullptr;
}

}  // namespace

std::uint32_t Crc32c(std::span<const std::byte> data, std::uint32_t crc) {
  return ~internal::RawCrc32c(data.data(), data.size(), ~crc);
}

std::uint32_t PartChecksumSeed(const BlockKey& key, std::uint32_t part_index) {
  std::array<std::byte, BlockKey::kSize + sizeof(part_index)> message;
  std::memcpy(message.data(), key.bytes.data(), BlockKey::kSize);
  for (std::size_t i = 0; i < sizeof(part_index); ++i) {
    message[BlockKey::kSize + i] = static_cast<std::byte>(part_index >> (8 * i));
  }
  return Crc32c(message);
}

std::string_view CopyKernelName(CopyKernel kernel) {
  switch (kernel) {
    case CopyKernel::kPortable:
      return "portable";
    case CopyKernel::kAvx2:
      return "avx2";
    case CopyKernel::kAvx512:
      return "avx512";
  }
  return "unknown";
}

bool CopyKernelSupported(CopyKernel kernel) {
  if (kernel == CopyKernel::kPortable) return true;
  if (ChunkKernelOf(kernel) == nullptr) return false;
#if defined(__x86_64__)
  return kernel == CopyKernel::kAvx2 ? __builtin_cpu_supports("avx2") != 0
                                     : __builtin_cpu_supports("avx512f") != 0;
#else
  return false;
#endif
}

CopyKernel BestCopyKernel() {
  static const CopyKernel best = CopyKernelSupported(CopyKernel::kAvx512) ? CopyKernel::kAvx512
                                 : CopyKernelSupported(CopyKernel::kAvx2) ? CopyKernel::kAvx2
                                                                          : CopyKernel::kPortable;
  return best;
}

std::uint32_t CopyAndChecksum(std::span<std::byte> destination, std::span<const std::byte> source,
                              std::uint32_t crc, CopyKernel kernel) {
  assert(destination.size() == source.size());
  const internal::ChunkKernel chunk_kernel = ChunkKernelOf(kernel);
  const std::size_t size = source.size();
  const std::uint32_t state =
      chunk_kernel == nullptr || size < kStreamBytesMin
          ? CopyPlain(destination.data(), source.data(), size, ~crc)
          : CopyStreaming(chunk_kernel, destination.data(), source.data(), size, ~crc);
  return ~state;
}

}  // namespace kavern
