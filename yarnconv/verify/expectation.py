"""What an artefact is held against: MODEL, or its config.json, and the rope options, never the artefact's own
word.

What this tool recorded in an artefact when it wrote it only fills in options that were not given.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from yarnconv.checkpoint.checkpoint import Checkpoint, describe_checkpoint, open_checkpoint
from yarnconv.plan import ConversionPlan, plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.record import recorded_request

Source = Literal["options", "provenance", "checkpoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """The expected plan. source: where the rope options came from."""

    plan: ConversionPlan
    source: Source


@contextmanager
def open_reference(path: Path) -> Iterator[Checkpoint]:
    """A checkpoint's directory, or a config.json alone, with which nothing can be said of weights."""
    if path.is_file():
        yield describe_checkpoint(path)
        return
    with open_checkpoint(path) as checkpoint:
        yield checkpoint


def expect(checkpoint: Checkpoint, request: RopeRequest, record: str | None) -> Expectation:
    """The plan that an artefact should carry. record: what it says it was made with, if it does."""
    source: Source = "options"
    if not request.asks_for_something:
        recorded = recorded_request(record) if record is not None else None
        source = "checkpoint" if recorded is None else "provenance"
        if recorded is not None:
            request = replace(recorded, use_profile=recorded.use_profile and request.use_profile)
    return Expectation(plan=plan_conversion(checkpoint, request), source=source)
