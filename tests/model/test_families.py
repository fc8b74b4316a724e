"""The data files against what they describe."""

import json

import pytest
import torch
import transformers

from yarnconv.errors import BadInput
from yarnconv.model.describe import describe, with_defaults
from yarnconv.model.family import families, find_family
from yarnconv.model.tensors import expected_tensors

FAMILIES = sorted(families())


def test_the_families_there_are():
    assert [
        *("gemma2", "gemma3_text", "glm4", "granite", "granitemoehybrid", "llama", "ministral3", "mistral"),
        *("olmo2", "olmo3", "phi3", "qwen2", "qwen3", "smollm3"),
    ] == FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_those_of_the_transformers_class(name):
    """An empty config.json means to us what it means to transformers."""
    theirs = json.loads(transformers.AutoConfig.for_model(name).to_json_string(use_diff=False))
    theirs["rope_theta"] = theirs["rope_parameters"]["rope_theta"]
    given = {"num_attention_heads": theirs["num_attention_heads"]}
    ours = with_defaults(families()[name], given)
    for key in families()[name].config_defaults:
        if key == "sliding_window" and theirs[key] is None:
            continue  # transformers forgets the size where use_sliding_window is false
        assert ours[key] == theirs[key], key


@pytest.mark.parametrize("name", FAMILIES)
def test_expected_tensors_are_those_of_the_real_module(name):
    family = families()[name]
    for overrides in (
        {},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"tie_word_embeddings": True},
    ):
        if "_bias" in str(overrides) and next(iter(overrides)) not in family.config_defaults:
            continue
        config = transformers.AutoConfig.for_model(name, **{**family.tiny, **overrides})
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        theirs = {n: tuple(p.shape) for n, p in model.state_dict().items()}
        if config.tie_word_embeddings:
            del theirs["lm_head.weight"]
        filled = with_defaults(family, json.loads(config.to_json_string(use_diff=False)))
        ours = {t.name: t.shape for t in expected_tensors(family, describe(family, filled))}
        assert ours == theirs


@pytest.mark.parametrize("name", [n for n in FAMILIES if families()[n].structure.window])
def test_windows_are_those_of_transformers(name):
    family = families()[name]
    values = {**family.tiny, "sliding_window": 128}
    if family.structure.window.enabled:
        values |= {"use_sliding_window": True, "max_window_layers": 1}
    config = transformers.AutoConfig.for_model(name, **values)
    spelled = json.loads(config.to_json_string(use_diff=False))
    theirs = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    for given in (spelled, {**spelled, "layer_types": None}):
        layers = describe(family, with_defaults(family, given)).layers
        assert [layer.attention.layer_type for layer in layers] == theirs
        windows = [128 if t == "sliding_attention" else None for t in theirs]
        assert [layer.attention.window for layer in layers] == windows


def test_find_family_by_architecture_where_the_type_is_missing():
    assert find_family({"architectures": ["Qwen3ForCausalLM"]}).model_type == "qwen3"
    assert find_family({"model_type": "llama"}).model_type == "llama"


@pytest.mark.parametrize("config", [{}, {"architectures": "LlamaForCausalLM"}, {"model_type": None}])
def test_a_config_that_names_nothing(config):
    with pytest.raises(BadInput, match="unknown architecture"):
        find_family(config)
