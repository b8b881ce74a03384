// The vector loops behind CopyAndChecksum. Internal to base/copy_and_checksum.cc.
//
// The files that are compiled for one instruction set include this and little else: an inline
// function of a common header, compiled there, could become the copy that everybody runs.
#ifndef KAVERN_BASE_COPY_KERNELS_H_
#define KAVERN_BASE_COPY_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace kavern::internal {

// One chunk passes through a buffer of this size that stays in the L1 cache, where it is
// checksummed. Small chunks and a short prefetch keep memory busy while the core checksums: against
// memcpy of the same 2 MiB blocks, 1 KiB and 2 KiB ahead measured 1.38, 4 KiB and 4 KiB ahead 0.99
// (tests/bench/copy_bench.cc).
inline constexpr std::size_t kChunkBytes = 1024;
inline constexpr std::size_t kPrefetchBytes = 2048;
inline constexpr std::size_t kVectorAlignment = 64;

// Copies `chunks` whole chunks and returns the raw (not inverted) CRC32C state continued from
// `state`. `destination` is aligned to kVectorAlignment. Non-temporal stores, not yet fenced.
using ChunkKernel = std::uint32_t (*)(std::byte* destination, const std::byte* source,
                                      std::size_t chunks, std::uint32_t state);

// nullptr where this build has no such kernel.
ChunkKernel Avx2ChunkKernel();
ChunkKernel Avx512ChunkKernel();

// Raw CRC32C of a private buffer.
std::uint32_t RawCrc32c(const std::byte* data, std::size_t size, std::uint32_t state);

// The one loop, over a vector type. Vector::Load reads the source once, into a register that the
// compiler cannot read from the source again; the same register goes to the destination and to the
// buffer, so what is checksummed is what was written.
template <typename Vector>
std::uint32_t CopyChunks(std::byte* destination, const std::byte* source, std::size_t chunks,
                         std::uint32_t state) {
  alignas(kVectorAlignment) std::byte buffer[kChunkBytes];
  for (; chunks > 0; --chunks, source += kChunkBytes, destination += kChunkBytes) {
    for (std::size_t at = 0; at < kChunkBytes; at += kVectorAlignment) {
      // Into the second cache, whose misses do not wait for the few line buffers that the stores
      // need. Past the end of the source it is harmless: a prefetch never faults.
      __builtin_prefetch(source + at + kPrefetchBytes, /*rw=*/0, /*locality=*/2);
      for (std::size_t lane = at; lane < at + kVectorAlignment; lane += Vector::kBytes) {
        const typename Vector::Type value = Vector::Load(source + lane);
        Vector::Stream(destination + lane, value);
        Vector::Store(buffer + lane, value);
      }
    }
    state = RawCrc32c(buffer, kChunkBytes, state);
  }
  return state;
}

}  // namespace kavern::internal

#endif  // KAVERN_BASE_COPY_KERNELS_H_
