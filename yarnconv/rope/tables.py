"""Frequencies and temperature of a scaling, in float64, rounded only by whoever writes them.

Shapes: a rotary dimension D has D/2 pairs; `inv_freq` is float64[D/2] in radians per position.
"""

import math
from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from yarnconv.rope.scaling import (
    DynamicNtk,
    DynamicYarn,
    Extended,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    Scaling,
    Unscaled,
    Yarn,
)

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
Regime = Literal["extrapolated", "blended", "interpolated"]

# Two frequencies closer than this are the same regime: well above float64 rounding (4e-15 measured
# against 50-digit arithmetic), well below any ramp step (1/64 of factor 1.0001).
REGIME_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RopeTables:
    """What an artefact must carry for one bucket.

    factor: the context ratio this bucket serves.
    inv_freq: float64[rotary_dim/2], radians per position.
    attention_factor: multiplies cos and sin, so attention logits carry its square.
    softmax_multiplier: multiplies the softmax scale of the whole head (1 outside MLA).
    """

    factor: float
    inv_freq: Float64Array
    attention_factor: float = 1.0
    softmax_multiplier: float = 1.0

    def cos(self, first: int, last: int) -> Float32Array:
        """Cos of positions first..last-1, float32[last - first, rotary_dim/2], the temperature folded in."""
        return (np.cos(self._angles(first, last)) * self.attention_factor).astype(np.float32)

    def sin(self, first: int, last: int) -> Float32Array:
        """Sin of positions first..last-1, likewise."""
        return (np.sin(self._angles(first, last)) * self.attention_factor).astype(np.float32)

    def cos_sin(self, positions: int) -> tuple[Float32Array, Float32Array]:
        """Cos and sin float32[positions, rotary_dim/2], the temperature folded in."""
        return self.cos(0, positions), self.sin(0, positions)

    def _angles(self, first: int, last: int) -> Float64Array:
        return np.arange(first, last, dtype=np.float64)[:, None] * self.inv_freq


def plain_inv_freq(theta: float, rotary_dim: int) -> Float64Array:
    """theta^(-2i/D) for every pair i."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    return np.asarray(np.power(float(theta), -exponents), dtype=np.float64)


def ntk_base(scaling: NtkAware, length: int | None = None) -> float:
    """The enlarged base: of the static form, or of transformers' dynamic form at `length`."""
    exponent = scaling.rotary_dim / (scaling.rotary_dim - 2)
    ratio = scaling.factor
    if isinstance(scaling, DynamicNtk):
        longest = max(length or scaling.original_context, scaling.original_context)
        ratio = scaling.factor * longest / scaling.original_context - (scaling.factor - 1.0)
    return float(scaling.theta * ratio**exponent)


def correction_range(scaling: Yarn) -> tuple[float, float]:
    """(low, high): the dimension indices between which the ramp runs.

    c(r) = D ln(L / (2 pi r)) / (2 ln theta) as in the authors' code and transformers'
    `_compute_yarn_parameters`; the paper's eq. 18 ramps in rotations instead and nobody deploys it.
    """

    def dimension(rotations: float) -> float:
        turns = scaling.original_context / (rotations * 2.0 * math.pi)
        return scaling.rotary_dim * math.log(turns) / (2.0 * math.log(scaling.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    return max(low, 0.0), min(high, scaling.rotary_dim - 1.0)


def _yarn_inv_freq(scaling: Yarn) -> Float64Array:
    low, high = correction_range(scaling)
    if low == high:
        high += 0.001  # as upstream: a ramp of no width would divide by zero
    pairs = np.arange(scaling.rotary_dim // 2, dtype=np.float64)
    interpolated = np.clip((pairs - low) / (high - low), 0.0, 1.0)
    plain = plain_inv_freq(scaling.theta, scaling.rotary_dim)
    return plain / scaling.factor * interpolated + plain * (1.0 - interpolated)


def magnitude(factor: float, coefficient: float, mscale: float = 1.0) -> float:
    """m(x) = coefficient * x * ln(factor) + 1, and 1 where nothing is extended (paper eq. 22)."""
    return coefficient * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def yarn_attention_factor(scaling: Yarn) -> float:
    """The constant on cos and sin: as given, or DeepSeek's quotient, or coefficient * ln s + 1."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        above = magnitude(scaling.factor, scaling.temperature_coefficient, scaling.mscale)
        return above / magnitude(scaling.factor, scaling.temperature_coefficient, scaling.mscale_all_dim)
    return magnitude(scaling.factor, scaling.temperature_coefficient)


def _yarn_tables(scaling: Yarn) -> RopeTables:
    softmax_multiplier = 1.0
    if scaling.softmax_mscale and scaling.mscale_all_dim:
        all_dim = magnitude(scaling.factor, scaling.temperature_coefficient, scaling.mscale_all_dim)
        softmax_multiplier = all_dim**2
    return RopeTables(
        factor=scaling.factor,
        inv_freq=_yarn_inv_freq(scaling),
        attention_factor=yarn_attention_factor(scaling),
        softmax_multiplier=softmax_multiplier,
    )


def _llama3_inv_freq(scaling: Llama3) -> Float64Array:
    """Transformers' `_compute_llama3_parameters`, in float64."""
    plain = plain_inv_freq(scaling.theta, scaling.rotary_dim)
    rotations = scaling.original_context * plain / (2.0 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((rotations - scaling.low_freq_factor) / span, 0.0, 1.0)
    return plain * (kept + (1.0 - kept) / scaling.factor)


def _longrope_tables(scaling: LongRope) -> tuple[RopeTables, RopeTables]:
    plain = plain_inv_freq(scaling.theta, scaling.rotary_dim)
    attention_factor = scaling.attention_factor
    if attention_factor is None:
        attention_factor = 1.0
        if scaling.factor > 1.0:
            growth = math.log(scaling.factor) / math.log(scaling.original_context)
            attention_factor = math.sqrt(1.0 + growth)
    return (
        RopeTables(
            factor=1.0,
            inv_freq=plain / np.asarray(scaling.short_factor),
            attention_factor=attention_factor,
        ),
        RopeTables(
            factor=scaling.factor,
            inv_freq=plain / np.asarray(scaling.long_factor),
            attention_factor=attention_factor,
        ),
    )


def bucket_factors(factor: float) -> tuple[float, ...]:
    """1, 2, 4, ... below the factor, then the factor itself."""
    doublings = [2.0**power for power in range(17) if 2.0**power < factor]
    return (*doublings, float(factor))


def _in_bucket(scaling: DynamicYarn, factor: float) -> DynamicYarn:
    """The scaling at a smaller factor. An attention factor given by hand belongs to the full factor
    and shrinks with the logarithm, as the formula's does, so that the bucket 1 stays plain RoPE.
    """
    attention_factor = scaling.attention_factor
    if attention_factor is not None:
        share = math.log(factor) / math.log(scaling.factor) if scaling.factor > 1.0 else 0.0
        attention_factor = 1.0 + (attention_factor - 1.0) * share
    return replace(scaling, factor=factor, attention_factor=attention_factor)


def static_scalings(scaling: Scaling) -> tuple[Scaling, ...]:
    """What each bucket of a dynamic scaling is by itself; a static one is its own only bucket.

    LongRope's two sets are no scaling that stands alone: it is given back whole.
    """
    if isinstance(scaling, DynamicNtk):
        return tuple(
            Unscaled(theta=ntk_base(scaling, _bucket_length(scaling, f)), rotary_dim=scaling.rotary_dim)
            for f in bucket_factors(scaling.factor)
        )
    if isinstance(scaling, DynamicYarn):
        static = [field.name for field in fields(Yarn)]
        inside = [_in_bucket(scaling, f) for f in bucket_factors(scaling.factor)]
        return tuple(Yarn(**{name: getattr(bucket, name) for name in static}) for bucket in inside)
    return (scaling,)


def frozen_scalings(scaling: Scaling) -> tuple[Scaling, ...]:
    """What each bucket is of, as a scaling that computes nothing else: of LongRope one with the bucket's set
    in the places of both.
    """
    if isinstance(scaling, LongRope):
        sets = (scaling.short_factor, scaling.long_factor)
        return tuple(replace(scaling, short_factor=one, long_factor=one) for one in sets)
    return static_scalings(scaling)


def bucket_scalings(scaling: Scaling) -> tuple[Scaling, ...]:
    """What each bucket is of, in the order of `buckets`: its own static scaling, or LongRope for both."""
    alone = static_scalings(scaling)
    return alone * (len(buckets(scaling)) // len(alone))


def _bucket_length(scaling: DynamicNtk, factor: float) -> int:
    return math.ceil(factor * scaling.original_context)


def buckets(scaling: Scaling) -> tuple[RopeTables, ...]:
    """The tables of a scaling: one where it is static, one per length regime where it is not.

    DynamicNtk's bucket b is its table at length b * original_context.
    """
    if isinstance(scaling, DynamicYarn):
        return tuple(_yarn_tables(_in_bucket(scaling, f)) for f in bucket_factors(scaling.factor))
    if isinstance(scaling, Yarn):
        return (_yarn_tables(scaling),)
    if isinstance(scaling, LongRope):
        return _longrope_tables(scaling)
    if isinstance(scaling, DynamicNtk):
        return tuple(
            RopeTables(
                factor=f,
                inv_freq=plain_inv_freq(ntk_base(scaling, _bucket_length(scaling, f)), scaling.rotary_dim),
            )
            for f in bucket_factors(scaling.factor)
        )
    plain = plain_inv_freq(scaling.theta, scaling.rotary_dim)
    if isinstance(scaling, Llama3):
        return (RopeTables(factor=scaling.factor, inv_freq=_llama3_inv_freq(scaling)),)
    if isinstance(scaling, NtkAware):
        enlarged = plain_inv_freq(ntk_base(scaling), scaling.rotary_dim)
        return (RopeTables(factor=scaling.factor, inv_freq=enlarged),)
    if isinstance(scaling, Linear):
        return (RopeTables(factor=scaling.factor, inv_freq=plain / scaling.factor),)
    return (RopeTables(factor=1.0, inv_freq=plain),)


def regimes(scaling: Scaling) -> tuple[Regime, ...]:
    """Per pair of dimensions, what the longest bucket does to its frequency: nothing, a division by
    the whole factor, or something between (a change of base lies between everywhere but at pair 0).
    """
    longest = buckets(scaling)[-1]
    plain = plain_inv_freq(scaling.theta, scaling.rotary_dim)
    ratios = plain / longest.inv_freq

    def regime(ratio: float) -> Regime:
        if abs(ratio - 1.0) <= REGIME_TOLERANCE:
            return "extrapolated"
        if ratio >= longest.factor * (1.0 - REGIME_TOLERANCE):
            return "interpolated"
        return "blended"

    return tuple(regime(float(ratio)) for ratio in ratios)


def count_regimes(scaling: Scaling) -> dict[Regime, int]:
    """How many pairs each regime holds."""
    counted = Counter(regimes(scaling))
    names: tuple[Regime, ...] = ("extrapolated", "blended", "interpolated")
    return {name: counted[name] for name in names}


def reached_context(original_context: int, factor: float) -> int:
    """Original context x factor, in whole positions.

    A factor such as 3.9 leaves a fraction of a position, which is dropped; one that is a quotient
    (target / original) must not lose a position to rounding, hence the nudge.
    """
    return math.floor(original_context * factor * (1.0 + 1e-12))


def extended_context(scaling: Extended) -> int:
    """The context that a scaling reaches, in whole positions."""
    return reached_context(scaling.original_context, scaling.factor)
