"""Errors, warnings, JSON."""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from yarnconv.errors import YarnconvError

SCHEMA_VERSION = 1


def _printable(text: str) -> str:
    """Without control characters: names come from strangers, and a terminal obeys an escape."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def print_error(error: YarnconvError) -> None:
    """What was found, where, what to do: to stderr."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    line = Text("error: ", style="bold red")
    if error.where:
        line.append(f"{_printable(error.where)}: ", style="bold")
    console.print(line.append(f"{_printable(error.what)}.", style="not bold default"))
    if error.fix:
        console.print(Text(error.fix, style="default"))


def print_warnings(console: Console, warnings: Iterable[str]) -> None:
    """One line each."""
    for warning in warnings:
        console.print(Text("warning: ", style="bold yellow").append(warning, style="not bold default"))


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2, allow_nan=False)
    sys.stdout.write(text + "\n")
