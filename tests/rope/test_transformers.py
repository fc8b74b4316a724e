"""Against transformers: the rotary module of a real model, built from the config we read."""

import json

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from yarnconv.rope.scaling import Unscaled, method_name
from yarnconv.rope.spelling import read_rope
from yarnconv.rope.tables import buckets, plain_inv_freq

# float32 pow and its product with the factor: up to 1.1e-6 measured (untruncated, head_dim 192)
TOLERANCE = 2e-6

FAMILIES = {
    "llama": {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 2},
    "mistral": {"hidden_size": 512, "num_attention_heads": 4, "head_dim": 128},
    "qwen2": {"hidden_size": 512, "num_attention_heads": 8, "head_dim": 64},
    "qwen3": {"hidden_size": 512, "num_attention_heads": 4, "head_dim": 128},
    "smollm3": {"hidden_size": 640, "num_attention_heads": 8, "head_dim": 80},
    "granite": {"hidden_size": 512, "num_attention_heads": 8},
    "deepseek_v3": {"qk_rope_head_dim": 64},
    "gpt_oss": {"head_dim": 64},
    "glm4": {"head_dim": 128, "partial_rotary_factor": 0.5},
}
THETAS = (10000.0, 1e6)
METHODS = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 8.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 16.0},
    "yarn fraction": {"rope_type": "yarn", "factor": 3.9},
    "yarn attention factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5},
    "ntk-by-parts": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0},
    "yarn betas": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn with Kimi K2's betas": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0},
    "yarn untruncated": {"rope_type": "yarn", "factor": 32.0, "truncate": False},
    "yarn mscale pair": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.8, "mscale_all_dim": 0.5},
    "yarn equal mscales": {
        "rope_type": "yarn",
        "factor": 40.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "yarn lone mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707},
    "yarn lone mscale_all_dim": {"rope_type": "yarn", "factor": 40.0, "mscale_all_dim": 0.707},
    "yarn zero mscales": {"rope_type": "yarn", "factor": 40.0, "mscale": 0, "mscale_all_dim": 0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "longrope": {"rope_type": "longrope", "factor": 8.0},
}


def build(family, method, theta):
    """(transformers config, its config.json) for one family and method."""
    values = {"max_position_embeddings": 4096, **FAMILIES[family]}
    rope = {"rope_theta": theta, **METHODS[method]}
    config = transformers.AutoConfig.for_model(family, **values)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if rotary := getattr(config, "qk_rope_head_dim", None):
        dim = config.head_dim = rotary
    if rope.get("rope_type") not in (None, "linear", "dynamic"):
        rope["original_max_position_embeddings"] = 2048
    if "partial_rotary_factor" in values:
        rope["partial_rotary_factor"] = values["partial_rotary_factor"]
        dim = int(dim * values["partial_rotary_factor"])
    if rope.get("rope_type") == "longrope":
        rope["short_factor"] = [1.0 + 0.01 * i for i in range(dim // 2)]
        rope["long_factor"] = [1.0 + 0.5 * i for i in range(dim // 2)]
    if getattr(config, "head_dim", None) is None:
        config.head_dim = dim
    config.rope_parameters = rope
    config.standardize_rope_params()
    return config, json.loads(config.to_json_string(use_diff=False))


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_frequencies_and_temperature(family, method, theta):
    config, spelled = build(family, method, theta)
    scaling = read_rope(spelled).groups[None]
    tables = buckets(scaling)
    rope_type = config.rope_parameters["rope_type"]
    if rope_type == "default":
        assert isinstance(scaling, Unscaled)
        model = {"llama": transformers.LlamaModel, "qwen3": transformers.Qwen3Model}.get(family)
        if model is None:
            np.testing.assert_allclose(tables[0].inv_freq, plain_inv_freq(theta, scaling.rotary_dim))
            return
        config.num_hidden_layers, config.vocab_size, config.intermediate_size = 1, 8, 8
        rotary = model(config).rotary_emb
        np.testing.assert_allclose(tables[0].inv_freq, rotary.inv_freq, rtol=TOLERANCE)
        assert rotary.attention_scaling == tables[0].attention_factor == 1.0
        return
    lengths = {"longrope": (2048, 2049)}.get(rope_type, (None,))
    if rope_type == "dynamic":
        lengths = [int(b.factor * config.max_position_embeddings) for b in tables]
    assert len(lengths) == len(tables)
    for bucket, length in zip(tables, lengths, strict=True):
        wanted, attention_factor = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=length)
        np.testing.assert_allclose(bucket.inv_freq, wanted.numpy(), rtol=TOLERANCE)
        assert bucket.attention_factor == pytest.approx(attention_factor, rel=1e-12)


def test_every_type_of_transformers_is_covered():
    covered = {m.get("rope_type", "default") for m in METHODS.values()}
    # "proportional" (Gemma 4's own) rotates by another exponent and belongs to that family
    assert set(ROPE_INIT_FUNCTIONS) - covered == {"proportional"}


@pytest.mark.parametrize("factor", [16.0, 40.0])
def test_deepseek_softmax_scale(factor):
    """The whole head's softmax scale, as DeepSeek's attention module computes it."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    rope = {
        "rope_type": "yarn",
        "factor": factor,
        "mscale": 0.8,
        "mscale_all_dim": 0.7,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
    }
    config = transformers.DeepseekV3Config(
        hidden_size=64, num_attention_heads=2, rope_parameters=rope, q_lora_rank=8, kv_lora_rank=8
    )
    attention = DeepseekV3Attention(config, layer_idx=0)
    scaling = read_rope(json.loads(config.to_json_string(use_diff=False))).groups[None]
    plain = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5
    assert buckets(scaling)[0].softmax_multiplier == pytest.approx(attention.scaling / plain, rel=1e-6)


def test_olmo3_nested_by_layer_type():
    """Full-attention layers are scaled, sliding ones are not."""
    yarn = {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 5e5,
    }
    config = transformers.Olmo3Config(
        hidden_size=512,
        num_attention_heads=4,
        num_hidden_layers=4,
        max_position_embeddings=65536,
        rope_parameters={
            "full_attention": yarn,
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
        },
    )
    spelled = json.loads(config.to_json_string(use_diff=False))
    groups = read_rope(spelled).groups
    assert {t: method_name(s) for t, s in groups.items()} == {
        "full_attention": "yarn",
        "sliding_attention": "none",
    }
    wanted, factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"), layer_type="full_attention")
    tables = buckets(groups["full_attention"])[0]
    np.testing.assert_allclose(tables.inv_freq, wanted.numpy(), rtol=TOLERANCE)
    assert tables.attention_factor == pytest.approx(factor, rel=1e-12)
