"""Every conversion against the gguf package's, bit for bit, on ordinary and on awkward values."""

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from yarnconv.checkpoint.floats import to_float32
from yarnconv.targets.gguf.blocks import convert_rows
from yarnconv.targets.gguf.file_format import BLOCKS, TensorType
from yarnconv.targets.gguf.metadata import FILE_TYPES

# MXFP4 is of a checkpoint's own codes, never of floats
WRITTEN = tuple(of for of in FILE_TYPES if of is not TensorType.MXFP4)


def expected(values, target):
    with np.errstate(all="ignore"):
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType(target)).view(np.uint8)


def awkward():
    ordinary = np.random.default_rng(0).standard_normal((8, 64), dtype=np.float32)
    halves = (np.arange(-128, 128, dtype=np.float32) + np.float32(0.5)).reshape(4, 64)
    halves[:, 0] = 127.0
    tiny = ordinary * np.float32(1e-40)
    huge = ordinary * np.float32(1e30)
    zero = np.zeros((2, 64), dtype=np.float32)
    mixed = ordinary.copy()
    mixed[:, ::7] *= 1e6
    return {
        "ordinary": ordinary,
        "halves": halves,
        "tiny": tiny,
        "huge": huge,
        "zero": zero,
        "mixed": mixed,
    }


@pytest.mark.parametrize("target", WRITTEN)
@pytest.mark.parametrize("kind", sorted(awkward()))
def test_from_float32(kind, target):
    values = awkward()[kind]
    found = convert_rows(values, TensorType.F32, target)
    assert found.view(np.uint8).tobytes() == expected(values, target).tobytes()


@pytest.mark.parametrize("target", WRITTEN)
def test_from_every_bfloat16(target):
    """All 65,280 finite ones, in blocks of neighbours."""
    bits = np.arange(2**16, dtype=np.uint16)
    bits = bits[(bits & 0x7F80) != 0x7F80].reshape(-1, 64)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    found = convert_rows(bits, TensorType.BF16, target)
    assert found.view(np.uint8).tobytes() == expected(values, target).tobytes()


@pytest.mark.parametrize("target", WRITTEN)
def test_from_every_float16(target):
    bits = np.arange(2**16, dtype=np.uint16)
    values = bits[(bits & 0x7C00) != 0x7C00].view(np.float16).reshape(-1, 64)
    found = convert_rows(values, TensorType.F16, target)
    assert found.view(np.uint8).tobytes() == expected(values.astype(np.float32), target).tobytes()


@given(
    arrays(np.float32, (2, 32), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from([TensorType.BF16, TensorType.Q8_0, TensorType.F16]),
)
def test_any_finite_values(values, target):
    found = convert_rows(values, TensorType.F32, target)
    assert found.view(np.uint8).tobytes() == expected(values, target).tobytes()


def test_floats_never_become_what_nothing_here_rounds_to():
    with pytest.raises(ValueError, match="MXFP4"):
        convert_rows(np.zeros((1, 32), dtype=np.float32), TensorType.F32, TensorType.MXFP4)


def test_nan_stays_nan_in_bfloat16():
    values = np.full((1, 32), np.nan, dtype=np.float32)
    found = convert_rows(values, TensorType.F32, TensorType.BF16)
    assert np.isnan(to_float32(found, "BF16")).all()
    assert found.view(np.uint8).tobytes() == expected(values, TensorType.BF16).tobytes()


def test_the_table_of_types_is_ggmls():
    assert {t.name: t.value for t in TensorType} == {t.name: t.value for t in gguf.GGMLQuantizationType}
    assert {t.value: BLOCKS[t] for t in TensorType} == {t.value: s for t, s in gguf.GGML_QUANT_SIZES.items()}
