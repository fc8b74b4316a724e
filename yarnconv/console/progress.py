"""Progress of anything that can take more than two seconds."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def byte_progress(title: str, total: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """A bar with bytes, rate and time left; yields the function that advances it by bytes.

    Quiet when stdout is not a terminal. The function may be called from several threads.
    """
    if not enabled or not sys.stdout.isatty():
        yield lambda done: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)
