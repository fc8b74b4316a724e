"""The checkpoint's tensors as the graph wants them: matrices [in, out] for MatMul, in the graph's dtype."""

from dataclasses import dataclass
from math import prod

import numpy as np

from yarnconv.checkpoint.floats import NUMPY_DTYPES, Rows, convert_floats
from yarnconv.checkpoint.sources import TensorSource, View, row_count
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


FLOAT_TYPES = {
    "fp32": ElementType(name="FLOAT", dtype="F32", bits=32),
    "fp16": ElementType(name="FLOAT16", dtype="F16", bits=16),
    "bf16": ElementType(name="BFLOAT16", dtype="BF16", bits=16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide(View):
    """The matrices [out, in] of a tensor [n, out, in] side by side: [out, n in]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""
        count, outputs, inputs = self.of.shape
        return outputs, count * inputs

    def block(self, rows: slice, columns: slice = slice(None)) -> Rows:
        """Of every matrix that the columns are of, its rows."""
        count, outputs, inputs = self.of.shape
        first, last, step = rows.indices(outputs)
        begin, end, stride = columns.indices(count * inputs)
        found = []
        for index in range(begin // inputs, -(-end // inputs)):
            own = slice(max(begin - index * inputs, 0), min(end - index * inputs, inputs))
            found.append(self.of.block(slice(index * outputs + first, index * outputs + last, step), own))
        return (found[0] if len(found) == 1 else np.concatenate(found, axis=1))[:, ::stride]


def as_matrix(role: str, source: TensorSource) -> TensorSource:
    """A tensor as the matrix [out, in] that a graph multiplies by. Experts are one wide MLP there: what they
    make of a token stands side by side, and so stand the matrices that take it.
    """
    return SideBySide(of=source) if role == "experts_down" else source


def matrix_shape(source: TensorSource) -> tuple[int, int]:
    """[out, in] of a source as a matrix."""
    return row_count(source.shape), source.shape[-1]


def as_it_lies(name: str, source: TensorSource, element: ElementType) -> ExternalTensor:
    """A tensor in its own layout: embeddings, norms, biases."""

    def rows(first: int, last: int) -> Rows:
        if len(source.shape) == 1:
            values = source.block(slice(None)).reshape(-1)[first:last]
        else:
            values = source.block(slice(first * height, last * height)).reshape(-1, *source.shape[1:])
        return convert_floats(values, source.dtype, element.dtype)

    height = row_count(source.shape[1:]) if len(source.shape) > 1 else 1
    width = max(1, prod(source.shape[1:]))
    return ExternalTensor(
        name=name,
        element=element.name,
        bits=element.bits,
        shape=source.shape,
        rows=rows,
        step=max(1, PIECE_VALUES // width),
    )


def turned(source: TensorSource, first: int, last: int) -> Rows:
    """Columns first..last-1 of a matrix as contiguous rows."""
    rows, columns = row_count(source.shape), slice(first, last)
    turned = np.empty((last - first, rows), NUMPY_DTYPES[source.dtype])
    for row in range(0, rows, TILE_ROWS):
        turned[:, row : row + TILE_ROWS] = source.block(slice(row, row + TILE_ROWS), columns).T
    return turned


def transposed(name: str, source: TensorSource, element: ElementType) -> ExternalTensor:
    """A matrix [out, in] as [in, out]."""
    outputs, inputs = matrix_shape(source)
    return ExternalTensor(
        name=name,
        element=element.name,
        bits=element.bits,
        shape=(inputs, outputs),
        rows=lambda first, last: convert_floats(turned(source, first, last), source.dtype, element.dtype),
        step=max(TILE_COLUMNS, PIECE_VALUES // outputs),
    )
