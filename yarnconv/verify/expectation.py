"""What an artefact is held against: MODEL and the rope options, never the artefact's own word.

What this tool recorded in an artefact when it wrote it only fills in options that were not given.
"""

from dataclasses import dataclass, replace
from typing import Literal

from yarnconv.checkpoint.checkpoint import Checkpoint
from yarnconv.plan import ConversionPlan, plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.record import recorded_request

Source = Literal["options", "provenance", "checkpoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """The expected plan. source: where the rope options came from."""

    plan: ConversionPlan
    source: Source


def expect(checkpoint: Checkpoint, request: RopeRequest, record: str | None) -> Expectation:
    """The plan that an artefact should carry. record: what it says it was made with, if it does."""
    source: Source = "options"
    if not request.asks_for_something:
        recorded = recorded_request(record) if record is not None else None
        source = "checkpoint" if recorded is None else "provenance"
        if recorded is not None:
            request = replace(recorded, use_profile=recorded.use_profile and request.use_profile)
    return Expectation(plan=plan_conversion(checkpoint, request), source=source)
