"""What holds for every scaling."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from yarnconv.rope.scaling import DynamicNtk, DynamicYarn, Linear, Llama3, NtkAware, Unscaled, Yarn
from yarnconv.rope.spelling import read_rope
from yarnconv.rope.tables import buckets, correction_range, plain_inv_freq, static_scalings
from yarnconv.rope.writing import write_rope

thetas = st.floats(1000.0, 1e8)
rotary_dims = st.integers(4, 128).map(lambda pairs: 2 * pairs)
contexts = st.integers(512, 2**20)
factors = st.floats(1.0, 256.0)
betas = st.tuples(st.floats(0.5, 8.0), st.floats(8.5, 128.0))


@st.composite
def yarns(draw, kind=Yarn):
    slow, fast = draw(betas)
    return kind(
        theta=draw(thetas),
        rotary_dim=draw(rotary_dims),
        original_context=draw(contexts),
        factor=draw(factors),
        beta_fast=fast,
        beta_slow=slow,
        truncate=draw(st.booleans()),
        attention_factor=draw(st.none() | st.floats(0.5, 2.0)),
        mscale=draw(st.none() | st.floats(0.0, 2.0)),
        mscale_all_dim=draw(st.none() | st.floats(0.0, 2.0)),
    )


@st.composite
def others(draw):
    shared = {"theta": draw(thetas), "rotary_dim": draw(rotary_dims)}
    kind = draw(st.sampled_from([Unscaled, Linear, NtkAware, DynamicNtk, Llama3]))
    if kind is Unscaled:
        return Unscaled(**shared)
    shared |= {"original_context": draw(contexts), "factor": draw(factors)}
    if kind is Llama3:
        return Llama3(**shared, low_freq_factor=1.0, high_freq_factor=draw(st.floats(1.5, 8.0)))
    return kind(**shared)


@given(yarns())
def test_yarn_frequencies_lie_between_and_decrease(scaling):
    low, high = correction_range(scaling)
    assume(high > low)  # the other way round only for contexts shorter than a rotation
    frequencies = buckets(scaling)[0].inv_freq
    plain = plain_inv_freq(scaling.theta, scaling.rotary_dim)
    assert (frequencies <= plain * (1 + 1e-12)).all()
    assert (frequencies >= plain / scaling.factor * (1 - 1e-12)).all()
    assert (np.diff(frequencies) < 0).all()


@given(yarns() | others())
def test_factor_one_is_plain_rope(scaling):
    from dataclasses import fields, replace

    changes = {"factor": 1.0} if hasattr(scaling, "factor") else {}
    if "attention_factor" in {f.name for f in fields(scaling)}:
        changes["attention_factor"] = None
    tables = buckets(replace(scaling, **changes))[-1]
    plain = plain_inv_freq(scaling.theta, scaling.rotary_dim)
    np.testing.assert_allclose(tables.inv_freq, plain, rtol=1e-12)
    assert tables.attention_factor == 1.0


@given(yarns(DynamicYarn))
def test_dynamic_yarn_begins_plain_and_ends_as_yarn(scaling):
    tables = buckets(scaling)
    plain = plain_inv_freq(scaling.theta, scaling.rotary_dim)
    assert [t.factor for t in tables] == sorted({t.factor for t in tables})
    if scaling.factor > 1.0:
        np.testing.assert_allclose(tables[0].inv_freq, plain, rtol=1e-12)
        assert tables[0].attention_factor == 1.0
    static = Yarn(**{f: getattr(scaling, f) for f in Yarn.__dataclass_fields__})
    if scaling.factor > 1.0 or scaling.attention_factor is None:
        np.testing.assert_allclose(tables[-1].inv_freq, buckets(static)[0].inv_freq, rtol=1e-12)
        np.testing.assert_allclose(
            tables[-1].attention_factor, buckets(static)[0].attention_factor, rtol=1e-12
        )


@given(yarns() | yarns(DynamicYarn) | others())
def test_each_bucket_is_a_static_scaling(scaling):
    for tables, static in zip(buckets(scaling), static_scalings(scaling), strict=True):
        (alone,) = buckets(static)
        np.testing.assert_allclose(alone.inv_freq, tables.inv_freq, rtol=1e-12)
        assert alone.attention_factor == tables.attention_factor


@given(yarns() | yarns(DynamicYarn) | others())
def test_spelling_round_trips(scaling):
    maximum = getattr(scaling, "original_context", 4096)
    config = {
        "rope_parameters": write_rope(scaling),
        "max_position_embeddings": maximum,
        "head_dim": scaling.rotary_dim,
    }
    assert read_rope(config).groups == {None: scaling}


@given(yarns())
def test_cos_sin_carry_the_temperature(scaling):
    tables = buckets(scaling)[0]
    cos, sin = tables.cos_sin(3)
    assert cos.dtype == sin.dtype == np.float32
    assert cos.shape == (3, scaling.rotary_dim // 2)
    np.testing.assert_allclose(np.hypot(cos, sin), tables.attention_factor, rtol=1e-6)
