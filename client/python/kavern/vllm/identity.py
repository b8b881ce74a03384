"""What makes KV bytes of two engines the same: model, weights, layout, and the code that packs them.

Whatever is not understood is refused with a sentence. A wrong guess would be a wrong answer of the model.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from dataclasses import dataclass, field
from typing import Any

import kavern
from kavern import InvalidArgumentError, UnimplementedError
from kavern.vllm.settings import TRIED_VERSIONS
from kavern.weights import process_start_ns, short_name, weights_revision

# Fields of vLLM's configurations that change no KV: names and places, sampling, memory, speed. All others are in the
# identity, those of a later release too: a needless miss, where a list of what matters would make a wrong hit.
_HARMLESS = {
    # Weights, configuration and revision are told by their content, and multimodal_config by itself.
    "model_config": """
        model model_weights hf_config hf_text_config hf_config_path hf_overrides hf_token revision served_model_name
        tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init allowed_local_media_path allowed_media_domains
        seed generation_config override_generation_config logits_processors return_sampling_mask max_logprobs logprobs_mode
        use_fp64_gumbel enable_trace_replay io_processor_plugin renderer_num_workers pooler_config multimodal_config
        enforce_eager disable_cascade_attn enable_prompt_embeds allow_deprecated_quantization spec_target_max_model_len
        enable_sleep_mode sleep_preserve_parameter_names sleep_mode_backend sleep_mode_offload_cudagraph
        enable_nccl_comm_suspend enable_cumem_allocator
    """,
    "cache_config": """
        block_size user_specified_block_size _block_size_resolved hash_block_size effective_attention_block_size
        cache_hit_alignment_tokens prefix_match_unit enable_prefix_caching prefix_caching_hash_algo
        prefix_cache_retention_interval gpu_memory_utilization num_gpu_blocks_override num_gpu_blocks num_cpu_blocks
        kv_cache_memory_bytes kv_cache_size_tokens kv_cache_max_concurrency kv_offloading_size kv_offloading_backend
    """,
    "attention_config": "",
    "multimodal_config": """
        limit_per_prompt mm_processor_cache_gb mm_processor_cache_type mm_hasher_algorithm mm_shm_cache_max_object_size_mb
        interleave_mm_strings skip_mm_profiling mm_tensor_ipc mm_ipc_gpu_memory_gb
    """,
    "lora_config": "max_lora_rank max_loras max_cpu_loras specialize_active_lora max_lora_cls_labels",
}

# kavern's name for torch's. FP8 caches come as bytes; what they mean is in the engine's layout.
_DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32", "uint8": "int8", "int8": "int8"}
_DTYPES |= {"float8_e4m3fn": "float8_e4m3", "float8_e5m2": "float8_e5m2"}


@dataclass(frozen=True)
class Identity:
    """A namespace in plain values, so that workers can tell their scheduler."""

    model: str
    weights_revision: str
    quantization: str
    rope: str
    engine_layout: str
    dtype: str
    tokens_per_block: int
    shard_count: int
    groups: tuple[tuple[int, str, int, int, int, int], ...]  # layers, kind, KV heads, head dim, window, latent dim

    @property
    def can_resume_anywhere(self) -> bool:
        """Whether an engine that has the first n blocks can go on after them, for every n up to what it loads.

        Of a sliding window it has pages only of what the end of the load needs. Pages of several groups do not tell
        which group they are of.
        """
        return len(self.groups) == 1 and self.groups[0][1] != "SLIDING_WINDOW"

    @property
    def block_bytes(self) -> int:
        """Of one shard, all groups together."""
        return sum(_part_bytes(self))

    def spec(self, epoch: int) -> kavern.NamespaceSpec:
        groups = [
            kavern.LayerGroup(
                layers, kind=kavern.LayerGroupKind[kind], kv_heads=heads, head_dim=dim, window_tokens=window, latent_dim=latent
            )
            for layers, kind, heads, dim, window, latent in self.groups
        ]
        layout = kavern.KvLayout(self.tokens_per_block, groups, dtype=self.dtype, shard_count=self.shard_count)
        return kavern.NamespaceSpec(
            self.model,
            layout,
            weights_revision=self.weights_revision,
            quantization=self.quantization,
            rope=self.rope,
            engine_layout=self.engine_layout,
            epoch=epoch,
        )


@dataclass
class GroupTensors:
    """One KV cache group of this rank: its spec, and its layers' tensors in the order of a part."""

    spec: Any
    layer_names: list[str] = field(default_factory=list)
    tensors: list[Any] = field(default_factory=list)


def check_version(version: str, untried: bool) -> None:
    """Refuses releases of vLLM whose hooks and layouts nobody has looked at."""
    if untried or version.split("+")[0] in TRIED_VERSIONS:
        return
    raise UnimplementedError(
        f"vLLM {version}: this connector was tried with {', '.join(TRIED_VERSIONS)} only; "
        f"kavern.untried_version: true starts it nevertheless"
    )


def check_supported(vllm_config) -> None:
    """Refuses configurations whose KV this connector cannot keep."""
    transfer, parallel = vllm_config.kv_transfer_config, vllm_config.parallel_config
    if transfer.kv_load_failure_policy != "recompute":
        raise InvalidArgumentError(
            f'kv_load_failure_policy: got "{transfer.kv_load_failure_policy}", expected "recompute": a cache may forget'
        )
    if transfer.kv_role != "kv_both":
        raise InvalidArgumentError(f'kv_role: got "{transfer.kv_role}", expected "kv_both"')
    if not vllm_config.cache_config.enable_prefix_caching:
        # As for MLA on processors without AMX: a hit there would be right KV and a wrong answer.
        raise UnimplementedError(
            "prefix caching is off: vLLM turns it off where it cannot begin to compute after a cached prefix"
        )
    if parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1:
        raise UnimplementedError("context parallelism: blocks split over ranks by token are not supported")
    if parallel.nnodes_within_dp > 1:
        raise UnimplementedError("ranks on several nodes: their shards would lie in several daemons, and no block be whole")
    if vllm_config.speculative_config is not None:
        raise UnimplementedError("speculative decoding: KV of draft layers is not supported")
    if vllm_config.diffusion_config is not None:
        raise UnimplementedError("diffusion_config: models that compute a token more than once are not supported")
    if getattr(vllm_config.model_config.multimodal_config, "mm_encoder_fp8_scale_path", None):
        raise UnimplementedError("mm_encoder_fp8_scale_path: scales from a file are not supported")
    layers = getattr(vllm_config.model_config.hf_text_config, "num_hidden_layers", None)
    if parallel.pipeline_parallel_size > 1 and (layers is None or layers % parallel.pipeline_parallel_size != 0):
        raise UnimplementedError(
            f"pipeline_parallel_size: {layers} layers do not divide evenly over {parallel.pipeline_parallel_size} ranks"
        )


# Models of vLLM all of whose layers have the configuration's number of KV heads.
_EVEN_KV_HEADS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def tp_replicas(vllm_config, kv_cache_config) -> int:
    """Consecutive tensor-parallel ranks that hold identical KV. vLLM tells it of MLA; where there are more ranks than KV heads
    it is known of some models, and the others' shards are stored one by one."""
    model, ranks = vllm_config.model_config, vllm_config.parallel_config.tensor_parallel_size
    if kv_cache_config.kv_tp_replicas > 1 or model.architecture not in _EVEN_KV_HEADS or model.model_class_overrides:
        return kv_cache_config.kv_tp_replicas
    heads = model.get_total_num_kv_heads()
    return ranks // heads if ranks > heads and ranks % heads == 0 else 1


def group_tensors(kv_cache_config, kv_caches: dict[str, Any]) -> list[GroupTensors]:
    """The registered tensors by KV cache group; layers that share another's KV are left out."""
    groups = []
    for group in kv_cache_config.kv_cache_groups:
        found = GroupTensors(group.kv_cache_spec)
        seen = set()
        for name in group.layer_names:
            tensor = kv_caches.get(name)
            if not hasattr(tensor, "data_ptr"):
                raise UnimplementedError(f"{name}: its KV cache is {type(tensor).__name__}, expected one tensor")
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                found.layer_names.append(name)
                found.tensors.append(tensor)
        groups.append(found)
    return groups


def layers_by_name(kv_cache_config, groups: list[GroupTensors]) -> dict[str, tuple[int, int]]:
    """Group and place in it of every layer; empty where layers share KV: which of them wrote it is not known."""
    if any(len(one.layer_names) != len(found.layer_names) for one, found in zip(kv_cache_config.kv_cache_groups, groups)):
        return {}
    return {name: (g, i) for g, group in enumerate(groups) for i, name in enumerate(group.layer_names)}


def identity_of(vllm_config, groups: list[GroupTensors], layouts: list[kavern.TensorLayout], replicas: int) -> Identity:
    """replicas: consecutive tensor-parallel ranks that hold identical KV."""
    from vllm import __version__ as vllm_version

    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    sizes = {group.spec.block_size for group in groups}
    if len(sizes) != 1:
        raise UnimplementedError(f"KV cache groups of different block sizes {sorted(sizes)} are not supported")
    dtypes = {str(tensor.dtype).removeprefix("torch.") for group in groups for tensor in group.tensors}
    if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
        raise UnimplementedError(f"KV cache dtypes {sorted(dtypes)} are not supported")
    dtype = _DTYPES[dtypes.pop()]
    described = tuple(_describe(group, layout) for group, layout in zip(groups, layouts))
    hf = model.hf_text_config.to_dict()
    # Everything that changes the bytes and has no field of its own. What is no digest is readable, so that two engines
    # that do not share can be compared.
    packing = {
        "vllm": vllm_version,
        "backends": sorted({_backend(vllm_config, name) for group in groups for name in group.layer_names}),
        "model_dtype": str(model.dtype),
        "cache_dtype": str(cache.cache_dtype),
        "block_shapes": [[list(t.shape[1:]), _order(t)] for group in groups for t in group.tensors[:1]],
        # Some models scale positions by how long a sequence may become.
        "max_model_len": model.max_model_len,
        "tp": parallel.tensor_parallel_size,
        "pp": parallel.pipeline_parallel_size,
        # With every override of the command line in it; of a multimodal model its other half, too.
        "config": [_digest(_without_names(config)) for config in (hf, model.hf_config.to_dict())],
        "options": [
            options_digest("model_config", model),
            options_digest("cache_config", cache),
            options_digest("attention_config", vllm_config.attention_config),
            options_digest("multimodal_config", model.multimodal_config),
            _digest(vllm_config.additional_config),
        ],
    }
    rope = {key: value for key, value in hf.items() if "rope" in key or key in ("max_position_embeddings",)}
    identity = Identity(
        model=short_name(pathlib.Path(model.model).resolve().name if pathlib.Path(model.model).exists() else model.model),
        weights_revision=weights_revision(
            model.model,
            model.revision,
            vllm_config.load_config.load_format,
            model.seed,
            cache_dir=vllm_config.load_config.download_dir,
            loaded_since_ns=process_start_ns(),
        ),
        quantization=str(model.quantization or ""),
        rope=_digest(rope),
        engine_layout=short_name(json.dumps(packing, sort_keys=True, separators=(",", ":"))),
        dtype=dtype,
        tokens_per_block=sizes.pop(),
        shard_count=parallel.tensor_parallel_size // replicas * parallel.pipeline_parallel_size,
        groups=described,
    )
    for number, (layout, of_kv) in enumerate(zip(layouts, _part_bytes(identity))):
        if layout.part_bytes != of_kv:
            raise UnimplementedError(
                f"KV cache group {number}: a block has {layout.part_bytes} bytes here, expected {of_kv} for its spec "
                f"{groups[number].spec}"
            )
    return identity


def options_digest(name: str, config: Any) -> str:
    """Of what a configuration of vLLM says, but for what changes no KV. Raises UnimplementedError where it holds an object of
    which nobody knows what it says."""
    from vllm.config.utils import get_hash_factors

    if config is None:
        return ""
    try:
        return _digest(get_hash_factors(config, set(_HARMLESS[name].split())))
    except TypeError as error:
        raise UnimplementedError(f"{name}: {error}") from error


def _part_bytes(identity: Identity) -> list[int]:
    layout = identity.spec(0).layout
    return [layout.part_bytes(i) for i in range(len(identity.groups))]


def _describe(group: GroupTensors, layout: kavern.TensorLayout) -> tuple[int, str, int, int, int, int]:
    spec, layers = group.spec, len(group.tensors)
    kind = type(spec).__name__
    if kind == "MLAAttentionSpec":
        latent, rest = divmod(layout.part_bytes // layers, spec.block_size * group.tensors[0].element_size())
        if rest != 0:
            raise UnimplementedError(f"{spec}: its pages do not hold whole tokens")
        return layers, "LATENT", 0, 0, 0, latent
    if kind not in ("FullAttentionSpec", "SlidingWindowSpec"):
        raise UnimplementedError(f"KV cache spec {kind} is not supported")
    dim, rest = divmod(spec.head_size + spec.head_size_v, 2)
    if rest != 0:
        raise UnimplementedError(f"{spec}: K and V of {spec.head_size} and {spec.head_size_v} elements are not supported")
    if kind == "SlidingWindowSpec":
        return layers, "SLIDING_WINDOW", spec.num_kv_heads, dim, spec.sliding_window, 0
    return layers, "FULL_ATTENTION", spec.num_kv_heads, dim, 0, 0


def _backend(vllm_config, layer_name: str) -> str:
    """Which code packs a layer's KV, and for which instruction set."""
    layer = vllm_config.compilation_config.static_forward_context[layer_name]
    name = layer.get_attn_backend().get_name()
    isa = getattr(layer, "isa", None)
    if name == "CPU_ATTN" and isa is None:
        raise UnimplementedError(f"{layer_name}: its attention backend does not say for which instruction set it packs KV")
    return f"{name}/{isa}" if isa is not None else name


def _order(tensor) -> list[int]:
    """The dimensions inside a page, outermost in memory first."""
    return sorted(range(1, tensor.dim()), key=lambda i: -tensor.stride(i))


def _without_names(config: Any) -> Any:
    """What a configuration says of the model, and not of where and by what it was read."""
    if isinstance(config, dict):
        left_out = ("_name_or_path", "transformers_version")
        return {str(key): _without_names(value) for key, value in config.items() if key not in left_out}
    return config


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
