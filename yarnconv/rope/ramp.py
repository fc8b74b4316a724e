"""The ramp between frequencies that were left alone and those that were divided, solved for what made it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from yarnconv.errors import BadInput
from yarnconv.rope.bases import ratios, shortest
from yarnconv.rope.observation import Observation
from yarnconv.rope.scaling import Llama3, Scaling, Yarn
from yarnconv.rope.tables import Float64Array, plain_inv_freq

WHOLE = 1e-3  # of a dimension: as near to a whole one as rounded numbers say
WHOLE_STEP = 0.999
FEWEST_BLENDED = 2  # pairs that a line goes through
USUAL_BETAS = ((32.0, 1.0), (128.0, 2.0))  # YaRN's, and Yarn-Mistral's
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


def _roundest(low: float, high: float) -> int | None:
    """Of the whole numbers between two the one with most factors of two, as contexts have."""
    for power in range(31, -1, -1):
        step = 1 << power
        number = math.ceil(low / step) * step
        if 1 < number <= min(high, LARGEST_CONTEXT):
            return number
    return None


def _usual_context(first: int, last: int, base: float, pairs: int, betas: tuple[float, float]) -> int | None:
    """An original context in which these betas give a range from pair `first` to `last`, rounded outwards;
    None where none does.
    """

    def context(rotations: float, dimension: float) -> float:
        return float(rotations * 2.0 * math.pi * base ** (dimension / pairs))

    fast, slow = betas
    # an edge at either end of all dimensions may lie beyond it
    low = max(context(fast, first) if first > 0 else 0.0, context(slow, last - WHOLE_STEP))
    high = min(context(fast, first + WHOLE_STEP), context(slow, last) if last < 2 * pairs - 1 else math.inf)
    return _roundest(low, high)


def _in_dimensions(
    index: Float64Array, kept: Float64Array, base: float, factor: float, pairs: int, context: int | None
) -> Iterator[Scaling]:
    """YaRN, whose ramp is a line in the index of the pair."""
    line = _line(index, kept)
    if line is None or line[0] >= 0:
        return
    slope, intercept = line
    low, high = (1.0 - intercept) / slope, -intercept / slope

    def yarn(original: int, fast: float, slow: float, truncate: bool) -> Yarn:
        return Yarn(
            theta=base,
            rotary_dim=2 * pairs,
            original_context=original,
            factor=factor,
            beta_fast=fast,
            beta_slow=slow,
            truncate=truncate,
        )

    def original(rotations: float) -> int:
        """In which the pair `low` turns so often."""
        return round(float(rotations * 2.0 * math.pi * base ** (low / pairs)))

    first, last = round(low), round(high)
    is_whole = all(abs(edge - round(edge)) < WHOLE for edge in (low, high))
    # of the context and the betas only quotients are known: the usual betas are more likely than odd ones
    for betas in USUAL_BETAS:
        usual = _usual_context(first, last, base, pairs, betas) if is_whole else None
        if usual is not None:
            yield yarn(usual, *betas, truncate=True)
        exact = original(betas[0])
        if 1 < exact <= LARGEST_CONTEXT:
            yield yarn(exact, *betas, truncate=False)
    known = min(max(original(USUAL_BETAS[0][0]), 2), LARGEST_CONTEXT) if context is None else context

    def beta(dimension: float) -> float:
        """Rotations in the original context at a (fractional) index of a pair."""
        return float(known / (2.0 * math.pi * base ** (dimension / pairs)))

    if is_whole:  # any betas do whose dimensions lie in the steps before
        fast = shortest(beta(first + WHOLE_STEP), beta(first)) or beta(first + 0.5)
        slow = shortest(beta(last), beta(last - WHOLE_STEP)) or beta(last - 0.5)
        yield yarn(known, fast, slow, truncate=True)
    yield yarn(known, _written(beta(low)), _written(beta(high)), truncate=False)
    yield yarn(known, beta(low), beta(high), truncate=False)


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
    for solve in (_in_dimensions, _in_rotations):
        with suppress(BadInput):  # what comes behind numbers that no scaling can have is no likelier
            for scaling in solve(index, kept, base, factor, len(observed.inv_freq), context):
                found.append(scaling)  # noqa: PERF402 - those before an error count
    return found
