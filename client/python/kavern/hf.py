"""KV layouts of Hugging Face models, from their config.json. What is not understood is refused, never guessed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Union

from kavern._kavern import KvLayout, LayerGroup, LayerGroupKind
from kavern.errors import InvalidArgumentError, UnimplementedError

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
        return json.load(file)


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
    config = config.get("text_config", config)
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
