"""Whose KV is the same, without an engine: vLLM's own configurations, made of command lines, and a tensor of one layer."""

import copy
import pathlib
import shutil
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from kavern import InvalidArgumentError, KavernError, UnimplementedError
from kavern.paged import tensor_layout
from kavern.vllm import identity as identities
from kavern.vllm.identity import GroupTensors, check_supported, check_version, group_tensors, identity_of, tp_replicas
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.kv_cache_interface import FullAttentionSpec

PAGES = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.write("gqa", tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(autouse=True)
def written_before_the_engine(monkeypatch):
    monkeypatch.setattr(identities, "process_start_ns", lambda: 1 << 62)


def config_of(model: pathlib.Path, **arguments):
    arguments = {"max_model_len": 1024, "skip_tokenizer_init": True} | arguments
    return EngineArgs(model=str(model), **arguments).create_engine_config()


def layer(backend: str = "CPU_ATTN", isa: str | None = "vec"):
    return SimpleNamespace(isa=isa, get_attn_backend=lambda: SimpleNamespace(get_name=lambda: backend))


def group_of(dtype=torch.bfloat16, heads: int = 2, block: int = 16, order=(0, 1, 2, 3, 4)) -> GroupTensors:
    """K and V, heads, tokens, channels, the pages in front. order: of the dimensions in memory."""
    shape = (PAGES, 2, heads, block, 32)
    tensor = torch.zeros([shape[i] for i in order], dtype=dtype).permute([order.index(i) for i in range(5)])
    return GroupTensors(FullAttentionSpec(block_size=block, num_kv_heads=heads, head_size=32, dtype=dtype), ["l"], [tensor])


def identity(config, group: GroupTensors | None = None, attention=None, replicas: int = 1):
    group = group or group_of()
    config.compilation_config.static_forward_context["l"] = attention or layer()
    return identity_of(config, [group], [tensor_layout(group.tensors, PAGES)], replicas)


@pytest.fixture(scope="module")
def plain(model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identities, "process_start_ns", lambda: 1 << 62)
        return identity(config_of(model))


MISTRAL = {"LlamaForCausalLM": "vllm.model_executor.models.mistral:MistralForCausalLM"}
FP8 = {"quantization": "fp8_per_tensor"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": "float32"},
        {"kv_cache_dtype": "fp8"},
        FP8,
        {"hf_overrides": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}},
        {"max_model_len": 512},
        {"model_impl": "transformers"},
        {"model_class_overrides": MISTRAL},
        {"attention_config": {"flash_attn_version": 2}},
        {"load_format": "dummy"},
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_options_that_change_kv_separate_engines(model, plain, arguments):
    assert identity(config_of(model, **arguments)) != plain


def test_what_a_quantization_leaves_out_separates_engines(model):
    ignoring = FP8 | {"quantization_config": {"ignore": ["re:.*layers\\.0\\..*"]}}
    assert identity(config_of(model, **FP8)) != identity(config_of(model, **ignoring))


@pytest.mark.parametrize("size", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_engines_of_other_ranks_do_not_share(model, plain, size):
    config = config_of(model)
    setattr(config.parallel_config, size, 2)
    alone = identity(config)
    assert alone != plain
    assert (plain.shard_count, alone.shard_count) == (1, 2)
    if size == "tensor_parallel_size":  # both hold the same
        assert identity(config, replicas=2).shard_count == 1


@pytest.mark.parametrize(
    "group, attention",
    [
        (group_of(dtype=torch.float16), None),
        (group_of(heads=4), None),
        (group_of(block=32), None),
        (group_of(order=(0, 1, 3, 2, 4)), None),
        (None, layer("OTHER_ATTN")),
        (None, layer(isa="amx")),
    ],
    ids=["dtype", "heads", "block", "order", "backend", "instruction set"],
)
def test_how_kv_lies_in_memory_separates_engines(model, plain, group, attention):
    assert identity(config_of(model), group, attention) != plain


def test_other_weights_separate_engines(model, plain, tmp_path):
    other = pathlib.Path(shutil.copytree(model, tmp_path / model.name))
    weights = other / "model.safetensors"
    assert identity(config_of(other)) == plain
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert identity(config_of(other)) != plain


@pytest.mark.parametrize(
    "arguments",
    [{"served_model_name": "other"}, {"seed": 7}, {"enforce_eager": True}, {"gpu_memory_utilization": 0.5}],
    ids=lambda arguments: " ".join(arguments),
)
def test_harmless_options_do_not(model, plain, arguments):
    assert identity(config_of(model, **arguments)) == plain


@pytest.mark.parametrize(
    "arguments, same",
    [
        ({"lora_target_modules": ["o_proj"]}, False),
        ({"lora_dtype": "float16"}, False),
        ({"max_loras": 2}, True),
    ],
)
def test_how_adapters_are_applied_is_told_of_them(model, arguments, same):
    one, other = (
        identities.options_digest("lora_config", config_of(model, enable_lora=True, **more).lora_config)
        for more in ({}, arguments)
    )
    assert (one == other) is same


# ---- Refusals ----


SUPPORTED = {
    "kv_transfer_config": SimpleNamespace(kv_load_failure_policy="recompute", kv_role="kv_both"),
    "parallel_config": SimpleNamespace(
        prefill_context_parallel_size=1, decode_context_parallel_size=1, nnodes_within_dp=1, pipeline_parallel_size=1
    ),
    "cache_config": SimpleNamespace(enable_prefix_caching=True),
    "speculative_config": None,
    "diffusion_config": None,
    "model_config": SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=30), multimodal_config=None),
}


@pytest.mark.parametrize(
    "where, value, why",
    [
        ("kv_transfer_config.kv_load_failure_policy", "fail", 'kv_load_failure_policy: got "fail", expected "recompute"'),
        ("kv_transfer_config.kv_role", "kv_producer", 'kv_role: got "kv_producer", expected "kv_both"'),
        ("cache_config.enable_prefix_caching", False, "prefix caching is off"),
        ("parallel_config.prefill_context_parallel_size", 2, "context parallelism"),
        ("parallel_config.decode_context_parallel_size", 2, "context parallelism"),
        ("parallel_config.nnodes_within_dp", 2, "ranks on several nodes"),
        ("parallel_config.pipeline_parallel_size", 4, "30 layers do not divide evenly over 4 ranks"),
        ("speculative_config", object(), "speculative decoding"),
        ("diffusion_config", object(), "diffusion_config"),
        ("model_config.multimodal_config", SimpleNamespace(mm_encoder_fp8_scale_path="x"), "mm_encoder_fp8_scale_path"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_what_is_not_supported_is_refused_by_name(where, value, why):
    config = SimpleNamespace(**copy.deepcopy(SUPPORTED))
    check_supported(config)
    *path, name = where.split(".")
    setattr(getattr(config, path[0]) if path else config, name, value)
    with pytest.raises(KavernError) as refused:
        check_supported(config)
    assert why in str(refused.value)


def test_a_release_that_nobody_tried_is_refused():
    with pytest.raises(UnimplementedError, match="vLLM 0.1.0: this connector was tried with"):
        check_version("0.1.0", untried=False)
    check_version("0.1.0", untried=True)


def test_a_model_that_changed_while_it_was_loaded_is_refused(model, monkeypatch):
    monkeypatch.setattr(identities, "process_start_ns", lambda: 1)
    with pytest.raises(InvalidArgumentError, match="changed while it was being loaded"):
        identity(config_of(model))


def test_a_kv_cache_that_is_not_one_tensor_is_refused():
    config = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=None, layer_names=["l"])])
    with pytest.raises(UnimplementedError, match="l: its KV cache is list, expected one tensor"):
        group_tensors(config, {"l": [torch.zeros(1), torch.zeros(1)]})


def identity_of_groups(config, *groups: GroupTensors):
    config.compilation_config.static_forward_context["l"] = layer()
    return identity_of(config, list(groups), [tensor_layout(group.tensors, PAGES) for group in groups], 1)


def test_groups_of_other_block_sizes_or_dtypes_are_refused(model):
    with pytest.raises(UnimplementedError, match=r"different block sizes \[16, 32\]"):
        identity_of_groups(config_of(model), group_of(), group_of(block=32))
    with pytest.raises(UnimplementedError, match="dtypes .'bfloat16', 'float16'. are not supported"):
        identity_of_groups(config_of(model), group_of(), group_of(dtype=torch.float16))


def test_pages_that_hold_more_or_less_than_their_spec_are_refused(model):
    group = group_of(heads=4)
    group.spec = group_of(heads=2).spec
    with pytest.raises(UnimplementedError, match="a block has 8192 bytes here, expected 4096 for its spec"):
        identity(config_of(model), group)


def test_a_backend_that_does_not_say_how_it_packs_is_refused(model):
    with pytest.raises(UnimplementedError, match="does not say for which instruction set"):
        identity(config_of(model), attention=layer(isa=None))


@pytest.mark.parametrize(
    "architecture, heads, told, more, replicas",
    [
        ("LlamaForCausalLM", 1, 1, {}, 4),
        ("LlamaForCausalLM", 2, 1, {}, 2),
        ("LlamaForCausalLM", 4, 1, {}, 1),
        ("LlamaForCausalLM", 8, 1, {}, 1),
        ("LlamaForCausalLM", 3, 1, {}, 1),  # which ranks share a head is not known
        # Layers may have other numbers of heads: shards that differ would be taken for one.
        ("SomeForCausalLM", 1, 1, {}, 1),
        ("LlamaForCausalLM", 1, 1, {"model_class_overrides": {"LlamaForCausalLM": "other:Class"}}, 1),
        ("DeepseekV2ForCausalLM", 16, 4, {}, 4),  # what vLLM says of MLA
    ],
)
def test_shards_are_taken_for_one_only_where_they_are_known_to_be(architecture, heads, told, more, replicas):
    model = SimpleNamespace(
        architecture=architecture, get_total_num_kv_heads=lambda: heads, **{"model_class_overrides": {}} | more
    )
    config = SimpleNamespace(model_config=model, parallel_config=SimpleNamespace(tensor_parallel_size=4))
    assert tp_replicas(config, SimpleNamespace(kv_tp_replicas=told)) == replicas
