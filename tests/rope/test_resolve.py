"""The user's request on checkpoints that carry something themselves, and the named profiles."""

import pytest

from yarnconv.errors import BadInput
from yarnconv.rope.profiles import recognise
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.resolve import resolve
from yarnconv.rope.scaling import DynamicYarn, Unscaled, Yarn, method_name
from yarnconv.rope.spelling import read_rope
from yarnconv.rope.tables import buckets

PLAIN = {
    "model_type": "llama",
    "rope_theta": 10000.0,
    "head_dim": 128,
    "max_position_embeddings": 4096,
}
YARN_LLAMA_2 = {
    **PLAIN,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 4096,
        "finetuned": True,
    },
}
YARN_MISTRAL = {
    "model_type": "mistral",
    "rope_theta": 10000.0,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 8192,
        "finetuned": True,
    },
}
QWEN3 = {
    "model_type": "qwen3",
    "rope_theta": 1e6,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}
LLAMA_31 = {
    "model_type": "llama",
    "rope_theta": 500000.0,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def plan(config, **request):
    request = RopeRequest(**request)
    rope = read_rope(config)
    profile = recognise(config, rope) if request.use_profile else None
    return resolve(rope, request, profile, config["max_position_embeddings"])


def said(resolved, words):
    return any(words in warning for warning in resolved.warnings)


def test_a_plain_checkpoint_stays_plain_unless_asked():
    resolved = plan(PLAIN)
    assert isinstance(resolved.main, Unscaled)
    assert resolved.target_context == 4096
    assert resolved.warnings == ()


@pytest.mark.parametrize("request_", [{"factor": 16.0}, {"target_context": 65536}])
def test_factor_and_target_are_the_same_request(request_):
    resolved = plan(PLAIN, **request_)
    assert method_name(resolved.main) == "yarn"
    assert (resolved.main.factor, resolved.target_context) == (16.0, 65536)
    assert not resolved.finetuned
    assert said(resolved, "needle")
    assert said(resolved, "Static scaling")


def test_a_target_that_is_no_multiple_is_reached_exactly():
    assert plan(PLAIN, target_context=65535).target_context == 65535
    assert plan(PLAIN, factor=3.9).target_context == 15974


def test_own_scaling_is_kept_and_finetuned():
    resolved = plan(YARN_LLAMA_2)
    assert resolved.finetuned
    assert resolved.warnings == ()
    assert resolved.target_context == 65536


def test_asking_for_what_is_there_changes_nothing():
    assert plan(YARN_LLAMA_2, factor=16.0) == plan(YARN_LLAMA_2)


def test_override_says_what_changed():
    resolved = plan(YARN_LLAMA_2, factor=32.0)
    assert said(resolved, "factor 16.0 -> 32.0")
    assert not resolved.finetuned


def test_beta_alone_changes_one_field():
    resolved = plan(YARN_LLAMA_2, beta_fast=64.0)
    assert resolved.main.beta_fast == 64.0
    assert resolved.main.factor == 16.0
    assert said(resolved, "beta_fast 32.0 -> 64.0")


def test_explicit_attention_factor_belongs_to_its_factor():
    config = {
        **YARN_LLAMA_2,
        "rope_scaling": {**YARN_LLAMA_2["rope_scaling"], "attention_factor": 1.3},
    }
    assert plan(config).main.attention_factor == 1.3
    resolved = plan(config, factor=32.0)
    assert resolved.main.attention_factor is None
    assert said(resolved, "attention_factor 1.3 -> by formula")


def test_llama3_replaced_on_the_users_word():
    kept = plan(LLAMA_31)
    assert (method_name(kept.main), kept.target_context, kept.finetuned) == ("llama3", 131072, True)
    replaced = plan(LLAMA_31, factor=4.0)
    assert said(replaced, "llama3")
    assert replaced.original_context == 8192


def test_method_none_removes_a_scaling():
    resolved = plan(YARN_LLAMA_2, method="none")
    assert isinstance(resolved.main, Unscaled)
    assert said(resolved, "method yarn -> none")


def test_dynamic_yarn_does_not_warn_of_short_prompts():
    resolved = plan(PLAIN, method="dynamic-yarn", factor=8.0)
    assert type(resolved.main) is DynamicYarn
    assert not said(resolved, "Static scaling")


def test_yarn_mistral_profile():
    resolved = plan(YARN_MISTRAL)
    assert resolved.profile.name == "yarn-mistral"
    assert (resolved.main.beta_fast, resolved.main.beta_slow) == (128.0, 2.0)
    assert buckets(resolved.main)[0].attention_factor == pytest.approx(1.1940812105567846, rel=1e-12)
    assert resolved.finetuned
    stock = plan(YARN_MISTRAL, use_profile=False)
    assert stock.profile is None
    assert buckets(stock.main)[0].attention_factor == pytest.approx(1.2772588722239782, rel=1e-12)


def test_qwen3_profile():
    resolved = plan(QWEN3, factor=4.0)
    assert resolved.profile.name == "qwen3"
    assert (resolved.original_context, resolved.target_context) == (32768, 131072)
    assert plan(QWEN3, factor=4.0, use_profile=False).target_context == 163840
    assert plan(QWEN3, factor=4.0, original_context=16384).target_context == 65536
    assert plan(QWEN3).target_context == 40960


@pytest.mark.parametrize(
    ("config", "request_", "where"),
    [
        (PLAIN, {"factor": 0.5}, "--factor"),
        (PLAIN, {"factor": -4.0}, "--factor"),
        (PLAIN, {"factor": float("nan")}, "--factor"),
        (PLAIN, {"factor": float("inf")}, "--factor"),
        (PLAIN, {"factor": 1e9}, "--factor"),
        (PLAIN, {"target_context": 1024}, "--target-context"),
        (PLAIN, {"target_context": -1}, "--target-context"),
        (PLAIN, {"factor": 4.0, "target_context": 65536}, "--factor, --target-context"),
        (PLAIN, {"method": "yarn"}, "--method"),
        (PLAIN, {"beta_fast": 64.0}, "rope options"),
        (PLAIN, {"factor": 4.0, "beta_fast": 0.5}, "--beta-fast"),
        (PLAIN, {"factor": 4.0, "beta_fast": 1.5, "beta_slow": 2.0}, "--beta-fast"),
        (PLAIN, {"factor": 4.0, "beta_slow": 0.0}, "--beta-slow"),
        (PLAIN, {"factor": 4.0, "attention_factor": -1.0}, "--attention-factor"),
        (PLAIN, {"method": "linear", "factor": 4.0, "beta_fast": 64.0}, "--beta-fast"),
        (PLAIN, {"method": "none", "factor": 4.0}, "--factor"),
        (
            PLAIN,
            {"method": "ntk-by-parts", "factor": 4.0, "attention_factor": 1.2},
            "--attention-factor",
        ),
        (PLAIN, {"factor": 4.0, "original_context": -8}, "--original-context"),
        (PLAIN, {"factor": 4.0, "original_context": 0}, "--original-context"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_requests_that_make_no_sense(config, request_, where):
    with pytest.raises(BadInput) as raised:
        plan(config, **request_)
    assert raised.value.where == where


def test_yarn_fields_survive_the_request():
    own = Yarn(theta=1e4, rotary_dim=64, original_context=4096, factor=8.0, truncate=False)
    assert not own.truncate
    config = {
        **PLAIN,
        "rope_scaling": {
            "type": "yarn",
            "factor": 8.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    }
    assert not plan(config, factor=16.0).main.truncate


def test_llama3s_factor_is_no_ratio_of_contexts():
    with pytest.raises(BadInput, match="how far"):
        plan(LLAMA_31, method="yarn")


def test_a_context_beyond_what_runtimes_count_is_refused():
    with pytest.raises(BadInput, match="runtimes count"):
        plan(PLAIN, factor=4.0, original_context=2**31 - 1)


def test_gemma_3s_factor_is_in_its_context():
    """As it is published: without the profile 131072 positions would become a million."""
    from yarnconv.rope_plan import plan_rope

    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    }
    plan, description, _ = plan_rope(config, RopeRequest())
    assert plan.profile is not None
    assert plan.profile.name == "gemma3"
    assert (plan.main.factor, plan.target_context) == (8.0, 131072)
    assert plan.finetuned
    assert not any("does not say which context" in warning for warning in plan.warnings)
    assert [g.layers[:2] for g in plan.groups] == [(5, 11), (0, 1)]
    assert description.layers[0].attention.head_dim == 256
    without, _, _ = plan_rope(config, RopeRequest(use_profile=False))
    assert without.target_context == 8 * 131072
    config["text_config"]["max_position_embeddings"] = 32768
    assert plan_rope(config, RopeRequest())[0].profile is None
