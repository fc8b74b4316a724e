"""What one check of an extended checkpoint works on: the plan, the artefact, and what is run through it."""

from dataclasses import dataclass

from yarnconv.checkpoint.checkpoint import Checkpoint
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Progress
from yarnconv.verify.case import CheckOptions
from yarnconv.verify.passages import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """plan: the expected one. tokens: int64 ids to run. layers: how many the structure is judged with."""

    plan: ConversionPlan
    artefact: Checkpoint
    tokens: Tokens
    layers: int
    options: CheckOptions
    progress: Progress
