"""Progress of anything that can take more than two seconds. Quiet when stdout is not a terminal."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from yarnconv.progress import Advance, Say, Silent


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


@contextmanager
def _spinner(title: str) -> Iterator[Say]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda text: progress.update(task, description=f"{title}: {text}")


class TerminalProgress:
    """A bar for each stage, with rate and time left, or a spinner; gone when it is over."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled and sys.stdout.isatty()

    def stage(self, title: str, total: int, *, is_bytes: bool = False) -> AbstractContextManager[Advance]:
        """The function that advances the stage; it may be called from several threads."""
        return _bar(title, total, is_bytes=is_bytes) if self._enabled else Silent().stage(title, total)

    def activity(self, title: str) -> AbstractContextManager[Say]:
        """What says how far it is; it may be called from several threads."""
        return _spinner(title) if self._enabled else Silent().activity(title)
