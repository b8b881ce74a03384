// Compiled for AVX2: nothing here may be called before CopyKernelSupported said yes.
#include "base/copy_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace kavern::internal {

#if defined(__AVX2__)
namespace {

struct Avx2 {
  using Type = __m256i;
  static constexpr std::size_t kBytes = 32;
  static Type Load(const std::byte* from) {
    Type value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    asm(""
        : "+x"(
            value));  // From here on the value is what is in the register, whatever is at `from`.
    return value;
  }
  static void Stream(std::byte* to, Type value) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), value);
  }
  static void Store(std::byte* to, Type value) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), value);
  }
};

}  // namespace

ChunkKernel Avx2ChunkKernel() {
  return &CopyChunks<Avx2>;
}
#else
ChunkKernel Avx2ChunkKernel() {
  return nullptr;
}
#endif

}  // namespace kavern::internal
