"""Where a tensor's values come from: one tensor of a file, several that stand one below the other, another's
values in another order, or codes (in `codes`). Nothing is loaded but what is asked for.

Every source is a matrix here: its last dimension are the columns, all others together the rows.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Protocol

from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.checkpoint.safetensors_file import TensorRef

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yarnconv.checkpoint.floats import Rows


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
class View:
    """Values of another source, in another order or shape."""

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
    def refs(self) -> tuple[TensorRef, ...]:
        """As of the other one."""
        return self.of.refs


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedTensor(View):
    """Some rows of another: those of the ranges, in their order."""

    shape: tuple[int, ...]
    ranges: tuple[range, ...]

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
class ColumnTensor(View):
    """The values of a small tensor, one below the other."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""
        return prod(self.of.shape), 1

    def block(self, rows: slice, columns: slice = slice(None)) -> "Rows":
        """Of all its values."""
        return self.of.block(slice(None)).reshape(-1, 1)[rows, columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedTensor(View):
    """The matrices of a tensor [n, in, out], each turned: [n, out, in]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""
        count, inputs, outputs = self.of.shape
        return count, outputs, inputs

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
