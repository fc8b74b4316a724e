"""The data files against what they describe."""

import json

import pytest
import torch
import transformers

from yarnconv.errors import BadInput, Inexpressible
from yarnconv.model.describe import describe, with_defaults
from yarnconv.model.family import families, find_family
from yarnconv.model.tensors import expected_tensors
from yarnconv.rope.request import RopeRequest
from yarnconv.rope_plan import plan_rope

FAMILIES = sorted(families())


def test_the_families_there_are():
    assert [
        *("deepseek_v2", "deepseek_v3", "exaone4", "gemma2", "gemma3_text", "glm4", "glm4_moe", "gpt_oss"),
        *("granite", "granitemoehybrid", "llama", "ministral3", "mistral", "mixtral", "olmo2", "olmo3"),
        *("phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"),
    ] == FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_those_of_the_transformers_class(name):
    """An empty config.json means to us what it means to transformers."""
    theirs = json.loads(transformers.AutoConfig.for_model(name).to_json_string(use_diff=False))
    family, rope = families()[name], theirs["rope_parameters"]
    given = {key: theirs[key] for key in ("num_attention_heads", "num_hidden_layers")}
    ours = with_defaults(family, given)
    if (by_type := family.structure.theta_by_layer_type) is not None:
        assert {kind: rope[kind]["rope_theta"] for kind in by_type} == {
            kind: ours["rope_parameters"][kind]["rope_theta"] for kind in by_type
        }
        assert ours["layer_types"] == theirs["layer_types"]
    else:
        theirs["rope_theta"] = rope["rope_theta"]
    theirs |= {"partial_rotary_factor": rope.get("partial_rotary_factor", 1.0)}
    theirs |= {key: theirs[other] for other, key in family.synonyms.items()}
    for key in family.config_defaults:
        if key == "sliding_window" and not theirs[key]:
            continue  # transformers forgets the size where use_sliding_window is false
        if key == "rope_parameters":
            continue  # below
        if key in theirs or key not in PATTERN_KEYS:  # which transformers reads and does not keep
            assert ours[key] == theirs[key], key


PATTERN_KEYS = {"sliding_window_pattern"}


def test_ministral_3s_own_yarn_is_that_of_the_transformers_class():
    family = families()["ministral3"]
    filled = with_defaults(family, {"num_attention_heads": 32})
    theirs = transformers.AutoConfig.for_model("ministral3").rope_parameters
    growth = filled["llama_4_scaling_beta"]
    own = {**filled["rope_parameters"], "llama_4_scaling_beta": growth["beta"]}
    assert growth["context"] == own["original_max_position_embeddings"]
    assert own == {key: theirs[key] for key in own}
    assert set(theirs) - set(own) <= {"type", "max_position_embeddings", "partial_rotary_factor"}


@pytest.mark.parametrize("name", FAMILIES)
def test_expected_tensors_are_those_of_the_real_module(name):
    family = families()[name]
    for overrides in (
        {},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"tie_word_embeddings": True},
    ):
        key = next(iter(overrides), None)
        if key in (family.structure.supposes or {}):
            continue
        if "_bias" in str(overrides) and key not in family.config_defaults:
            continue
        config = transformers.AutoConfig.for_model(name, **{**family.tiny, **overrides})
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        theirs = {n: tuple(p.shape) for n, p in model.state_dict().items()}
        if config.tie_word_embeddings:
            del theirs["lm_head.weight"]
        filled = with_defaults(family, json.loads(config.to_json_string(use_diff=False)))
        ours = {t.name: t.shape for t in expected_tensors(family, describe(family, filled))}
        if family.structure.experts is not None and family.structure.experts.turned:
            theirs = {n: (s[0], s[2], s[1]) if len(s) == 3 else s for n, s in theirs.items()}
        assert ours == theirs


@pytest.mark.parametrize("name", [n for n in FAMILIES if families()[n].structure.window])
def test_windows_are_those_of_transformers(name):
    family = families()[name]
    values = {**family.tiny, "sliding_window": 128, "layer_types": None}
    layers = values["num_hidden_layers"]
    if family.structure.window.enabled:
        values |= {"use_sliding_window": True, "max_window_layers": 1}
    config = transformers.AutoConfig.for_model(name, **values)
    spelled = json.loads(config.to_json_string(use_diff=False))
    theirs = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
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


def test_layers_without_rope_are_those_of_transformers():
    family = families()["smollm3"]
    for given in ({}, {"no_rope_layer_interval": 2}, {"no_rope_layers": [1, 1, 0, 1, 0]}):
        config = transformers.AutoConfig.for_model("smollm3", **{**family.tiny, **given})
        layers = describe(family, with_defaults(family, {**family.tiny, **given})).layers
        assert [int(layer.attention.rotates) for layer in layers] == config.no_rope_layers


@pytest.mark.parametrize("listed", [[1, 1], [2, 1, 1, 1, 1], "11101", [None] * 5])
def test_a_list_of_layers_without_rope_that_is_none(listed):
    family = families()["smollm3"]
    with pytest.raises(BadInput, match="no_rope_layers does not hold a 0 or a 1"):
        describe(family, with_defaults(family, {**family.tiny, "no_rope_layers": listed}))


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("granitemoehybrid", {"num_local_experts": 8}, "num_local_experts"),
        ("granitemoehybrid", {"position_embedding_type": None}, "position_embedding_type"),
        ("granitemoehybrid", {"layer_types": ["mamba", "attention", "attention"]}, "layer_types"),
        ("granitemoehybrid", {"layer_types": None}, "layer_types"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_what_a_data_file_does_not_describe_is_refused(name, change, key):
    family = families()[name]
    with pytest.raises(Inexpressible, match=f"{key} is .*, which the data file of {name} does not describe"):
        describe(family, with_defaults(family, {**family.tiny, **change}))


def test_multipliers_and_softcaps():
    granite = families()["granite"]
    described = describe(granite, with_defaults(granite, granite.tiny))
    assert described.embedding_multiplier == 12.0
    assert described.logit_multiplier == 1.0 / 8.0
    assert {(layer.attention.scale, layer.residual_multiplier) for layer in described.layers} == {
        (0.0625, 0.22)
    }
    gemma = families()["gemma2"]
    described = describe(gemma, with_defaults(gemma, {**gemma.tiny, "query_pre_attn_scalar": 144}))
    assert described.embedding_multiplier == 256**0.5
    assert described.logit_softcap == 30.0
    assert {(layer.attention.scale, layer.attention.softcap) for layer in described.layers} == {
        (1.0 / 12.0, 50.0)
    }
    for key in ("residual_multiplier", "logits_scaling", "attention_multiplier"):
        for value in (0.0, "2", None, True, 1e300):
            with pytest.raises(BadInput, match=key):
                describe(granite, with_defaults(granite, {**granite.tiny, key: value}))


LEGACY = {"rope_theta": 50000.0, "rope_scaling": {"type": "linear", "factor": 8.0}}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("gemma3_text", {"rope_theta": 50000.0, "rope_local_base_freq": 20000.0}),
        ("gemma3_text", {**LEGACY, "rope_local_base_freq": 20000.0}),
        ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("olmo3", LEGACY),
        ("olmo3", {}),
    ],
)
def test_rope_by_layer_type_in_the_older_spelling(name, given):
    """As the config classes understand it, quirks included: OLMo 3 takes its own base for windowed layers."""
    family = families()[name]
    theirs = transformers.AutoConfig.for_model(name, **{**family.tiny, **given}).rope_parameters
    ours = with_defaults(family, {**family.tiny, **given})["rope_parameters"]
    for kind, parameters in theirs.items():
        wanted = {key: value for key, value in parameters.items() if key in {"rope_theta", "factor"}}
        assert {key: ours[kind].get(key) for key in wanted} == wanted
        spelled = ours[kind].get("rope_type", ours[kind].get("type", "default"))
        assert spelled == parameters["rope_type"]


def test_an_extension_that_no_layer_can_use_is_said():
    """EXAONE's kind of model, where only layers with a window rotate, spelled in a family that can be so."""
    config = {**families()["mistral"].tiny, "model_type": "mistral", "sliding_window": 64}
    plan, _, _ = plan_rope(config, RopeRequest(factor=4.0))
    assert any("looks back over 64 positions" in warning for warning in plan.warnings)
    plan, _, _ = plan_rope({**config, "sliding_window": 4096}, RopeRequest(factor=4.0))
    assert not any("extends nothing" in warning for warning in plan.warnings)


@pytest.mark.parametrize("place", ["partial_rotary_factor", "rope_parameters"])
def test_a_family_that_rotates_whole_heads_is_not_planned_with_less(place):
    given = {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    change = {place: 0.5 if place == "partial_rotary_factor" else given}
    with pytest.raises(Inexpressible, match="llama rotates whole heads of 64, not 32 dimensions"):
        plan_rope({**families()["llama"].tiny, "model_type": "llama", **change}, RopeRequest())
    glm4 = {**families()["glm4"].tiny, "model_type": "glm4", **change}
    assert plan_rope(glm4, RopeRequest())[0].main.rotary_dim == 32


def described(name, **change):
    family = families()[name]
    config = {**family.tiny, **change}
    return describe(family, with_defaults(family, {k: v for k, v in config.items() if v != "missing"}))


@pytest.mark.parametrize("window", [16, "missing"])
def test_exaone_4_turns_nothing_where_a_window_is_set_and_nobody_has_it(window):
    """Its class asks for the window's size, and not whether any layer has it."""
    full = ["full_attention"] * 3
    layers = described("exaone4", sliding_window=window, layer_types=full).layers
    assert [layer.attention.rotates for layer in layers] == [False] * 3
    layers = described("exaone4", sliding_window=None, layer_types=full).layers
    assert [layer.attention.rotates for layer in layers] == [True] * 3


def test_smollm3_has_windows_by_its_layer_types_whatever_the_switch_says():
    types = ["sliding_attention", "full_attention", "full_attention", "full_attention", "sliding_attention"]
    for switch in (False, True):
        layers = described("smollm3", use_sliding_window=switch, sliding_window=8, layer_types=types).layers
        assert [layer.attention.window for layer in layers] == [8, None, None, None, 8]
    layers = described("smollm3", use_sliding_window=False, sliding_window=8).layers
    assert {layer.attention.window for layer in layers} == {None}


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "smollm3"])
def test_null_and_nothing_are_two_numbers_of_key_heads(name):
    family = families()[name]
    theirs = [
        transformers.AutoConfig.for_model(name, num_attention_heads=16, **given).num_key_value_heads
        for given in ({"num_key_value_heads": None}, {})
    ]
    ours = [
        with_defaults(family, {"num_attention_heads": 16, **given})["num_key_value_heads"]
        for given in ({"num_key_value_heads": None}, {})
    ]
    assert ours == theirs


GROWING = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "llama_4_scaling_beta": 0.1}


@pytest.mark.parametrize(
    ("change", "context"),
    [
        ({"rope_parameters": {**GROWING, "original_max_position_embeddings": 16}}, 16),
        (
            {
                "rope_parameters": {**GROWING, "original_max_position_embeddings": 16},
                "original_max_position_embeddings": 32,
            },
            32,
        ),
        ({"rope_parameters": GROWING, "max_position_embeddings": 64}, 64),
    ],
)
def test_queries_grow_by_the_context_that_transformers_finds(change, context):
    growth = described("ministral3", **change).layers[0].attention.query_growth
    assert (growth.beta, growth.context) == (0.1, context)
    config = transformers.AutoConfig.for_model("ministral3", **{**families()["ministral3"].tiny, **change})
    config.standardize_rope_params()  # as its models do when they are made
    assert config.rope_parameters["original_max_position_embeddings"] == context


@pytest.mark.parametrize("said", [0.1, "0.1", True, [1], {"beta": 5.0, "context": 3}])
def test_a_growth_at_the_top_level_is_none(said):
    """transformers reads it among the RoPE parameters only."""
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    model = described("ministral3", llama_4_scaling_beta=said, rope_parameters=plain)
    assert model.layers[0].attention.query_growth is None


@pytest.mark.parametrize("types", [[], ["attention"]])
def test_layer_types_of_other_than_all_layers(types):
    with pytest.raises(BadInput, match=r"layer_types has \d entries, and num_hidden_layers is 3"):
        described("granitemoehybrid", layer_types=types)
