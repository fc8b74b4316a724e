"""A check as a few lines of Markdown, where GitHub Actions shows them: appended to $GITHUB_STEP_SUMMARY."""

import os
from pathlib import Path

from rich.console import Console

from yarnconv.checkpoint.json_files import MEBIBYTE
from yarnconv.console.html_report import result_values
from yarnconv.console.messages import print_warnings, printable
from yarnconv.targets.templates import render
from yarnconv.verify.result import CheckResult

VARIABLE = "GITHUB_STEP_SUMMARY"
MOST_BYTES = MEBIBYTE  # of a step; GitHub shows nothing of a longer one
MOST_ROWS = 100  # of one table
TOO_LONG = "\nThe summary is cut here: GitHub shows no more than 1 MiB.\n"


def step_summary(result: CheckResult) -> str:
    """The Markdown, whole."""
    return render("report/summary.md", {**result_values(result), "most_rows": MOST_ROWS})


def _within(text: str, room: int) -> bytes:
    """The text in UTF-8, cut after a whole line where there is no room for all of it."""
    data = text.encode()
    if len(data) <= room:
        return data
    kept = data[: max(room - len(TOO_LONG.encode()), 0)]
    return kept[: kept.rfind(b"\n") + 1] + TOO_LONG.encode() if kept else b""


def append_step_summary(result: CheckResult) -> None:
    """Append it, where the variable says. That it does not succeed is a warning: the verdict stands."""
    place = os.environ.get(VARIABLE)
    if not place:
        return
    path = Path(place)
    try:
        if path.exists() and not path.is_file():
            raise OSError("is no regular file")
        used = path.stat().st_size if path.exists() else 0
        data = _within(step_summary(result), MOST_BYTES - used)
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        why = error.strerror or str(error)
        print_warnings(console, [f"no step summary was written to {printable(place)}: {why}"])
