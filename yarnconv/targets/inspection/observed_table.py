"""Tables of cos and sin as strangers write them, read for what they turn by: nothing of them is believed.

A table holds a cos(kw) and a sin(kw) in row k, for one frequency w of each pair and one factor a. Each row is
held against the rows before it, so that it is known how far the table follows, and where it stops.
"""

from dataclasses import dataclass

import numpy as np

from yarnconv.checkpoint.floats import convert_floats, to_float32
from yarnconv.rope.observation import Observation
from yarnconv.rope.tables import Float32Array, Float64Array
from yarnconv.targets.onnx.rope_comparison import ANGLE_ROUNDING, TABLE_VALUES, VALUE_ROUNDING, Table

# of a value that was rounded to the type it is stored in, after float32
ROUNDINGS = {
    "FLOAT": VALUE_ROUNDING,
    "FLOAT16": VALUE_ROUNDING + 2.0**-11,
    "BFLOAT16": VALUE_ROUNDING + 2.0**-8,
}
SMALLEST = {"FLOAT": 0.0, "FLOAT16": 2.0**-25, "BFLOAT16": 0.0}  # half a step where the type's steps are even
NARROW = {"BFLOAT16": "BF16", "FLOAT16": "F16"}  # the coarsest first
# of an angle made in float32 of a position, a frequency and what positions are divided by: two roundings
STEP_ROUNDING = 2.0**-23
LEAST_FACTOR, MOST_FACTOR = 0.25, 8.0  # of what is taken for an attention factor
MOST_BUCKETS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedTable:
    """One set of frequencies. reach: positions from 0 that the table holds and that follow them, None where
    the angles are computed at run time. broken: where and why the table stops following, for people.
    precision: the narrowest ONNX type that holds its values exactly, whatever they are stored as.
    """

    reach: int | None
    observation: Observation
    broken: str | None = None
    precision: str = "FLOAT"


def stored_precision(values: Float32Array, element: str) -> str:
    """The narrowest float type that holds every value exactly: what was rounded to it before it was stored
    in a wider one is no better for that.
    """
    for name, dtype in NARROW.items():
        with np.errstate(invalid="ignore"):
            held = to_float32(convert_floats(values, "F32", dtype), dtype)
        if np.array_equal(held, values):
            return name
    return element if element in ROUNDINGS else "FLOAT"


def unrolled(found: Float64Array, position: int, cos: Float32Array, sin: Float32Array) -> Float64Array:
    """Frequencies by the angles of one row, of the turn that `found` says. float64[pairs]."""
    angle = np.arctan2(sin.astype(np.float64), cos.astype(np.float64))
    turns = np.round((found * position - angle) / (2 * np.pi))
    return np.asarray((angle + 2 * np.pi * turns) / position)


def read_frequencies(cos: Table, sin: Table, positions: int) -> Float64Array:
    """float64[pairs], radians per position: angles of rows 1, 2, 4, ..., each unrolled by the one before.

    What an angle is off is divided by its position, so the last row counts.
    """
    found, position = np.zeros(cos.shape[1]), 1
    while position < positions:
        rows = (table.float32(position, position + 1)[0] for table in (cos, sin))
        found = unrolled(found, position, *rows)
        position *= 2
    return found


def angle_uncertainty(angles: Float64Array, rounding: float, smallest: float) -> Float64Array:
    """By how much an angle of 0 or more may be off by the rounding of its cosine and its sine: of a small
    one the sine alone counts, and a float's rounding is a part of its value.
    """
    return np.asarray(rounding * np.minimum(1.0, 2.0 * angles) + smallest)


def frequency_uncertainty(frequencies: Float64Array, position: int, precision: str) -> Float64Array:
    """By how much of itself each frequency may be off that was read from the row of a position, beside the
    formula in exact arithmetic; 1 of one that does not turn.
    """
    angles = frequencies * position
    off = angle_uncertainty(angles, ROUNDINGS[precision], SMALLEST[precision])
    return np.where(angles > 0, ANGLE_ROUNDING + off / np.maximum(angles, 1e-300), 1.0)


def unread(pairs: int, why: str) -> ObservedTable:
    """A table of which no row says anything."""
    nothing = Observation(inv_freq=np.zeros(pairs), uncertainty=np.ones(pairs))
    return ObservedTable(reach=0, observation=nothing, broken=why)


@dataclass(slots=True, kw_only=True)
class _Reading:
    """Rows of one bucket, read from its first on. found: the frequencies by row `known`, all of the rows up
    to which follow.
    """

    cos: Table
    sin: Table
    offset: int
    factor: float
    precision: str
    found: Float64Array
    known: int = 0

    def _rows(self, first: int, last: int) -> tuple[Float32Array, Float32Array]:
        begin, end = self.offset + first, self.offset + last
        return self.cos.float32(begin, end), self.sin.float32(begin, end)

    def _fault(self, first: int, last: int) -> tuple[int, int] | None:
        """(row, pair) of the first value that is further off than rounding explains."""
        rounding, smallest = ROUNDINGS[self.precision], SMALLEST[self.precision]
        cos, sin = self._rows(first, last)
        positions = np.arange(first, last, dtype=np.float64)[:, None]
        angles = positions * self.found
        own = angle_uncertainty(self.found * self.known, rounding, smallest)
        allowed = 2 * rounding + smallest + positions / self.known * own + 2 * STEP_ROUNDING * angles
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.abs(cos - self.factor * np.cos(angles))
            off = np.maximum(off, np.abs(sin - self.factor * np.sin(angles)))
            bad = ~(off <= self.factor * allowed)  # True for NaN
        if not bad.any():
            return None
        row, pair = np.unravel_index(int(np.argmax(bad)), bad.shape)
        return first + int(row), int(pair)

    def _first_row(self) -> str | None:
        """Take the frequencies of row 1; what is wrong with it."""
        (cos,), (sin,) = self._rows(1, 2)
        with np.errstate(invalid="ignore", over="ignore"):
            long = np.hypot(cos.astype(np.float64), sin.astype(np.float64)) / self.factor
            bad = ~(np.abs(long - 1.0) <= 3 * ROUNDINGS[self.precision])
        if bad.any():
            return f"row 1 is no rotation (pair {int(np.argmax(bad))})"
        self.found, self.known = unrolled(np.zeros(len(cos)), 1, cos, sin), 1
        if (self.found < 0).any():
            return f"row 1 turns backwards (pair {int(np.argmax(self.found < 0))})"
        return None

    def follow(self, rows: int) -> str | None:
        """Read as many rows as follow one frequency for each pair; what is wrong with the next."""
        if (wrong := self._first_row()) is not None:
            self.known = 0
            return wrong
        step = max(1, TABLE_VALUES // 4 // len(self.found))
        while self.known < rows - 1:
            until = min(2 * self.known, rows - 1)
            for first in range(self.known + 1, until + 1, step):
                fault = self._fault(first, min(first + step, until + 1))
                if fault is not None:
                    self._take(fault[0] - 1)
                    return f"row {fault[0]} does not follow the rows before it (pair {fault[1]})"
            self._take(until)
        return None

    def _take(self, position: int) -> None:
        if position > self.known:
            (cos,), (sin,) = self._rows(position, position + 1)
            self.found, self.known = unrolled(self.found, position, cos, sin), position


def read_bucket(cos: Table, sin: Table, first: int, last: int, factor: float | None = None) -> ObservedTable:
    """Rows first..last-1, of which the first is position 0. cos, sin: [rows, pairs], of one type. factor: the
    attention factor where it is known; it is not when most of the rows are damaged.
    """
    pairs = cos.shape[1]
    if last - first < 2:
        return unread(pairs, "it holds one position, whose angle says nothing")
    ahead = first, min(last, first + max(2, TABLE_VALUES // 16 // pairs))
    values = cos.float32(*ahead), sin.float32(*ahead)
    if factor is None:
        with np.errstate(invalid="ignore", over="ignore"):
            lengths = np.hypot(*(table.astype(np.float64) for table in values))
        factor = float(np.median(lengths[np.isfinite(lengths)])) if np.isfinite(lengths).any() else 0.0
    if not LEAST_FACTOR <= factor <= MOST_FACTOR:
        return unread(pairs, "its rows are no cosines and sines")
    precision = stored_precision(np.stack([table[1:65] for table in values]), cos.element)
    reading = _Reading(
        cos=cos, sin=sin, offset=first, factor=factor, precision=precision, found=np.zeros(pairs)
    )
    broken = reading.follow(last - first)
    found = np.maximum(reading.found, 0.0)
    return ObservedTable(
        reach=reading.known + 1,
        observation=Observation(
            inv_freq=found,
            uncertainty=frequency_uncertainty(found, max(reading.known, 1), precision),
            attention_factor=factor,
        ),
        broken=broken,
        precision=precision,
    )


def _outline(cos: Table, sin: Table) -> tuple[list[int], int]:
    """(rows that are position 0, how many rows there are before those of no number at the end)."""
    rows, pairs = cos.shape
    step = max(1, TABLE_VALUES // pairs)
    starts: list[int] = []
    numbers = 0
    for first in range(0, rows, step):
        c, s = (table.float32(first, min(first + step, rows)) for table in (cos, sin))
        begins = (s == 0).all(axis=1) & (c == c[:, :1]).all(axis=1)
        begins &= (c[:, 0] >= LEAST_FACTOR) & (c[:, 0] <= MOST_FACTOR)
        starts += [first + int(row) for row in np.flatnonzero(begins)[: MOST_BUCKETS + 1]]
        kept = np.flatnonzero(~(np.isnan(c).all(axis=1) & np.isnan(s).all(axis=1)))
        numbers = first + int(kept[-1]) + 1 if len(kept) else numbers
    return starts, numbers


def read_table(cos: Table, sin: Table) -> tuple[ObservedTable, ...]:
    """Every bucket of a pair of tables, which begins where position 0 recurs. cos, sin: [rows, pairs]."""
    starts, rows = _outline(cos, sin)
    if not starts or starts[0] != 0:
        return (unread(cos.shape[1], "row 0 is not position 0: one cosine in all pairs, and no sine"),)
    if len(starts) > MOST_BUCKETS:
        return (unread(cos.shape[1], f"more than {MOST_BUCKETS} of its rows are position 0"),)
    ends = [*starts[1:], rows]
    return tuple(read_bucket(cos, sin, *bounds) for bounds in zip(starts, ends, strict=True))
