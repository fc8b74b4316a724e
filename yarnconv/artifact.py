"""Publishing an artefact: written beside its destination under another name, then renamed.

Whatever happens before the last rename (an error, a full disk, Ctrl-C), the destination stays as it
was and nothing else stays behind.
"""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

from yarnconv.errors import BadInput
from yarnconv.sizes import readable_size

# Headers, directory entries and the file system's own bookkeeping.
SLACK_BYTES = 16 * 2**20
_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler: TypeAlias = Callable[[int, FrameType | None], Any] | signal.Handlers


def check_directory(directory: Path) -> None:
    """Refuse a place that nothing can be written to."""
    if not directory.is_dir():
        raise BadInput("no such directory", where=str(directory), fix="Create it, or name another place.")
    if not os.access(directory, os.W_OK):
        raise BadInput("the directory cannot be written to", where=str(directory))


def check_free_space(
    destination: Path,
    needed: int,
    fix: str = "Free some space, write elsewhere with -o, or choose a smaller --outtype.",
) -> None:
    """Refuse to begin what cannot end. needed: bytes that will be written."""
    check_directory(destination.parent)
    free = shutil.disk_usage(destination.parent).free
    if needed + SLACK_BYTES > free:
        raise BadInput(
            f"{readable_size(needed + SLACK_BYTES, 5)} are needed, {readable_size(free, 5)} are free",
            where=str(destination.parent),
            fix=fix,
        )


@contextmanager
def _handling(numbers: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Signals by this handler meanwhile. What fails or interrupts while they are exchanged or put back leaves
    none of them exchanged.
    """
    with ExitStack() as put_back:
        for number in numbers:
            # of a handler that was installed by no Python nobody knows more than that
            before = signal.getsignal(number) or signal.SIG_DFL
            put_back.callback(signal.signal, number, before)
            signal.signal(number, handler)
        yield


def _not_ignored(*numbers: signal.Signals) -> list[signal.Signals]:
    """Those that the caller had us ignore (nohup) stay ignored."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """While something lies on the disk that must not stay, SIGTERM and SIGHUP unwind like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling(_not_ignored(signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """While it is cleaned up, nothing interrupts: whoever presses Ctrl-C twice means it no more than once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handling(_ALL, signal.SIG_IGN):
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """Interrupts that arrive in between count at its end, each of them once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: dict[int, None] = {}  # one that nobody handles ends the process as ever: after the end
    try:
        with _handling(_not_ignored(*_ALL), lambda number, _: arrived.setdefault(number)):
            yield
    finally:
        with ExitStack() as raised:  # where the first one interrupts, the others arrive all the same
            for number in reversed(arrived):
                raised.callback(signal.raise_signal, number)


def _publish(paths: Sequence[Path], destinations: Sequence[Path]) -> None:
    """Rename all, the first file last, with interrupts held back: half of one model and half of another
    would load. An older split model loses its first file first, so that at no moment is it a mixture.
    """
    with held_back():
        if len(paths) > 1:
            destinations[0].unlink(missing_ok=True)
        for path, destination in reversed(list(zip(paths, destinations, strict=True))):
            path.replace(destination)


@contextmanager
def _failures_as_bad_input(place: Path) -> Iterator[None]:
    """A disk that is full or goes away is no bug of ours."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"writing failed ({error.strerror or error})",
            where=str(error.filename or place),
            fix="Nothing was left behind.",
        ) from error


def _own_name(path: Path) -> str:
    """A hidden name beside the path that no other process takes. Its number is not enough: on a shared disk
    there are other machines' processes, and in a container every program is process 1.
    """
    return f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}"


@contextmanager
def staged_directory(destination: Path, *, replace: bool) -> Iterator[Path]:
    """A directory to fill in place of `destination`, renamed to it on success.

    replace: whether something that is there already gives way, in one rename at the end.
    """
    if destination.is_symlink():  # what it points to gives way, not the link
        destination = destination.resolve()
    check_directory(destination.parent)
    if destination.exists() and not replace:
        raise BadInput(
            "the destination exists",
            where=str(destination),
            fix="Give another -o, or --force to replace it when the new one is whole.",
        )
    own = _own_name(destination)
    path, old = destination.with_name(f"{own}.partial"), destination.with_name(f"{own}.old")
    try:
        with termination_as_interrupt(), _failures_as_bad_input(destination):
            path.mkdir()
            yield path
            if destination.exists():
                destination.rename(old)
            path.rename(destination)
    finally:
        with undisturbed():
            if old.exists() and not destination.exists():
                old.rename(destination)
            for leftover in (path, old):
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def staged(destinations: Sequence[Path]) -> Iterator[list[Path]]:
    """Paths to write in place of `destinations`; renamed to them, the first one last, on success.

    The first file of a split model is the one a runtime opens: while it is missing, the model is.
    """
    directory = destinations[0].parent
    check_directory(directory)
    paths = [path.with_name(f"{_own_name(path)}.partial") for path in destinations]
    try:
        with termination_as_interrupt(), _failures_as_bad_input(directory):
            yield paths
            _publish(paths, destinations)
    finally:
        with undisturbed():
            for path in paths:
                path.unlink(missing_ok=True)
