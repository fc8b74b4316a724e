"""JSON from strangers: size limits, clear errors, no duplicate keys where they could hide something."""

import json
from pathlib import Path
from typing import Any

from yarnconv.errors import BadInput

MEBIBYTE = 2**20


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} occurs twice")
    return found


def parse_json_object(data: bytes, where: str, *, unique_keys: bool = False) -> dict[str, Any]:
    """The JSON object in `data`; `where` names it in errors."""
    try:
        value = json.loads(data, object_pairs_hook=_no_duplicates if unique_keys else None)
    except RecursionError:
        raise BadInput("the JSON is nested too deeply", where=where) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInput(f"not valid JSON ({error})", where=where) from None
    if not isinstance(value, dict):
        raise BadInput(f"holds a JSON {type(value).__name__}, not an object", where=where)
    return value


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole file, refused above `limit` bytes."""
    try:
        if not path.is_file():
            raise BadInput("not a regular file" if path.exists() else "the file is missing", where=path.name)
        size = path.stat().st_size
        if size > limit:
            raise BadInput(f"{size} bytes is more than such a file can hold ({limit})", where=path.name)
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror})", where=path.name) from None


def read_json_object(path: Path, limit: int = 16 * MEBIBYTE) -> dict[str, Any]:
    """The JSON object in a file."""
    return parse_json_object(read_bytes(path, limit), path.name)
