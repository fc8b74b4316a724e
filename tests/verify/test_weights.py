"""What a type explains of a difference in weights, and what it does not."""

import gguf
import numpy as np
import pytest

from yarnconv.targets.gguf.steps import value_steps
from yarnconv.verify.weights import BLOCK_TYPES, FLOAT_TYPES, WeightJudge

ROWS = np.arange(8)


def source(scale=0.02):
    return (np.random.default_rng(3).standard_normal(8 * 256) * scale).astype(np.float32)


GGML_TYPES = [kind for kind in BLOCK_TYPES if kind != "INT4"]  # which test_onnx_check looks at


def judge(kind, found, wanted):
    judged = WeightJudge(kind, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0])
    judged.add(found, wanted, ROWS)
    judged.conclude()
    return judged


@pytest.mark.parametrize("kind", FLOAT_TYPES)
def test_rounding_is_explained_and_one_changed_value_is_not(kind):
    wanted = source()
    stored = gguf.GGMLQuantizationType[kind]
    found = gguf.quants.dequantize(gguf.quants.quantize(wanted.reshape(8, 256), stored), stored).reshape(-1)
    assert judge(kind, found, wanted).problem is None
    changed = found.copy()
    changed[700] *= 1.02
    judged = judge(kind, changed, wanted)
    assert "1 values are not the checkpoint's, the first in row 2" in judged.problem


def test_float32_is_exact():
    wanted = source()
    found = wanted.copy()
    found[5] = np.nextafter(found[5], np.float32(1))
    assert judge("F32", found, wanted).problem is not None


def test_bf16_has_no_subnormals_to_speak_of():
    wanted = source()
    wanted[9] = 1e-40
    kind = gguf.GGMLQuantizationType.BF16
    found = gguf.quants.dequantize(gguf.quants.quantize(wanted.reshape(8, 256), kind), kind).reshape(-1)
    assert judge("BF16", found, wanted).problem is None


def test_f16_overflow_is_a_difference():
    wanted = source()
    wanted[3] = 1e6
    with np.errstate(over="ignore"):
        found = wanted.astype(np.float16).astype(np.float32)
    judged = judge("F16", found, wanted)
    assert "row 0" in judged.problem
    assert np.isfinite(judged.relative)


@pytest.mark.parametrize("kind", [kind for kind in GGML_TYPES if kind not in ("Q2_K", "IQ3_S")])
def test_noise_within_the_bound_holds_and_other_blocks_do_not(kind):
    wanted = source()
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
    noise = np.random.default_rng(4).choice([-1.0, 1.0], wanted.shape).astype(np.float32)
    found = wanted * (1 + noise * 0.9 * BLOCK_TYPES[kind].tensor)
    assert judge(kind, found, wanted).problem is None
    for alter in (np.zeros_like, np.negative, lambda block: block[::-1], lambda block: 2 * block):
        altered = found.copy()
        altered[size : 2 * size] = alter(wanted[size : 2 * size])
        assert "1 blocks are not the checkpoint's" in judge(kind, altered, wanted).problem


def test_a_little_everywhere_is_noticed_over_the_tensor():
    """Each block within its bound, all of them together too far off to be rounding."""
    wanted = source()
    found = wanted * np.float32(1 + 1.3 * BLOCK_TYPES["Q4_K"].tensor)
    assert "all in all" in judge("Q4_K", found, wanted).problem


@pytest.mark.parametrize("kind", GGML_TYPES)
def test_tiny_weights_may_vanish(kind):
    """Their float16 scales underflow."""
    wanted = source(1e-7)
    assert judge(kind, np.zeros_like(wanted), wanted).problem is None


@pytest.mark.parametrize("scale", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q4_0", "Q5_1", "Q4_1"])
def test_small_weights_with_subnormal_scales_are_the_checkpoints(kind, scale):
    """The scale's own rounding moves them by more than half a step; nothing is wrong with that."""
    wanted, stored = source(scale), gguf.GGMLQuantizationType[kind]
    packed = gguf.quants.quantize(wanted.reshape(8, 256), stored)
    found = gguf.quants.dequantize(packed, stored).reshape(-1)
    judged = WeightJudge(kind, 32)
    judged.add(found, wanted, ROWS, value_steps(packed, stored).reshape(-1))
    judged.conclude()
    assert judged.problem is None


def test_a_detour_through_bf16_is_no_difference():
    """As `f32 checkpoint -> bf16 GGUF -> q8_0` has it."""
    wanted, q8_0 = source(), gguf.GGMLQuantizationType.Q8_0
    bf16 = gguf.GGMLQuantizationType.BF16
    detour = gguf.quants.dequantize(gguf.quants.quantize(wanted.reshape(8, 256), bf16), bf16)
    packed = gguf.quants.quantize(detour, q8_0)
    judged = WeightJudge("Q8_0", 32)
    found = gguf.quants.dequantize(packed, q8_0).reshape(-1)
    judged.add(found, wanted, ROWS, value_steps(packed, q8_0).reshape(-1))
    judged.conclude()
    assert judged.problem is None


def test_all_zero():
    zeros = np.zeros(8 * 256, np.float32)
    assert judge("Q8_0", zeros, zeros).problem is None
    assert judge("Q8_0", source(), zeros).problem is not None
