"""Layouts from config.json: the published shapes, and refusals where a guess would store rubbish."""

import json

import kavern
import pytest
from kavern.hf import layout_of_config, load_config

LLAMA_3_8B = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
}


def test_grouped_query_attention():
    layout = layout_of_config(LLAMA_3_8B, 16)
    assert layout == kavern.KvLayout.of_model("llama-3-8b", 16)
    assert layout.bytes_per_token == 131072


def test_multi_head_latent_attention():
    config = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 61,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "torch_dtype": "bfloat16",
    }
    layout = layout_of_config(config, 64, tensor_parallel_size=8)
    assert layout == kavern.KvLayout.of_model("deepseek-v3", 64)
    assert layout.shard_count == 1


def test_hybrid_windows_are_groups_of_their_own():
    types = (["sliding_attention"] * 5 + ["full_attention"]) * 2
    config = {**LLAMA_3_8B, "num_hidden_layers": 12, "layer_types": types, "sliding_window": 1024, "head_dim": 256}
    full, sliding = layout_of_config(config, 16).groups
    assert (full.layer_count, full.kind) == (2, kavern.LayerGroupKind.FULL_ATTENTION)
    assert (sliding.layer_count, sliding.window_tokens, sliding.head_dim) == (10, 1024, 256)


def test_a_window_in_every_layer():
    config = {**LLAMA_3_8B, "model_type": "mistral", "sliding_window": 4096}
    (group,) = layout_of_config(config, 16).groups
    assert (group.kind, group.window_tokens) == (kavern.LayerGroupKind.SLIDING_WINDOW, 4096)
    (group,) = layout_of_config({**config, "use_sliding_window": False}, 16).groups
    assert group.kind == kavern.LayerGroupKind.FULL_ATTENTION


@pytest.mark.parametrize("ranks, shards, heads", [(1, 1, 8), (2, 2, 4), (8, 8, 1), (16, 8, 1)])
def test_ranks_that_hold_the_same_heads_share_a_shard(ranks, shards, heads):
    layout = layout_of_config(LLAMA_3_8B, 16, tensor_parallel_size=ranks)
    assert (layout.shard_count, layout.groups[0].kv_heads) == (shards, heads)
    assert layout.bytes_per_token == 131072


def test_the_text_model_of_a_multimodal_one_and_the_caches_own_type(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {}, "text_config": LLAMA_3_8B}))
    layout = layout_of_config(load_config(tmp_path), 16, kv_dtype="float8_e4m3")
    assert layout.dtype == "float8_e4m3"
    assert layout.bytes_per_token == 65536


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"num_hidden_layers": None}, kavern.InvalidArgumentError, "num_hidden_layers: got None"),
        ({"num_key_value_heads": -1}, kavern.InvalidArgumentError, "num_key_value_heads: got -1"),
        ({"hidden_size": 4097}, kavern.InvalidArgumentError, "hidden_size: got 4097"),
        ({"torch_dtype": None}, kavern.InvalidArgumentError, "dtype"),
        ({"torch_dtype": "int3"}, kavern.InvalidArgumentError, "int3"),
        ({"layer_types": ["full_attention"]}, kavern.InvalidArgumentError, "layer_types: got 1 entries, expected 32"),
        ({"layer_types": ["linear_attention"] * 32}, kavern.UnimplementedError, "linear_attention"),
        ({"mamba_d_state": 16}, kavern.UnimplementedError, "mamba_d_state"),
        ({"model_type": "gemma2", "sliding_window": 4096}, kavern.UnimplementedError, "'gemma2'"),
    ],
)
def test_what_is_not_understood_is_refused(change, error, words):
    with pytest.raises(error) as raised:
        layout_of_config({**LLAMA_3_8B, **change}, 16)
    assert words in str(raised.value)


def test_ranks_that_cannot_split_the_heads_are_refused():
    with pytest.raises(kavern.InvalidArgumentError, match="tensor_parallel_size: got 3"):
        layout_of_config(LLAMA_3_8B, 16, tensor_parallel_size=3)
