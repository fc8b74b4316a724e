"""The weights verdict: whether an artefact's tensors are the checkpoint's, as well as their type can say.

Float types are held value by value to their own rounding, and so are codes with a scale that are floats
themselves; MXFP4 of a checkpoint in MXFP4 is held to the very values. Other block types are held block by
block and tensor by tensor to bounds that stand above what ggml's quantisers were seen to do to twelve
distributions of weights, with and without an importance matrix, and below what a block of other weights shows
(1.0 and more); and value by value to their own block's step, from which rounding stays half a step away but
for a few. So weights that were fine-tuned or scaled by a few per cent are noticed too.
`python -m tests.bench.quantisation` prints the measurement. Weights that a type cannot hold fail: all but
zero in nineteen of twenty places (Q2_K, IQ3_S), or of three values (Q4_0, Q5_0, Q3_K).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from yarnconv.errors import one_of
from yarnconv.plan import ConversionPlan
from yarnconv.rope.tables import Float32Array
from yarnconv.verify.verdict import Verdict

Coverage = Literal["sampled", "all", "none"]
COVERAGES: tuple[Coverage, ...] = ("sampled", "all", "none")

SAMPLED_VALUES = 2**18  # of each tensor, in whole rows spread over it; smaller tensors are judged whole
BLOCK_VALUES = 2**20  # compared at once
SHOWN_PROBLEMS = 3
# What is wrong with a tensor that is right once its rows are put back (`hypotheses.wrong_orders`).
MOVED = "has the checkpoint's rows in another order: pairs of dimensions were permuted once too often, or not"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What a block type explains. block, tensor: ||stored - source|| / ||source|| of one block and of all
    values. beyond: share of the values that are further off than rounding to their block's steps can put
    them; None for a type without steps of one size. floor: root mean square error that remains however
    small the values are, because the scales are float16.
    """

    block: float
    tensor: float
    beyond: float | None
    floor: float = 1e-5


# (relative, absolute) error of one value: the type's last bit, and half its smallest number
FLOAT_TYPES = {"F32": (0.0, 0.0), "F16": (2.0**-10, 2.0**-24), "BF16": (2.0**-7, 2.0**-126)}
BLOCK_TYPES = {
    "Q8_0": Explained(block=0.023, tensor=0.02, beyond=0.01),
    "Q5_0": Explained(block=0.30, tensor=0.13, beyond=0.04),
    "Q5_1": Explained(block=0.25, tensor=0.10, beyond=0.03),
    "Q4_0": Explained(block=0.50, tensor=0.20, beyond=0.05),
    "Q4_1": Explained(block=0.50, tensor=0.20, beyond=0.03),
    "Q6_K": Explained(block=0.20, tensor=0.06, beyond=0.05, floor=3e-4),
    "Q5_K": Explained(block=0.15, tensor=0.08, beyond=0.08, floor=1e-4),
    "Q4_K": Explained(block=0.40, tensor=0.15, beyond=0.06, floor=1e-4),
    "Q3_K": Explained(block=0.60, tensor=0.27, beyond=0.08, floor=1e-4),
    "Q2_K": Explained(block=0.90, tensor=0.50, beyond=0.12, floor=1e-4),
    # symmetric blocks of 32, as `yarnconv onnx` writes them: rounded and nothing else, so that not one value
    # is further off (by a step at the end of the range, which has no +8). floor: float16's least scale
    "INT4": Explained(block=0.30, tensor=0.16, beyond=0.0, floor=2.0**-24),
    "IQ4_NL": Explained(block=0.50, tensor=0.18, beyond=None, floor=1e-4),
    "IQ4_XS": Explained(block=0.35, tensor=0.18, beyond=None, floor=1e-4),
    "IQ3_S": Explained(block=0.90, tensor=0.50, beyond=None, floor=1e-4),
    "MXFP4": Explained(block=0.45, tensor=0.27, beyond=None),
}
# Codes that are floats: (how far off a value may be, in spacings of the codes about its own; ||stored -
# source|| / ||source|| of all; floor as above). Rounding to E4M3 moves a value by half a spacing, a 17th of
# it at most where it is no subnormal one. floor: of the least codes with float16's least scale.
CODE_TYPES = {"FP8": (0.501, 0.06, 2.0**-33)}
# Rounding puts a value at most half a step off, and so much further as the block's float16 scale was rounded
# (SCALE_ROUNDING a step, where it is subnormal) and as the source came through bfloat16 on its way. What
# remains are values at the end of their block's range.
HALF_A_STEP = 0.55
SCALE_ROUNDING = 2.0**-25
BF16_ROUNDING = 2.0**-9


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorComparison:
    """One tensor against the checkpoint's.

    stored_as: None where the artefact has no such tensor. judged: values compared.
    relative: root mean square error over them, by the source's. problem: why it does not agree, None
    where it does. known: False where nothing is known of what the type explains. moved: whether its rows are
    the checkpoint's in the other order of pairs.
    """

    name: str
    stored_as: str | None
    judged: int = 0
    relative: float | None = None
    problem: str | None = None
    known: bool = True
    moved: bool = False


def sampled_rows(rows: int, width: int, coverage: Coverage, seed: int) -> Iterator[NDArray[np.intp]]:
    """Rows to compare of a matrix, in order, about BLOCK_VALUES values at a time."""
    wanted = max(1, SAMPLED_VALUES // width)
    if coverage == "all" or rows <= wanted:
        chosen = np.arange(rows)
    else:  # one row from each of as many strata
        offsets = np.random.default_rng(seed).random(wanted)
        chosen = ((np.arange(wanted) + offsets) * rows / wanted).astype(np.intp)
    step = max(1, BLOCK_VALUES // width)
    for first in range(0, len(chosen), step):
        yield chosen[first : first + step]


def beyond_rounding(found: Float32Array, source: Float32Array, steps: Float32Array) -> NDArray[np.bool_]:
    """Which values are further from the source than rounding to their block's steps can have put them."""
    with np.errstate(all="ignore"):
        # a code (counted from the smallest value) times its scale's rounding, and that of the smallest value
        allowed = HALF_A_STEP * steps + 2.0 * (np.abs(found) / steps + 1.0) * SCALE_ROUNDING
        allowed += np.abs(source) * BF16_ROUNDING
        beyond: NDArray[np.bool_] = (steps > 0) & ~(np.abs(found - source) <= allowed)
    return beyond


class WeightJudge:
    """Adds up the differences of one tensor and keeps the first thing that its type does not explain."""

    def __init__(self, stored_as: str, block: int, *, exact: bool = False) -> None:
        """exact: whether the source's values are of the very same type, so that none may differ."""
        self._type = stored_as
        self._block = block
        self._exact = exact
        self._squared_error = self._squared_source = 0.0
        self._stepped = self._beyond = 0
        self.judged = 0
        self.problem: str | None = None

    @property
    def _has_blocks(self) -> bool:
        return self._type in BLOCK_TYPES and not self._exact

    def _unexplained(
        self, found: Float32Array, source: Float32Array, steps: Float32Array | None
    ) -> NDArray[np.intp]:
        """Indices of values (of blocks, for a block type) that the type does not explain."""
        error = np.abs(found.astype(np.float64) - source)
        if self._exact:
            bad = found != source
        elif self._type in FLOAT_TYPES:
            relative, absolute = FLOAT_TYPES[self._type]
            bad = ~(error <= relative * np.abs(source) + absolute)
        elif self._type in CODE_TYPES:
            share, _, _ = CODE_TYPES[self._type]
            assert steps is not None
            bad = ~(error <= share * steps.astype(np.float64))
        else:
            explained = BLOCK_TYPES[self._type]
            errors = np.linalg.norm(error.reshape(-1, self._block), axis=1)
            norms = np.linalg.norm(source.astype(np.float64).reshape(-1, self._block), axis=1)
            bad = ~(errors <= explained.block * norms + explained.floor * self._block**0.5)
        return np.flatnonzero(bad)

    def add(
        self,
        found: Float32Array,
        source: Float32Array,
        rows: NDArray[np.intp],
        steps: Float32Array | None = None,
    ) -> None:
        """Compare flat values of whole rows. rows: which rows of the tensor they are. steps: how far apart
        the values are that each one's block can hold, where its type has such.
        """
        with np.errstate(all="ignore"):
            bad = self._unexplained(found, source, steps)
            error = found.astype(np.float64) - source
            self._squared_error += float(error @ error)
            self._squared_source += float(np.square(source, dtype=np.float64).sum())
            if steps is not None:
                self._stepped += int((steps > 0).sum())
                self._beyond += int(beyond_rounding(found, source, steps).sum())
        self.judged += len(found)
        if len(bad) and self.problem is None:
            size = self._block if self._has_blocks else 1
            first = slice(int(bad[0]) * size, (int(bad[0]) + 1) * size)
            with np.errstate(all="ignore"):
                relative = np.linalg.norm(error[first]) / np.linalg.norm(source[first])
            row = rows[first.start // (len(found) // len(rows))]
            self.problem = (
                f"{len(bad)} {'values' if size == 1 else 'blocks'} are not the checkpoint's, the first in "
                f"row {row} (relative error {relative:.2g})"
            )

    @property
    def relative(self) -> float:
        """Root of the squared error by the source's."""
        if self._squared_error == 0.0:
            return 0.0
        relative = (self._squared_error / self._squared_source) ** 0.5 if self._squared_source else np.inf
        return relative if np.isfinite(relative) else float(np.finfo(np.float64).max)

    def conclude(self) -> None:
        """Hold the whole tensor against its type."""
        if self.problem is not None or self._exact or self._type in FLOAT_TYPES:
            return
        rms = (self._squared_source / max(self.judged, 1)) ** 0.5
        if self._has_blocks:
            self._conclude_steps(BLOCK_TYPES[self._type], rms)
            bound, floor = BLOCK_TYPES[self._type].tensor, BLOCK_TYPES[self._type].floor
        else:
            _, bound, floor = CODE_TYPES[self._type]
        if not self.relative * rms <= bound * rms + floor:
            self.problem = (
                f"all in all not the checkpoint's: relative error {self.relative:.2g}, "
                f"{self._type} explains {bound:g}"
            )

    def _conclude_steps(self, explained: Explained, rms: float) -> None:
        beyond = self._beyond / max(self._stepped, 1)
        if explained.beyond is not None and rms > explained.floor and not beyond <= explained.beyond:
            self.problem = (
                f"all in all not the checkpoint's: {100 * beyond:.2g} % of its values are further off than "
                f"rounding to {self._type} explains"
            )


def conclude_weights(compared: Sequence[TensorComparison], surplus: Sequence[str]) -> Verdict:
    """What follows from all tensors. surplus: the artefact's tensors that are none of the checkpoint's."""
    problems = [f"{tensor.name} {tensor.problem}" for tensor in compared if tensor.problem is not None]
    problems += [f"{name} is none of the checkpoint's tensors" for name in surplus]
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        reason = "; ".join(problems[:SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        return Verdict(outcome="fails", reason=reason)
    if unknown := sorted({str(tensor.stored_as) for tensor in compared if not tensor.known}):
        reason = f"how far {', '.join(unknown)} may move a weight has not been measured"
        return Verdict(outcome="not_judged", reason=reason)
    millions = sum(tensor.judged for tensor in compared) / 1e6
    return Verdict(outcome="holds", reason=f"{len(compared)} tensors, {millions:.3g} M values compared")


def left_out(plan: ConversionPlan, coverage: Coverage) -> Verdict | None:
    """The verdict where nobody asked for one; None where the weights are to be judged."""
    if plan.checkpoint.described:
        return Verdict(outcome="not_judged", reason="no checkpoint was given to compare with", waived=True)
    if coverage == "none":
        return Verdict(outcome="not_judged", reason="left out (--weights none)", waived=True)
    return None


def parse_coverage(text: str) -> Coverage:
    """The `--weights` of that name."""
    return one_of(text, COVERAGES, "--weights")
