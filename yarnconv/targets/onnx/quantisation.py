"""Quantised matrices: codes, and scales as they are stored.

Codes are rounded with the scale in the type that it is stored in, so that a value is off by what rounding to
its code explains and by nothing else. A scale is rounded away from zero: no value then lies beyond the range
of the codes, and no scale but that of a block of zeros is zero.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import Rows, convert_floats, to_float32
from yarnconv.checkpoint.sources import TensorSource
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.external_data import PIECE_VALUES, ExternalTensor
from yarnconv.targets.onnx.weights import TILE_COLUMNS, ElementType, matrix_shape, turned

INT4_BLOCK = 32  # values that share a scale, along the input dimension
PACKED_OFFSET = 8  # added to a code that is looked up as a byte, which has no sign
_INT4_LOWEST, _INT4_HIGHEST = -8, 7
_FP8_HIGHEST = 448.0
_FP8_MANTISSA, _FP8_LOWEST_EXPONENT = 3, -6  # bits behind the point, and the exponent of the subnormal codes

Codes = NDArray[Any]


class Scheme(ABC):
    """A way to quantise the matrices of MatMul, [in, out].

    name: as reports call it. element, bits: ONNX's type of a code. block: inputs that share a scale, None
    where all of a column do. largest: magnitude of the largest code.
    """

    name: str
    element: str
    bits: int
    block: int | None
    largest: float

    @property
    @abstractmethod
    def attributes(self) -> Mapping[str, Any]:
        """What DequantizeLinear has to be told."""

    @abstractmethod
    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix [out, in] can be stored so."""

    @abstractmethod
    def scale_shape(self, inputs: int, outputs: int) -> tuple[int, ...]:
        """The shape of the scales of a matrix."""

    @abstractmethod
    def codes(self, values: Float32Array, scales: Float32Array) -> Codes:
        """The codes of values, a scale for each (or broadcast to them). A zero scale makes codes of zero."""

    @abstractmethod
    def packed(self, codes: Codes) -> NDArray[np.uint8]:
        """Codes [rows, n] as bytes."""

    @abstractmethod
    def unpacked(self, data: NDArray[np.uint8]) -> Float32Array:
        """What the codes of these bytes stand for, flat, before the scale."""

    @abstractmethod
    def spacing(self, codes: Float32Array) -> Float32Array:
        """How far apart the codes are about each (or above what lies between two), before the scale; twice as
        far as the next one where what lies beyond the last one is rounded to it.
        """


class _Int4(Scheme):
    """Symmetric blocks of 32 inputs: the value of largest magnitude is -8, the code without an opposite."""

    name, element, bits, block = "INT4", "INT4", 4, INT4_BLOCK
    largest = -_INT4_LOWEST

    @property
    def attributes(self) -> Mapping[str, Any]:
        return {"axis": 0, "block_size": INT4_BLOCK}

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape[1] % INT4_BLOCK == 0 and shape[0] % 2 == 0

    def scale_shape(self, inputs: int, outputs: int) -> tuple[int, ...]:
        return inputs // INT4_BLOCK, outputs

    def codes(self, values: Float32Array, scales: Float32Array) -> Codes:
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            reciprocals = np.float32(1) / scales
            scaled = values * np.where(np.isfinite(reciprocals), reciprocals, np.float32(0))
        np.rint(scaled, out=scaled)
        np.clip(scaled, _INT4_LOWEST, _INT4_HIGHEST, out=scaled)
        return scaled.astype(np.int8)

    def packed(self, codes: Codes) -> NDArray[np.uint8]:
        return _halves(codes)

    def unpacked(self, data: NDArray[np.uint8]) -> Float32Array:
        return unpack(data, 0)

    def spacing(self, codes: Float32Array) -> Float32Array:
        spacing: Float32Array = np.where(codes >= _INT4_HIGHEST, np.float32(2), np.float32(1))
        return spacing


class _Fp8(Scheme):
    """E4M3 without infinities: the value of largest magnitude of a column is 448, the largest code."""

    name, element, bits, block = "FP8", "FLOAT8E4M3FN", 8, None
    largest = _FP8_HIGHEST

    @property
    def attributes(self) -> Mapping[str, Any]:
        return {"axis": 1}

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2

    def scale_shape(self, inputs: int, outputs: int) -> tuple[int, ...]:
        return (outputs,)

    def codes(self, values: Float32Array, scales: Float32Array) -> Codes:
        import ml_dtypes

        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            scaled = values / scales
        np.nan_to_num(scaled, copy=False, nan=0.0)  # zero by zero; and a code that is no number says nothing
        np.clip(scaled, -_FP8_HIGHEST, _FP8_HIGHEST, out=scaled)
        return scaled.astype(ml_dtypes.float8_e4m3fn)

    def packed(self, codes: Codes) -> NDArray[np.uint8]:
        return codes.view(np.uint8)

    def unpacked(self, data: NDArray[np.uint8]) -> Float32Array:
        return _fp8_values()[data]

    def spacing(self, codes: Float32Array) -> Float32Array:
        normal = np.maximum(np.abs(codes), np.float32(2.0**_FP8_LOWEST_EXPONENT))
        _, exponents = np.frexp(normal)  # of a mantissa in [0.5, 1)
        spacing: Float32Array = np.ldexp(np.float32(1), exponents - 1 - _FP8_MANTISSA)
        return spacing


INT4: Scheme = _Int4()
FP8: Scheme = _Fp8()
SCHEMES: Mapping[str, Scheme] = {"int4": INT4, "fp8": FP8}  # by the name of the option
BY_ELEMENT: Mapping[str, Scheme] = {scheme.element: scheme for scheme in SCHEMES.values()}


def scales_name(name: str) -> str:
    """What the scales of a quantised tensor are called."""
    return f"{name}.scales"


def packed_name(name: str) -> str:
    """What the codes of a 4-bit tensor are called that is looked up by bytes."""
    return f"{name}.int4"


@cache
def _fp8_values() -> Float32Array:
    """The value of each of the 256 codes."""
    import ml_dtypes

    values: Float32Array = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return values


def _halves(codes: Codes) -> NDArray[np.uint8]:
    """Two codes of a row [rows, n] a byte, the first in the low half."""
    bits = codes.view(np.uint8) & np.uint8(0xF)
    return bits[:, 0::2] | (bits[:, 1::2] << np.uint8(4))


def unpack(packed: NDArray[np.uint8], offset: int) -> Float32Array:
    """The codes of packed bytes, flat. offset: what was added to them; 0: they are signed."""
    halves = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(-1).astype(np.int8)
    codes: Float32Array = (halves - offset if offset else (halves ^ 8) - 8).astype(np.float32)
    return codes


# scales


def _stored_scales(exact: NDArray[np.floating[Any]], element: ElementType) -> Rows:
    """Scales (float32 or float64) in the type they are stored in, none smaller in magnitude than it should be
    and none infinite.
    """
    stored = convert_floats(exact.astype(np.float32), "F32", element.dtype)
    bits = stored.view(f"<u{element.bits // 8}")
    bits += np.abs(to_float32(stored, element.dtype).astype(np.float64)) < np.abs(exact)
    infinity = convert_floats(np.full(1, np.inf, np.float32), "F32", element.dtype).view(bits.dtype)
    bits -= (bits & np.asarray(2 ** (element.bits - 1) - 1, bits.dtype)) == infinity
    return stored


def _block_scales(blocks: Float32Array, element: ElementType) -> Rows:
    """[blocks, n] of float32[blocks, INT4_BLOCK, n]."""
    highest, lowest = blocks.max(axis=1), blocks.min(axis=1)
    return _stored_scales(np.where(highest > -lowest, highest, lowest) / np.float32(_INT4_LOWEST), element)


def _block_codes(blocks: Float32Array, element: ElementType) -> Codes:
    """Codes of [blocks, INT4_BLOCK, n], of the same shape."""
    scales = to_float32(_block_scales(blocks, element), element.dtype)
    return INT4.codes(blocks, scales[:, None, :])


def _column_scales(source: TensorSource, element: ElementType) -> Rows:
    """[out] of a matrix [out, in], of whose rows only a few are looked at together."""
    outputs, inputs = matrix_shape(source)
    largest = np.zeros(outputs, np.float64)
    step = max(1, PIECE_VALUES // max(inputs, 1))
    for first in range(0, outputs, step):
        rows = to_float32(np.ascontiguousarray(source.block(slice(first, first + step))), source.dtype)
        largest[first : first + step] = np.abs(rows).max(axis=1, initial=0)
    # TensorRT takes positive scales only, so a column of zeros has one too
    return _stored_scales(np.where(largest == 0, 1.0, largest / _FP8_HIGHEST), element)


# tensors


def _columns(source: TensorSource, first: int, last: int) -> Float32Array:
    """float32[last - first, out] of the inputs first..last-1."""
    wide: Float32Array = to_float32(turned(source, first, last), source.dtype)
    return wide


def _in_blocks(
    name: str, source: TensorSource, element: ElementType
) -> tuple[ExternalTensor, ExternalTensor]:
    outputs, inputs = matrix_shape(source)
    step = max(TILE_COLUMNS, PIECE_VALUES // outputs) // INT4_BLOCK

    def blocks(first: int, last: int) -> Float32Array:
        return _columns(source, first, last).reshape(-1, INT4_BLOCK, outputs)

    codes = ExternalTensor(
        name=name,
        element=INT4.element,
        bits=INT4.bits,
        shape=(inputs, outputs),
        rows=lambda first, last: INT4.packed(_block_codes(blocks(first, last), element).reshape(-1, outputs)),
        step=step * INT4_BLOCK,
    )
    scales = ExternalTensor(
        name=scales_name(name),
        element=element.name,
        bits=element.bits,
        shape=INT4.scale_shape(inputs, outputs),
        rows=lambda first, last: _block_scales(blocks(first * INT4_BLOCK, last * INT4_BLOCK), element),
        step=step,
    )
    return codes, scales


def _by_column(
    name: str, source: TensorSource, element: ElementType
) -> tuple[ExternalTensor, ExternalTensor]:
    outputs, inputs = matrix_shape(source)
    stored = cache(lambda: _column_scales(source, element))  # every piece of the codes needs them all
    codes = ExternalTensor(
        name=name,
        element=FP8.element,
        bits=FP8.bits,
        shape=(inputs, outputs),
        rows=lambda first, last: FP8.packed(
            FP8.codes(_columns(source, first, last), to_float32(stored(), element.dtype))
        ),
        step=max(TILE_COLUMNS, PIECE_VALUES // outputs),
    )
    scales = ExternalTensor(
        name=scales_name(name),
        element=element.name,
        bits=element.bits,
        shape=FP8.scale_shape(inputs, outputs),
        rows=lambda first, last: stored()[first:last],
        step=outputs,
    )
    return codes, scales


def quantised(
    name: str, source: TensorSource, scheme: Scheme, element: ElementType
) -> tuple[ExternalTensor, ExternalTensor]:
    """(codes [in, out], scales) of a matrix [out, in]. element: that the scales are stored in."""
    return (_by_column if scheme.block is None else _in_blocks)(name, source, element)


def quantised_rows(
    name: str, source: TensorSource, element: ElementType
) -> tuple[ExternalTensor, ExternalTensor]:
    """(codes as bytes UINT8[rows, width / 2], PACKED_OFFSET added to each; scales [rows, width /
    INT4_BLOCK]) of a matrix that is looked up by rows, in INT4's blocks. element: that of the scales.
    """
    count, width = source.shape
    step = max(1, PIECE_VALUES // width)

    def blocks(first: int, last: int) -> Float32Array:
        values = np.ascontiguousarray(source.block(slice(first, last)))
        wide: Float32Array = to_float32(values, source.dtype).reshape(-1, INT4_BLOCK, 1)
        return wide

    codes = ExternalTensor(
        name=packed_name(name),
        element="UINT8",
        bits=8,
        shape=(count, width // 2),
        rows=lambda first, last: _halves(
            (_block_codes(blocks(first, last), element) + np.int8(PACKED_OFFSET)).reshape(-1, width)
        ),
        step=step,
    )
    scales = ExternalTensor(
        name=scales_name(name),
        element=element.name,
        bits=element.bits,
        shape=(count, width // INT4_BLOCK),
        rows=lambda first, last: _block_scales(blocks(first, last), element).reshape(last - first, -1),
        step=step,
    )
    return codes, scales
