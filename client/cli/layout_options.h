// Which model's KV a command works with: a preset, or a layout in flags.
#ifndef KAVERN_CLIENT_CLI_LAYOUT_OPTIONS_H_
#define KAVERN_CLIENT_CLI_LAYOUT_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/kv_layout.h"
#include "base/namespace_spec.h"

namespace kavern::cli {

struct LayoutOptions {
  std::string model = "llama-3-8b";
  double scale_layers = 1.0;
  // Layout flags: with layers > 0 they replace the preset.
  std::uint32_t layers = 0;
  std::uint32_t kv_heads = 8;
  std::uint32_t head_dim = 128;
  std::uint32_t latent_dim = 0;  // > 0: one latent group, heads do not count
  std::string dtype = "bfloat16";
  std::uint32_t shards = 1;
};

struct ChosenLayout {
  NamespaceSpec spec;
  std::optional<ModelPreset> preset;  // none with layout flags: prefill cannot be priced then
};

// InvalidArgument or NotFound names the option.
absl::StatusOr<ChosenLayout> ChooseLayout(const LayoutOptions& options,
                                          std::uint32_t tokens_per_block);

}  // namespace kavern::cli

#endif  // KAVERN_CLIENT_CLI_LAYOUT_OPTIONS_H_
