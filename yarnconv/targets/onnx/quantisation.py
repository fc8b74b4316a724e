"""Matrices of fewer bits: codes, their scales, and how a graph makes floats of them.

int4: blocks of 32 values along the input dimension, symmetric. fp8: E4M3 (without infinities), a scale for
each output. Scales are of the type that the graph computes in, and codes are rounded by the scales as stored.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import Rows, convert_floats, to_float32
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.external_data import PIECE_VALUES, ExternalTensor
from yarnconv.targets.onnx.weights import TILE_COLUMNS, ElementType, Source, turned

INT4_BLOCK = 32  # values that share a scale, along the input dimension
_INT4_LOWEST = -8
PACKED_OFFSET = 8  # added to a code that is looked up as a byte, which has no sign
FP8_ELEMENT, FP8_LARGEST = "FLOAT8E4M3FN", 448.0

# (codes, scales) of a matrix, by its name and source, with scales of a type
Make = Callable[[str, Source, ElementType], tuple[ExternalTensor, ExternalTensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """One way to store a matrix. attributes: of the DequantizeLinear that makes floats of codes and scales.
    fits: whether a matrix of a shape [out, in] can be stored so.
    """

    attributes: Mapping[str, Any]
    fits: Callable[[tuple[int, ...]], bool]
    make: Make


def scales_name(name: str) -> str:
    """What the scales of a 4-bit tensor are called."""
    return f"{name}.scales"


def packed_name(name: str) -> str:
    """What the codes of a 4-bit tensor are called that is looked up by bytes."""
    return f"{name}.int4"


def fits_int4(shape: tuple[int, ...]) -> bool:
    """Whether a matrix [out, in] divides into blocks, and its rows of codes into bytes."""
    return shape[1] % INT4_BLOCK == 0 and shape[0] % 2 == 0


def _scales(blocks: Float32Array, element: ElementType) -> Rows:
    """[blocks, n] of [blocks, INT4_BLOCK, n], as they are stored: the value of largest magnitude becomes -8,
    the code that has no opposite.
    """
    highest, lowest = blocks.max(axis=1), blocks.min(axis=1)
    scales: Float32Array = np.where(highest > -lowest, highest, lowest) / np.float32(_INT4_LOWEST)
    return convert_floats(scales, "F32", element.dtype)


def _codes(blocks: Float32Array, element: ElementType) -> NDArray[np.int8]:
    """Codes from -8 to 7 of [blocks, INT4_BLOCK, n], of the same shape, rounded by the scales as stored."""
    scales = to_float32(_scales(blocks, element), element.dtype)[:, None, :]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scaled = blocks * np.where(scales == 0, 0, np.float32(1) / scales)
    np.rint(scaled, out=scaled)
    np.clip(scaled, _INT4_LOWEST, -_INT4_LOWEST - 1, out=scaled)
    return scaled.astype(np.int8)


def _packed(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes of a row [rows, n] a byte, the first in the low half."""
    bits = codes.view(np.uint8) & np.uint8(0xF)
    return bits[:, 0::2] | (bits[:, 1::2] << np.uint8(4))


def unpack(packed: NDArray[np.uint8], offset: int) -> Float32Array:
    """The codes of packed bytes, flat. offset: what was added to them; 0: they are signed."""
    halves = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(-1).astype(np.int8)
    codes: Float32Array = (halves - offset if offset else (halves ^ 8) - 8).astype(np.float32)
    return codes


def _columns(source: Source, first: int, last: int) -> Float32Array:
    """float32[blocks, INT4_BLOCK, out] of the inputs first..last-1."""
    wide: Float32Array = to_float32(turned(source, first, last), source.dtype)
    return wide.reshape(-1, INT4_BLOCK, source.shape[0])


def int4_matrix(name: str, source: Source, element: ElementType) -> tuple[ExternalTensor, ExternalTensor]:
    """(codes INT4[in, out], scales [in / INT4_BLOCK, out]) of a matrix [out, in], symmetric. element: of the
    scales.
    """
    outputs, inputs = source.shape
    step = max(TILE_COLUMNS, PIECE_VALUES // outputs) // INT4_BLOCK
    codes = ExternalTensor(
        name=name,
        element="INT4",
        bits=4,
        shape=(inputs, outputs),
        rows=lambda first, last: _packed(_codes(_columns(source, first, last), element).reshape(-1, outputs)),
        step=step * INT4_BLOCK,
    )
    scales = ExternalTensor(
        name=scales_name(name),
        element=element.name,
        bits=element.bits,
        shape=(inputs // INT4_BLOCK, outputs),
        rows=lambda first, last: _scales(_columns(source, first * INT4_BLOCK, last * INT4_BLOCK), element),
        step=step,
    )
    return codes, scales


def _rows(source: Source, first: int, last: int) -> Float32Array:
    """float32[blocks, INT4_BLOCK, 1] of the rows first..last-1."""
    values = np.ascontiguousarray(source.load()[first:last])
    wide: Float32Array = to_float32(values, source.dtype).reshape(-1, INT4_BLOCK, 1)
    return wide


def int4_rows(name: str, source: Source, element: ElementType) -> tuple[ExternalTensor, ExternalTensor]:
    """(codes as bytes UINT8[rows, width / 2], PACKED_OFFSET added to each; scales [rows, width / INT4_BLOCK])
    of a matrix that is looked up by rows, symmetric. element: of the scales.
    """
    count, width = source.shape
    step = max(1, PIECE_VALUES // width)
    codes = ExternalTensor(
        name=packed_name(name),
        element="UINT8",
        bits=8,
        shape=(count, width // 2),
        rows=lambda first, last: _packed(
            (_codes(_rows(source, first, last), element) + np.int8(PACKED_OFFSET)).reshape(-1, width)
        ),
        step=step,
    )
    scales = ExternalTensor(
        name=scales_name(name),
        element=element.name,
        bits=element.bits,
        shape=(count, width // INT4_BLOCK),
        rows=lambda first, last: _scales(_rows(source, first, last), element).reshape(last - first, -1),
        step=step,
    )
    return codes, scales


# FP8


def from_fp8(codes: NDArray[np.uint8]) -> Float32Array:
    """The values of codes; exact."""
    from ml_dtypes import float8_e4m3fn  # comes with onnx

    values: Float32Array = codes.view(float8_e4m3fn).astype(np.float32)
    return values


class _OutputScales:
    """The scale of each output of a matrix [out, in], made when first asked for, by whichever thread."""

    def __init__(self, source: Source, element: ElementType) -> None:
        self._source, self._element = source, element
        self._lock = threading.Lock()
        self._stored: Rows | None = None

    def stored(self) -> Rows:
        """[out], as they are stored."""
        with self._lock:
            if self._stored is None:
                values, step = self._source.load(), max(1, PIECE_VALUES // self._source.shape[1])
                largest = [
                    np.abs(to_float32(np.ascontiguousarray(part), self._source.dtype)).max(axis=1)
                    for part in (values[row : row + step] for row in range(0, len(values), step))
                ]
                scales = np.concatenate(largest) / np.float32(FP8_LARGEST)
                self._stored = convert_floats(scales, "F32", self._element.dtype)
            return self._stored

    def float32(self) -> Float32Array:
        """[out]."""
        return to_float32(self.stored(), self._element.dtype)


def _fp8_codes(source: Source, scales: Float32Array, first: int, last: int) -> NDArray[np.uint8]:
    """Of the inputs first..last-1: [last - first, out], to nearest even."""
    from ml_dtypes import float8_e4m3fn

    values = to_float32(turned(source, first, last), source.dtype)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scaled = values / np.where(scales == 0, np.float32(np.inf), scales)
    # a scale that was rounded down leaves the largest value a little outside
    np.clip(scaled, -FP8_LARGEST, FP8_LARGEST, out=scaled)
    codes: NDArray[np.uint8] = scaled.astype(float8_e4m3fn).view(np.uint8)
    return codes


def fp8_matrix(name: str, source: Source, element: ElementType) -> tuple[ExternalTensor, ExternalTensor]:
    """(codes FLOAT8E4M3FN[in, out], scales [out]) of a matrix [out, in]. element: of the scales."""
    outputs, inputs = source.shape
    scales = _OutputScales(source, element)
    codes = ExternalTensor(
        name=name,
        element=FP8_ELEMENT,
        bits=8,
        shape=(inputs, outputs),
        rows=lambda first, last: _fp8_codes(source, scales.float32(), first, last),
        step=max(TILE_COLUMNS, PIECE_VALUES // outputs),
    )
    stored = ExternalTensor(
        name=scales_name(name),
        element=element.name,
        bits=element.bits,
        shape=(outputs,),
        rows=lambda first, last: scales.stored()[first:last],
        step=outputs,
    )
    return codes, stored


QUANTISATIONS: Mapping[str, Quantisation] = {
    "int4": Quantisation(attributes={"axis": 0, "block_size": INT4_BLOCK}, fits=fits_int4, make=int4_matrix),
    "fp8": Quantisation(attributes={"axis": 1}, fits=lambda shape: prod(shape) > 0, make=fp8_matrix),
}
