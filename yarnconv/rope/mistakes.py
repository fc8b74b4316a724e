"""What tools make of a scaling by mistake: scalings that differ from it in what is dropped or mixed up."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from yarnconv.errors import BadInput
from yarnconv.rope.scaling import Linear, NtkAware, Scaling, Stretched, Unscaled, Yarn, is_dynamic
from yarnconv.rope.tables import magnitude

USUAL_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}


def relogged(attention_factor: float, factor: float) -> tuple[float, float]:
    """A temperature that is put through 0.1 m ln s + 1 once more: as the m, and as the s. Both above 0."""
    return magnitude(factor, 0.1, attention_factor), 1.0 + 0.1 * math.log(attention_factor)


def near_misses(expected: Scaling, contexts: Sequence[int] = ()) -> tuple[Scaling, ...]:
    """Static scalings, the nearest first. contexts: others that may have been taken for the original one."""
    made = dict.fromkeys(_attempts(expected, contexts))
    return tuple(scaling for scaling in made if scaling != expected)


def _replaced(scaling: Yarn, **changes: object) -> Iterator[Yarn]:
    """One more scaling, or none where the change makes none."""
    try:
        yield replace(scaling, **changes)  # type: ignore[arg-type]
    except BadInput:
        return


def _attempts(expected: Scaling, contexts: Sequence[int]) -> Iterator[Scaling]:
    if isinstance(expected, Yarn) and not is_dynamic(expected):
        yield from _replaced(expected, truncate=not expected.truncate)
        yield from _replaced(expected, **USUAL_BETAS)
        yield from _replaced(expected, **USUAL_BETAS, truncate=not expected.truncate)
        for context in contexts:
            yield from _replaced(expected, original_context=context)
            yield from _replaced(expected, original_context=context, **USUAL_BETAS)
            yield from _replaced(expected, original_context=context, truncate=not expected.truncate)
            ratio = context / expected.original_context
            if ratio > 1.0:
                yield from _replaced(expected, factor=ratio)
    yield Unscaled(theta=expected.theta, rotary_dim=expected.rotary_dim)
    if isinstance(expected, Stretched) and expected.factor > 1.0 and expected.rotary_dim > 2:
        kinds: list[type[Linear | NtkAware | Yarn]] = [Linear, NtkAware]
        if expected.theta > 1.0:
            kinds.append(Yarn)
        for kind in kinds:
            yield kind(
                theta=expected.theta,
                rotary_dim=expected.rotary_dim,
                original_context=expected.original_context,
                factor=expected.factor,
            )
