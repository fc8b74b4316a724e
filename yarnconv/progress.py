"""How long work is made visible from floors that know no terminal."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

# Called with what has been done since the last call; from several threads, perhaps.
Advance = Callable[[int], None]
Say = Callable[[str], None]


class Progress(Protocol):
    """Whoever shows stages of work. Entering a stage gives the function that advances it."""

    def stage(self, title: str, total: int, *, is_bytes: bool = False) -> AbstractContextManager[Advance]:
        """Begin a stage of `total` steps (bytes, if so)."""

    def activity(self, title: str) -> AbstractContextManager[Say]:
        """Begin something of which nobody knows how long it takes. Entering gives what says how far it is."""


class Silent:
    """Shows nothing."""

    def stage(self, title: str, total: int, *, is_bytes: bool = False) -> AbstractContextManager[Advance]:
        """A stage nobody sees."""
        return nullcontext(lambda done: None)

    def activity(self, title: str) -> AbstractContextManager[Say]:
        """Something nobody sees."""
        return nullcontext(lambda text: None)
