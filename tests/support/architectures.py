"""Tiny models of architectures outside our families, and the reference of one with another RoPE.

Two layers suffice for most; OLMo 3's fourth and Gemma 3's sixth are the first that see the whole context,
and the fourth of SmolLM3 and Llama 4 has no RoPE. Every expert is used, so that rounding cannot choose
another one.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

from tests.support.models import ORIGINAL_CONTEXT, sharp_model

VOCABULARY = 256
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
HALF = {**PLAIN, "partial_rotary_factor": 0.5}
BY_LAYER = {"full_attention": {**PLAIN}, "sliding_attention": {**PLAIN}}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": ORIGINAL_CONTEXT,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": 64}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 4}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "scoring_func": "sigmoid",
}
LATENT = {
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "head_dim": None,
}
GEMMA = {"sliding_window": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True}
INDEXER = {"index_n_heads": 2, "index_head_dim": 64, "index_topk": 2048}
ERNIE_EXPERTS = {
    "moe_num_experts": 4,
    "moe_k": 4,
    "moe_intermediate_size": 96,
    "moe_num_shared_experts": 1,
    "moe_layer_start_index": 1,
    "moe_layer_interval": 1,
}
MINIMAX = {**LOCAL_EXPERTS, "scoring_func": "sigmoid", "rotary_dim": 32}
LLAMA4 = {
    "num_local_experts": 2,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "no_rope_layers": [1, 1, 1, 0],
    "intermediate_size_mlp": 192,
    "interleave_moe_layer_step": 1,
    "moe_layers": [0, 1, 2, 3],
    "attention_chunk_size": 8192,
}
GRANITE = {"attention_multiplier": 0.125, "embedding_multiplier": 2.0, "residual_multiplier": 0.7}
# Ministral 3 has a YaRN of its own, and a temperature that grows with the position in original contexts
MINISTRAL = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 128,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "max_position_embeddings": ORIGINAL_CONTEXT,
}


@dataclass(frozen=True)
class Tiny:
    """model_type and config: transformers'. architecture: llama.cpp's. gelu: has that activation, which ggml
    looks up in a table of float16: an error of 3e-4 to 6e-3, of which the second matrices keep none here.
    """

    architecture: str
    model_type: str
    rope: dict = field(default_factory=lambda: PLAIN)
    config: dict = field(default_factory=dict)
    gelu: bool = False


TINY = {
    model.architecture: model
    for model in (
        Tiny("apertus", "apertus"),
        Tiny("arcee", "arcee"),
        Tiny("command-r", "cohere", config={"tie_word_embeddings": True}),
        Tiny("deepseek2", "deepseek_v3", config={**LATENT, **ROUTED}),
        Tiny("deepseek32", "deepseek_v32", config={**LATENT, **ROUTED, **INDEXER}),
        Tiny("dots1", "dots1", config=ROUTED),
        Tiny("ernie4_5", "ernie4_5"),
        Tiny("ernie4_5-moe", "ernie4_5_moe", config=ERNIE_EXPERTS),
        Tiny("gemma", "gemma", config={"tie_word_embeddings": True}, gelu=True),
        Tiny("gemma2", "gemma2", config=GEMMA, gelu=True),
        Tiny(
            "gemma3",
            "gemma3_text",
            {**BY_LAYER, "sliding_attention": {**PLAIN, "rope_theta": 1000.0}},
            {**GEMMA, "num_hidden_layers": 6},
            gelu=True,
        ),
        Tiny("glm4", "glm4", HALF),
        Tiny("glm4moe", "glm4_moe", HALF, ROUTED),
        Tiny("gpt-oss", "gpt_oss", config={**LOCAL_EXPERTS, "sliding_window": 64}),
        Tiny("granite", "granite", config={**GRANITE, "logits_scaling": 3.0}),
        Tiny("granitemoe", "granitemoe", config={**GRANITE, **LOCAL_EXPERTS}),
        Tiny("hunyuan-dense", "hunyuan_v1_dense"),
        Tiny("llama4", "llama4_text", config=LLAMA4),
        Tiny("minimax-m2", "minimax_m2", HALF, MINIMAX),
        Tiny("mistral3", "ministral3", MINISTRAL, {"sliding_window": None}),
        Tiny("nemotron", "nemotron", HALF),
        Tiny("olmo", "olmo"),
        Tiny("olmo2", "olmo3", BY_LAYER, {"num_hidden_layers": 4, "sliding_window": 64}),
        Tiny("olmoe", "olmoe", config=EXPERTS),
        Tiny("phi2", "phi", HALF, {"intermediate_size": 512}, gelu=True),
        Tiny("phi3", "phi3", config={"original_max_position_embeddings": ORIGINAL_CONTEXT}),
        Tiny("qwen2moe", "qwen2_moe", config={**EXPERTS, "shared_expert_intermediate_size": 64}),
        Tiny("qwen3moe", "qwen3_moe", config={**EXPERTS, "norm_topk_prob": True}),
        Tiny("seed_oss", "seed_oss"),
        Tiny("smollm3", "smollm3", config={"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
        Tiny("stablelm", "stablelm", HALF),
        Tiny("starcoder2", "starcoder2", config={"sliding_window": None}, gelu=True),
    )
}


def make_tiny(directory: Path, tiny: Tiny, rope=None) -> Path:
    """Its float32 checkpoint. rope: merged into its RoPE parameters."""
    config = {**COMMON, "rope_parameters": with_rope(tiny, rope or {}), **tiny.config}
    config = {key: value for key, value in config.items() if not (key == "head_dim" and value is None)}
    model = sharp_model(transformers.AutoConfig.for_model(tiny.model_type, **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if tiny.gelu and any(f".{second}." in name for second in ("down_proj", "c_proj", "fc2")):
                parameter.zero_()
            if tiny.architecture in {"gemma", "gemma2", "gemma3"} and name.endswith("norm.weight"):
                parameter -= 1.0  # they add the one themselves
    model.float().save_pretrained(directory)
    if tiny.architecture == "gemma3":  # whose rows the converter counts here
        vocabulary = {"model": {"vocab": [str(i) for i in range(VOCABULARY)]}, "added_tokens": []}
        (directory / "tokenizer.json").write_text(json.dumps(vocabulary))
    return directory


def with_rope(tiny: Tiny, rope):
    """Its RoPE parameters with others merged into those of the layers that see the whole context."""
    own = copy.deepcopy(tiny.rope)  # transformers writes into what it is given
    own.get("full_attention", own).update(rope)
    return own


def reference(directory: Path, tiny: Tiny, rope, tokens):
    """float32[positions, vocabulary]: transformers' logits with the RoPE parameters merged in."""
    config = transformers.AutoConfig.from_pretrained(directory)
    config.rope_parameters = with_rope(tiny, rope)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
