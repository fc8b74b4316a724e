"""A part of a file copied into another by the kernel, which shares blocks where the file system can."""

import errno
import os

from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.errors import BadInput
from yarnconv.progress import Advance

BLOCK = 4096  # bytes; file systems share whole ones
CHUNK = 2**27  # bytes copied between two looks at the progress
READ_BYTES = 2**20
# what kernels say that cannot copy between these two files
_CANNOT = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})


def _shortened(source: MappedFile) -> BadInput:
    return BadInput("the file became shorter while it was read", where=source.path.name)


def _copy_by_hand(source: MappedFile, start: int, descriptor: int, offset: int, nbytes: int) -> int:
    data = os.pread(source.descriptor, min(nbytes, READ_BYTES), start)
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
    return len(data)


def copy_range(
    source: MappedFile, start: int, descriptor: int, offset: int, nbytes: int, advance: Advance
) -> None:
    """`nbytes` of `source` from `start` on to `offset` of an open file. advance(bytes) after each chunk."""
    by_kernel = True
    while nbytes:
        # up to a whole block first, so that the rest can be shared
        step = min(nbytes, -start % BLOCK or CHUNK)
        copied = 0
        if by_kernel:
            try:
                copied = os.copy_file_range(source.descriptor, descriptor, step, start, offset)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                by_kernel = False
        if not by_kernel:
            copied = _copy_by_hand(source, start, descriptor, offset, step)
        if copied == 0:
            raise _shortened(source)
        start, offset, nbytes = start + copied, offset + copied, nbytes - copied
        advance(copied)
