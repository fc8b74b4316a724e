"""Errors, warnings, JSON."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from yarnconv.errors import YarnconvError

SCHEMA_VERSION = 1


def one_line(text: str) -> str:
    """The text without control characters: names come from strangers, a terminal obeys an escape, and a new
    line could be one that we are thought to have written.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable(text: str) -> str:
    """The same of a text that may have several lines."""
    return "\n".join(map(one_line, text.split("\n")))


def print_error(error: YarnconvError) -> None:
    """What was found, where, what to do: to stderr."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    line = Text("error: ", style="bold red")
    if error.where:
        line.append(f"{printable(error.where)}: ", style="bold")
    console.print(line.append(f"{printable(error.what)}.", style="not bold default"))
    if error.fix:
        console.print(Text(error.fix, style="default"))


def print_warnings(console: Console, warnings: Iterable[str]) -> None:
    """One line each."""
    for warning in warnings:
        console.print(
            Text("warning: ", style="bold yellow").append(one_line(warning), style="not bold default")
        )


def print_findings(console: Console, findings: Iterable[str]) -> None:
    """What of an artefact does not agree, one line each."""
    for finding in findings:
        line = Text("finding: ", style="bold yellow")
        console.print(line.append(one_line(finding), style="not bold default"))


def print_written(paths: Iterable[Path]) -> None:
    """A line for each file that was written beside what was shown."""
    console = Console(highlight=False, soft_wrap=True)
    for path in paths:
        console.print(Text("wrote ", style="green").append(one_line(str(path)), style="bold"))


def print_runtime_message(level: str, message: str) -> None:
    """What a runtime says by itself: to stderr, with its level."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    style = {"error": "bold red", "internal error": "bold red", "warning": "yellow"}.get(level, "dim")
    line = Text(f"{level}: ", style=style).append(printable(message.strip()), style="not bold default")
    console.print(Text("TensorRT ", style="dim").append(line))


def json_text(document: Mapping[str, Any]) -> str:
    """A document of ours as JSON, with the version of its schema."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2, allow_nan=False) + "\n"


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json_text(document))
