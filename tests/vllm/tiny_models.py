"""Small decoders with random weights whose answers do depend on their context: witnesses for wrong KV."""

from __future__ import annotations

import pathlib

_COMMON = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _config(name: str):
    import transformers as hf

    if name == "gqa":
        return hf.LlamaConfig(**_COMMON, num_key_value_heads=2, head_dim=32)
    if name == "mqa":  # with fewer KV heads than ranks
        return hf.LlamaConfig(**_COMMON, num_key_value_heads=1, head_dim=32)
    if name == "sliding":
        return hf.MistralConfig(**_COMMON, num_key_value_heads=2, head_dim=32, sliding_window=256)
    if name == "hybrid":
        return hf.Gemma3TextConfig(
            **_COMMON | {"num_hidden_layers": 6},
            num_key_value_heads=2,
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=256,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        )
    if name == "mla":
        return hf.DeepseekV2Config(
            **_COMMON | {"num_attention_heads": 4},
            num_key_value_heads=4,
            kv_lora_rank=512,
            q_lora_rank=None,
            qk_nope_head_dim=32,
            qk_rope_head_dim=64,
            v_head_dim=32,
            n_routed_experts=4,
            n_shared_experts=1,
            num_experts_per_tok=2,
            moe_intermediate_size=128,
            first_k_dense_replace=4,
            n_group=1,
            topk_group=1,
        )
    raise ValueError(f"unknown model {name}")


def write(name: str, directory: pathlib.Path) -> pathlib.Path:
    """Writes the model as a folder that vLLM loads, and returns it."""
    import torch
    import transformers as hf

    torch.manual_seed(7)
    config = _config(name)
    config.dtype = torch.bfloat16
    model = hf.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if "embed" in weight_name:
                weight.normal_(std=1.0)
            elif weight.dim() >= 2:
                # Queries and keys are larger: attention then has opinions.
                sharp = 2.0 if any(part in weight_name for part in ("q_proj", "k_proj", "kv_b_proj", "kv_a_proj")) else 1.0
                weight.normal_(std=sharp * weight.shape[-1] ** -0.5)
    model.save_pretrained(directory)
    return directory
