"""A 1.24 B Llama (2.47 GB in bfloat16, two shards, the real 128k BPE) and random weights; or one of 8 B."""

import json
from pathlib import Path

import numpy as np

from tests.support.llama_cpp_source import fetch_source
from tests.support.tokenizer_files import rebuild_tokenizer

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def _write_shard(path: Path, tensors, generator):
    """A safetensors file of random bfloat16 weights, written a tensor at a time."""
    header, offset = {}, 0
    for name, shape in tensors:
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    with path.open("wb") as file:
        file.write(len(packed).to_bytes(8, "little") + packed)
        for _, shape in tensors:
            remaining = int(np.prod(shape))
            while remaining:
                count = min(remaining, 1 << 24)
                values = generator.standard_normal(count, dtype=np.float32) * np.float32(0.02)
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                remaining -= count


# 8.03 B parameters, 16 GB in bfloat16
SHAPE_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "head_dim": 128,
    "tie_word_embeddings": False,
}


def make_big_model(directory: Path, layers: int, shape=None) -> Path:
    """Make the checkpoint, of 16 layers or of another number, unless it is there."""
    if (directory / "config.json").exists():
        return directory
    from yarnconv.model.family import describe, expected_tensors, families, with_defaults

    directory.mkdir(parents=True, exist_ok=True)
    family = families()["llama"]
    config = {**CONFIG, **(shape or {}), "num_hidden_layers": layers}
    description = describe(family, with_defaults(family, config))
    tensors = [(t.name, t.shape) for t in expected_tensors(family, description)]
    generator = np.random.default_rng(0)
    half = len(tensors) // 2
    weight_map = {}
    for number, part in enumerate((tensors[:half], tensors[half:]), start=1):
        name = f"model-{number:05d}-of-00002.safetensors"
        _write_shard(directory / name, part, generator)
        weight_map |= {tensor: name for tensor, _ in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    rebuild_tokenizer(fetch_source() / "models" / "ggml-vocab-llama-bpe.gguf", directory, pre="llama-bpe")
    (directory / "config.json").write_text(json.dumps(config))
    return directory
