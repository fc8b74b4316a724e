"""Large tensors beside the graph: where each lies in its file, and how the file is written piece by piece."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yarnconv.targets.output_file import Buffer, Output, Piece

if TYPE_CHECKING:
    import onnx

PAGE = 4096  # large tensors begin on one, so that a runtime can map them
SMALL = 64  # alignment of the others
PIECE_VALUES = 2**20  # made at once

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalTensor:
    """A tensor of the external data file that is made row by row when it is written.

    element: its ONNX type's name (FLOAT, FLOAT16, BFLOAT16, INT4, FLOAT8E4M3FN). bits: of one element.
    rows: makes rows first..last-1 as an array of the stored bytes, row-major.
    step: rows made at once.
    """

    name: str
    element: str
    bits: int
    shape: tuple[int, ...]
    rows: Callable[[int, int], Array]
    step: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (of the first dimension)."""
        return prod(self.shape[1:]) * self.bits // 8

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self.shape[0] * self.row_bytes


JOINT = " + "  # between the names of tensors that stand side by side in one


def side_by_side(tensors: Sequence[ExternalTensor]) -> ExternalTensor:
    """Matrices of as many rows each as one, whose rows are theirs one behind the other; or vectors as one. A
    name that says of which it is made is how a reader finds them again.
    """
    first, *_ = tensors
    end = sum(tensor.shape[-1] for tensor in tensors)
    if len(first.shape) == 1:
        rows = lambda begin, end: np.concatenate([t.rows(0, *t.shape) for t in tensors])[begin:end]  # noqa: E731
        step = end
    else:
        rows = lambda begin, end: np.concatenate([t.rows(begin, end) for t in tensors], axis=1)  # noqa: E731
        step = min(tensor.step for tensor in tensors)
    return ExternalTensor(
        name=JOINT.join(tensor.name for tensor in tensors),
        element=first.element,
        bits=first.bits,
        shape=(*first.shape[:-1], end),
        rows=rows,
        step=step,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedTensor:
    """A tensor that stays where it lies, in another file of the model's directory.

    location: that file's name. offset: bytes from its start.
    """

    name: str
    element: str
    shape: tuple[int, ...]
    location: str
    offset: int
    nbytes: int


def lay_out(tensors: Iterable[ExternalTensor]) -> Iterator[tuple[ExternalTensor, int]]:
    """Every tensor and its offset in the data file."""
    offset = 0
    for tensor in tensors:
        alignment = PAGE if tensor.nbytes >= PAGE else SMALL
        offset = -(-offset // alignment) * alignment
        yield tensor, offset
        offset += tensor.nbytes


def data_bytes(tensors: Iterable[ExternalTensor]) -> int:
    """Bytes of the data file."""
    return max((offset + tensor.nbytes for tensor, offset in lay_out(tensors)), default=0)


def reference(tensor: ExternalTensor | LinkedTensor, location: str, offset: int) -> "onnx.TensorProto":
    """The graph's pointer to a tensor in a file."""
    from onnx import TensorProto

    proto = TensorProto(
        name=tensor.name,
        data_type=TensorProto.DataType.Value(tensor.element),
        dims=tensor.shape,
        data_location=TensorProto.EXTERNAL,
    )
    place = {"location": location, "offset": str(offset), "length": str(tensor.nbytes)}
    for key, value in place.items():
        entry = proto.external_data.add()
        entry.key, entry.value = key, value
    return proto


def _write_rows(
    tensor: ExternalTensor, first: int, last: int, offset: int, output: Output, buffer: Buffer
) -> None:
    made = np.ascontiguousarray(tensor.rows(first, last))
    output.write(made.view(np.uint8).data.cast("B"), offset + first * tensor.row_bytes)


def pieces(tensors: Iterable[ExternalTensor]) -> Iterator[Piece]:
    """What writes the data file, a few rows each."""
    for tensor, offset in lay_out(tensors):
        for first in range(0, tensor.shape[0], tensor.step):
            last = min(first + tensor.step, tensor.shape[0])
            yield partial(_write_rows, tensor, first, last, offset)
