"""Names for numbers: every method from its frequencies alone, and from those that tools get wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import FIXTURES
from yarnconv.rope.identify import Clues, identify, temperature_of
from yarnconv.rope.mistakes import near_misses
from yarnconv.rope.observation import Observation
from yarnconv.rope.scaling import Linear, Llama3, LongRope, NtkAware, Unscaled, Yarn
from yarnconv.rope.tables import buckets, yarn_attention_factor

CASES = json.loads((FIXTURES / "golden" / "rope_tables.json").read_text())["cases"]
FLOAT32 = 2e-6  # what float32 arithmetic leaves of a frequency (tests/rope/test_transformers.py)
QWEN = {"theta": 1e6, "rotary_dim": 128, "original_context": 32768, "factor": 4.0}
SMALL = {"theta": 1e4, "rotary_dim": 64, "original_context": 256, "factor": 4.0}
GPT_OSS = {"theta": 150000.0, "rotary_dim": 64, "original_context": 4096, "factor": 32.0}
LLAMA31 = {"theta": 5e5, "rotary_dim": 128, "original_context": 8192, "factor": 8.0}


def observed(scaling, uncertainty=FLOAT32, attention_factor=None, seed=0):
    """What one would read of a scaling, off by almost as much as it may be."""
    tables = buckets(scaling)[0]
    pairs = len(tables.inv_freq)
    noise = np.random.default_rng(seed).uniform(-0.9, 0.9, pairs) * uncertainty
    return Observation(
        inv_freq=tables.inv_freq * (1 + noise),
        uncertainty=np.full(pairs, uncertainty),
        attention_factor=tables.attention_factor if attention_factor is None else attention_factor,
    )


NAMED_ALONE = [
    Unscaled(theta=1e4, rotary_dim=32),
    Unscaled(theta=150000.0, rotary_dim=64),
    Unscaled(theta=1e6, rotary_dim=128),
    Yarn(**QWEN),
    Yarn(**QWEN, truncate=False),
    Yarn(**SMALL),
    Yarn(**SMALL, attention_factor=1.0),
    Yarn(**SMALL, attention_factor=1.25),
    Yarn(**GPT_OSS, truncate=False),
    Llama3(**LLAMA31, low_freq_factor=1.0, high_freq_factor=4.0),
    Llama3(**(LLAMA31 | {"original_context": 2048}), low_freq_factor=1.0, high_freq_factor=8.0),
]


@pytest.mark.parametrize("scaling", NAMED_ALONE, ids=repr)
@pytest.mark.parametrize("uncertainty", [FLOAT32, 1e-5])
def test_named_without_any_clue(scaling, uncertainty):
    fit = identify(observed(scaling, uncertainty), Clues())
    assert fit.scaling == scaling
    assert fit.residual <= uncertainty


@pytest.mark.parametrize(
    ("scaling", "known"),
    [
        (Linear(**QWEN), ("theta", "factor")),
        (Linear(**(QWEN | {"factor": 3.9})), ("theta", "factor")),
        (NtkAware(**(SMALL | {"factor": 8.0})), ("theta", "factor")),
        (NtkAware(**QWEN), ("theta", "factor")),
    ],
    ids=repr,
)
def test_numbers_that_do_not_hold_the_original_context(scaling, known):
    """Which the clue gives, and nothing else could."""
    for clues in (Clues(), Clues(contexts=(scaling.original_context,))):
        fit = identify(observed(scaling), clues)
        assert type(fit.scaling) is type(scaling)
        assert [getattr(fit.scaling, n) for n in known] == [getattr(scaling, n) for n in known]
    assert fit.scaling == scaling


@pytest.mark.parametrize("truncate", [True, False])
def test_betas_of_ones_own_follow_from_the_context(truncate):
    """The numbers hold quotients of context and betas; with the context they hold the betas."""
    scaling = Yarn(**QWEN, beta_fast=16.0, beta_slow=2.0, truncate=truncate)
    fit = identify(observed(scaling), Clues(contexts=(32768,)))
    assert (fit.scaling.original_context, fit.scaling.truncate) == (32768, truncate)
    made, wanted = buckets(fit.scaling)[0].inv_freq, buckets(scaling)[0].inv_freq
    np.testing.assert_allclose(made, wanted, rtol=FLOAT32)
    if not truncate:
        assert (fit.scaling.beta_fast, fit.scaling.beta_slow) == (16.0, 2.0)


def test_what_is_said_is_believed_where_it_explains_the_numbers():
    said = Yarn(**SMALL, beta_fast=16.0, beta_slow=2.0)
    assert identify(observed(said), Clues(scalings=(said,))).scaling == said
    other = replace(said, factor=8.0)
    assert identify(observed(said), Clues(scalings=(other,), contexts=(256,))).scaling != other


@pytest.mark.parametrize(
    "scaling", near_misses(Yarn(**QWEN, beta_fast=24.0, beta_slow=2.0), (131072,)), ids=repr
)
def test_each_near_miss_is_told_from_what_was_meant(scaling):
    """And from each other, with what was meant as the only clue."""
    meant = Yarn(**QWEN, beta_fast=24.0, beta_slow=2.0)
    misses = near_misses(meant, (131072,))
    fit = identify(observed(scaling), Clues(scalings=(meant, *misses)))
    np.testing.assert_allclose(buckets(fit.scaling)[0].inv_freq, buckets(scaling)[0].inv_freq, rtol=FLOAT32)
    assert fit.method == identify(observed(scaling), Clues(scalings=(scaling,))).method


def test_what_no_method_makes_has_no_name():
    plain = Unscaled(theta=1e4, rotary_dim=64)
    one = observed(plain)
    damaged = one.inv_freq.copy()
    damaged[7] *= 1 + 20 * FLOAT32
    for frequencies in (damaged, one.inv_freq[::-1].copy(), np.full(32, np.nan), np.zeros(32)):
        fit = identify(Observation(inv_freq=frequencies, uncertainty=one.uncertainty), Clues())
        assert (fit.method, fit.residual) == ("unknown", None)


@pytest.mark.parametrize(
    ("factor", "named"),
    [
        (lambda m: m, "full"),
        (lambda m: 1.0, "missing"),
        (lambda m: m**2, "twice"),
        (lambda m: 1 + 0.1 * m * np.log(4.0), "relogged"),
        (lambda m: 1 + 0.1 * np.log(m), "relogged"),
        (lambda m: m * 1.01, "other"),
    ],
)
def test_what_became_of_the_temperature(factor, named):
    yarn = Yarn(**SMALL)
    assert temperature_of(float(factor(yarn_attention_factor(yarn))), yarn, 1e-5) == named
    fit = identify(observed(yarn, attention_factor=float(factor(yarn_attention_factor(yarn)))), Clues())
    assert (fit.temperature, fit.method) == (named, "ntk-by-parts" if named == "missing" else "yarn")


def test_a_temperature_without_yarn_is_of_no_formula():
    plain = Unscaled(theta=1e4, rotary_dim=64)
    assert identify(observed(plain, attention_factor=1.2), Clues()).temperature == "other"
    assert identify(observed(plain), Clues()).temperature == "none"


@pytest.mark.parametrize("name", CASES)
def test_the_golden_checkpoints_are_named(name):
    """Float64 tables that this tool did not compute, each by what it was computed with."""
    case = CASES[name]

    def named(key, **numbers):
        frequencies = np.array([float(value) for value in case[key]])
        uncertainty = np.full(len(frequencies), FLOAT32)
        return identify(Observation(inv_freq=frequencies, uncertainty=uncertainty, **numbers), Clues())

    theta, factor = case["rope_theta"], case["factor"]
    fit = named(
        "inv_freq",
        attention_factor=float(case["attention_factor_on_cos_sin"]),
        softmax_multiplier=float(case["softmax_scale_multiplier_mscale_all_dim_sq"]),
    )
    for key in ("factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim"):
        assert getattr(fit.scaling, key) == case[key]
    assert (fit.method, fit.scaling.original_context) == ("yarn", case["original_max_position_embeddings"])
    # Yarn-Mistral's coefficient of 0.07 is no formula's
    assert fit.temperature == ("full" if case["temperature_coefficient"] == 0.1 else "other")
    assert named("inv_freq_plain").scaling.theta == theta
    assert named("inv_freq_linear_pi").scaling.factor == factor
    enlarged = named("inv_freq_ntk_aware")
    assert (enlarged.method, enlarged.scaling.theta, enlarged.scaling.factor) == ("ntk", theta, factor)
    assert not named("inv_freq_no_truncate").scaling.truncate


@settings(max_examples=60, deadline=None)
@given(
    theta=st.sampled_from([1e4, 5e4, 1.5e5, 5e5, 1e6, 5e6]),
    rotary_dim=st.sampled_from([32, 64, 80, 128]),
    context=st.sampled_from([2048, 4096, 8192, 32768]),
    factor=st.floats(1.5, 64).map(lambda f: round(f, 1)),
    truncate=st.booleans(),
)
def test_any_yarn_with_the_usual_betas(theta, rotary_dim, context, factor, truncate):
    """Its frequencies are explained, by the same factor and base."""
    scaling = Yarn(
        theta=theta, rotary_dim=rotary_dim, original_context=context, factor=factor, truncate=truncate
    )
    fit = identify(observed(scaling), Clues(contexts=(context,)))
    np.testing.assert_allclose(
        buckets(fit.scaling)[0].inv_freq, buckets(scaling)[0].inv_freq, rtol=2 * FLOAT32
    )
    assert (fit.scaling.theta, fit.scaling.factor, fit.temperature) == (theta, factor, "full")


@pytest.mark.parametrize("context", [3000, 6144, 20000, 40960, 98304])
def test_of_an_original_context_that_nobody_says_the_usual_betas_are_believed(context):
    """Only the quotients of context and betas are in the numbers."""
    scaling = Yarn(**(QWEN | {"original_context": context}))
    for clues in (Clues(), Clues(contexts=(32768,), scalings=(Yarn(**QWEN),))):
        fit = identify(observed(scaling), clues)
        assert (fit.scaling.beta_fast, fit.scaling.beta_slow, fit.scaling.truncate) == (32.0, 1.0, True)
        assert fit.context == "usual"
        assert abs(fit.scaling.original_context / context - 1) < 0.25  # a step of the range


def test_a_context_that_is_said_or_not_in_the_numbers_at_all():
    assert identify(observed(Yarn(**QWEN)), Clues(contexts=(32768,))).context == "said"
    assert identify(observed(Linear(**QWEN)), Clues()).context == "unknown"
    assert identify(observed(NtkAware(**QWEN)), Clues()).context == "unknown"


def test_a_base_that_anybody_wrote_is_one():
    """Of any whole number hardly one is taken for a larger base of another."""
    rng = np.random.default_rng(0)
    bases = [float(rng.integers(10**4, 10**7)) for _ in range(200)]
    found = [identify(observed(Unscaled(theta=base, rotary_dim=128)), Clues()) for base in bases]
    assert sum(fit.method != "none" for fit in found) <= 2


def test_numbers_that_no_scaling_can_have():
    """Unknown, and no error."""
    plain = observed(Unscaled(theta=1e4, rotary_dim=64))
    slow = plain.inv_freq / 1e6
    parted = np.concatenate([plain.inv_freq[:16], plain.inv_freq[16:] / 7e4])
    one, none = np.array([1.0]), np.array([])
    for frequencies in (slow, parted, one, none, np.ones(32), np.full(32, 1e-300), np.full(32, np.inf)):
        uncertainty = np.full(len(frequencies), FLOAT32)
        fit = identify(Observation(inv_freq=frequencies, uncertainty=uncertainty), Clues(contexts=(256,)))
        assert fit.method in {"unknown", "none", "linear"}


@pytest.mark.parametrize("which", [0, 1])
def test_each_set_of_longrope_by_what_is_said(which):
    """Nothing but a claim could name it."""
    said = LongRope(
        theta=1e4,
        rotary_dim=64,
        original_context=256,
        factor=4.0,
        short_factor=(1.0,) * 32,
        long_factor=tuple(np.linspace(1.0, 4.0, 32).tolist()),
    )
    tables = buckets(said)[which]
    observation = Observation(
        inv_freq=tables.inv_freq,
        uncertainty=np.full(32, FLOAT32),
        attention_factor=tables.attention_factor,
    )
    fit = identify(observation, Clues(scalings=(said,)))
    assert (fit.method, fit.temperature) == ("longrope", "full")


def test_an_attention_factor_that_is_said_and_not_there():
    """The frequencies are as it is said; the factor shown is the one that was read."""
    said = Yarn(**QWEN, attention_factor=1.3)
    fit = identify(observed(Yarn(**QWEN)), Clues(scalings=(said,)))
    assert (fit.scaling, fit.temperature) == (Yarn(**QWEN), "full")
    fit = identify(observed(said), Clues(scalings=(said,)))
    assert (fit.scaling, fit.temperature) == (said, "other")
