"""A file that is read where it lies: mapped, never loaded as a whole."""

import mmap
import os
from pathlib import Path

from yarnconv.errors import BadInput


class MappedFile:
    """A read-only file and its memory map. Closed by whoever opened it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size = os.fstat(self.descriptor).st_size
            self._map = mmap.mmap(self.descriptor, self.size, access=mmap.ACCESS_READ)
        except BaseException:
            os.close(self.descriptor)
            raise

    def view(self, offset: int, length: int) -> memoryview:
        """Bytes of the map, without a copy."""
        return memoryview(self._map)[offset : offset + length]

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` with bytes of the file without its map, so that a file that became shorter is an error
        and not the end of the process. Raises BadInput for it.
        """
        while into:
            count = os.preadv(self.descriptor, [into], offset)
            if count == 0:
                raise BadInput("the file became shorter while it was read", where=self.path.name)
            into, offset = into[count:], offset + count

    def forget(self) -> None:
        """Let go of the pages that were looked at; they are read again when they are asked for."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Close the descriptor; the map goes when its last view does."""
        os.close(self.descriptor)
