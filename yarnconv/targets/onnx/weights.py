"""The checkpoint's tensors as the graph wants them: matrices [in, out] for MatMul, in the graph's dtype."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from yarnconv.checkpoint.floats import Rows, convert_floats
from yarnconv.targets.onnx.external_data import PIECE_VALUES, ExternalTensor

# A matrix is turned round in tiles: so many of its rows at once (a tile's cache lines then stay in the cache
# until they are used up), and at least so many columns, however long the rows of the result are.
TILE_ROWS, TILE_COLUMNS = 256, 64


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


def turned(source: Source, first: int, last: int) -> Rows:
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
        rows=lambda first, last: convert_floats(turned(source, first, last), source.dtype, element.dtype),
        step=max(TILE_COLUMNS, PIECE_VALUES // outputs),
    )
