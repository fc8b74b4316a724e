"""Two sets of logits for the same tokens: how far apart, and whether that is too far."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarnconv.rope.tables import Float32Array, Float64Array
from yarnconv.verify.passages import Passage, Phase

# Relative error that float32 arithmetic may cause at a position whatever its angles. What rounded angles add
# is measured on the model itself (`tolerance`): it grows with the position and with the sharpness of the
# attention, to 1e-2 at 131072 positions where it is 1e-6 at 1000, so that no fixed rule serves both.
# Twice what is measured, because the disturbance is one of many that rounding can be. What right and wrong
# artefacts show: `python -m tests.bench.tolerance`.
TOLERANCE_BASE = 1e-4
TOLERANCE_PER_ROUNDING = 2.0
# A window can tell right from wrong only where rounding leaves room for it (a missing temperature moves
# logits by 0.2 and more where attention is sharp), and where a gross fault, every frequency doubled, shows.
LARGEST_TOLERANCE = 0.1
# What computes in a narrow type may lie so many times as far off as the same model in that type elsewhere.
# tests/verify/test_tensorrt_check.py measures it on what runs without a GPU: fp16 graphs on ONNX Runtime's
# CPU lie 0.39 to 1.77 times as far from the float32 reference as the reference does with products in fp16.
MARGIN = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What was found over the judged positions of one passage in one phase.

    relative: ||found - wanted|| / ||wanted|| over all of them; relative_max: of the worst position.
    tolerance: what each position's relative error is held to.
    kl_*: nats, of the softmax found from the softmax wanted.
    first_bad_position: the first position outside its tolerance, None where there is none.
    blind: why the window could not tell right from wrong, None where it could.
    """

    name: str
    phase: Phase
    bucket: int
    first: int
    last: int
    relative: float
    relative_max: float
    max_abs: float
    mean_abs: float
    kl_max: float
    kl_mean: float
    top1_agreement: float
    first_bad_position: int | None
    tolerance: float
    blind: str | None = None

    @property
    def holds(self) -> bool:
        """Whether every position lies within its tolerance, and one outside could have been seen."""
        return self.first_bad_position is None and self.blind is None


def _log_softmax(logits: Float64Array) -> Float64Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: Float64Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def _relative(difference: Float64Array, wanted: Float64Array) -> Float64Array:
    """Norms over the last axis, one by the other; 0 where both are 0."""
    above, below = np.linalg.norm(difference, axis=-1), np.linalg.norm(wanted, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(above == 0.0, 0.0, above / below)


def _finite(value: float) -> float:
    """Not a number, from a runtime that computed none, is as far off as can be said in JSON."""
    return float(value) if np.isfinite(value) else float(np.finfo(np.float64).max)


def position_errors(found: Float32Array, wanted: Float32Array) -> Float64Array:
    """||found - wanted|| / ||wanted|| at each position: float64[positions]."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _relative(found.astype(np.float64) - wanted, wanted.astype(np.float64))


def tolerance(wanted: Float32Array, disturbed: Float32Array) -> float:
    """The relative error allowed, from the reference's logits and those with its angles disturbed by as much
    as the runtime rounds them.
    """
    return TOLERANCE_BASE + TOLERANCE_PER_ROUNDING * float(position_errors(disturbed, wanted).max())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharpness:
    """What a passage can tell on its model. allowed: the tolerance. blind: why it can tell nothing."""

    allowed: float
    blind: str | None = None


def sharpness(wanted: Float32Array, rounded: Float32Array, doubled: Float32Array) -> Sharpness:
    """From the reference's logits, those with rounded angles, and those with every frequency doubled."""
    allowed = tolerance(wanted, rounded)
    if not allowed <= LARGEST_TOLERANCE:
        return Sharpness(
            allowed=allowed,
            blind=f"rounded angles alone move these logits by {allowed / TOLERANCE_PER_ROUNDING:.1g}",
        )
    if not position_errors(doubled, wanted).max() > allowed:
        return Sharpness(allowed=allowed, blind="no rotation shows in these tokens: give others")
    return Sharpness(allowed=allowed)


def narrowed(exact: Sharpness, narrow: Float32Array, wide: Float32Array, dtype: str) -> Sharpness:
    """What a passage can tell where one side computes in a narrow type. exact: where none does. narrow, wide:
    logits of the same model in that type and in float32.
    """
    noise = float(position_errors(narrow, wide).max())
    allowed = exact.allowed + MARGIN * noise
    if exact.blind is None and not allowed <= LARGEST_TOLERANCE:
        return Sharpness(allowed=allowed, blind=f"{dtype} alone moves these logits by {noise:.1g}")
    return Sharpness(allowed=allowed, blind=exact.blind)


def compare_logits(
    name: str,
    phase: Phase,
    positions: NDArray[np.int64],
    found: Float32Array,
    wanted: Float32Array,
    *,
    sharpness: Sharpness,
    bucket: int = 0,
) -> Window:
    """Hold float32[positions, vocabulary] against another. A NaN is outside every tolerance."""
    with np.errstate(invalid="ignore", over="ignore"):
        computed, expected = found.astype(np.float64), wanted.astype(np.float64)
        difference = computed - expected
        each = _relative(difference, expected)
        within = each <= sharpness.allowed  # False for NaN
        log_found, log_wanted = _log_softmax(computed), _log_softmax(expected)
        kl = (np.exp(log_wanted) * (log_wanted - log_found)).sum(axis=-1)
        return Window(
            name=name,
            phase=phase,
            bucket=bucket,
            first=int(positions[0]),
            last=int(positions[-1]),
            relative=_finite(_relative(difference.reshape(1, -1), expected.reshape(1, -1))[0]),
            relative_max=_finite(each.max()),
            max_abs=_finite(np.abs(difference).max()),
            mean_abs=_finite(np.abs(difference).mean()),
            kl_max=_finite(kl.max()),
            kl_mean=_finite(kl.mean()),
            top1_agreement=float((computed.argmax(axis=-1) == expected.argmax(axis=-1)).mean()),
            first_bad_position=None if within.all() else int(positions[np.argmin(within)]),
            tolerance=_finite(sharpness.allowed),
            blind=sharpness.blind,
        )


def compare_passage(
    passage: Passage, found: Float32Array, wanted: Float32Array, *, sharpness: Sharpness
) -> list[Window]:
    """One window for each phase of a passage."""
    positions = passage.judged_positions
    return [
        compare_logits(
            passage.name,
            phase,
            positions[part],
            found[part],
            wanted[part],
            sharpness=sharpness,
            bucket=passage.bucket,
        )
        for phase, part in passage.phases()
    ]
