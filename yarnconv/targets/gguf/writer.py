"""From bindings to bytes: where every tensor goes, and the copying and converting on all cores."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import NUMPY_DTYPES, to_float32
from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.errors import BadInput
from yarnconv.progress import Advance
from yarnconv.targets.gguf.blocks import SOURCE_TYPES, convert_rows, interleave_heads
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
    """A tensor to be written. `source` is a checkpoint's tensor or values made here.

    first_row: of the source's, of which it holds as many as its shape says.
    interleave_heads: the size of the heads whose rows change places, None if they stay.
    added: to every value.
    """

    name: str
    shape: tuple[int, ...]
    tensor_type: TensorType
    source: TensorRef | NDArray[np.float32]
    first_row: int = 0
    interleave_heads: int | None = None
    added: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return tensor_bytes(self.shape, self.tensor_type)

    @property
    def source_type(self) -> TensorType:
        """The type of the values in `source`."""
        return SOURCE_TYPES[self.source.dtype] if isinstance(self.source, TensorRef) else TensorType.F32

    @property
    def is_copy(self) -> bool:
        """Whether the source's bytes are the artefact's."""
        moved = self.interleave_heads is not None
        return not moved and self.added == 0.0 and self.source_type is self.tensor_type


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
    """A run of rows of one tensor: bytes of the source to read and where what they become goes."""

    tensor: OutputTensor
    source_start: int
    source_bytes: int
    offset: int
    width: int


def _pieces(tensor: OutputTensor, offset: int) -> Iterator[_Piece]:
    # a vector is a column of rows of one value, so that its heads can be interleaved like a matrix's
    rows, width = tensor.shape[0], prod(tensor.shape[1:])
    start = tensor.first_row * tensor_bytes((width,), tensor.source_type)
    if tensor.is_copy and len(tensor.shape) == 1:
        rows, width = 1, tensor.shape[0]
    source_row = tensor_bytes((width,), tensor.source_type)
    target_row = tensor.nbytes // rows
    step = max(1, PIECE_BYTES // source_row if tensor.is_copy else BLOCK_VALUES // width)
    if tensor.interleave_heads is not None:
        step = max(step // tensor.interleave_heads, 1) * tensor.interleave_heads
    for first in range(0, rows, step):
        yield _Piece(
            tensor=tensor,
            source_start=start + first * source_row,
            source_bytes=min(step, rows - first) * source_row,
            offset=offset + first * target_row,
            width=width,
        )


def _read(source: TensorRef | NDArray[np.float32], start: int, into: memoryview) -> None:
    """Bytes of the source from `start` on, as many as `into` holds."""
    if not isinstance(source, TensorRef):
        into[:] = source.tobytes()[start : start + len(into)]
        return
    position = source.offset + start
    while into:
        count = os.preadv(source.file.descriptor, [into], position)
        if count == 0:
            raise BadInput("the file became shorter while it was read", where=source.file.path.name)
        into, position = into[count:], position + count


def _copy_piece(piece: _Piece, output: Output, buffer: Buffer) -> None:
    for done in range(0, piece.source_bytes, READ_BYTES):
        data = buffer.view(min(READ_BYTES, piece.source_bytes - done))
        _read(piece.tensor.source, piece.source_start + done, data)
        output.write(data, piece.offset + done)


def _convert_piece(piece: _Piece, output: Output, buffer: Buffer) -> None:
    tensor = piece.tensor
    data = buffer.view(piece.source_bytes)
    _read(tensor.source, piece.source_start, data)
    rows = np.frombuffer(data, dtype=NUMPY_DTYPES[tensor.source_type.name]).reshape(-1, piece.width)
    if (size := tensor.interleave_heads) is not None:
        rows = interleave_heads(rows, size)
    source_type = tensor.source_type
    if tensor.added != 0.0:
        rows, source_type = to_float32(rows, source_type.name) + np.float32(tensor.added), TensorType.F32
    converted = convert_rows(rows, source_type, tensor.tensor_type)
    output.write(converted.view(np.uint8).data.cast("B"), piece.offset)


def write_file(path: Path, file: OutputFile, advance: Advance, workers: int) -> None:
    """Write one file. advance(bytes) is called from the workers."""

    def pieces() -> Iterator[Piece]:
        yield lambda output, buffer: output.write(memoryview(file.header), 0)
        for tensor, offset in file.tensors:
            write = _copy_piece if tensor.is_copy else _convert_piece
            for piece in _pieces(tensor, offset):
                yield partial(write, piece)

    write_pieces(path, file.size, pieces(), advance, workers)
