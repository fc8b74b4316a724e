"""Progress of anything that can take more than two seconds. Quiet when stdout is not a terminal."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from yarnconv.progress import Advance, Silent


@contextmanager
def _bar(title: str, total: int, *, is_bytes: bool) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    if is_bytes:
        columns += [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    else:
        columns += [MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


class TerminalProgress:
    """A bar for each stage, with rate and time left, gone when the stage is over."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled and sys.stdout.isatty()

    def stage(self, title: str, total: int, *, is_bytes: bool = False) -> AbstractContextManager[Advance]:
        """The function that advances the stage; it may be called from several threads."""
        return _bar(title, total, is_bytes=is_bytes) if self._enabled else Silent().stage(title, total)
