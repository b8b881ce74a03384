#include <numeric>

#include "absl/strings/str_cat.h"
#include "client/kavern/paged_kv.h"

namespace kavern {

absl::Status TensorLayout::Validate() const {
  if (layers.empty()) return absl::InvalidArgumentError("layers: none given");
  if (blocks_per_part == 0) {
    return absl::InvalidArgumentError("blocks_per_part: got 0, expected at least 1");
  }
  if (block_count == 0 || block_count > UINT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_count: got ", block_count, ", expected 1 to ", UINT32_MAX));
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerTensor& layer = layers[i];
    if (layer.base == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("layers[", i, "].base: got a null pointer"));
    }
    if (layer.block_bytes == 0 || layer.block_bytes > KvLayout::kPartBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("layers[", i, "].block_bytes: got ",
                                                     layer.block_bytes, ", expected 1 to ",
                                                     KvLayout::kPartBytesMax));
    }
    if (layer.block_stride < layer.block_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "layers[", i, "].block_stride: got ", layer.block_stride, ", expected at least ",
          layer.block_bytes, ", the bytes of a block of that layer"));
    }
  }
  return absl::OkStatus();
}

std::uint64_t TensorLayout::PartBytes() const {
  return std::accumulate(layers.begin(), layers.end(), std::uint64_t{0},
                         [this](std::uint64_t sum, const LayerTensor& layer) {
                           return sum + layer.block_bytes * blocks_per_part;
                         });
}

void TensorLayout::AppendPieces(std::span<const std::uint32_t> blocks,
                                std::vector<MutableBuffer>& out) const {
  for (const LayerTensor& layer : layers) {
    for (const std::uint32_t block : blocks) {
      out.emplace_back(layer.base + block * layer.block_stride, layer.block_bytes);
    }
  }
}

}  // namespace kavern
