"""A part of a file in another: shared where the file system can, copied by the kernel where it cannot."""

import ctypes
import errno
import fcntl
import os
import struct

from yarnconv.errors import BadInput
from yarnconv.progress import Advance

BLOCK = 4096  # bytes; file systems share whole ones
PIECE = 2**16  # bytes; what kernels copy at once, and what page caches hold files in
CHUNK = 2**27  # bytes copied between two looks at the progress
READ_BYTES = 2**20
# Linux: FICLONERANGE, and the structure that it takes (source, its offset, bytes, offset)
_SHARE_RANGE, _SHARED_RANGE = 0x4020940D, struct.Struct("=qQQQ")
# what kernels say that cannot do it between these two files
_CANNOT = frozenset(
    {*(errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENOTTY, errno.EBADF)}
)


def share_range(source: int, start: int, descriptor: int, offset: int, nbytes: int) -> int:
    """Let `offset` of an open file share the blocks of another, `source`, from `start` on: the bytes that it
    shares from the first whole block on (`-start % BLOCK` bytes in), 0 where the file system cannot.
    """
    before = -start % BLOCK
    whole = max(nbytes - before, 0) // BLOCK * BLOCK
    if whole == 0 or (start - offset) % BLOCK:
        return 0
    try:
        argument = _SHARED_RANGE.pack(source, start + before, whole, offset + before)
        fcntl.ioctl(descriptor, _SHARE_RANGE, argument)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return 0
    return whole


def reserve(descriptor: int, nbytes: int) -> None:
    """Give an empty file its blocks at once, where the file system can: writing to it is a quarter faster."""
    library = ctypes.CDLL(None, use_errno=True)  # the C library's posix_fallocate would write every block
    if library.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes)):
        number = ctypes.get_errno()
        if number not in _CANNOT:
            raise OSError(number, os.strerror(number))


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """All of `data` at `offset`: a disk that fills up takes a part and says so only at the next one."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _copy_by_hand(source: int, start: int, descriptor: int, offset: int, nbytes: int) -> int:
    data = os.pread(source, min(nbytes, READ_BYTES), start)
    write_all(descriptor, data, offset)
    return len(data)


def copy_range(
    source: int, start: int, descriptor: int, offset: int, nbytes: int, advance: Advance, *, name: str
) -> None:
    """`nbytes` of the open file `source` from `start` on to `offset` of another. advance(bytes) after each
    chunk. name: the source's, for a message.
    """
    by_kernel = True
    while nbytes:
        # to a whole piece first: kernels copy by 64 KiB, and each that lies across two costs a half more
        step, copied = min(nbytes, -offset % PIECE or CHUNK), 0
        if by_kernel:
            try:
                copied = os.copy_file_range(source, descriptor, step, start, offset)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                by_kernel = False
        if not by_kernel:
            copied = _copy_by_hand(source, start, descriptor, offset, step)
        if copied == 0:
            raise BadInput("the file became shorter while it was read", where=name)
        start, offset, nbytes = start + copied, offset + copied, nbytes - copied
        advance(copied)
