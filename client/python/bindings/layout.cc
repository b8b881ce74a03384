// What is shared by whom: layouts, namespace specs, block keys.
#include <nanobind/operators.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "client/python/bindings/bindings.h"

namespace kavern::python {
namespace {

std::string_view NameOf(KvDtype dtype) {
  return DtypeName(dtype);
}

NamespaceFingerprint FingerprintOf(const nb::bytes& bytes) {
  NamespaceFingerprint fingerprint;
  if (bytes.size() != fingerprint.bytes.size()) {
    Refuse(absl::StrCat("fingerprint: got ", bytes.size(), " bytes, expected ",
                        fingerprint.bytes.size()));
  }
  std::memcpy(fingerprint.bytes.data(), bytes.c_str(), fingerprint.bytes.size());
  return fingerprint;
}

using Tokens = nb::typed<nb::sequence, int>;

void Append(BlockKeyChain& chain, const Tokens& tokens) {
  std::vector<std::uint32_t> ids;
  if (!nb::try_cast(tokens, ids)) {
    std::size_t i = 0;
    for (const nb::handle token : tokens) {
      if (std::uint32_t id = 0; !nb::try_cast(token, id)) {
        Refuse(absl::StrCat("tokens[", i, "]: got ", nb::repr(token).c_str(), ", expected 0 to ",
                            UINT32_MAX));
      }
      ++i;
    }
    Refuse("tokens: expected a sequence of token ids");
  }
  chain.Append(ids);
}

}  // namespace

void BindLayout(nb::module_& module) {
  nb::enum_<LayerGroupKind>(module, "LayerGroupKind", "What the layers of a group keep.")
      .value("FULL_ATTENTION", LayerGroupKind::kFullAttention, "every token's K and V")
      .value("SLIDING_WINDOW", LayerGroupKind::kSlidingWindow,
             "K and V, of which only the last window_tokens matter")
      .value("LATENT", LayerGroupKind::kLatent, "MLA: one latent vector and RoPE part per token")
      .value("RECURRENT_STATE", LayerGroupKind::kRecurrentState,
             "a constant-size state at the end of the block");

  nb::class_<LayerGroup>(
      module, "LayerGroup",
      "Layers that keep the same kind and shape of KV. All numbers are those of one "
      "shard: with tensor parallelism over 4 ranks, a quarter of the KV heads.")
      .def(
          "__init__",
          [](LayerGroup* self, std::uint32_t layer_count, LayerGroupKind kind,
             std::uint32_t kv_heads, std::uint32_t head_dim, std::uint32_t window_tokens,
             std::uint32_t latent_dim, std::uint64_t state_bytes) {
            new (self) LayerGroup{kind,          layer_count, kv_heads,   head_dim,
                                  window_tokens, latent_dim,  state_bytes};
          },
          nb::arg("layer_count"), nb::kw_only(), nb::arg("kind") = LayerGroupKind::kFullAttention,
          nb::arg("kv_heads") = 0, nb::arg("head_dim") = 0, nb::arg("window_tokens") = 0,
          nb::arg("latent_dim") = 0, nb::arg("state_bytes") = 0,
          "What a kind has no use for stays 0. KvLayout checks it.")
      .def_ro("kind", &LayerGroup::kind)
      .def_ro("layer_count", &LayerGroup::layer_count, "Layers in the group.")
      .def_ro("kv_heads", &LayerGroup::kv_heads,
              "Of full attention and sliding windows: KV heads that one shard holds.")
      .def_ro("head_dim", &LayerGroup::head_dim,
              "Of full attention and sliding windows: elements of K, and of V, per head and token.")
      .def_ro("window_tokens", &LayerGroup::window_tokens,
              "Of sliding windows: tokens that a layer looks back at.")
      .def_ro("latent_dim", &LayerGroup::latent_dim,
              "Of latent layers: elements per token, the latent vector and the RoPE part together.")
      .def_ro("state_bytes", &LayerGroup::state_bytes,
              "Of recurrent state: bytes per layer, at the end of a block.")
      .def(nb::self == nb::self, nb::sig("def __eq__(self, arg: object, /) -> bool"))
      .def("__getstate__",
           [](const LayerGroup& group) {
             return std::tuple(static_cast<int>(group.kind), group.layer_count, group.kv_heads,
                               group.head_dim, group.window_tokens, group.latent_dim,
                               group.state_bytes);
           })
      .def("__setstate__",
           [](LayerGroup& group,
              const std::tuple<int, std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t,
                               std::uint32_t, std::uint64_t>& state) {
             const auto& [kind, layers, heads, dim, window, latent, bytes] = state;
             new (&group) LayerGroup{
                 static_cast<LayerGroupKind>(kind), layers, heads, dim, window, latent, bytes};
           });

  nb::class_<KvLayout>(module, "KvLayout",
                       "What one block's KV looks like. A part is what one shard stores of one "
                       "layer group of one block.")
      .def(
          "__init__",
          [](KvLayout* self, std::uint32_t tokens_per_block, std::vector<LayerGroup> groups,
             const std::string& dtype, std::uint32_t shard_count) {
            KvLayout layout;
            layout.dtype = Take(ParseDtype(dtype));
            layout.tokens_per_block = tokens_per_block;
            layout.shard_count = shard_count;
            layout.groups = std::move(groups);
            Check(layout.Validate());
            new (self) KvLayout(std::move(layout));
          },
          nb::arg("tokens_per_block"), nb::arg("groups"), nb::kw_only(),
          nb::arg("dtype") = "bfloat16", nb::arg("shard_count") = 1,
          "dtype: float32, float16, bfloat16, float8_e4m3, float8_e5m2 or int8. Raises "
          "InvalidArgumentError, which names the field.")
      .def_static(
          "of_model",
          [](const std::string& model, std::uint32_t tokens_per_block, double scale_layers) {
            KvLayout layout = Take(FindModelPreset(model)).Layout(tokens_per_block, scale_layers);
            Check(layout.Validate());
            return layout;
          },
          nb::arg("model"), nb::arg("tokens_per_block"), nb::kw_only(),
          nb::arg("scale_layers") = 1.0,
          "The layout of a known model, such as llama-3-8b. Raises NotFoundError, which lists the "
          "known ones.")
      .def_prop_ro(
          "dtype", [](const KvLayout& layout) { return std::string(NameOf(layout.dtype)); },
          "Element type of K and V as they are stored.")
      .def_ro("tokens_per_block", &KvLayout::tokens_per_block, "Tokens of one block.")
      .def_ro("shard_count", &KvLayout::shard_count,
              "Different shards that a block is stored in; ranks with the same bytes share one.")
      .def_ro("groups", &KvLayout::groups, "Layer groups, in the order of their numbers.")
      .def(
          "part_bytes",
          [](const KvLayout& layout, std::uint32_t group) {
            if (group >= layout.groups.size()) {
              Refuse(absl::StrCat("group: got ", group, ", expected less than ",
                                  layout.groups.size()));
            }
            return layout.PartBytes(group);
          },
          nb::arg("group") = 0, "Bytes of one part: what one key's buffers must hold.")
      .def_prop_ro("block_bytes", &KvLayout::BlockBytes, "Bytes of a block, all of its parts.")
      .def_prop_ro("bytes_per_token", &KvLayout::BytesPerToken,
                   "Bytes that one more token adds over all shards; recurrent state adds none.")
      .def(nb::self == nb::self, nb::sig("def __eq__(self, arg: object, /) -> bool"))
      .def("__getstate__",
           [](const KvLayout& layout) {
             return std::tuple(std::string(NameOf(layout.dtype)), layout.tokens_per_block,
                               layout.shard_count, layout.groups);
           })
      .def("__setstate__",
           [](KvLayout& layout, const std::tuple<std::string, std::uint32_t, std::uint32_t,
                                                 std::vector<LayerGroup>>& state) {
             const auto& [dtype, tokens_per_block, shard_count, groups] = state;
             KvLayout made;
             made.dtype = Take(ParseDtype(dtype));
             made.tokens_per_block = tokens_per_block;
             made.shard_count = shard_count;
             made.groups = groups;
             Check(made.Validate());
             new (&layout) KvLayout(std::move(made));
           });

  nb::class_<NamespaceSpec>(module, "NamespaceSpec",
                            "Everything that must be equal for two workers to share blocks. Names "
                            "are opaque, at most 512 bytes of UTF-8.")
      .def(
          "__init__",
          [](NamespaceSpec* self, std::string model, KvLayout layout, std::string weights_revision,
             std::string adapter, std::string quantization, std::string rope,
             std::string engine_layout, std::uint64_t epoch) {
            NamespaceSpec spec;
            spec.model = std::move(model);
            spec.weights_revision = std::move(weights_revision);
            spec.adapter = std::move(adapter);
            spec.quantization = std::move(quantization);
            spec.rope = std::move(rope);
            spec.engine_layout = std::move(engine_layout);
            spec.epoch = epoch;
            spec.layout = std::move(layout);
            Check(spec.Validate());
            new (self) NamespaceSpec(std::move(spec));
          },
          nb::arg("model"), nb::arg("layout"), nb::kw_only(), nb::arg("weights_revision") = "",
          nb::arg("adapter") = "", nb::arg("quantization") = "", nb::arg("rope") = "",
          nb::arg("engine_layout") = "", nb::arg("epoch") = 0,
          "Only model and layout must be given; what is left out is equal for all that leave it "
          "out. kavern.hf.spec_of_config fills it in from a model's files. Raises "
          "InvalidArgumentError, which names the field.")
      .def_ro("model", &NamespaceSpec::model, "Model id, such as meta-llama/Meta-Llama-3-8B.")
      .def_ro("layout", &NamespaceSpec::layout)
      .def_ro("weights_revision", &NamespaceSpec::weights_revision,
              "Commit of the weights, or a digest of their files.")
      .def_ro("adapter", &NamespaceSpec::adapter,
              "A LoRA adapter by its content, such as a digest; empty: none.")
      .def_ro("quantization", &NamespaceSpec::quantization,
              "How weights and KV are quantized; empty: not at all.")
      .def_ro("rope", &NamespaceSpec::rope,
              "RoPE parameters as the engine resolved them, in any text that is equal where they "
              "are: base, scaling, and the longest sequence where that scales it.")
      .def_ro("engine_layout", &NamespaceSpec::engine_layout,
              "Who packs the bytes of a part, and how: engine, attention backend, and instruction "
              "set where the order of bytes follows from it.")
      .def_ro("epoch", &NamespaceSpec::epoch,
              "A number to be raised when all that is cached is to be forgotten, as after weights "
              "that changed in place.")
      .def(nb::self == nb::self, nb::sig("def __eq__(self, arg: object, /) -> bool"))
      .def("__getstate__",
           [](const NamespaceSpec& spec) {
             return std::tuple(spec.model, spec.weights_revision, spec.adapter, spec.quantization,
                               spec.rope, spec.engine_layout, spec.epoch, spec.layout);
           })
      .def("__setstate__",
           [](NamespaceSpec& spec,
              const std::tuple<std::string, std::string, std::string, std::string, std::string,
                               std::string, std::uint64_t, KvLayout>& state) {
             NamespaceSpec made;
             std::tie(made.model, made.weights_revision, made.adapter, made.quantization, made.rope,
                      made.engine_layout, made.epoch, made.layout) = state;
             Check(made.Validate());
             new (&spec) NamespaceSpec(std::move(made));
           });

  nb::class_<BlockKeyChain>(
      module, "BlockKeyChain",
      "The keys of one growing conversation, each computed once: a key stands "
      "for all tokens up to the end of its block. Namespace.chain makes one. "
      "Not thread-safe.")
      .def(
          "__init__",
          [](BlockKeyChain* self, const nb::bytes& fingerprint, std::uint32_t tokens_per_block) {
            if (tokens_per_block == 0) Refuse("tokens_per_block: got 0, expected at least 1");
            new (self) BlockKeyChain(FingerprintOf(fingerprint), tokens_per_block);
          },
          nb::arg("fingerprint"), nb::arg("tokens_per_block"),
          "fingerprint: Namespace.fingerprint, 16 bytes. Raises InvalidArgumentError.")
      .def("append", &Append, nb::arg("tokens"),
           "Appends token ids. Every block that this completes gets its key; the rest waits.")
      .def(
          "set_extra_keys",
          [](BlockKeyChain& chain, std::size_t block_index, const std::vector<nb::bytes>& extra) {
            std::vector<std::string> keys;
            keys.reserve(extra.size());
            for (const nb::bytes& key : extra) keys.emplace_back(key.c_str(), key.size());
            Check(chain.SetExtraKeys(block_index, std::move(keys)));
          },
          nb::arg("block_index"), nb::arg("extra_keys"),
          "What else, beside tokens and prefix, changes the KV of one block: the content hash of "
          "an image, a cache salt. The block must not be complete yet (InvalidArgumentError).")
      .def(
          "truncate",
          [](BlockKeyChain& chain, std::uint64_t tokens) { Check(chain.Truncate(tokens)); },
          nb::arg("token_count"),
          "Forgets all tokens from there on: an edited history. InvalidArgumentError inside a "
          "complete block: cut at a block boundary.")
      .def_prop_ro(
          "keys", [](const BlockKeyChain& chain) { return ListOf(chain.keys()); },
          "The keys of the complete blocks, 16 bytes each, in order.")
      .def(
          "keys_between",
          [](const BlockKeyChain& chain, std::size_t first, std::size_t last) {
            const auto keys = chain.keys();
            last = std::min<std::size_t>(last, keys.size());
            return ListOf(first < last ? keys.subspan(first, last - first)
                                       : std::span<const BlockKey>());
          },
          nb::arg("first"), nb::arg("last"), "keys[first:last], without a list of all.")
      .def("__len__", [](const BlockKeyChain& chain) { return chain.keys().size(); })
      .def_prop_ro("token_count", &BlockKeyChain::token_count,
                   "Tokens appended, those of the block that is not complete yet included.")
      .def_prop_ro("tokens_per_block", &BlockKeyChain::tokens_per_block);

  // Equal by what they say, so not to be found by which object they are.
  for (const char* name : {"LayerGroup", "KvLayout", "NamespaceSpec"}) {
    nb::setattr(module.attr(name), "__hash__", nb::none());
  }
}

}  // namespace kavern::python
