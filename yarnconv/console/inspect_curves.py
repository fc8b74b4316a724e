"""What an artefact carries, and what it should, as curves to draw."""

from collections.abc import Iterator

import numpy as np

from yarnconv.console.figures import Curve
from yarnconv.rope.bases import candidate_bases
from yarnconv.rope.scaling import Scaling, Stretched, Unscaled
from yarnconv.rope.tables import buckets, plain_inv_freq
from yarnconv.targets.inspection.carried_rope import CarriedBucket, Claims, Inspected

ARTEFACT = "artefact"
LARGEST_FACTOR = 1e9  # on cos and sin, that can be drawn


def _carried(bucket: CarriedBucket, claims: tuple[Claims, ...]) -> Curve | None:
    """What was read; None of numbers that are none, or that no axis holds."""
    observed, scaling = bucket.observation, bucket.fit.scaling
    if not abs(observed.attention_factor) <= LARGEST_FACTOR:  # of NaN too
        return None
    if bucket.broken is not None or not (np.isfinite(observed.inv_freq) & (observed.inv_freq > 0)).all():
        return None
    said = [claim.scaling.theta for claim in claims if claim.scaling is not None]
    bases = [scaling.theta] if scaling is not None else [*said, *candidate_bases(observed, ())]
    if not bases:
        return None
    context = next((claim.context for claim in claims if claim.context), None)
    return Curve(
        name=ARTEFACT,
        inv_freq=observed.inv_freq,
        plain_inv_freq=plain_inv_freq(bases[0], 2 * len(observed.inv_freq)),
        attention_factor=observed.attention_factor,
        context=bucket.reach or context or _reached(scaling) or 1,
        factor=None if scaling is None or isinstance(scaling, Unscaled) else scaling.factor,
    )


def _reached(scaling: Scaling | None) -> int | None:
    if not isinstance(scaling, Stretched):
        return None
    return int(scaling.original_context * scaling.factor)


def _claimed(claims: tuple[Claims, ...]) -> Iterator[Curve]:
    """What is said by whoever says a scaling; the last is the reference's where there is one."""
    for claim in claims:
        if claim.scaling is None:
            continue
        tables = buckets(claim.scaling)[-1]
        yield Curve(
            name=claim.source,
            inv_freq=tables.inv_freq,
            plain_inv_freq=plain_inv_freq(claim.scaling.theta, claim.scaling.rotary_dim),
            attention_factor=tables.attention_factor,
            context=claim.context or _reached(claim.scaling) or 1,
            factor=tables.factor,
        )


def curves_of(facts: Inspected) -> list[Curve]:
    """The artefact's extended layers in their longest bucket, and of those that say something of it the last.
    Nothing where no curve can be drawn.
    """
    if not facts.groups or not facts.groups[0].buckets:
        return []
    own = _carried(facts.groups[0].buckets[-1], facts.claims)
    return [] if own is None else [own, *list(_claimed(facts.claims))[-1:]]


def original_context(facts: Inspected) -> int:
    """Positions seen in pre-training, as far as anyone says."""
    for claim in reversed(facts.claims):
        if claim.original_context is not None:
            return claim.original_context
    fits = [bucket.fit.scaling for group in facts.groups for bucket in group.buckets]
    return next((s.original_context for s in fits if isinstance(s, Stretched)), 1)
