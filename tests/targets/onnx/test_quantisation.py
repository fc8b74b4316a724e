"""Codes are plain rounding for the scale as it is stored, whatever the weights."""

import ml_dtypes
import numpy as np
import pytest

from yarnconv.checkpoint.floats import to_float32
from yarnconv.targets.onnx.external_data import side_by_side
from yarnconv.targets.onnx.quantisation import FP8, INT4, quantised
from yarnconv.targets.onnx.weights import FLOAT_TYPES

INPUTS, OUTPUTS = 96, 64
EVERY_E4M3 = np.unique(
    np.array([b for b in range(256) if b & 0x7F != 0x7F], np.uint8)
    .view(ml_dtypes.float8_e4m3fn)
    .astype(np.float64)
)


class Matrix:
    """Weights [out, in] as a checkpoint's tensor."""

    dtype = "F32"

    def __init__(self, values):
        self._values = np.ascontiguousarray(values, np.float32)
        self.shape = self._values.shape

    def block(self, rows, columns=slice(None)):
        return self._values[rows, columns]


def normal(generator):
    return generator.standard_normal((OUTPUTS, INPUTS))


WEIGHTS = {
    "normal": normal,
    "of every size": lambda g: normal(g) * 10.0 ** g.integers(-12, 4, (OUTPUTS, 1)),
    "subnormal scales": lambda g: normal(g) * 10.0 ** g.uniform(-9, -5, (OUTPUTS, 1)),
    "zeros": lambda g: normal(g) * (g.random((OUTPUTS, 1)) < 0.5),
    "all zero": lambda g: normal(g) * 0,
    "one sign": lambda g: np.abs(normal(g)),
    "outliers": lambda g: np.where(g.random((OUTPUTS, INPUTS)) < 0.02, 1e4, normal(g) * 0.02),
    "too large for float16": lambda g: normal(g) * 1e9,
}


def values(scheme, pair, element):
    """(codes, their scales), float64[in, out], of the bytes that are written."""
    codes, scales = pair
    stored = to_float32(scales.rows(0, scales.shape[0]), element.dtype).astype(np.float64)
    wide = np.repeat(stored, scheme.block, axis=0) if scheme.block else np.tile(stored, (INPUTS, 1))
    data = np.ascontiguousarray(codes.rows(0, INPUTS)).view(np.uint8).reshape(-1)
    return scheme.unpacked(data).reshape(codes.shape).astype(np.float64), wide


@pytest.mark.parametrize("compute", FLOAT_TYPES)
@pytest.mark.parametrize("scheme", [INT4, FP8], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("case", WEIGHTS)
def test_plain_rounding_for_the_stored_scale(case, scheme, compute):
    element = FLOAT_TYPES[compute]
    weights = np.float32(WEIGHTS[case](np.random.default_rng(0)))
    codes, scales = values(scheme, quantised("w", Matrix(weights), scheme, element), element)
    wanted = weights.T.astype(np.float64)
    assert np.isfinite(codes).all()
    assert np.isfinite(scales).all()
    assert (codes[scales == 0] == 0).all()
    assert (wanted[scales == 0] == 0).all()
    if scheme is FP8:
        assert (scales > 0).all()  # TensorRT's parser takes no other
    if case == "too large for float16" and compute == "fp16":
        assert np.abs(codes).max() == scheme.largest  # saturates
        return
    assert (np.abs(wanted) <= scheme.largest * np.abs(scales) * (1 + 1e-15)).all()
    steps = scheme.spacing(codes.astype(np.float32)) * np.abs(scales)
    assert (np.abs(codes * scales - wanted) <= 0.5 * steps * (1 + 1e-6)).all()


def test_a_spacing_is_the_gap_between_codes():
    above = np.diff(EVERY_E4M3)[EVERY_E4M3[:-1] >= 0]
    positive = EVERY_E4M3[:-1][EVERY_E4M3[:-1] >= 0].astype(np.float32)
    assert (FP8.spacing(positive) == above).all()
    assert (FP8.spacing(-positive) == above).all()


def test_the_nearest_code_by_search():
    generator = np.random.default_rng(1)
    wanted = np.float32(generator.uniform(-500, 500, 4096) * 10.0 ** generator.uniform(-6, 0, 4096))
    found = FP8.codes(wanted, np.ones(1, np.float32)).astype(np.float64)
    nearest = np.abs(EVERY_E4M3[:, None] - wanted).min(axis=0)
    assert (np.abs(found - wanted) == nearest).all()


def test_what_is_no_number_becomes_no_code_of_none():
    codes = FP8.codes(np.float32([np.nan, np.inf, -np.inf, 1, 0]), np.float32([1, 1, 1, 0, 0]))
    assert codes.astype(np.float32).tolist() == [0, 448, -448, 448, 0]


@pytest.mark.parametrize("scheme", [INT4, FP8], ids=lambda scheme: scheme.name)
def test_pieces_and_neighbours_change_nothing(scheme):
    element = FLOAT_TYPES["fp16"]
    pairs = [
        quantised(str(seed), Matrix(normal(np.random.default_rng(seed))), scheme, element) for seed in (0, 1)
    ]
    codes, scales = (side_by_side(kind) for kind in zip(*pairs, strict=True))
    assert codes.shape == (INPUTS, 2 * OUTPUTS)
    assert scales.shape == scheme.scale_shape(*codes.shape)
    whole = np.concatenate([pair[0].rows(0, INPUTS) for pair in pairs], axis=1)
    pieces = [codes.rows(first, first + 32) for first in range(0, INPUTS, 32)]
    assert (np.concatenate(pieces).view(np.uint8) == whole.view(np.uint8)).all()
    count = scales.shape[0]
    assert (np.concatenate([scales.rows(0, 1), scales.rows(1, count)]) == scales.rows(0, count)).all()
