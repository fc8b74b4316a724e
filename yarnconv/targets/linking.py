"""A file of a source in an artefact's directory: hard-linked, or copied where no link is possible."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from yarnconv.artifact import check_free_space
from yarnconv.progress import Advance
from yarnconv.targets.copying import copy_range

# other file system, not allowed for a file of another user's, too many links, no such thing here
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
SPACE = "Free some space, or write to the source's own file system with -o, where links take none."


def copy_file(source: Path, destination: Path, advance: Advance) -> None:
    """Copy the content; advance(bytes) on the way."""
    with source.open("rb") as read, destination.open("xb") as written:
        size = os.fstat(read.fileno()).st_size
        copy_range(read.fileno(), 0, written.fileno(), 0, size, advance, name=source.name)


def would_link(source: Path, directory: Path) -> bool:
    """Whether both lie on one file system, so that a link takes no room."""
    return source.stat().st_dev == directory.stat().st_dev


def copied_bytes(sources: Iterable[Path], directory: Path) -> int:
    """What those of the files take in a directory that cannot be linked there."""
    return sum(path.stat().st_size for path in sources if not would_link(path, directory))


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
