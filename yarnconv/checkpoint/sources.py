"""Where a tensor's values come from: one tensor of a file, several that stand one below the other, codes with
a scale for each block, or another's values in another order. Nothing is loaded but what is asked for.

Every source is a matrix here: its last dimension are the columns, all others together the rows.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Protocol

from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.checkpoint.safetensors_file import TensorRef

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yarnconv.checkpoint.floats import Rows

MXFP4_BLOCK = 32  # values that share a scale
LEAST_EXPONENT = 127  # that of 1 in E8M0


class TensorSource(Protocol):
    """Values of a tensor. dtype: F32, F16 or BF16, as which they come."""

    @property
    def name(self) -> str:
        """In the checkpoint."""

    @property
    def dtype(self) -> str:
        """A safetensors dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """The tensors of files that it is made of."""

    def block(self, rows: slice, columns: slice = slice(None)) -> "Rows":
        """[rows, columns] of the matrix, without a copy where that can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedTensor:
    """Tensors of one dtype and as many columns each, one below the other."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[TensorSource, ...]
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)  # of the parts' rows

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", tuple(accumulate(row_count(part.shape) for part in self.parts)))

    @property
    def dtype(self) -> str:
        """The parts'."""
        return self.parts[0].dtype

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """All parts'."""
        return tuple(ref for part in self.parts for ref in part.refs)

    def runs(self, rows: range) -> Iterator[tuple[TensorSource, range]]:
        """The parts that rows stand in, and which of their own they are."""
        ends = self._ends
        while rows:
            index = bisect_right(ends, rows.start)
            begin = ends[index - 1] if index else 0
            inside = rows[: -(-(min(rows.stop, ends[index]) - rows.start) // rows.step)]
            yield self.parts[index], range(inside.start - begin, inside.stop - begin, rows.step)
            rows = rows[len(inside) :]

    def block(self, rows: slice, columns: slice = slice(None)) -> "Rows":
        """Joined where the rows are of several parts."""
        return _joined(self.runs(range(*rows.indices(row_count(self.shape)))), columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedTensor:
    """Some rows of another: those of the ranges, in their order."""

    shape: tuple[int, ...]
    of: TensorSource
    ranges: tuple[range, ...]

    @property
    def name(self) -> str:
        """In the checkpoint."""
        return self.of.name

    @property
    def dtype(self) -> str:
        """As stored."""
        return self.of.dtype

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """As of what it picks from."""
        return self.of.refs

    def runs(self, rows: range) -> Iterator[tuple[TensorSource, range]]:
        """Rows that stand together, and which of the other tensor's they are."""
        ends = list(accumulate(map(len, self.ranges)))
        while rows:
            index = bisect_right(ends, rows.start)
            first = rows.start - (ends[index - 1] if index else 0)
            own = self.ranges[index][first : first + len(rows) * rows.step : rows.step]
            yield self.of, own
            rows = rows[len(own) :]

    def block(self, rows: slice, columns: slice = slice(None)) -> "Rows":
        """Joined where the rows do not stand together."""
        return _joined(self.runs(range(*rows.indices(row_count(self.shape)))), columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnTensor:
    """The values of a small tensor, one below the other."""

    of: TensorSource

    @property
    def name(self) -> str:
        """In the checkpoint."""
        return self.of.name

    @property
    def dtype(self) -> str:
        """As stored."""
        return self.of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""
        return prod(self.of.shape), 1

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """As of the tensor."""
        return self.of.refs

    def block(self, rows: slice, columns: slice = slice(None)) -> "Rows":
        """Of all its values."""
        return self.of.block(slice(None)).reshape(-1, 1)[rows, columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Tensor:
    """E4M3 codes [out, in] with a factor for each square block (DeepSeek-V3, arXiv:2412.19437, section 3.3):
    float32 values, of one rounding.
    """

    codes: TensorRef
    factors: TensorRef
    block_size: tuple[int, int]

    @property
    def name(self) -> str:
        """In the checkpoint."""
        return self.codes.name

    @property
    def dtype(self) -> str:
        """As which the values come."""
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""
        return self.codes.shape

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """Codes and factors."""
        return self.codes, self.factors

    def block(self, rows: slice, columns: slice = slice(None)) -> "Rows":
        """Dequantised."""
        import numpy as np

        from yarnconv.checkpoint.floats import to_float32

        height, width = self.block_size
        values = _from_e4m3(_read_rows(self.codes, rows, columns))
        factors = to_float32(self.factors.load(), self.factors.dtype)
        of = np.arange(self.shape[0])[rows] // height
        first = 0
        with np.errstate(over="ignore"):
            for last in (*(np.flatnonzero(np.diff(of)) + 1), len(of)):  # rows of one block have the same ones
                if first < last:
                    repeated = np.repeat(factors[of[first]], width)[: self.shape[1]]
                    values[first:last] *= repeated[columns]
                first = last
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp4Tensor:
    """E2M1 codes, two in a byte, with a power of two for each 32 of a row (OCP Microscaling Formats 1.0,
    sections 5.3 and 6.3): bfloat16 values, exact.
    """

    name: str
    codes: TensorRef
    exponents: TensorRef

    @property
    def dtype(self) -> str:
        """As which the values come: three bits of mantissa and eight of an exponent fit into it."""
        return "BF16"

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""
        *rows, blocks, _ = self.codes.shape
        return *rows, blocks * MXFP4_BLOCK

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """Codes and exponents."""
        return self.codes, self.exponents

    def packed(self, rows: slice) -> "tuple[NDArray[np.uint8], NDArray[np.uint8]]":
        """Codes [rows, blocks, 16], the first of two in a byte's low half, and exponents [rows, blocks]."""
        *_, blocks, width = self.codes.shape
        return row_bytes(self.codes).reshape(-1, blocks, width)[rows], row_bytes(self.exponents)[rows]

    def block(self, rows: slice, columns: slice = slice(None)) -> "Rows":
        """Dequantised; whole blocks of columns, and of those the ones that are asked for."""
        import numpy as np

        first, last, step = columns.indices(self.shape[-1])
        codes, exponents = self.packed(rows)
        begin, end = first // MXFP4_BLOCK, -(-last // MXFP4_BLOCK)
        codes, exponents = codes[:, begin:end], exponents[:, begin:end]
        halves = np.stack([codes & 0xF, codes >> 4], axis=-1).reshape(*exponents.shape, MXFP4_BLOCK)
        with np.errstate(over="ignore"):  # exponents that no number has
            values = np.ldexp(_e2m1()[halves], (exponents.astype(np.int32) - LEAST_EXPONENT)[..., None])
        bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        offset = begin * MXFP4_BLOCK
        return bits.reshape(len(bits), -1)[:, first - offset : last - offset : step]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedTensor:
    """The matrices of a tensor [n, in, out], each turned: [n, out, in]."""

    of: TensorSource

    @property
    def name(self) -> str:
        """In the checkpoint."""
        return self.of.name

    @property
    def dtype(self) -> str:
        """As stored."""
        return self.of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""
        count, inputs, outputs = self.of.shape
        return count, outputs, inputs

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """As of what it turns."""
        return self.of.refs

    def block(self, rows: slice, columns: slice = slice(None)) -> "Rows":
        """Of every matrix that the rows are of, its columns."""
        import numpy as np

        count, outputs, inputs = self.shape
        first, last, step = rows.indices(count * outputs)
        low, high, stride = columns.indices(inputs)
        found = []
        for index in range(first // outputs, -(-last // outputs)):
            begin, end = (min(max(at - index * outputs, 0), outputs) for at in (first, last))
            whole = slice(index * inputs + low, index * inputs + high)
            found.append(self.of.block(whole, slice(begin, end))[::stride].T)
        return (found[0] if len(found) == 1 else np.concatenate(found))[::step]


def _joined(runs: Iterator[tuple[TensorSource, range]], columns: slice) -> "Rows":
    import numpy as np

    found = [part.block(slice(own.start, own.stop, own.step), columns) for part, own in runs]
    return found[0] if len(found) == 1 else np.concatenate(found)


def leaves(source: TensorSource, rows: range) -> Iterator[tuple[TensorSource, range]]:
    """What rows of a source are rows of in the end, seen through what is stacked and what is picked."""
    if not isinstance(source, StackedTensor | PickedTensor):
        yield source, rows
        return
    for part, own in source.runs(rows):
        yield from leaves(part, own)


def row_count(shape: Sequence[int]) -> int:
    """Rows of the matrix that a tensor of this shape is; a vector is one row."""
    return prod(shape[:-1])


def load(source: TensorSource) -> "Rows":
    """All of it, in its own shape; without a copy where it is one tensor of a file."""
    return source.block(slice(None)).reshape(source.shape)


def take(source: TensorSource, rows: "NDArray[np.intp]") -> "Rows":
    """Rows by their numbers, each run of neighbours read at once."""
    import numpy as np

    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    found = [source.block(slice(int(run[0]), int(run[-1]) + 1)) for run in runs if len(run)]
    return found[0] if len(found) == 1 else np.concatenate(found)


def files_of(sources: Iterable[TensorSource]) -> tuple[MappedFile, ...]:
    """The files that they lie in, each once."""
    refs = (ref for source in sources for ref in source.refs)
    return tuple({id(ref.file): ref.file for ref in refs}.values())


def row_bytes(ref: TensorRef) -> "NDArray[np.uint8]":
    """[rows, bytes of a row] of a file's tensor, whatever its type; a view."""
    import numpy as np

    data = np.frombuffer(ref.file.view(ref.offset, ref.nbytes), np.uint8)
    return data.reshape(row_count(ref.shape), -1)


def _read_rows(ref: TensorRef, rows: slice, columns: slice) -> "NDArray[np.uint8]":
    """[rows, columns] of a matrix of bytes: read where whole rows stand together, else a view."""
    import numpy as np

    count, width = ref.shape
    first, last, step = rows.indices(count)
    if step != 1 or columns.indices(width) != (0, width, 1):
        return row_bytes(ref)[rows, columns]
    read = np.empty((max(last - first, 0), width), np.uint8)
    ref.file.read(ref.offset + first * width, read.reshape(-1).data)
    return read


@cache
def _e4m3() -> "NDArray[np.float32]":
    """The values of the 256 codes: a sign, four bits of exponent, three of mantissa, no infinities."""
    import numpy as np

    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = np.ldexp(1.0 + mantissa / 8.0, exponent - 7)
    values = np.where(exponent > 0, normal, np.ldexp(mantissa / 8.0, -6))
    values = np.where(codes & 127 == 127, np.nan, values)
    return np.where(codes & 128, -values, values).astype(np.float32)


@cache
def _e4m3_pairs() -> "NDArray[np.uint64]":
    """The values of two codes at once, by the number that their bytes are in the machine's order."""
    import numpy as np

    codes = np.arange(2**16, dtype=np.uint16).view(np.uint8)
    return _e4m3()[codes].view(np.uint64)


def _from_e4m3(codes: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    """The values of codes, new, two at once where a row has pairs: half as many look-ups."""
    import numpy as np

    if codes.shape[-1] % 2:
        return np.take(_e4m3(), codes)
    pairs = np.ascontiguousarray(codes).view(np.uint16)
    return np.take(_e4m3_pairs(), pairs).view(np.float32)


@cache
def _e2m1() -> "NDArray[np.float32]":
    """The values of the sixteen codes: a sign, two bits of exponent, one of mantissa."""
    import numpy as np

    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    return np.asarray(positive + [-value for value in positive], np.float32)
