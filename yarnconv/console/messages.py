"""Errors, warnings, JSON."""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from yarnconv.errors import YarnconvError

SCHEMA_VERSION = 1


def print_error(error: YarnconvError) -> None:
    """What was found, where, what to do: to stderr."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    line = Text("error: ", style="bold red")
    if error.where:
        line.append(f"{error.where}: ", style="bold")
    console.print(line.append(f"{error.what}.", style="not bold default"))
    if error.fix:
        console.print(Text(error.fix, style="default"))


def print_warnings(console: Console, warnings: Iterable[str]) -> None:
    """One line each."""
    for warning in warnings:
        console.print(Text("warning: ", style="bold yellow").append(warning, style="not bold default"))


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    json.dump({"schema_version": SCHEMA_VERSION, **document}, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")
