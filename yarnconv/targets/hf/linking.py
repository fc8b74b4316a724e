"""A file of a checkpoint in an artefact's directory: hard-linked, or copied where no link is possible."""

import errno
import os
from pathlib import Path

from yarnconv.artifact import check_free_space
from yarnconv.progress import Advance

# other file system, not allowed for a file of another user's, too many links, no such thing here
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
_NO_RANGE = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})
CHUNK = 2**26  # copied before progress is shown
SPACE = "Free some space, or write to the checkpoint's own file system with -o, where links take none."


def _copy_chunk(source: int, destination: int, count: int) -> int:
    try:
        return os.copy_file_range(source, destination, count)
    except OSError as error:
        if error.errno not in _NO_RANGE:
            raise
    return os.sendfile(destination, source, None, count)


def copy_file(source: Path, destination: Path, advance: Advance) -> None:
    """Copy the content; advance(bytes) on the way."""
    with source.open("rb") as read, destination.open("xb") as written:
        while count := _copy_chunk(read.fileno(), written.fileno(), CHUNK):
            advance(count)


def would_link(source: Path, directory: Path) -> bool:
    """Whether both lie on one file system, so that a link takes no room."""
    return source.stat().st_dev == directory.stat().st_dev


def link_or_copy(source: Path, destination: Path, advance: Advance) -> bool:
    """Make the file appear; whether it is a link. A symbolic link is followed to the file it stands for."""
    resolved = source.resolve()
    size = resolved.stat().st_size
    try:
        os.link(resolved, destination)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    else:
        advance(size)
        return True
    check_free_space(destination, size, SPACE)
    copy_file(resolved, destination, advance)
    return False
