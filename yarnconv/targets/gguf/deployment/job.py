"""What the files beside a GGUF are made of."""

from collections.abc import Collection
from dataclasses import dataclass

from yarnconv.plan import ConversionPlan
from yarnconv.targets.check_workflow import Reference
from yarnconv.targets.gguf.rope import RopeEncoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """served: the plan that runtimes are to be started with. carried: the file's own, a plain one where flags
    make the other of it. encoding, dtype: how the file says it, and what most of its weights are.

    stem: the GGUF's name without .gguf. model: the name of the file to open first. parts: of a split model.
    reference: what to check against. wanted: the names of `--emit`.
    """

    served: ConversionPlan
    carried: ConversionPlan
    encoding: RopeEncoding
    dtype: str
    stem: str
    model: str
    parts: int
    reference: Reference
    wanted: Collection[str]
