"""Layouts and namespaces from config.json: the published shapes, and refusals where a guess would store rubbish."""

import json
import sys
from types import SimpleNamespace

import kavern
import pytest
from kavern.hf import layout_of_config, load_config, spec_of_config

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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model on disk: what a digest of its files is remembered in lies in the same temporary directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "llama-3-8b"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(LLAMA_3_8B | {"rope_theta": 500000.0}))
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def test_a_folder_says_all_that_a_namespace_is(folder, client):
    spec = spec_of_config(folder, 16)
    assert spec.model == "llama-3-8b"
    assert spec.layout == layout_of_config(LLAMA_3_8B, 16)
    assert spec.weights_revision.startswith("sha256:")
    assert spec.rope.startswith('{"rope_theta":500000.0} of ')
    assert (spec.quantization, spec.adapter, spec.engine_layout, spec.epoch) == ("", "", "", 0)
    assert spec_of_config(str(folder / "config.json"), 16) == spec
    ns = client.open_namespace_of_config(folder, tokens_per_block=16, deadline=20)
    assert ns.spec == spec
    named = {"model": spec.model, "weights_revision": spec.weights_revision}
    assert client.open_namespace_of_config(load_config(folder), 16, **named).fingerprint == ns.fingerprint


def test_whatever_changes_kv_is_another_namespace(folder):
    def change(**config):
        (folder / "config.json").write_text(json.dumps(load_config(folder) | config))

    specs = [spec_of_config(folder, 16), spec_of_config(folder, 32), spec_of_config(folder, 16, adapter="a")]
    specs.append(spec_of_config(folder, 16, tensor_parallel_size=2))
    specs.append(spec_of_config(folder, 16, kv_dtype="float8_e4m3"))
    specs.append(spec_of_config(folder, 16, engine_layout="e"))
    specs.append(spec_of_config(folder, 16, epoch=1))
    named = {"model": "m", "weights_revision": "w"}
    by_name = [spec_of_config(folder, 16, **named)]
    change(rope_scaling={"rope_type": "yarn", "factor": 4.0})
    by_name.append(spec_of_config(folder, 16, **named))
    change(quantization_config={"quant_method": "awq", "bits": 4})
    by_name.append(spec_of_config(folder, 16, **named))
    change(torch_dtype="float16")
    by_name.append(spec_of_config(folder, 16, kv_dtype="bfloat16", **named))
    # In no field of their own: digests see them, also of a configuration whose weights the caller names.
    for told in ({"rms_norm_eps": 1e-5}, {"query_pre_attn_scalar": 64}, {"attention_chunk_size": 8192}):
        change(**told)
        specs.append(spec_of_config(folder, 16))
        by_name.append(spec_of_config(folder, 16, **named))
    for order in (["full_attention", "sliding_attention"] * 16, ["sliding_attention", "full_attention"] * 16):
        change(layer_types=order, sliding_window=4096)
        by_name.append(spec_of_config(folder, 16, **named))
    (folder / "model.safetensors").write_bytes(b"other weights")
    specs.append(spec_of_config(folder, 16))
    for list_of_specs in (specs, by_name):
        for i, spec in enumerate(list_of_specs):
            assert spec not in list_of_specs[:i]


def test_a_file_that_is_no_config_json_is_not_taken_for_one(folder):
    (folder / "other.json").write_text(json.dumps(LLAMA_3_8B))
    with pytest.raises(kavern.InvalidArgumentError, match="expected a model's folder or the config.json in it"):
        spec_of_config(folder / "other.json", 16)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(kavern.InvalidArgumentError, match="got a list, expected an object"):
        spec_of_config(folder, 16)


def test_names_that_are_given_are_taken(folder):
    (folder / "model.safetensors").unlink()
    spec = spec_of_config(folder, 16, model="org/llama", weights_revision="abc123")
    assert (spec.model, spec.weights_revision) == ("org/llama", "abc123")
    assert spec_of_config(load_config(folder), 16, model="org/llama", weights_revision="abc123") == spec


def test_a_repository_of_the_local_cache_is_told_by_its_content(folder, monkeypatch):
    asked = []

    def find(repository, file, revision, cache_dir):
        asked.append((repository, file, revision))
        return str(folder / file) if repository == "org/llama" else None

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(try_to_load_from_cache=find))
    spec = spec_of_config("org/llama", 16, revision="main")
    assert (spec.model, spec.weights_revision) == ("org/llama", spec_of_config(folder, 16).weights_revision)
    assert asked == [("org/llama", "config.json", "main")]
    with pytest.raises(kavern.InvalidArgumentError, match="config: no folder org/nothing, and no repository"):
        spec_of_config("org/nothing", 16)


@pytest.mark.parametrize("installed", [True, False])
def test_a_folder_that_is_not_there_is_told_as_one(installed, client, monkeypatch):
    def refuse(*arguments, **names):
        raise ValueError("Repo id must be in the form 'namespace/repo_name'")  # as HFValidationError is one

    hub = SimpleNamespace(try_to_load_from_cache=refuse) if installed else None
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    words = "config: no folder /nope, and no repository of that name in the local Hugging Face cache"
    with pytest.raises(kavern.InvalidArgumentError, match=words):
        client.open_namespace_of_config("/nope", 16)


@pytest.mark.parametrize(
    "names, words",
    [
        ({}, "model: a configuration does not tell it"),
        ({"model": "m"}, "weights_revision: a configuration does not tell it"),
        ({"model": "", "weights_revision": "w"}, "model"),
        ({"model": "m", "weights_revision": "w", "kv_dtype": "int3"}, "int3"),
    ],
)
def test_names_that_a_configuration_does_not_tell_are_asked_for(names, words):
    with pytest.raises(kavern.InvalidArgumentError, match=words):
        spec_of_config(LLAMA_3_8B, 16, **names)


def test_a_folder_without_weights_does_not_say_which_they_are(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(kavern.InvalidArgumentError, match="weights_revision: not given, and .* has no weight files"):
        spec_of_config(folder, 16)
