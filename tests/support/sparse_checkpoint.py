"""Checkpoints of DeepSeek-V3's build and any size whose files are holes but for what is asked for: headers,
index and config are real, so everything that is not a read of weights costs what it costs with the real ones.

Every linear weight is FP8 with a float32 factor for each 128 x 128 block, as published; embeddings, head,
norms and routers are bfloat16, and corrections of routers float32.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

import numpy as np

from tests.support.tokenizer_files import write_byte_level

BLOCK = 128
BYTES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}

# config.json of deepseek-ai/DeepSeek-V3
DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
# 145 M parameters of the same build: a dense layer, three with experts, and one behind the last
SMALL = {
    "first_k_dense_replace": 1,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "kv_lora_rank": 128,
    "moe_intermediate_size": 640,
    "n_group": 4,
    "n_routed_experts": 32,
    "num_attention_heads": 8,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 8,
    "q_lora_rank": 192,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "topk_group": 2,
    "v_head_dim": 64,
    "vocab_size": 4096,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor of a checkpoint. dtype: safetensors'."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * BYTES[self.dtype]


def _linear(name: str, rows: int, columns: int) -> Iterator[Stored]:
    yield Stored(name=f"{name}.weight", dtype="F8_E4M3", shape=(rows, columns))
    blocks = (ceil(rows / BLOCK), ceil(columns / BLOCK))
    yield Stored(name=f"{name}.weight_scale_inv", dtype="F32", shape=blocks)


def _mlp(name: str, hidden: int, size: int) -> Iterator[Stored]:
    yield from _linear(f"{name}.gate_proj", size, hidden)
    yield from _linear(f"{name}.up_proj", size, hidden)
    yield from _linear(f"{name}.down_proj", hidden, size)


def _bf16(name: str, *shape: int) -> Stored:
    return Stored(name=name, dtype="BF16", shape=shape)


def _layer(config, index: int) -> Iterator[Stored]:
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    plain, rotary, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    name = f"model.layers.{index}"
    yield from _linear(f"{name}.self_attn.q_a_proj", config["q_lora_rank"], hidden)
    yield _bf16(f"{name}.self_attn.q_a_layernorm.weight", config["q_lora_rank"])
    yield from _linear(f"{name}.self_attn.q_b_proj", heads * (plain + rotary), config["q_lora_rank"])
    yield from _linear(f"{name}.self_attn.kv_a_proj_with_mqa", rank + rotary, hidden)
    yield _bf16(f"{name}.self_attn.kv_a_layernorm.weight", rank)
    yield from _linear(f"{name}.self_attn.kv_b_proj", heads * (plain + value), rank)
    yield from _linear(f"{name}.self_attn.o_proj", hidden, heads * value)
    if index < config["first_k_dense_replace"]:
        yield from _mlp(f"{name}.mlp", hidden, config["intermediate_size"])
    else:
        size, count = config["moe_intermediate_size"], config["n_routed_experts"]
        yield _bf16(f"{name}.mlp.gate.weight", count, hidden)
        yield Stored(name=f"{name}.mlp.gate.e_score_correction_bias", dtype="F32", shape=(count,))
        yield from _mlp(f"{name}.mlp.shared_experts", hidden, config["n_shared_experts"] * size)
        for expert in range(count):
            yield from _mlp(f"{name}.mlp.experts.{expert}", hidden, size)
    yield _bf16(f"{name}.input_layernorm.weight", hidden)
    yield _bf16(f"{name}.post_attention_layernorm.weight", hidden)


def stored_tensors(config) -> Iterator[Stored]:
    """What the published checkpoint holds, in its order, the layer behind the last with it."""
    hidden, vocabulary, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    yield _bf16("model.embed_tokens.weight", vocabulary, hidden)
    for index in range(layers):
        yield from _layer(config, index)
    yield _bf16("model.norm.weight", hidden)
    yield _bf16("lm_head.weight", vocabulary, hidden)
    for index in range(layers, layers + config["num_nextn_predict_layers"]):
        name = f"model.layers.{index}"
        yield _bf16(f"{name}.embed_tokens.weight", vocabulary, hidden)
        yield _bf16(f"{name}.enorm.weight", hidden)
        yield _bf16(f"{name}.hnorm.weight", hidden)
        yield _bf16(f"{name}.eh_proj.weight", hidden, 2 * hidden)
        yield from _layer(config, index)
        yield _bf16(f"{name}.shared_head.norm.weight", hidden)
        yield _bf16(f"{name}.shared_head.head.weight", vocabulary, hidden)


def _shards(tensors, maximum: int) -> list[list[Stored]]:
    shards: list[list[Stored]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > maximum:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _random(tensor: Stored, generator) -> bytes:
    if tensor.dtype == "F8_E4M3":
        codes = np.frombuffer(generator.bytes(tensor.nbytes), np.uint8).copy()
        codes[codes & 127 == 127] -= 1  # no weight is not a number
        return codes.tobytes()
    values = generator.standard_normal(tensor.shape, dtype=np.float32)
    if tensor.name.endswith("_scale_inv"):
        return (np.abs(values) * np.float32(2e-4) + np.float32(1e-5)).tobytes()
    if tensor.dtype == "F32":
        return values.tobytes()
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def _write_shard(path: Path, tensors, is_real, generator) -> None:
    header, offset = {}, 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    start = 8 + len(packed)
    with path.open("wb") as file:
        file.write(len(packed).to_bytes(8, "little") + packed)
        file.truncate(start + offset)
        for tensor in tensors:
            if is_real(tensor.name):
                file.seek(start + header[tensor.name]["data_offsets"][0])
                file.write(_random(tensor, generator))


def make_sparse_checkpoint(
    directory: Path, config, *, shard_bytes: int = 4_260_000_000, is_real=lambda name: False
) -> Path:
    """Make it. is_real: of which tensors, by their names, there are seeded random values; the others are
    holes, which read as zeros."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    shards = _shards(stored_tensors(config), shard_bytes)
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        _write_shard(directory / name, tensors, is_real, generator)
        weight_map |= {tensor.name: name for tensor in tensors}
    total = sum(tensor.nbytes for tensors in shards for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    write_byte_level(directory, config["vocab_size"])
    (directory / "config.json").write_text(json.dumps(config))
    return directory
