"""What an artefact is held against: MODEL and the rope options, never the artefact's own word.

What this tool recorded in an artefact when it wrote it only fills in options that were not given.
"""

import json
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from yarnconv.checkpoint.checkpoint import Checkpoint
from yarnconv.errors import BadInput
from yarnconv.plan import ConversionPlan, plan_conversion
from yarnconv.rope.request import METHODS, RopeRequest

Source = Literal["options", "provenance", "checkpoint"]
_MAXIMUM_RECORD = 2**20  # characters
_WHERE = "yarnconv.plan: rope_options"
_KINDS: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "target_context": int,
    "original_context": int,
    "truncate": bool,
    "use_profile": bool,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """The expected plan. source: where the rope options came from."""

    plan: ConversionPlan
    source: Source


def _recorded_request(record: str) -> RopeRequest | None:
    """The rope options in an artefact's provenance; None where it records none."""
    unreadable = BadInput(
        "the recorded rope options cannot be read",
        where=_WHERE,
        fix="Give the rope options, such as --factor.",
    )
    if len(record) > _MAXIMUM_RECORD:
        raise unreadable
    try:
        document: Any = json.loads(record)
    except (ValueError, RecursionError):
        raise unreadable from None
    options = document.get("rope_options") if isinstance(document, dict) else None
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


def expect(checkpoint: Checkpoint, request: RopeRequest, record: str | None) -> Expectation:
    """The plan that an artefact should carry. record: what it says it was made with, if it does."""
    source: Source = "options"
    if not request.asks_for_something:
        recorded = _recorded_request(record) if record is not None else None
        source = "checkpoint" if recorded is None else "provenance"
        if recorded is not None:
            request = replace(recorded, use_profile=recorded.use_profile and request.use_profile)
    return Expectation(plan=plan_conversion(checkpoint, request), source=source)
