"""By what a report or a picture is known as one that was written here: only such a file gives way to a new
one. Its own bytes are asked, not its name: beside an artefact lie JSON and pictures of other people's.
"""

import re
from pathlib import Path

from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.errors import BadInput

REPORT, FIGURE = "yarnconv check", "yarnconv inspect"  # what made it, as the forms below say that
_LOOKED_AT = 4096  # bytes from the beginning: no mark stands further on
_SUITES = re.compile(rb"\s*(<\?xml[^>]*\?>)?\s*<testsuites name=" + f'"{REPORT}"'.encode())
_PNG = b"\x89PNG\r\n\x1a\n"


def _generator(maker: str) -> bytes:
    """The element of a page that the templates write."""
    return f'<meta name="generator" content="{maker}">'.encode()


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LOOKED_AT)


def _is_report_document(path: Path) -> bool:
    """Whether it is `check --json` of this or another version."""
    try:
        document = read_json_object(path)
    except BadInput:
        return False
    version = document.get("schema_version")
    return type(version) is int and isinstance(document.get("verdicts"), dict) and "parity" in document


def is_report(path: Path) -> bool:
    """Whether a file is a report of ours in any of its forms, or empty."""
    begins = _beginning(path)
    if begins.lstrip().startswith(b"{"):
        return _is_report_document(path)
    return not begins or _SUITES.match(begins) is not None or _generator(REPORT) in begins


def is_figure(path: Path) -> bool:
    """Whether a file is a picture of ours in any of its forms, or empty."""
    begins = _beginning(path)
    if begins.startswith(_PNG):
        return b"tEXtSoftware\x00" + FIGURE.encode() in begins
    drawn = b"<svg " in begins and f"<dc:title>{FIGURE}</dc:title>".encode() in begins
    return not begins or drawn or _generator(FIGURE) in begins
