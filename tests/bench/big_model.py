"""Large Llamas of random weights in bfloat16, two shards each: 1.24 B with the real 128k BPE unless another
shape is asked for. Or of zeros that take no room on the disk, where only memory is measured.
"""

import json
from pathlib import Path

import numpy as np

from tests.support.llama_cpp_source import fetch_source
from tests.support.tokenizer_files import rebuild_tokenizer, write_byte_level

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
    """A safetensors file of random bfloat16 weights, written a tensor at a time. Without a generator it has
    its size and no content: a hole, which reads as zeros."""
    header, offset = {}, 0
    for name, shape in tensors:
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    with path.open("wb") as file:
        file.write(len(packed).to_bytes(8, "little") + packed)
        if generator is None:
            file.truncate(8 + len(packed) + offset)
            return
        for _, shape in tensors:
            remaining = int(np.prod(shape))
            while remaining:
                count = min(remaining, 1 << 24)
                values = generator.standard_normal(count, dtype=np.float32) * np.float32(0.02)
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                remaining -= count


# 0.7 B parameters with 24 layers, 1.4 GB in bfloat16
SHAPE_0_7B = {
    "vocab_size": 32000,
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# 14.8 B parameters with 40 layers, 29.5 GB in bfloat16: Qwen3-14B's dimensions
SHAPE_14B = {
    "vocab_size": 151936,
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_attention_heads": 40,
    "head_dim": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# 8.03 B parameters, 16 GB in bfloat16
SHAPE_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "head_dim": 128,
    "tie_word_embeddings": False,
}


def make_big_model(directory: Path, layers: int, shape=None, *, sparse=False) -> Path:
    """Make the checkpoint, of 16 layers or of another number, unless it is there. sparse: zeros in holes."""
    if (directory / "config.json").exists():
        return directory
    from yarnconv.model.describe import describe, with_defaults
    from yarnconv.model.family import families
    from yarnconv.model.tensors import expected_tensors

    directory.mkdir(parents=True, exist_ok=True)
    family = families()["llama"]
    config = {**CONFIG, **(shape or {}), "num_hidden_layers": layers}
    description = describe(family, with_defaults(family, config))
    tensors = [(t.name, t.shape) for t in expected_tensors(family, description)]
    generator = None if sparse else np.random.default_rng(0)
    half = len(tensors) // 2
    weight_map = {}
    for number, part in enumerate((tensors[:half], tensors[half:]), start=1):
        name = f"model-{number:05d}-of-00002.safetensors"
        _write_shard(directory / name, part, generator)
        weight_map |= {tensor: name for tensor, _ in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    if config["vocab_size"] == CONFIG["vocab_size"]:
        rebuild_tokenizer(fetch_source() / "models" / "ggml-vocab-llama-bpe.gguf", directory, pre="llama-bpe")
    else:
        write_byte_level(directory, config["vocab_size"])
    (directory / "config.json").write_text(json.dumps(config))
    return directory
