"""Mixtures and latent attention that llama.cpp would abort on or compute otherwise: refused before anything
is written, with exit code 3; a config that describes no model, with 2.
"""

import shutil

import pytest
import torch

from tests.support.models import edit_config
from tests.support.stored_forms import rewrite


def experts(tensors, count):
    """Another number of experts in every layer: the first ones, or the first again and again."""

    def change(name, value):
        if "experts." in name and "shared" not in name:
            return None
        if name.endswith(("mlp.gate.weight", "e_score_correction_bias")):
            return value[:1].expand(count, *value.shape[1:]).contiguous()
        return value

    kept = {name: new for name, value in tensors.items() if (new := change(name, value)) is not None}
    for name, value in tensors.items():
        if ".experts.0." in name:
            kept |= {name.replace(".experts.0.", f".experts.{one}."): value.clone() for one in range(count)}
    return kept


def without_layer_0s_experts(tensors):
    """Layer 0 has one MLP instead."""
    kept = {n: v for n, v in tensors.items() if not n.startswith("model.layers.0.mlp.")}
    for part, shape in {"gate": (384, 256), "up": (384, 256), "down": (256, 384)}.items():
        kept[f"model.layers.0.mlp.{part}_proj.weight"] = torch.zeros(shape)
    return kept


def without_shared(tensors):
    return {name: value for name, value in tensors.items() if "shared_experts" not in name}


def nothing(tensors):
    return tensors


# what -> (family, changes of config.json, of the tensors, exit code, a fragment of the message)
CASES = {
    "one expert": (
        "qwen3_moe",
        {"num_experts": 1, "num_experts_per_tok": 1},
        lambda tensors: experts(tensors, 1),
        3,
        "takes 2 to 1024 experts, not 1",
    ),
    "1025 experts": (
        "mixtral",
        {"num_local_experts": 1025},
        None,
        3,
        "takes 2 to 1024 experts, not 1025",
    ),
    "more experts than there can be": (
        "mixtral",
        {"num_local_experts": 10**6},
        nothing,
        2,
        "num_local_experts",
    ),
    "takes more than there are": (
        "mixtral",
        {"num_experts_per_tok": 5},
        nothing,
        2,
        "5 experts are chosen of 4",
    ),
    "takes none": ("mixtral", {"num_experts_per_tok": 0}, nothing, 2, "num_experts_per_tok is 0"),
    "takes more than the groups have": (
        "deepseek_v3",
        {"topk_group": 1, "num_experts_per_tok": 3},
        nothing,
        2,
        "3 experts are chosen of 2",
    ),
    "as many groups as experts": (
        "deepseek_v3",
        {"n_group": 8, "topk_group": 4},
        nothing,
        2,  # transformers adds up the two best of each group, of which there are not two
        "8 experts in 8 groups",
    ),
    "groups that do not divide": ("deepseek_v3", {"n_group": 3}, nothing, 2, "8 experts in 3 groups"),
    "as many groups as experts, by the best": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 4},
        nothing,
        3,
        "by the sum of their 2 best scores",
    ),
    "groups by their best": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        nothing,
        3,
        "by the sum of their 2 best scores, this model by the best",
    ),
    "scores that V2 does not have": ("deepseek_v2", {"scoring_func": "sigmoid"}, nothing, 3, "scoring_func"),
    "another choice": ("deepseek_v3", {"topk_method": "greedy"}, nothing, 3, "topk_method"),
    "another alpha": ("gpt_oss", {"swiglu_alpha": 1.5}, nothing, 3, "alpha 1.702 clamped at 7"),
    "another limit": ("gpt_oss", {"swiglu_limit": 6.0}, nothing, 3, "alpha 1.702 clamped at 7"),
    "normalised Qwen 2": ("qwen2_moe", {"norm_topk_prob": True}, nothing, 3, "never divides the scores"),
    "Qwen 3 that is not": ("qwen3_moe", {"norm_topk_prob": False}, nothing, 3, "always divides the scores"),
    "dense first layer": (
        "qwen3_moe",
        {"mlp_only_layers": [0]},
        without_layer_0s_experts,
        3,
        "experts in every layer, and layer 0 has none",
    ),
    "experts in every second layer": (
        "qwen2_moe",
        {"decoder_sparse_step": 2},
        without_layer_0s_experts,
        3,
        "experts in every layer, and layer 0 has none",
    ),
    "no layer with experts": ("deepseek_v3", {"first_k_dense_replace": 2}, None, 3, "wants experts"),
    "halves in latent attention": (
        "deepseek_v3",
        {"rope_interleave": False},
        nothing,
        3,
        "pairs of neighbours, not halves",
    ),
    "biases of latent attention": (
        "deepseek_v3",
        {"attention_bias": True},
        None,
        3,
        "loads no bias of the attention output",
    ),
    "27 layers with a latent vector of queries": (
        "deepseek_v3",
        {"num_hidden_layers": 27},
        None,
        3,
        "queries without a latent vector in a model of 27 layers",
    ),
    "48 of a vocabulary that tells a lite model": (
        "deepseek_v3",
        {"num_hidden_layers": 48, "vocab_size": 128256},
        None,
        3,
        "of 48 layers and 128256 vocabulary entries",
    ),
    "gpt-oss without biases": (
        "gpt_oss",
        {"attention_bias": False},
        None,
        3,
        "wants a bias of the attention",
    ),
    "a narrow window of Mixtral": ("mixtral", {"sliding_window": 64}, nothing, 3, "reads no window"),
    "another activation": ("deepseek_v3", {"hidden_act": "gelu"}, nothing, 3, "computes silu, not gelu"),
    "no shared experts": ("deepseek_v3", {"n_shared_experts": 0}, without_shared, 2, "n_shared_experts is 0"),
}


@pytest.fixture(scope="module")
def plain_heads(tmp_path_factory):
    """(family, changes) -> a checkpoint of that structure, with transformers' own initialisation."""
    from tests.support.models import make_checkpoint

    def get(family, changes):
        small = {"hidden_size": 64, "intermediate_size": 32, "moe_intermediate_size": 32}
        if family == "mixtral":
            small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
        if "num_hidden_layers" in changes:
            small |= {"n_routed_experts": 2, "n_group": 1, "topk_group": 1}
        if family == "gpt_oss":
            small = {}
        return make_checkpoint(tmp_path_factory.mktemp("own") / "model", family, **{**small, **changes})

    return get


@pytest.mark.parametrize("case", CASES)
def test_refused(case, checkpoints, plain_heads, yarnconv, tmp_path):
    family, changes, change, exit_code, why = CASES[case]
    if change is None:
        directory = plain_heads(family, changes)
    else:
        directory = shutil.copytree(checkpoints(family), tmp_path / "model")
        edit_config(directory, **changes)
        rewrite(directory, change)
    out = tmp_path / "out"
    out.mkdir()
    code, stdout, stderr = yarnconv("gguf", directory, "--factor", "4", "-o", out)
    assert (code, stdout, list(out.iterdir())) == (exit_code, "", []), stderr
    assert why in " ".join(stderr.split())
    assert "Traceback" not in stderr


def test_what_is_refused_for_its_depth_is_converted_at_another(checkpoints, yarnconv, tmp_path):
    """27 layers without a latent vector of queries are DeepSeek-V2-Lite's."""
    directory = shutil.copytree(checkpoints("deepseek_v2"), tmp_path / "model")
    edit_config(directory, num_hidden_layers=27, first_k_dense_replace=1)

    def deeper(tensors):
        own = {n: v for n, v in tensors.items() if n.startswith("model.layers.1.")}
        more = {n.replace("layers.1.", f"layers.{i}."): v for i in range(2, 27) for n, v in own.items()}
        return {**tensors, **{n: v.clone() for n, v in more.items()}}

    rewrite(directory, deeper)
    code, _, stderr = yarnconv("gguf", directory, "-o", tmp_path / "out.gguf")
    assert code == 0, stderr
