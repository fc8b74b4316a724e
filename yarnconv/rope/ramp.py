"""The ramp between frequencies that were left alone and those that were divided, solved for what made it."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from yarnconv.errors import BadInput
from yarnconv.rope.bases import ratios, shortest
from yarnconv.rope.observation import Observation
from yarnconv.rope.scaling import Llama3, Scaling, Yarn
from yarnconv.rope.tables import Float64Array, plain_inv_freq

WHOLE = 1e-3  # of a dimension: as near to a whole one as rounded numbers say
WHOLE_STEP = 0.999
FEWEST_BLENDED = 2  # pairs that a line goes through
USUAL_BETA_FAST = 32.0
LARGEST_CONTEXT = 2**31 - 1


def _blended(observed: Observation, base: float, factor: float) -> tuple[Float64Array, Float64Array]:
    """(indices of the pairs in between, how much of each was kept: 1 all, 0 nothing)."""
    by, slack = ratios(observed, base), observed.uncertainty
    kept = (1.0 / by - 1.0 / factor) / (1.0 - 1.0 / factor)
    room = 4.0 * slack / (1.0 - 1.0 / factor)
    inside = (kept > room) & (kept < 1.0 - room)
    return np.flatnonzero(inside).astype(np.float64), kept[inside]


def _line(x: Float64Array, y: Float64Array) -> tuple[float, float] | None:
    """(slope, intercept) of y over x; None where it is no slope at all."""
    slope, intercept = np.polyfit(x, y, 1)
    return (float(slope), float(intercept)) if abs(slope) > 1e-12 else None


def _written(number: float) -> float:
    """As people write it, where it is within a thousandth of that."""
    return shortest(number * (1 - 1e-3), number * (1 + 1e-3)) or number


def _usual_context(low: float, base: float, pairs: int) -> int:
    """The original context, in positions, in which the (fractional) index `low`, up to which pairs are left
    alone, turns as often as YaRN's usual beta_fast.
    """

    def context(dimension: float) -> float:
        return float(USUAL_BETA_FAST * 2.0 * math.pi * base ** (dimension / pairs))

    step = WHOLE_STEP if abs(low - round(low)) < WHOLE else 0.0  # rounded down: it may be any of a step's
    first = round(low) if step else low
    found = shortest(context(first), context(first + step)) or context(low)
    return int(min(max(found, 2.0), LARGEST_CONTEXT))


def _in_dimensions(
    index: Float64Array, kept: Float64Array, base: float, factor: float, pairs: int, context: int | None
) -> Iterator[Scaling]:
    """YaRN, whose ramp is a line in the index of the pair."""
    line = _line(index, kept)
    if line is None or line[0] >= 0:
        return
    slope, intercept = line
    low, high = (1.0 - intercept) / slope, -intercept / slope
    known = _usual_context(low, base, pairs) if context is None else context

    def beta(dimension: float) -> float:
        """Rotations in the original context at a (fractional) index of a pair."""
        return float(known / (2.0 * math.pi * base ** (dimension / pairs)))

    def yarn(fast: float, slow: float, truncate: bool) -> Yarn:
        return Yarn(
            theta=base,
            rotary_dim=2 * pairs,
            original_context=known,
            factor=factor,
            beta_fast=fast,
            beta_slow=slow,
            truncate=truncate,
        )

    if all(abs(edge - round(edge)) < WHOLE for edge in (low, high)):
        # rounded down and up: any betas do whose dimensions lie in the steps before
        first, last = round(low), round(high)
        fast = shortest(beta(first + WHOLE_STEP), beta(first)) or beta(first + 0.5)
        slow = shortest(beta(last), beta(last - WHOLE_STEP)) or beta(last - 0.5)
        yield yarn(fast, slow, truncate=True)
    yield yarn(_written(beta(low)), _written(beta(high)), truncate=False)
    yield yarn(beta(low), beta(high), truncate=False)


def _in_rotations(
    index: Float64Array, kept: Float64Array, base: float, factor: float, pairs: int, context: int | None
) -> Iterator[Scaling]:
    """Llama 3's, whose ramp is a line in rotations within the original context."""
    frequencies = plain_inv_freq(base, 2 * pairs)[index.astype(int)]
    line = _line(frequencies / (2.0 * math.pi), kept)
    if line is None or line[0] <= 0 or line[1] >= 0:
        return
    slope, intercept = line
    known = round(-slope / intercept) if context is None else context  # in which the lower end turns once
    low, high = -intercept / slope * known, (1.0 - intercept) / slope * known
    for rounded in (_written, float):
        yield Llama3(
            theta=base,
            rotary_dim=2 * pairs,
            original_context=known,
            factor=factor,
            low_freq_factor=rounded(low),
            high_freq_factor=rounded(high),
        )


def solve_ramp(observed: Observation, base: float, factor: float, contexts: Sequence[int]) -> list[Scaling]:
    """Scalings that the pairs in between would be of; whether they are is still to be seen.

    contexts: original ones that are likely, of which the first is believed: the numbers give its quotients
    with the betas and no more. Without any it is the one of which the betas would be the usual.
    """
    index, kept = _blended(observed, base, factor)
    if len(index) < FEWEST_BLENDED:
        return []
    context = contexts[0] if contexts else None
    found: list[Scaling] = []
    for made in (_in_dimensions, _in_rotations):
        made_of = made(index, kept, base, factor, len(observed.inv_freq), context)
        while True:
            try:
                found.append(next(made_of))
            except StopIteration:
                break
            except BadInput:
                break
    return found
