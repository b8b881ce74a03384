// CRC32C of a block part, and the copy that computes it on the way.
//
// Every part's checksum is seeded with its block key and part index, so that the right bytes of
// another block fail too. Copy and checksum are one pass that takes every source byte once, into a
// register or a private buffer, and writes and checksums what it took: the bytes that were
// checksummed are the bytes that were written, whatever another process does to the source
// meanwhile.
//
// Every function may be called from any thread.
#ifndef KAVERN_BASE_COPY_AND_CHECKSUM_H_
#define KAVERN_BASE_COPY_AND_CHECKSUM_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/block_key.h"

namespace kavern {

// CRC32C (Castagnoli) as iSCSI defines it: initial value and final value are inverted.
// Crc32c("123456789") == 0xE3069283. `crc` is the value so far, 0 to begin:
// Crc32c(a + b) == Crc32c(b, Crc32c(a)).
std::uint32_t Crc32c(std::span<const std::byte> data, std::uint32_t crc = 0);

// Starting value of a part's checksum: Crc32c over key (16 bytes) and part index (u32, little
// endian).
std::uint32_t PartChecksumSeed(const BlockKey& key, std::uint32_t part_index);

// How the bytes move. All give the same result, bit for bit.
enum class CopyKernel : std::uint8_t { kPortable, kAvx2, kAvx512 };
std::string_view CopyKernelName(CopyKernel kernel);
// Whether this processor (and operating system) can run it.
bool CopyKernelSupported(CopyKernel kernel);
// The fastest supported one; chosen once per process.
CopyKernel BestCopyKernel();

// Copies `source` to `destination` (same size, not overlapping) and returns Crc32c of the bytes
// copied, continuing `crc`. Any alignment and size; `kernel` is a supported one. Large copies use
// non-temporal stores, which leave the destination out of the cache, and end with a store fence:
// once it returned, a commit message may say so.
std::uint32_t CopyAndChecksum(std::span<std::byte> destination, std::span<const std::byte> source,
                              std::uint32_t crc, CopyKernel kernel = BestCopyKernel());

}  // namespace kavern

#endif  // KAVERN_BASE_COPY_AND_CHECKSUM_H_
