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

void AddLayoutOptions(CLI::App& command, LayoutOptions& options) {
  std::string known;
  for (const ModelPreset& preset : ModelPresets()) {
    known += (known.empty() ? "" : ", ") + std::string(preset.name);
  }
  command.add_option("--model", options.model, "KV layout and prefill cost of: " + known)
      ->capture_default_str();
  command
      .add_option("--scale-layers", options.scale_layers,
                  "Share of the model's layers to keep, so that blocks fit a small machine")
      ->check(CLI::Range(1e-6, 1.0))
      ->capture_default_str();
  const std::string group = "Layout in place of --model";
  command.add_option("--layers", options.layers, "Layers; replaces --model")->group(group);
  command.add_option("--kv-heads", options.kv_heads, "KV heads of one shard")
      ->capture_default_str()
      ->group(group);
  command.add_option("--head-dim", options.head_dim, "Elements of a head")
      ->capture_default_str()
      ->group(group);
  command.add_option("--latent-dim", options.latent_dim, "MLA: elements of the latent vector")
      ->group(group);
  command.add_option("--dtype", options.dtype, "Element type")->capture_default_str()->group(group);
  command
      .add_option("--shards", options.shards, "Distinct shards of a block (tensor parallel ranks)")
      ->capture_default_str();
}

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
