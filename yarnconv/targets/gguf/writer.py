"""From bindings to bytes: where every tensor goes, and the copying and converting on all cores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.codes import Mxfp4Tensor
from yarnconv.checkpoint.floats import NUMPY_DTYPES, Rows, to_float32
from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.checkpoint.sources import TensorSource, leaves, row_count
from yarnconv.progress import Advance
from yarnconv.targets.gguf.blocks import SOURCE_TYPES, convert_rows, interleave_heads, mxfp4_rows
from yarnconv.targets.gguf.file_format import (
    Metadata,
    TensorInfo,
    TensorType,
    align,
    pack_header,
    tensor_bytes,
)
from yarnconv.targets.output_file import Buffer, Output, Piece, write_pieces

PIECE_BYTES = 2**23  # copied by one worker before it asks for more
READ_BYTES = 2**22  # read at once when copying, while another worker writes
BLOCK_VALUES = 2**18  # values converted at once: 1 MiB as float32, which stays in a core's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTensor:
    """A tensor to be written. `source` is the checkpoint's, row by row, or values made here.

    interleave_heads: the size of the heads whose rows change places, None if they stay.
    added: to every value.
    """

    name: str
    shape: tuple[int, ...]
    tensor_type: TensorType
    source: TensorSource | NDArray[np.float32]
    interleave_heads: int | None = None
    added: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return tensor_bytes(self.shape, self.tensor_type)

    @property
    def is_as_it_stands(self) -> bool:
        """Whether its rows are the source's, at most in another type."""
        return self.interleave_heads is None and self.added == 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """One GGUF file: its packed header and its tensors with their offsets from the file's start."""

    header: bytes
    tensors: tuple[tuple[OutputTensor, int], ...]
    size: int


def _shards(tensors: Sequence[OutputTensor], maximum: int | None) -> list[list[OutputTensor]]:
    """Tensors in order, a new shard where the next would pass the maximum."""
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        padded = align(tensor.nbytes)
        if maximum is not None and shards[-1] and size + padded > maximum:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += padded
    return shards


def lay_out(
    metadata: Metadata, tensors: Sequence[OutputTensor], split_max_size: int | None
) -> list[OutputFile]:
    """The files to write. A split model's first file carries the metadata, every one the split keys."""
    shards = _shards(tensors, split_max_size)
    files = []
    for number, shard in enumerate(shards):
        own = Metadata(packed=dict(metadata.packed) if number == 0 else {})
        if len(shards) > 1:
            own.uint16("split.no", number)
            own.uint16("split.count", len(shards))
            own.int32("split.tensors.count", len(tensors))
        infos, offset = [], 0
        for tensor in shard:
            infos.append(
                TensorInfo(
                    name=tensor.name,
                    shape=tensor.shape,
                    tensor_type=tensor.tensor_type,
                    offset=offset,
                )
            )
            offset += align(tensor.nbytes)
        header = pack_header(own, infos)
        files.append(
            OutputFile(
                header=header,
                tensors=tuple((t, len(header) + i.offset) for t, i in zip(shard, infos, strict=True)),
                size=len(header) + offset,
            )
        )
    return files


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A run of rows of one tensor: which of whose they are, and where what becomes of them goes."""

    tensor: OutputTensor
    source: TensorSource
    rows: range
    offset: int

    @property
    def copies(self) -> bool:
        """Whether the source's bytes are the artefact's."""
        source, tensor = self.source, self.tensor
        lies_so = isinstance(source, TensorRef) and self.rows.step == 1
        return lies_so and tensor.is_as_it_stands and SOURCE_TYPES[source.dtype] is tensor.tensor_type


def _pieces(tensor: OutputTensor, source: TensorSource, offset: int) -> Iterator[_Piece]:
    """Those of one tensor, of rows that stand together."""
    width, heads = source.shape[-1], tensor.interleave_heads
    row_bytes = tensor_bytes((width,), tensor.tensor_type)
    copied, converted = max(1, PIECE_BYTES // row_bytes), max(1, BLOCK_VALUES // width)
    if heads is not None:
        converted = max(converted // heads, 1) * heads
    for leaf, rows in leaves(source, range(row_count(source.shape))):
        whole = _Piece(tensor=tensor, source=leaf, rows=rows, offset=offset)
        step = copied if whole.copies else converted
        for first in range(0, len(rows), step):
            own = rows[first : first + step]
            yield _Piece(tensor=tensor, source=leaf, rows=own, offset=offset)
            offset += len(own) * row_bytes


def _bytes_of(source: TensorRef, rows: range) -> tuple[int, int]:
    """(where they begin, how many they are) of rows that stand together."""
    row_bytes = tensor_bytes((source.shape[-1],), SOURCE_TYPES[source.dtype])
    return rows.start * row_bytes, len(rows) * row_bytes


def _copy_piece(piece: _Piece, output: Output, buffer: Buffer) -> None:
    assert isinstance(piece.source, TensorRef)
    start, size = _bytes_of(piece.source, piece.rows)
    for done in range(0, size, READ_BYTES):
        data = buffer.view(min(READ_BYTES, size - done))
        piece.source.file.read(piece.source.offset + start + done, data)
        output.write(data, piece.offset + done)


def _values(piece: _Piece, buffer: Buffer) -> Rows:
    """[rows, width], of the source's dtype; those of a file are read, not mapped, so that a file that became
    shorter is an error and not the end of the process.
    """
    source, rows = piece.source, piece.rows
    if not isinstance(source, TensorRef) or rows.step != 1:
        return source.block(slice(rows.start, rows.stop, rows.step))
    start, size = _bytes_of(source, rows)
    data = buffer.view(size)
    source.file.read(source.offset + start, data)
    return np.frombuffer(data, dtype=NUMPY_DTYPES[source.dtype]).reshape(len(rows), -1)


def _convert_piece(piece: _Piece, output: Output, buffer: Buffer) -> None:
    tensor, source, rows = piece.tensor, piece.source, piece.rows
    if tensor.tensor_type is TensorType.MXFP4:
        assert isinstance(source, Mxfp4Tensor)
        packed = mxfp4_rows(*source.packed(slice(rows.start, rows.stop, rows.step)))
        output.write(packed.data.cast("B"), piece.offset)
        return
    values, source_type = _values(piece, buffer), SOURCE_TYPES[source.dtype]
    if tensor.interleave_heads is not None:
        values = interleave_heads(values, tensor.interleave_heads)
    if tensor.added != 0.0:
        values, source_type = to_float32(values, source_type.name) + np.float32(tensor.added), TensorType.F32
    converted = convert_rows(values, source_type, tensor.tensor_type)
    output.write(converted.view(np.uint8).data.cast("B"), piece.offset)


def _write_made(tensor: OutputTensor, offset: int, output: Output, buffer: Buffer) -> None:
    """Values that are made here, which are small."""
    assert isinstance(tensor.source, np.ndarray)
    output.write(memoryview(tensor.source.astype("<f4").tobytes()), offset)


def write_file(path: Path, file: OutputFile, advance: Advance, workers: int) -> None:
    """Write one file. advance(bytes) is called from the workers."""

    def pieces() -> Iterator[Piece]:
        yield lambda output, buffer: output.write(memoryview(file.header), 0)
        for tensor, offset in file.tensors:
            if isinstance(tensor.source, np.ndarray):
                yield partial(_write_made, tensor, offset)
                continue
            for piece in _pieces(tensor, tensor.source, offset):
                yield partial(_copy_piece if piece.copies else _convert_piece, piece)

    write_pieces(path, file.size, pieces(), advance, workers)
