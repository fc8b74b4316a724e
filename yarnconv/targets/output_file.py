"""One large file, written by several workers from pieces that need not be in memory before their turn."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from yarnconv.progress import Advance
from yarnconv.targets.threads import share_out

WRITE_BYTES = 2**16  # written at once; see Output


class Output:
    """The file being written.

    One write at a time: the kernel admits no more to a file, and threads that wait for it there spin
    instead of reading and converting. And in chunks of 64 KiB: measured on 2.47 GB, `cp` before each
    (seconds, median of four): 64 KiB 1.2, 256 KiB 2.7, 1 MiB 4.4, copy_file_range 1.9 (which moves a
    page in two halves where source and destination are aligned differently, as they are here).
    """

    def __init__(self, descriptor: int, advance: Advance) -> None:
        self._descriptor = descriptor
        self._advance = advance
        self._lock = threading.Lock()

    def write(self, data: memoryview, offset: int) -> None:
        """All of `data` at `offset`."""
        total = len(data)
        with self._lock:
            while data:
                # up to the next whole chunk of the file, so that pages are filled from their start
                chunk = data[: WRITE_BYTES - offset % WRITE_BYTES]
                written = os.pwrite(self._descriptor, chunk, offset)
                data, offset = data[written:], offset + written
        self._advance(total)


class Buffer:
    """One worker's memory, grown to its largest piece and used again for every one."""

    def __init__(self) -> None:
        self._data = bytearray()

    def view(self, size: int) -> memoryview:
        """The first `size` bytes."""
        if len(self._data) < size:
            self._data = bytearray(size)
        return memoryview(self._data)[:size]


# Reads, converts and writes one part of the file, with its worker's buffer.
Piece = Callable[[Output, Buffer], None]


def write_pieces(path: Path, size: int, pieces: Iterator[Piece], advance: Advance, workers: int) -> None:
    """Write a file of `size` bytes. advance(bytes) is called from the workers."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        output = Output(descriptor, advance)

        def work(pieces: Iterator[Piece]) -> None:
            buffer = Buffer()
            for piece in pieces:
                piece(output, buffer)

        share_out(pieces, work, workers)
        os.truncate(descriptor, size)  # the last part's padding
    finally:
        os.close(descriptor)
