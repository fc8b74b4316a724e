"""The RoPE that an artefact was found to carry, whatever its kind: layers, their tables, what fits them."""

from collections.abc import Mapping
from dataclasses import dataclass

from yarnconv.plan import RopePlan
from yarnconv.rope.identify import Fit
from yarnconv.rope.observation import Observation
from yarnconv.rope.scaling import Scaling
from yarnconv.targets.findings import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedBucket:
    """reach: positions that its table holds; None where angles are computed as they are asked for. broken:
    what is wrong with the table, None where nothing is.
    """

    observation: Observation
    fit: Fit
    reach: int | None = None
    broken: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedGroup:
    """Layers that turn alike. layers: which, for people. source: the tensors or keys that say so. element:
    type of the numbers, where they are stored. buckets: none where the layers have no RoPE.
    """

    layers: str
    source: str
    buckets: tuple[CarriedBucket, ...]
    element: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What an artefact says of itself, or a reference says of it. scaling: of the extended layers. context:
    positions that clients are told. source: who says so, for people.
    """

    source: str
    scaling: Scaling | None = None
    original_context: int | None = None
    context: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What an artefact was found to be.

    target: gguf, onnx, tensorrt or checkpoint. title, identity: what it is, for people and in JSON. groups:
    the extended one first. claims: by whoever makes any. details: what stands in it, by its own names. plan:
    the one that it carries, where one can be named.
    """

    target: str
    title: str
    identity: Mapping[str, object]
    groups: tuple[CarriedGroup, ...]
    claims: tuple[Claims, ...]
    details: Mapping[str, object]
    findings: tuple[Finding, ...]
    plan: RopePlan | None = None
    notes: tuple[str, ...] = ()
