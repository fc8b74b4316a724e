"""The RoPE that an artefact was found to carry, whatever its kind: layers, their tables, what fits them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from yarnconv.rope.identify import FACTOR_TOLERANCE, Clues, Fit, identify
from yarnconv.rope.mistakes import near_misses
from yarnconv.rope.observation import Observation
from yarnconv.rope.scaling import LongRope, NtkAware, Scaling, Unscaled, Yarn
from yarnconv.rope.tables import static_scalings
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.inspection.findings import Finding
from yarnconv.targets.inspection.observed_table import ObservedTable


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
    type of the numbers, where they are stored. pairing: which dimensions turn together, None where nothing
    says it. buckets: none where the layers have no RoPE.
    """

    layers: str
    source: str
    buckets: tuple[CarriedBucket, ...]
    element: str | None = None
    pairing: str | None = None

    @property
    def method(self) -> str:
        """The method's name, by its numbers; of several buckets that of the dynamic one which they make."""
        fits = [bucket.fit.scaling for bucket in self.buckets]
        if len(fits) < 2:
            return self.buckets[0].fit.method if fits else "none"
        if all(isinstance(scaling, LongRope) for scaling in fits):
            return "longrope"
        if all(isinstance(scaling, Unscaled | NtkAware) for scaling in fits):
            return "dynamic-ntk"
        plain_or_yarn = all(isinstance(scaling, Unscaled | Yarn) for scaling in fits)
        return "dynamic-yarn" if plain_or_yarn else "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What an artefact says of itself, or a reference says of it. scaling: of the extended layers. context:
    positions that clients are told. pairing: which dimensions turn together, half or interleaved. kinds: how
    many kinds of layers turn each in its own way. source: who says so, for people.
    """

    source: str
    scaling: Scaling | None = None
    original_context: int | None = None
    context: int | None = None
    pairing: str | None = None
    kinds: int = 1


def clues_of(claims: Sequence[Claims], magnitude: float = FACTOR_TOLERANCE) -> Clues:
    """What is said, and what is often made of it, for whoever names numbers. magnitude: relative uncertainty
    of attention factors that were read.
    """
    said = [claim.scaling for claim in claims if claim.scaling is not None]
    parts = [part for scaling in said for part in static_scalings(scaling)]
    contexts = [c for claim in claims for c in (claim.original_context, claim.context) if c is not None]
    misses = [miss for scaling in parts for miss in near_misses(scaling, contexts)]
    return Clues(
        scalings=(*parts, *misses),
        bases=tuple(dict.fromkeys(s.theta for s in said)),
        contexts=tuple(dict.fromkeys(contexts)),
        magnitude=magnitude,
    )


def carried_bucket(table: ObservedTable, clues: Clues) -> CarriedBucket:
    """A table that was found, with the name of its numbers."""
    return CarriedBucket(
        observation=table.observation,
        fit=identify(table.observation, clues),
        reach=table.reach,
        broken=table.broken,
    )


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
