"""The families with mixtures of experts and latent attention, in the real llama.cpp against transformers,
beyond the original context; and of each feature that leaving it out is far away.
"""

import shutil

import pytest

from tests.parity.test_dense_gguf import METHODS
from tests.parity.test_llama_cpp import F32_TOLERANCE
from tests.support.expert_faults import FEATURES
from tests.support.gguf_editing import load
from tests.support.models import (
    ORIGINAL_CONTEXT,
    edit_config,
    reference_logits,
    relative_error,
    sample_tokens,
)

# Measured at positions 256 .. 511, F32_TOLERANCE being 1e-4: plain 1.6e-6 .. 5.2e-6, YaRN 2.7e-6 .. 1.1e-5,
# linear 1.0e-6 .. 1.7e-6; the worst single position 4.3e-5, so that no token was routed otherwise.
FAMILIES = tuple(FEATURES)
# a factor that counts, which V2-Lite's 1 does not
OWN = {"deepseek_v2": {"routed_scaling_factor": 4.0}}
# Every feature of `FEATURES` left out or changed: measured 0.039 (gpt-oss without its sinks) .. 1.3.
FAR_AWAY = 100 * F32_TOLERANCE
LENGTH = 512


def tokens():
    return sample_tokens(512, LENGTH)


def wanted_of(directory, rope=None):
    return reference_logits(directory, tokens(), rope, select=slice(ORIGINAL_CONTEXT, None))


@pytest.fixture
def models(checkpoints):
    def get(family, **changes):
        return checkpoints(family, **{**OWN.get(family, {}), **changes})

    return get


@pytest.fixture
def convert(yarnconv, tmp_path):
    def run(directory, *options, name="out.gguf"):
        code, _, stderr = yarnconv("gguf", directory, *options, "-o", tmp_path / name)
        assert code == 0, stderr
        return tmp_path / name

    return run


@pytest.fixture
def error(llama_cpp):
    """(GGUF, what transformers says) -> relative error of llama.cpp's logits beyond the original context."""

    def measure(path, wanted):
        return relative_error(llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT), wanted)

    return measure


@pytest.mark.parametrize("method", ["none", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_parity(family, method, models, convert, error):
    options, rope = METHODS[method]
    path = convert(models(family), *options)
    assert error(path, wanted_of(models(family), rope)) <= F32_TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_by_yarn_and_every_feature_counts(family, models, convert, error, tmp_path):
    options, rope = METHODS["yarn"]
    path, wanted = convert(models(family), *options), wanted_of(models(family), rope)
    assert error(path, wanted) <= F32_TOLERANCE
    near = {}
    for name, edit in FEATURES[family].items():
        file = load(path)
        edit(file)
        distance = error(file.write(tmp_path / "edited.gguf"), wanted)
        if not distance > FAR_AWAY:
            near[name] = distance
    assert near == {}


# Other structures of the same families: right within F32_TOLERANCE, measured 2e-6 .. 1e-5.
STRUCTURES = {
    "DeepSeek V2 as it was published": (
        "deepseek_v2",
        {"q_lora_rank": 96, "topk_method": "greedy", "routed_scaling_factor": 16.0},
    ),
    "V2 of groups that all count": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 4},
    ),
    "V3 whose shares are not normalised": ("deepseek_v3", {"norm_topk_prob": False}),
    "V3 of one group, as Kimi K2": ("deepseek_v3", {"n_group": 1, "topk_group": 1}),
    "V3 that takes as many as two groups have": ("deepseek_v3", {"num_experts_per_tok": 4}),
    "V3 with queries made directly, as Moonlight": ("deepseek_v3", {"q_lora_rank": None}),
    "V3 with experts in every layer": ("deepseek_v3", {"first_k_dense_replace": 0}),
    "V3 with heads of other sizes": (
        "deepseek_v3",
        {"qk_nope_head_dim": 48, "qk_rope_head_dim": 32, "v_head_dim": 64, "kv_lora_rank": 96},
    ),
    "GLM-4.5 without norms and biases": ("glm4_moe", {"use_qk_norm": False, "attention_bias": False}),
    "GLM with groups": ("glm4_moe", {"n_group": 4, "topk_group": 2}),
    "GLM whose shares are not normalised": ("glm4_moe", {"norm_topk_prob": False}),
    "Mixtral with a wide window": ("mixtral", {"sliding_window": 4096}),
    "Mixtral with tied embeddings": ("mixtral", {"tie_word_embeddings": True}),
    "Qwen 2 with tied embeddings": ("qwen2_moe", {"tie_word_embeddings": True}),
    "Qwen 3 that takes all experts": ("qwen3_moe", {"num_experts_per_tok": 8}),
    "gpt-oss whose first layer sees everything": (
        "gpt_oss",
        {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    "gpt-oss with tied embeddings": ("gpt_oss", {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_other_structures(case, models, convert, error):
    family, changes = STRUCTURES[case]
    directory = models(family, **changes)
    options, rope = METHODS["yarn"]
    assert error(convert(directory, *options), wanted_of(directory, rope)) <= F32_TOLERANCE


def test_kimi_k2_by_its_own_name(models, convert, error, tmp_path):
    """config.json has another model_type, and DeepSeek-V3's class computes it."""
    directory = models("deepseek_v3", n_group=1, topk_group=1)
    wanted = wanted_of(directory, METHODS["yarn"][1])
    kimi = shutil.copytree(directory, tmp_path / "kimi")
    edit_config(kimi, model_type="kimi_k2")
    assert error(convert(kimi, "--factor", "4"), wanted) <= F32_TOLERANCE


def test_eight_bits_are_held_by_check(models, convert, check):
    directory = models("deepseek_v3")
    path = convert(directory, "--factor", "4", "--outtype", "q8_0")
    code, report, stderr = check(path, directory, "--factor", "4")
    assert (code, set(report["verdicts"].values())) == (0, {"holds"}), stderr
