#include "client/cli/layout_options.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kavern::cli {
namespace {

absl::StatusOr<KvLayout> LayoutFromFlags(const LayoutOptions& options,
                                         std::uint32_t tokens_per_block) {
  KvLayout layout;
  KAVERN_ASSIGN_OR_RETURN(layout.dtype, ParseDtype(options.dtype));
  layout.tokens_per_block = tokens_per_block;
  LayerGroup group;
  group.layer_count = options.layers;
  if (options.latent_dim > 0) {
    group.kind = LayerGroupKind::kLatent;
    group.latent_dim = options.latent_dim;
  } else {
    group.kv_heads = options.kv_heads;
    group.head_dim = options.head_dim;
  }
  layout.groups.push_back(group);
  return layout;
}

}  // namespace

absl::StatusOr<ChosenLayout> ChooseLayout(const LayoutOptions& options,
                                          std::uint32_t tokens_per_block) {
  ChosenLayout chosen;
  if (options.layers > 0) {
    chosen.spec.model = "layout flags";
    KAVERN_ASSIGN_OR_RETURN(chosen.spec.layout, LayoutFromFlags(options, tokens_per_block));
  } else {
    KAVERN_ASSIGN_OR_RETURN(chosen.preset, FindModelPreset(options.model));
    chosen.spec.model = options.model;
    chosen.spec.layout = chosen.preset->Layout(tokens_per_block, options.scale_layers);
  }
  chosen.spec.layout.shard_count = options.shards;
  chosen.spec.engine_layout = "kavern-cli";
  KAVERN_RETURN_IF_ERROR(chosen.spec.Validate());
  return chosen;
}

}  // namespace kavern::cli
