"""Every spelling in use, and what is no spelling."""

import pytest

from yarnconv.errors import BadInput
from yarnconv.rope.scaling import (
    DynamicNtk,
    DynamicYarn,
    Linear,
    LongRope,
    NtkAware,
    Unscaled,
    Yarn,
    method_name,
)
from yarnconv.rope.spelling import read_rope

BASE = {
    "rope_theta": 10000.0,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "max_position_embeddings": 4096,
}
YARN = {"factor": 16.0, "original_max_position_embeddings": 4096}


def read(**config):
    return read_rope({**BASE, **config}).groups[None]


def yarn(**changes):
    return Yarn(
        **{
            "theta": 10000.0,
            "rotary_dim": 64,
            "original_context": 4096,
            "factor": 16.0,
            **changes,
        }
    )


@pytest.mark.parametrize("nothing", [None, {}])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_no_scaling(key, nothing):
    assert read(**{key: nothing}) == Unscaled(theta=10000.0, rotary_dim=64)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_scaling": {"type": "yarn", **YARN}},
        {"rope_scaling": {"rope_type": "yarn", **YARN}},
        {"rope_scaling": {"rope_type": "yarn", "type": "linear", **YARN}},
        {"rope_scaling": {"type": "yarn", **YARN, "finetuned": True}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **YARN}},
        {
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **YARN},
            "rope_theta": 7.0,
        },
        {"rope_scaling": {"type": "yarn", **YARN}, "rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": {}, "rope_parameters": {"rope_type": "yarn", **YARN}},
        {
            "rope_scaling": {"type": "yarn", **YARN, "original_max_position_embeddings": 17},
            "original_max_position_embeddings": 4096,
        },
        {"rope_scaling": {"type": "yarn", "factor": 16.0}},
        {
            "rope_scaling": {
                "type": "yarn",
                "factor": None,
                "original_max_position_embeddings": 4096,
            },
            "max_position_embeddings": 65536,
        },
        {"rope_scaling": {"type": "yarn", **YARN, "beta_fast": None, "beta_slow": 0}},
    ],
    ids=lambda c: str(c)[:70],
)
def test_spellings_of_one_yarn(config):
    assert read(**config) == yarn()


@pytest.mark.parametrize(
    ("scaling", "wanted"),
    [
        ({"type": "linear", "factor": 8.0}, Linear),
        ({"type": "dynamic", "factor": 8.0}, DynamicNtk),
        ({"type": "ntk", "factor": 8.0}, NtkAware),
        ({"type": "dynamic-yarn", "factor": 8.0}, DynamicYarn),
        ({"type": "su", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}, LongRope),
        ({"type": "default"}, Unscaled),
        ({"rope_type": None}, Unscaled),
    ],
)
def test_types(scaling, wanted):
    assert type(read(rope_scaling=scaling)) is wanted


def test_ntk_by_parts_is_yarn_without_temperature():
    scaling = read(rope_scaling={"type": "yarn", **YARN, "attention_factor": 1.0})
    assert method_name(scaling) == "ntk-by-parts"


def test_dynamic_ntk_knows_only_the_longest_length():
    scaling = read(rope_scaling={"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 9})
    assert scaling.original_context == 4096


def test_gpt_oss_and_deepseek():
    assert not read(rope_scaling={"type": "yarn", **YARN, "truncate": False}).truncate
    deepseek = read(
        rope_scaling={"type": "yarn", **YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        qk_rope_head_dim=64,
        kv_lora_rank=512,
    )
    assert (deepseek.mscale, deepseek.mscale_all_dim, deepseek.softmax_mscale) == (1.0, 1.0, True)


def test_nested_by_layer_type():
    rope = read_rope(
        {
            **BASE,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default"},
            },
        }
    )
    assert rope.groups == {
        "full_attention": Linear(theta=1e6, rotary_dim=64, original_context=4096, factor=8.0),
        "sliding_attention": Unscaled(theta=10000.0, rotary_dim=64),
    }


def test_nested_truncate_is_not_read_as_in_transformers():
    inner = {"rope_type": "yarn", **YARN, "truncate": False}
    rope = read_rope(
        {
            **BASE,
            "layer_types": ["full_attention"],
            "rope_parameters": {"full_attention": inner},
        }
    )
    assert rope.groups["full_attention"].truncate
    assert any("truncate" in note for note in rope.notes)


def test_attn_factor_is_pointed_out():
    rope = read_rope({**BASE, "rope_scaling": {"type": "yarn", **YARN, "attn_factor": 2.0}})
    assert any("attn_factor" in note for note in rope.notes)
    assert rope.groups[None] == yarn()


def test_unstated_original_context_is_pointed_out():
    rope = read_rope({**BASE, "rope_scaling": {"type": "linear", "factor": 4.0}})
    assert any("original" in note for note in rope.notes)


@pytest.mark.parametrize(
    ("config", "where", "what"),
    [
        ({"rope_scaling": {"type": "yarrn", **YARN}}, "rope_scaling.rope_type", "yarrn"),
        ({"rope_scaling": {"type": 3, **YARN}}, "rope_scaling.rope_type", "3"),
        ({"rope_scaling": "yarn"}, "rope_scaling", "not an object"),
        (
            {"rope_scaling": {"type": "yarn", **YARN, "betafast": 1}},
            "rope_scaling.betafast",
            "betafast",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", **YARN, "llama_4_scaling_beta": 0.1}},
            "rope_parameters.llama_4_scaling_beta",
            "llama_4_scaling_beta",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor", "missing"),
        ({"rope_scaling": {"type": "yarn", **YARN, "factor": "4"}}, "rope_scaling.factor", "'4'"),
        ({"rope_scaling": {"type": "yarn", **YARN, "factor": 0.5}}, "rope_scaling.factor", "0.5"),
        (
            {"rope_scaling": {"type": "yarn", **YARN, "factor": float("nan")}},
            "rope_scaling.factor",
            "nan",
        ),
        (
            {"rope_scaling": {"type": "yarn", **YARN, "factor": 1e99}},
            "rope_scaling.factor",
            "1e+99",
        ),
        (
            {"rope_scaling": {"type": "yarn", **YARN, "beta_fast": 0.5}},
            "rope_scaling.beta_fast",
            "beta_slow",
        ),
        (
            {"rope_scaling": {"type": "yarn", **YARN, "beta_slow": -1}},
            "rope_scaling.beta_slow",
            "-1",
        ),
        (
            {"rope_scaling": {"type": "yarn", **YARN, "truncate": "no"}},
            "rope_scaling.truncate",
            "'no'",
        ),
        (
            {"rope_scaling": {"type": "yarn", **YARN, "attention_factor": 0}},
            "rope_scaling.attention_factor",
            "above 0",
        ),
        ({"rope_theta": 0}, "rope_theta", "0"),
        ({"rope_theta": -5.0}, "rope_theta", "-5"),
        ({"rope_theta": float("inf")}, "rope_theta", "inf"),
        ({"rope_theta": True}, "rope_theta", "True"),
        ({"head_dim": 63}, "rotary_dim", "even"),
        ({"head_dim": 2.5}, "head_dim", "whole"),
        ({"num_attention_heads": 7}, "num_attention_heads", "divide"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "rope_scaling.short_factor",
            "32",
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": "x", "long_factor": []}},
            "rope_scaling.short_factor",
            "list",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_not_understood_is_named(config, where, what):
    with pytest.raises(BadInput) as raised:
        read(**config)
    assert where in str(raised.value.where)
    assert what in str(raised.value)


def test_truncate_beside_the_layer_types_is_read_as_in_transformers():
    inner = {"rope_type": "yarn", **YARN}
    rope = read_rope(
        {
            **BASE,
            "layer_types": ["full_attention"],
            "rope_parameters": {"full_attention": inner, "truncate": False},
        }
    )
    assert not rope.groups["full_attention"].truncate


@pytest.mark.parametrize(
    "key", ["factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "rope_theta"]
)
@pytest.mark.parametrize("value", [10**400, -(10**400), 1e308, 1e-320, -0.0, float("inf"), float("-inf")])
def test_no_number_is_a_bug(key, value):
    """Whatever a config holds is read or refused with its place; nothing overflows later on."""
    from yarnconv.rope.tables import buckets

    config = {"rope_scaling": {"type": "yarn", **YARN, "rope_theta": 10000.0, key: value}}
    outcome = read_or_refuse(config)
    if isinstance(outcome, BadInput):
        assert key in str(outcome.where)
    else:
        assert buckets(outcome)[0].inv_freq.min() > 0


def read_or_refuse(config):
    try:
        return read(**config)
    except BadInput as error:
        return error
