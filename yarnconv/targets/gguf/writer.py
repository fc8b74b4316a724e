"""From bindings to bytes: where every tensor goes, and the copying and converting on all cores."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.targets.gguf.blocks import SOURCE_TYPES, convert_rows
from yarnconv.targets.gguf.file_format import (
    Metadata,
    TensorInfo,
    TensorType,
    align,
    pack_header,
    tensor_bytes,
)

Advance = Callable[[int], None]

COPY_CHUNK = 32 * 2**20  # bytes handed to the kernel at once: a step of the progress bar
BLOCK_VALUES = 2**18  # values converted at once: 1 MiB as float32, which stays in a core's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTensor:
    """A tensor to be written. `source` is a checkpoint's tensor or values made here.

    row_order: for each written row the source row, None for the same order.
    """

    name: str
    shape: tuple[int, ...]
    tensor_type: TensorType
    source: TensorRef | NDArray[np.float32]
    row_order: NDArray[np.intp] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return tensor_bytes(self.shape, self.tensor_type)

    @property
    def is_copy(self) -> bool:
        """Whether the checkpoint's bytes are the artefact's."""
        return (
            isinstance(self.source, TensorRef)
            and self.row_order is None
            and SOURCE_TYPES[self.source.dtype] is self.tensor_type
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """One GGUF file: its packed header and its tensors with their offsets from the file's start."""

    header: bytes
    tensors: tuple[tuple[OutputTensor, int], ...]
    size: int


def interleaving_row_order(heads: int, head_dim: int) -> NDArray[np.intp]:
    """Rows so that dimension i of a head and its partner i + D/2 become neighbours.

    llama.cpp rotates neighbours for its llama architecture, transformers rotates halves.
    """
    rows = np.arange(heads * head_dim, dtype=np.intp)
    return rows.reshape(heads, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)


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
                tensors=tuple(
                    (t, len(header) + i.offset) for t, i in zip(shard, infos, strict=True)
                ),
                size=len(header) + offset,
            )
        )
    return files


def split_paths(destination: Path, count: int) -> list[Path]:
    """One path, or llama.cpp's split names."""
    if count == 1:
        return [destination]
    return [
        destination.with_name(f"{destination.stem}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A run of rows of one tensor and where its bytes go."""

    tensor: OutputTensor
    descriptor: int
    offset: int
    first_row: int
    rows: int


def _rows_of(tensor: OutputTensor) -> tuple[int, int]:
    """(rows, values per row); a vector is a column, so that it can be reordered like a matrix."""
    if len(tensor.shape) == 1:
        return tensor.shape[0], 1
    return prod(tensor.shape[:-1]), tensor.shape[-1]


def _pieces(tensor: OutputTensor, descriptor: int, offset: int) -> Iterator[_Piece]:
    rows, width = _rows_of(tensor)
    row_bytes = tensor.nbytes // rows
    step = max(1, COPY_CHUNK // row_bytes if tensor.is_copy else BLOCK_VALUES // width)
    for first in range(0, rows, step):
        yield _Piece(
            tensor=tensor,
            descriptor=descriptor,
            offset=offset + first * row_bytes,
            first_row=first,
            rows=min(step, rows - first),
        )


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _copy(source: TensorRef, start: int, length: int, descriptor: int, offset: int) -> None:
    """Bytes from file to file inside the kernel, or from the map where the kernel cannot."""
    done = 0
    while done < length:
        try:
            copied = os.copy_file_range(
                source.file.descriptor, descriptor, length - done, start + done, offset + done
            )
        except OSError:
            # Different kinds of file system, or an old kernel: a genuine failure repeats below.
            break
        if copied == 0:
            break
        done += copied
    if done < length:
        _write_all(descriptor, source.file.view(start + done, length - done), offset + done)


def _write_piece(piece: _Piece) -> int:
    tensor = piece.tensor
    rows, width = _rows_of(tensor)
    size = piece.rows * (tensor.nbytes // rows)
    if tensor.is_copy and isinstance(tensor.source, TensorRef):
        start = tensor.source.offset + piece.first_row * (tensor.nbytes // rows)
        _copy(tensor.source, start, size, piece.descriptor, piece.offset)
        return size
    if isinstance(tensor.source, TensorRef):
        values, source_type = tensor.source.load(), SOURCE_TYPES[tensor.source.dtype]
    else:
        values, source_type = tensor.source, TensorType.F32
    matrix = values.reshape(rows, width)
    wanted = slice(piece.first_row, piece.first_row + piece.rows)
    selected = matrix[wanted] if tensor.row_order is None else matrix[tensor.row_order[wanted]]
    data = convert_rows(selected, source_type, tensor.tensor_type)
    _write_all(piece.descriptor, memoryview(data).cast("B"), piece.offset)
    return size


def _worker(
    pieces: Iterator[_Piece], lock: threading.Lock, stop: threading.Event, advance: Advance
) -> None:
    while not stop.is_set():
        with lock:
            piece = next(pieces, None)
        if piece is None:
            return
        advance(_write_piece(piece))


def write_file(path: Path, file: OutputFile, advance: Advance, workers: int) -> None:
    """Write one file. advance(bytes) is called from the workers."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        os.truncate(descriptor, file.size)
        _write_all(descriptor, memoryview(file.header), 0)
        pieces = (p for tensor, offset in file.tensors for p in _pieces(tensor, descriptor, offset))
        lock, stop = threading.Lock(), threading.Event()
        with ThreadPoolExecutor(max_workers=workers) as pool:
            jobs = [pool.submit(_worker, pieces, lock, stop, advance) for _ in range(workers)]
            try:
                wait(jobs, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()  # also on Ctrl-C: each worker ends after the piece in its hands
            for job in jobs:
                job.result()
    finally:
        os.close(descriptor)


def with_fallback(tensor: OutputTensor, fallback: TensorType) -> OutputTensor:
    """The tensor in another type, for rows that do not divide into blocks."""
    return replace(tensor, tensor_type=fallback)
