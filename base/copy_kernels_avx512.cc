// Compiled for AVX-512: nothing here may be called before CopyKernelSupported said yes.
#include "base/copy_kernels.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace kavern::internal {

#if defined(__AVX512F__)
namespace {

struct Avx512 {
  using Type = __m512i;
  static constexpr std::size_t kBytes = 64;
  static Type Load(const std::byte* from) {
    Type value = _mm512_loadu_si512(reinterpret_cast<const __m512i*>(from));
    asm(""
        : "+v"(
            value));  // From here on the value is what is in the register, whatever is at `from`.
    return value;
  }
  static void Stream(std::byte* to, Type value) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), value);
  }
  static void Store(std::byte* to, Type value) {
    _mm512_store_si512(reinterpret_cast<__m512i*>(to), value);
  }
};

}  // namespace

ChunkKernel Avx512ChunkKernel() {
  return &CopyChunks<Avx512>;
}
#else
ChunkKernel Avx512ChunkKernel() {
  return nullptr;
}
#endif

}  // namespace kavern::internal
