"""What this tool recorded in an artefact of how it made it. It is never evidence for the artefact."""

import json
from dataclasses import fields
from typing import Any

from yarnconv.errors import BadInput
from yarnconv.rope.request import METHODS, RopeRequest

RECORD_KEY = "yarnconv.plan"  # of a GGUF's metadata and an ONNX model's
_MAXIMUM_RECORD = 2**20  # characters
_WHERE = "yarnconv.plan: rope_options"
_KINDS: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "target_context": int,
    "original_context": int,
    "truncate": bool,
    "use_profile": bool,
}


def _unreadable() -> BadInput:
    return BadInput(
        "the recorded rope options cannot be read",
        where=_WHERE,
        fix="Give the rope options, such as --factor.",
    )


def read_record(record: str) -> dict[str, Any]:
    """The record's document; empty where it is no object. Raises BadInput where it is no JSON."""
    if len(record) > _MAXIMUM_RECORD:
        raise _unreadable()
    try:
        document: Any = json.loads(record)
    except (ValueError, RecursionError):
        raise _unreadable() from None
    return document if isinstance(document, dict) else {}


def recorded_request(record: str) -> RopeRequest | None:
    """The rope options in an artefact's provenance; None where it records none."""
    unreadable = _unreadable()
    options = read_record(record).get("rope_options")
    if options is None:
        return None
    names = {field.name for field in fields(RopeRequest)}
    if not isinstance(options, dict) or not options.keys() <= names:
        raise unreadable
    for name, value in options.items():
        kind = _KINDS.get(name, (int, float))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise unreadable
    if options.get("method", "auto") not in METHODS:
        raise unreadable
    return RopeRequest(**options)
