"""The method that explains frequencies and a temperature that were observed, whatever their owner calls it.

What is likely is tried first (what the artefact says of itself, the field's defaults), then the numbers are
solved for what nobody said. A scaling is named only if every frequency lies within its uncertainty.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from yarnconv.errors import BadInput
from yarnconv.rope.bases import candidate_bases, digits, plain_base, ratios, residual, shortest, within
from yarnconv.rope.mistakes import relogged
from yarnconv.rope.observation import Observation
from yarnconv.rope.ramp import USUAL_BETAS, solve_ramp
from yarnconv.rope.scaling import (
    MAXIMUM_FACTOR,
    DynamicNtk,
    DynamicYarn,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    Scaling,
    Stretched,
    Unscaled,
    Yarn,
    method_name,
)
from yarnconv.rope.tables import buckets, yarn_attention_factor

# said: by someone. usual: it follows if the betas are the usual ones. unknown: the numbers do not hold it.
Context = Literal["said", "usual", "unknown"]
# none: 1 where nothing is extended. full: as the method's formula has it. missing: 1 where it should not be.
# twice: its square. relogged: put through the logarithm again. other: some other number.
Temperature = Literal["none", "full", "missing", "twice", "relogged", "other"]

COMMON_BASES = (1e4, 5e5, 1e6, 5e6, 1e7, 1.5e5, 5e4, 8e6, 2.5e5, 1e5, 2e6, 3e6, 1e8)
COMMON_CONTEXTS = tuple(2**power for power in range(6, 21))
COMMON_FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
# (factor, low_freq_factor, high_freq_factor, original context) of Llama 3.1 and 3.2
LLAMA3 = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))
ENLARGING = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 40.0, 64.0)
FACTOR_DIGITS = 3  # of a factor that is believed to explain a base that nobody names
FACTOR_TOLERANCE = 1e-5  # of a factor read from float32 numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Clues:
    """What is said of an artefact, to be tried first. scalings: whole ones. bases, contexts: thetas and
    original contexts, the most likely first. magnitude: relative uncertainty of the attention factor.
    """

    scalings: tuple[Scaling, ...] = ()
    bases: tuple[float, ...] = ()
    contexts: tuple[int, ...] = ()
    magnitude: float = FACTOR_TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """scaling: the one that the frequencies are of, with the attention factor that was observed; None where
    none explains them. residual: largest relative difference of a frequency from it. tolerance: relative, to
    which the attention factor is known. context: how its original context is known.
    """

    scaling: Scaling | None
    temperature: Temperature
    attention_factor: float
    residual: float | None
    tolerance: float = FACTOR_TOLERANCE
    context: Context = "said"

    @property
    def method(self) -> str:
        """The method's name, unknown where there is none."""
        return "unknown" if self.scaling is None else method_name(self.scaling)


def _alternatives(clues: Clues, base: float, pairs: int, factors: list[float]) -> Iterator[Scaling]:
    """YaRN's and llama3's of one base with the numbers that are likely."""
    contexts = tuple(dict.fromkeys((*clues.contexts, *COMMON_CONTEXTS)))
    said = [s for s in clues.scalings if isinstance(s, Yarn)]
    betas = tuple(dict.fromkeys((*((s.beta_fast, s.beta_slow) for s in said), *USUAL_BETAS)))
    groups = (clues.contexts, tuple(c for c in contexts if c not in clues.contexts))
    for group, truncate in product(groups, (True, False)):
        for (fast, slow), context, factor in product(betas, group, factors):
            yield Yarn(
                theta=base,
                rotary_dim=2 * pairs,
                original_context=context,
                factor=factor,
                beta_fast=fast,
                beta_slow=slow,
                truncate=truncate,
            )
    for factor, low, high, context in LLAMA3:
        yield Llama3(
            theta=base,
            rotary_dim=2 * pairs,
            original_context=context,
            factor=factor,
            low_freq_factor=low,
            high_freq_factor=high,
        )


def _explains(scaling: Scaling, observed: Observation) -> bool:
    if isinstance(scaling, DynamicNtk | DynamicYarn) or scaling.rotary_dim != 2 * len(observed.inv_freq):
        return False
    return any(within(tables.inv_freq, observed) for tables in buckets(scaling))


def _shortest_factor(ratio: float, slack: float) -> float | None:
    return shortest(ratio * (1 - slack), ratio * (1 + slack))


def _enlarged(base: float, observed: Observation, clues: Clues) -> NtkAware | None:
    """NTK-aware scaling, where the base is no number that anyone would write but becomes one that way."""
    pairs = len(observed.inv_freq)
    slack = float(observed.uncertainty.max()) * pairs
    for known in dict.fromkeys((*clues.bases, *COMMON_BASES)):
        if pairs < 2 or known >= base:
            continue
        exponent = (pairs - 1) / pairs
        factor = _shortest_factor((base / known) ** exponent, slack)
        # a base that is round itself is one, unless the model is known to have another
        sought = known in clues.bases or (digits(base) > FACTOR_DIGITS and factor in ENLARGING)
        if factor is not None and sought and 1.0 < factor <= 256 and digits(factor) <= FACTOR_DIGITS:
            context = clues.contexts[0] if clues.contexts else COMMON_CONTEXTS[-1]
            return NtkAware(theta=known, rotary_dim=2 * pairs, original_context=context, factor=factor)
    return None


def _one_number(observed: Observation, clues: Clues) -> Scaling | None:
    """Plain RoPE, or one that differs from it by a single number."""
    pairs = len(observed.inv_freq)
    context = clues.contexts[0] if clues.contexts else COMMON_CONTEXTS[-1]
    if (base := plain_base(observed)) is not None:
        enlarged = None if base in clues.bases else _enlarged(base, observed, clues)
        return enlarged or Unscaled(theta=base, rotary_dim=2 * pairs)
    factor = _shortest_factor(1.0 / float(observed.inv_freq[0]), float(observed.uncertainty[0]))
    if factor is not None and 1.0 < factor <= MAXIMUM_FACTOR:
        base = plain_base(observed, interpolated=factor)
        if base is not None:
            return Linear(theta=base, rotary_dim=2 * pairs, original_context=context, factor=factor)
    return None


def _by_parts(observed: Observation, clues: Clues) -> Scaling | None:
    """Frequencies of which some were left alone and others divided."""
    pairs = len(observed.inv_freq)
    bases = candidate_bases(observed, (*(s.theta for s in clues.scalings), *clues.bases))
    solved = []
    for base in bases:
        by = ratios(observed, base)
        slack = float(observed.uncertainty.max())
        if by[-1] <= 1.0 + slack or (by < 1.0 - 2 * observed.uncertainty).any():
            continue
        factor = _shortest_factor(float(by[-1]), float(observed.uncertainty[-1]))
        said = [s.factor for s in clues.scalings if isinstance(s, Stretched)]
        read = [factor] if factor is not None and 1.0 < factor <= MAXIMUM_FACTOR else []
        factors = list(dict.fromkeys((*read, *said, *COMMON_FACTORS)))
        for scaling in _alternatives(clues, base, pairs, factors):
            if _explains(scaling, observed):
                return scaling
        solved += [s for f in factors for s in solve_ramp(observed, base, f, clues.contexts)]
    return next((scaling for scaling in solved if _explains(scaling, observed)), None)


def _close(one: float, other: float, tolerance: float) -> bool:
    return math.isclose(one, other, rel_tol=tolerance)


def temperature_of(attention_factor: float, scaling: Scaling | None, tolerance: float) -> Temperature:
    """What an attention factor is of a scaling's. tolerance: relative, of what was observed."""

    def is_(value: float) -> bool:
        return _close(attention_factor, value, tolerance)

    if not isinstance(scaling, Yarn | LongRope):
        return "none" if is_(1.0) else "other"
    if isinstance(scaling, LongRope):
        return "full" if is_(buckets(scaling)[-1].attention_factor) else "other"
    formula = yarn_attention_factor(replace(scaling, attention_factor=None))
    if scaling.factor == 1.0:
        return "none" if is_(1.0) else "other"
    if is_(formula):
        return "full"
    if is_(1.0):
        return "missing"
    if is_(formula**2):
        return "twice"
    if any(map(is_, relogged(formula, scaling.factor))):
        return "relogged"
    return "other"


def _with_softmax(scaling: Scaling, observed: Observation) -> Scaling:
    """DeepSeek's: a pair of equal mscales, which leaves cos and sin alone and acts on the softmax scale."""
    multiplier = observed.softmax_multiplier
    if multiplier is None or multiplier <= 0 or _close(multiplier, 1.0, FACTOR_TOLERANCE):
        return scaling
    if not isinstance(scaling, Yarn) or scaling.factor == 1.0:
        return scaling
    if _close(buckets(scaling)[0].softmax_multiplier, multiplier, FACTOR_TOLERANCE):
        return scaling
    slope = (math.sqrt(multiplier) - 1.0) / (0.1 * math.log(scaling.factor))
    mscale = _shortest_factor(slope, FACTOR_TOLERANCE)
    try:
        return replace(scaling, mscale=mscale, mscale_all_dim=mscale, softmax_mscale=True)
    except BadInput:
        return scaling


def _with_factor(scaling: Scaling, attention_factor: float, temperature: Temperature) -> Scaling:
    """The scaling with the attention factor that was observed."""
    if not isinstance(scaling, Yarn):
        return scaling
    if temperature == "full":  # whatever is said of it
        return replace(scaling, attention_factor=None)
    own = yarn_attention_factor(scaling)
    if _close(own, attention_factor, FACTOR_TOLERANCE):
        return scaling
    try:
        return replace(scaling, attention_factor=1.0 if temperature == "missing" else attention_factor)
    except BadInput:
        return scaling


def _residual(scaling: Scaling, observed: Observation) -> float:
    """Of longrope's two sets the nearer."""
    return min(residual(tables.inv_freq, observed) for tables in buckets(scaling))


def _context(scaling: Scaling | None, clues: Clues) -> Context:
    """How the original context of a scaling that was found is known."""
    if scaling is None or isinstance(scaling, Unscaled):
        return "unknown"
    if scaling.original_context in clues.contexts or scaling in clues.scalings:
        return "said"
    return "usual" if isinstance(scaling, Yarn | Llama3) else "unknown"


def identify(observed: Observation, clues: Clues) -> Fit:
    """Name what was observed."""
    scaling: Scaling | None = None
    numbers = observed.inv_freq
    usable = len(numbers) > 0 and np.isfinite(numbers).all() and (numbers > 0).all()
    if usable:
        said = (s for s in clues.scalings if _explains(s, observed))
        scaling = next(said, None) or _one_number(observed, clues) or _by_parts(observed, clues)
    if isinstance(scaling, Stretched) and scaling.factor == 1.0:  # a bucket for what is not extended
        scaling = Unscaled(theta=scaling.theta, rotary_dim=scaling.rotary_dim)
    if scaling is not None:
        scaling = _with_softmax(scaling, observed)
    factor = observed.attention_factor
    temperature = temperature_of(factor, scaling, clues.magnitude)
    return Fit(
        scaling=None if scaling is None else _with_factor(scaling, factor, temperature),
        temperature=temperature,
        attention_factor=factor,
        residual=None if scaling is None else _residual(scaling, observed),
        tolerance=clues.magnitude,
        context=_context(scaling, clues),
    )
