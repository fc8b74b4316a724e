"""The errors a user can cause or meet. Each carries the exit code it ends the command with.

Every message answers three questions: what was found, where, and what to do about it. An exception
that is not a `YarnconvError` is a bug and keeps its stack trace (exit 70).
"""

from typing import TypeVar

Choice = TypeVar("Choice", bound=str)


class YarnconvError(Exception):
    """Base of the errors that are reported without a stack trace.

    what: what was found, one sentence without a full stop.
    where: file and key or tensor it was found in, such as `config.json: rope_scaling.factor`.
    fix: what the user can do.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        located = f"{self.where}: {self.what}" if self.where else self.what
        return f"{located}. {self.fix}" if self.fix else located


class BadInput(YarnconvError):
    """The checkpoint, the artefact or an option is not usable (exit 2)."""


class ParityFails(YarnconvError):
    """What a runtime made of it is not the plan (exit 1)."""

    exit_code = 1


class Inexpressible(YarnconvError):
    """The target's runtime cannot compute the plan exactly (exit 3)."""

    exit_code = 3


class MissingComponent(YarnconvError):
    """An optional component is not installed; the message gives the install line (exit 4)."""

    exit_code = 4


class NotJudged(YarnconvError):
    """It could not be judged here, and why (exit 5)."""

    exit_code = 5


class RuntimeCrashed(YarnconvError):
    """The runtime died while it ran the artefact: says nothing of parity (exit 70)."""

    exit_code = 70


def one_of(text: str, known: tuple[Choice, ...], where: str) -> Choice:
    """What the user chose with the option `where`, as one of those there are. Raises BadInput."""
    for choice in known:
        if text == choice:
            return choice
    from difflib import get_close_matches  # here, because most commands name nothing wrong

    close: list[str] = get_close_matches(text.lower(), list(map(str, known)), n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise BadInput(f"{text!r} is not known", where=where, fix=f"{hint}Choose one of {', '.join(known)}.")
