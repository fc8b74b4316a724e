"""The checkpoint's tensors as the graph wants them: matrices [in, out] for MatMul, in the graph's dtype."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import Rows, convert_floats, to_float32
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.external_data import PIECE_VALUES, ExternalTensor

# A matrix is turned round in tiles: so many of its rows at once (a tile's cache lines then stay in the cache
# until they are used up), and at least so many columns, however long the rows of the result are.
TILE_ROWS, TILE_COLUMNS = 256, 64
INT4_BLOCK = 32  # values that share a scale, along the input dimension
_INT4_LOWEST = -8
PACKED_OFFSET = 8  # added to a code that is looked up as a byte, which has no sign


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementType:
    """A float type of the graph: ONNX's name, the safetensors dtype of the same values, bits."""

    name: str
    dtype: str
    bits: int


class Source(Protocol):
    """Where a tensor's values come from."""

    @property
    def dtype(self) -> str:
        """A safetensors dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""

    def load(self) -> Rows:
        """The values, without a copy."""


FLOAT_TYPES = {
    "fp32": ElementType(name="FLOAT", dtype="F32", bits=32),
    "fp16": ElementType(name="FLOAT16", dtype="F16", bits=16),
    "bf16": ElementType(name="BFLOAT16", dtype="BF16", bits=16),
}


def as_it_lies(name: str, source: Source, element: ElementType) -> ExternalTensor:
    """A tensor in its own layout: embeddings, norms, biases."""
    values = source.load()
    width = max(1, values.size // max(len(values), 1))
    return ExternalTensor(
        name=name,
        element=element.name,
        bits=element.bits,
        shape=source.shape,
        rows=lambda first, last: convert_floats(values[first:last], source.dtype, element.dtype),
        step=max(1, PIECE_VALUES // width),
    )


def _turned(source: Source, first: int, last: int) -> Rows:
    """Columns first..last-1 of a matrix as contiguous rows."""
    values = source.load()
    turned = np.empty((last - first, len(values)), values.dtype)
    for row in range(0, len(values), TILE_ROWS):
        turned[:, row : row + TILE_ROWS] = values[row : row + TILE_ROWS, first:last].T
    return turned


def transposed(name: str, source: Source, element: ElementType) -> ExternalTensor:
    """A matrix [out, in] as [in, out]."""
    outputs, inputs = source.shape
    return ExternalTensor(
        name=name,
        element=element.name,
        bits=element.bits,
        shape=(inputs, outputs),
        rows=lambda first, last: convert_floats(_turned(source, first, last), source.dtype, element.dtype),
        step=max(TILE_COLUMNS, PIECE_VALUES // outputs),
    )


def scales_name(name: str) -> str:
    """What the scales of a 4-bit tensor are called."""
    return f"{name}.scales"


def packed_name(name: str) -> str:
    """What the codes of a 4-bit tensor are called that is looked up by bytes."""
    return f"{name}.int4"


def quantises(shape: tuple[int, ...]) -> bool:
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
    wide: Float32Array = to_float32(_turned(source, first, last), source.dtype)
    return wide.reshape(-1, INT4_BLOCK, source.shape[0])


def quantised(name: str, source: Source, element: ElementType) -> tuple[ExternalTensor, ExternalTensor]:
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


def quantised_rows(name: str, source: Source, element: ElementType) -> tuple[ExternalTensor, ExternalTensor]:
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
