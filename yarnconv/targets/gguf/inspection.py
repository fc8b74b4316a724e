"""What a GGUF carries of RoPE, as llama.cpp reads it: in numbers, by name where they have one, and what is
odd about it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from yarnconv.errors import BadInput, Inexpressible
from yarnconv.rope.identify import FACTOR_TOLERANCE, Clues, Fit, identify, temperature_of
from yarnconv.rope.mistakes import near_misses
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.scaling import LongRope, Scaling, Stretched
from yarnconv.rope.tables import plain_inv_freq
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.gguf.carried import (
    CarriedRope,
    check_readable,
    head_dim_of,
    plan_carried,
    positive,
    read_carried,
)
from yarnconv.targets.gguf.key_findings import taken_instead_findings, unread_findings
from yarnconv.targets.gguf.launch import KEY_SHIFT_WARNING
from yarnconv.targets.gguf.observed import ObservedGroup, observe
from yarnconv.targets.gguf.reader import GgufFile
from yarnconv.targets.gguf.rope import MAGNITUDE_TOLERANCE, RopeEncoding
from yarnconv.targets.gguf.rope_keys import ROPE_KEYS, WITHOUT_ROPE, RopeKeys
from yarnconv.targets.gguf.rope_limits import keys_of, keys_read
from yarnconv.targets.gguf.rope_reading import read_encoding
from yarnconv.targets.gguf.shown_keys import shown_keys
from yarnconv.targets.inspection.carried_rope import CarriedBucket, CarriedGroup, Claims, Inspected
from yarnconv.targets.inspection.findings import Finding, without_repeats
from yarnconv.targets.inspection.rope_findings import claim_findings, context_findings, group_findings
from yarnconv.targets.record import RECORD_KEY

RECORD = "its record"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What of an open file everything else follows from."""

    artefact: GgufFile
    keys: RopeKeys
    encoding: RopeEncoding
    context: int
    rotary_dim: int


def _named(artefact: GgufFile) -> tuple[CarriedRope | None, tuple[str, ...]]:
    """The RoPE by its name; or why it has none that this tool could extend."""
    try:
        carried = read_carried(artefact, keys_read(artefact, trust_generic_keys=True))
        return carried, carried.notes
    except Inexpressible as error:
        return None, (f"It cannot be extended: {error.where}: {error.what}.",)


def _clues(read: _Read, carried: CarriedRope | None, said: tuple[Scaling, ...]) -> Clues:
    """What the numbers are likely to be, the file's own word first."""
    own = () if carried is None else tuple(s for s in carried.rope.groups.values() if s is not None)
    original = read.encoding.original_context_length
    contexts = tuple(dict.fromkeys(c for c in (original, read.context) if c is not None and c > 1))
    misses = [miss for scaling in said for miss in near_misses(scaling, contexts)]
    return Clues(
        scalings=(*own, *said, *misses),
        bases=(read.encoding.freq_base,),
        contexts=contexts,
    )


def _longrope_group(read: _Read, observed: ObservedGroup) -> CarriedGroup:
    """Of two sets, which are what they are: nothing else says them."""
    plain = plain_inv_freq(read.encoding.freq_base, read.rotary_dim)
    with np.errstate(all="ignore"):
        short, long = (tuple((plain / o.inv_freq).tolist()) for o in observed.observations)
    original = read.encoding.original_context_length or read.context
    factor = observed.observations[0].attention_factor
    try:
        scaling = LongRope(
            theta=read.encoding.freq_base,
            rotary_dim=read.rotary_dim,
            original_context=original,
            factor=max(read.context / original, 1.0),
            short_factor=short,
            long_factor=long,
            attention_factor=factor,
        )
    except BadInput as error:
        where = f"{read.artefact.path.name}: {observed.source}"
        raise BadInput(error.what, where=where, fix=error.fix) from None
    fit = Fit(
        scaling=scaling,
        temperature=temperature_of(factor, replace(scaling, attention_factor=None), FACTOR_TOLERANCE),
        attention_factor=factor,
        residual=0.0,
    )
    return CarriedGroup(
        layers=observed.layers,
        source=observed.source,
        buckets=tuple(CarriedBucket(observation=one, fit=fit) for one in observed.observations),
    )


def _group(read: _Read, observed: ObservedGroup, clues: Clues) -> CarriedGroup:
    if len(observed.observations) > 1:
        return _longrope_group(read, observed)
    return CarriedGroup(
        layers=observed.layers,
        source=observed.source,
        buckets=tuple(
            CarriedBucket(observation=one, fit=identify(one, clues)) for one in observed.observations
        ),
    )


def _record_findings(claim: Claims, group: CarriedGroup) -> Iterator[Finding]:
    """What this tool wrote down and the keys do not carry."""
    for finding in claim_findings(claim, group):
        yield Finding(
            code="record-disagrees",
            severity="error",
            message=f"it was recorded otherwise than its keys say: {finding.message}",
            remedy="The file was edited after it was written: convert or extend it again.",
        )


def _findings(
    read: _Read, group: CarriedGroup, record: Claims, references: tuple[Claims, ...]
) -> Iterator[Finding]:
    yield from _record_findings(record, group)
    yield from unread_findings(read.artefact, read.keys)
    for reference in references:
        yield from claim_findings(reference, group)
    taken = tuple(taken_instead_findings(read.artefact, read.encoding, read.keys))
    yield from taken
    known = record.scaling is not None or any(claim.scaling is not None for claim in references)
    yield from group_findings(group, (), judge_temperature=not known)
    original = next((c.original_context for c in references if c.original_context), None)
    if len(group.buckets) == 1 and not any(finding.code == "original-from-extended" for finding in taken):
        fit = group.buckets[0].fit
        own = fit.scaling.original_context if isinstance(fit.scaling, Stretched) else None
        yield from context_findings(fit, original or own, read.context, "context_length")
    if read.artefact.architecture not in ROPE_KEYS:
        yield Finding(
            code="unknown-architecture",
            severity="warning",
            message=(
                f"nobody has looked up what llama.cpp's {read.artefact.architecture} architecture reads: the "
                "common keys are taken to count"
            ),
            remedy="Run `yarnconv check`, if the model is of a known family.",
        )
    factors = [bucket.observation.attention_factor for bucket in group.buckets]
    if not all(math.isclose(factor, 1.0, rel_tol=MAGNITUDE_TOLERANCE) for factor in factors):
        yield Finding(
            code="key-shift",
            severity="note",
            message=KEY_SHIFT_WARNING.split(":")[0],
            remedy="Run llama.cpp with --no-context-shift and without --cache-reuse.",
        )


def _details(artefact: GgufFile) -> dict[str, object]:
    """The keys of RoPE and of the context, as they stand in the file."""
    name = artefact.architecture
    shown = [key for key in artefact.packed if ".rope." in key]
    if RECORD_KEY in artefact.packed:
        shown.append("yarnconv.version")
    return shown_keys(artefact, (f"{name}.context_length", *shown))


def _title(artefact: GgufFile) -> str:
    parts = f", {len(artefact.parts)} files" if len(artefact.parts) > 1 else ""
    return f"{artefact.architecture}, {artefact.weight_type.lower()}{parts}"


def _identity(artefact: GgufFile) -> dict[str, object]:
    return {"architecture": artefact.architecture, "outtype": artefact.weight_type.lower()}


def inspect_gguf(artefact: GgufFile, references: tuple[Claims, ...] = ()) -> Inspected:
    """What it carries. references: what it is held against, if anything. Raises BadInput for keys that no
    runtime reads.
    """
    if artefact.architecture in WITHOUT_ROPE:
        note = f"llama.cpp's {artefact.architecture} architecture has no RoPE."
        return Inspected(
            target="gguf",
            title=_title(artefact),
            identity=_identity(artefact),
            groups=(),
            claims=references,
            details=_details(artefact),
            findings=(),
            notes=(note,),
        )
    keys = keys_of(artefact, trust_generic_keys=True)
    head_dim = head_dim_of(artefact)
    read = _Read(
        artefact=artefact,
        keys=keys,
        encoding=read_encoding(artefact, keys),
        context=positive(artefact, "context_length", 2**31 - 1),
        rotary_dim=positive(artefact, "rope.dimension_count", head_dim, head_dim),
    )
    check_readable(artefact, read.encoding, read.rotary_dim)
    carried, notes = _named(artefact)
    recorded = None if carried is None else carried.recorded
    record = Claims(source=RECORD, scaling=recorded)
    said = tuple(c.scaling for c in (record, *references) if c.scaling is not None)
    clues = _clues(read, carried, said)
    groups = tuple(
        _group(read, observed, clues) for observed in observe(artefact, read.encoding, read.rotary_dim, keys)
    )
    plan: RopePlan | None = None if carried is None else plan_carried(carried, RopeRequest())
    return Inspected(
        target="gguf",
        title=_title(artefact),
        identity=_identity(artefact),
        groups=groups,
        claims=(record, *references) if recorded is not None else references,
        details=_details(artefact),
        findings=without_repeats(_findings(read, groups[0], record, references)),
        plan=plan,
        notes=notes if plan is not None or keys.remark is None else (*notes, keys.remark),
    )
