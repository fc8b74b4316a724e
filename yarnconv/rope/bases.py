"""Numbers that people wrote, found again from what was computed with them: the shortest one that explains."""

import math
from collections.abc import Iterable

import numpy as np

from yarnconv.rope.observation import Observation
from yarnconv.rope.tables import Float64Array, plain_inv_freq

LONGEST = 17  # digits of a float64
# A base that the numbers leave open by more than that is not known; the widest that was met, 16-bit tables of
# 256 positions, leave 8e-5.
BASE_TOLERANCE = 1e-3
LARGEST_LOG_BASE = 34.0


def shortest(low: float, high: float) -> float | None:
    """The number of the fewest digits between two of one sign; None where they are the wrong way round."""
    if not low <= high:
        return None
    middle = (low + high) / 2
    for digits in range(LONGEST):
        number = float(f"{middle:.{digits}e}")
        if low <= number <= high:
            return number
    return middle


def digits(number: float) -> int:
    """Significant digits of a number as people write it."""
    mantissa = f"{number:.16e}".split("e")[0].replace(".", "").replace("-", "").rstrip("0")
    return max(len(mantissa), 1)


def within(made: Float64Array, observed: Observation) -> bool:
    """Whether frequencies are those that were observed, as far as those are known."""
    return bool((np.abs(made / observed.inv_freq - 1.0) <= observed.uncertainty).all())


def residual(made: Float64Array, observed: Observation) -> float:
    """The largest relative difference of a frequency."""
    return float(np.abs(made / observed.inv_freq - 1.0).max())


def plain_base(observed: Observation, *, interpolated: float = 1.0) -> float | None:
    """The shortest number that as theta explains every frequency, theta^(-2i/D) / interpolated for pair i;
    None where none does.
    """
    frequencies = observed.inv_freq * interpolated
    pairs = len(frequencies)
    if pairs < 2 or not (np.isfinite(frequencies).all() and (frequencies > 0).all()):
        return None
    if abs(frequencies[0] - 1.0) > observed.uncertainty[0]:
        return None
    index = np.arange(1, pairs)
    exponents = -np.log(frequencies[1:]) * pairs / index
    slack = observed.uncertainty[1:] * pairs / index
    low, high = float((exponents - slack).max()), float((exponents + slack).min())
    if not 0 <= low <= high <= LARGEST_LOG_BASE or high - low > 2 * BASE_TOLERANCE:
        return None
    return shortest(math.exp(low), math.exp(high))


def candidate_bases(observed: Observation, known: Iterable[float]) -> list[float]:
    """Bases that neighbouring pairs point to where a part of the frequencies was left alone or divided by one
    number: from the first two and from the last two, and those that are known.
    """
    frequencies, pairs = observed.inv_freq, len(observed.inv_freq)
    found = list(known)
    for first, second in ((0, 1), (pairs - 2, pairs - 1)):
        if pairs < 2 or not 0 < frequencies[second] < frequencies[first]:
            continue
        exponent = math.log(frequencies[first] / frequencies[second]) * pairs
        slack = (observed.uncertainty[first] + observed.uncertainty[second]) * pairs
        if 0 < exponent <= LARGEST_LOG_BASE:
            base = shortest(math.exp(exponent - slack), math.exp(exponent + slack))
            if base is not None:
                found.append(base)
    return list(dict.fromkeys(base for base in found if base > 1.0))


def ratios(observed: Observation, base: float) -> Float64Array:
    """By what each frequency of a plain model with this base was divided: float64[pairs]."""
    plain = plain_inv_freq(base, 2 * len(observed.inv_freq))
    return np.asarray(plain / observed.inv_freq)
