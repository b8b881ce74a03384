"""Namespaces and KV layouts of Hugging Face models, from their config.json. What is not understood is refused, never
guessed.

    ns = client.open_namespace_of_config("/models/llama-3-8b", tokens_per_block=16)
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Union

from kavern._kavern import KvLayout, LayerGroup, LayerGroupKind, NamespaceSpec
from kavern.errors import InvalidArgumentError, UnimplementedError
from kavern.weights import cached_snapshot, short_name
from kavern.weights import weights_revision as revision_by_content

# Keys of configurations whose layers do not all keep K and V per token.
_RECURRENT_KEYS = (
    "attn_layer_indices",
    "attn_layer_period",
    "full_attention_interval",
    "layers_block_type",
    "linear_num_key_heads",
    "mamba_d_state",
    "ssm_cfg",
    "state_size",
)
# Models that slide in every layer when `sliding_window` is set; of others the configuration must say which layers.
_SLIDE_EVERYWHERE = ("mistral", "mixtral", "phi3", "starcoder2")


def load_config(path: Union[str, os.PathLike]) -> dict:
    """The config.json at `path`, or in the folder `path`."""
    if os.path.isdir(path):
        path = os.path.join(path, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    if not isinstance(config, dict):
        raise InvalidArgumentError(f"{path}: got a {type(config).__name__}, expected an object of a model's configuration")
    return config


def spec_of_config(
    config: Union[str, os.PathLike, Mapping[str, Any]],
    tokens_per_block: int,
    *,
    model: str | None = None,
    weights_revision: str | None = None,
    revision: str | None = None,
    tensor_parallel_size: int = 1,
    kv_dtype: str | None = None,
    adapter: str = "",
    engine_layout: str = "",
    epoch: int = 0,
) -> NamespaceSpec:
    """The namespace of a model: what `Client.open_namespace` takes.

    config: the model's folder, the config.json in it, the name of a repository in the local Hugging Face cache (of which
    `revision` is taken: a branch, tag or commit), or what a config.json says.
    model: the model id; left out, the name of the folder or repository.
    weights_revision: names weights and configuration; left out, it is a digest of the files in the folder, which reads
    the weights once and remembers the digest until they change. A mapping alone says neither: give both.
    tensor_parallel_size, kv_dtype: as for layout_of_config.
    adapter, engine_layout, epoch: as for NamespaceSpec. Who packs K and V in another order than the layout says, or by
    the processor's instruction set, must say so in engine_layout.

    RoPE parameters and quantization are those of the configuration: an engine that overrides them passes the mapping with
    its own in it. Call it when the weights are loaded; of a folder that may change meanwhile,
    kavern.weights.weights_revision(..., loaded_since_ns=...) finds that out.

    Raises InvalidArgumentError, which names the argument or key, or UnimplementedError as layout_of_config.
    """
    if isinstance(config, Mapping):
        if model is None or weights_revision is None:
            missing = "model" if model is None else "weights_revision"
            raise InvalidArgumentError(f"{missing}: a configuration does not tell it; give it, or the model's folder")
    else:
        path, name = _folder_of(config, revision)
        model = short_name(name) if model is None else model
        config = load_config(path)
        if weights_revision is None:
            try:
                weights_revision = revision_by_content(str(path), None, "auto", 0)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"weights_revision: not given, and {error}") from None
    return NamespaceSpec(
        model,
        layout_of_config(config, tokens_per_block, tensor_parallel_size=tensor_parallel_size, kv_dtype=kv_dtype),
        weights_revision=weights_revision,
        adapter=adapter,
        quantization=_quantization(config, kv_dtype),
        rope=f"{_rope(config)} of {_digest(config)}",
        engine_layout=engine_layout,
        epoch=epoch,
    )


def layout_of_config(
    config: Mapping[str, Any],
    tokens_per_block: int,
    *,
    tensor_parallel_size: int = 1,
    kv_dtype: str | None = None,
) -> KvLayout:
    """The layout of a decoder's KV cache.

    config: the model's config.json; of a multimodal model its text_config counts.
    tensor_parallel_size: ranks over which KV heads are split. Ranks that hold the same heads share one shard.
    kv_dtype: element type of the cache where it is not the model's: float32, float16, bfloat16, float8_e4m3, ...

    Raises InvalidArgumentError, which names the key, or UnimplementedError for an architecture whose cache this cannot
    derive.
    """
    config = config.get("text_config") or config
    for key in _RECURRENT_KEYS:
        if config.get(key) is not None:
            raise UnimplementedError(f"{key}: layers with recurrent state are not derived; give a KvLayout")
    if tensor_parallel_size < 1:
        raise InvalidArgumentError(f"tensor_parallel_size: got {tensor_parallel_size}, expected at least 1")
    dtype = kv_dtype or config.get("dtype") or config.get("torch_dtype")
    if not isinstance(dtype, str):
        raise InvalidArgumentError("dtype: the configuration names none; give kv_dtype")
    dtype = dtype.removeprefix("torch.")
    layers = _positive(config, "num_hidden_layers")

    if config.get("kv_lora_rank") is not None:  # MLA: every rank holds the same latent vectors
        latent_dim = _positive(config, "kv_lora_rank") + _positive(config, "qk_rope_head_dim")
        group = LayerGroup(layers, kind=LayerGroupKind.LATENT, latent_dim=latent_dim)
        return KvLayout(tokens_per_block, [group], dtype=dtype)

    query_heads = _positive(config, "num_attention_heads")
    kv_heads = _positive(config, "num_key_value_heads") if config.get("num_key_value_heads") else query_heads
    if config.get("head_dim") is not None:
        head_dim = _positive(config, "head_dim")
    else:
        head_dim, rest = divmod(_positive(config, "hidden_size"), query_heads)
        if rest != 0:
            raise InvalidArgumentError(f"hidden_size: got {config['hidden_size']}, expected a multiple of {query_heads}")
    if kv_heads % tensor_parallel_size != 0 and tensor_parallel_size % kv_heads != 0:
        raise InvalidArgumentError(
            f"tensor_parallel_size: got {tensor_parallel_size}, expected a divisor or a multiple of {kv_heads} KV heads"
        )
    shards = min(tensor_parallel_size, kv_heads)
    shape = {"kv_heads": kv_heads // shards, "head_dim": head_dim}

    full, sliding = _layers_by_attention(config, layers)
    groups = []
    if full > 0:
        groups.append(LayerGroup(full, **shape))
    if sliding > 0:
        window = _positive(config, "sliding_window")
        groups.append(LayerGroup(sliding, kind=LayerGroupKind.SLIDING_WINDOW, window_tokens=window, **shape))
    return KvLayout(tokens_per_block, groups, dtype=dtype, shard_count=shards)


def _folder_of(config: Union[str, os.PathLike], revision: str | None) -> tuple[pathlib.Path, str]:
    """Where a model's files are, and its name."""
    path = pathlib.Path(config)
    if path.is_file():
        if path.name != "config.json":
            raise InvalidArgumentError(f"config: got {path}, expected a model's folder or the config.json in it")
        path = path.parent
    if path.is_dir():
        return path, path.resolve().name
    return cached_snapshot("config", str(config), revision), str(config)


def _rope(config: Mapping[str, Any]) -> str:
    """What turns K by position, readable where it is short; some models scale it by the longest sequence."""
    config = config.get("text_config") or config
    words = ("rope", "rotary", "max_position_embeddings")
    return _text_of({key: value for key, value in config.items() if any(word in key for word in words)})


def _digest(config: Mapping[str, Any]) -> str:
    """Of the whole configuration, for what changes K and V is in no list: the order of layers, scales of attention."""
    told = {key: value for key, value in config.items() if not key.startswith("_") and key != "transformers_version"}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _quantization(config: Mapping[str, Any], kv_dtype: str | None) -> str:
    """How weights are quantized, and the type that K and V are computed in where the cache has another."""
    text = config.get("text_config") or config
    computed = text.get("dtype") or text.get("torch_dtype")
    told = {
        "weights": config.get("quantization_config") or text.get("quantization_config"),
        "computed": str(computed).removeprefix("torch.") if computed and kv_dtype else None,
    }
    if told["computed"] == kv_dtype:
        told["computed"] = None
    return _text_of({key: value for key, value in told.items() if value is not None})


def _text_of(value: dict) -> str:
    """Equal for equal values, empty for none, short enough for a namespace."""
    return short_name(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)) if value else ""


def _positive(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgumentError(f"{key}: got {value!r}, expected an integer above 0")
    return value


def _layers_by_attention(config: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """How many layers attend to everything, and how many through a window."""
    types = config.get("layer_types")
    if types is not None:
        unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
        if unknown:
            raise UnimplementedError(f"layer_types: {', '.join(unknown)}: not derived; give a KvLayout")
        if len(types) != layers:
            raise InvalidArgumentError(f"layer_types: got {len(types)} entries, expected {layers}, one for every layer")
        sliding = sum(kind == "sliding_attention" for kind in types)
        return layers - sliding, sliding
    if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return layers, 0
    if config.get("model_type") in _SLIDE_EVERYWHERE:
        return 0, layers
    raise UnimplementedError(
        f"sliding_window: which layers of a {config.get('model_type')!r} it is for is not said; give a KvLayout"
    )
