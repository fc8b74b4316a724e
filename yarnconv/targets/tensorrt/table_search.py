"""Tables of cos and sin in a plan's raw bytes, found by what they are: no sidecar says where they lie.

Row 0 of a table of cos is one value a, once for each pair; row k is a times the Chebyshev polynomial T_k of
row 1 by a. Row 0 of the table of sin is zeros, and its row 1 lies on one circle with that of cos. First the
ends of runs of one value are found; from such an end on a table can be told from anything else, for the run
itself may begin before the table does. Tables are looked for from LEAST_PAIRS pairs on.

Bytes that only look like tables can be any number: what is tried has an end for the whole file.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import NUMPY_DTYPES, convert_floats, to_float32
from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.rope.tables import Float32Array, Float64Array
from yarnconv.targets.inspection.observed_table import ROUNDINGS, ObservedTable, read_bucket

WINDOW = 2**24  # bytes looked through at once
SAMPLED = 3  # one word of four bytes in so many is compared with the one sampled before
LEAST_PAIRS = {
    "FLOAT": 8,
    "FLOAT16": 16,
    "BFLOAT16": 16,
}  # runs of which hold two such words, wherever they lie
MOST_PAIRS = 2**10
LEAST_REACH = 8  # positions that make a table
MOST_LOOKED = 2**16  # ends of runs of one type
MOST_TRIED = 64  # numbers of pairs that a run may be of
MOST_TRIED_AT_ALL = 2**17
MOST_FITTED = 2**16  # places at which a table of sin may begin
MOST_TABLES, MOST_DIFFERENT = 1024, 64
DTYPES = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}
# bits of 0.5 and of 4, between which attention factors lie
RANGES = {"FLOAT": (0x3F000000, 0x40800000), "FLOAT16": (0x3800, 0x4400), "BFLOAT16": (0x3F00, 0x4080)}
SLACK = 32  # roundings: T_3 has up to nine times what its argument is off

Words = NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True, kw_only=True)
class _InFile:
    """A table that begins at a byte of a file and ends somewhere behind it. shape: (rows at most, pairs)."""

    file: MappedFile
    offset: int
    element: str
    pairs: int

    @property
    def shape(self) -> tuple[int, ...]:
        width = self.pairs * _bytes(self.element)
        return (self.file.size - self.offset) // width, self.pairs

    def float32(self, first: int, last: int) -> Float32Array:
        width = self.pairs * _bytes(self.element)
        values = _values(self.file, self.offset + first * width, self.element, (last - first) * self.pairs)
        return values.reshape(-1, self.pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cosines:
    """A table of cos. offset: its first byte. second: float64[pairs], its row 1."""

    offset: int
    element: str
    factor: float
    second: Float64Array

    @property
    def sines(self) -> Float64Array:
        """Row 1 of its table of sin, float64[pairs]."""
        return np.sqrt(np.maximum(self.factor**2 - self.second**2, 0.0))


@dataclass(slots=True, kw_only=True)
class _Budget:
    """Of attempts in a file. left: those that may still be made."""

    left: int

    def spend(self) -> bool:
        """Whether one more may be made, which it then is."""
        if self.left <= 0:
            return False
        self.left -= 1
        return True


def _bytes(element: str) -> int:
    return 4 if element == "FLOAT" else 2


def _values(file: MappedFile, offset: int, element: str, count: int) -> Float32Array:
    """As many values as there are, up to count."""
    size = _bytes(element)
    count = min(count, (file.size - offset) // size)
    stored = np.frombuffer(file.view(offset, count * size), NUMPY_DTYPES[DTYPES[element]])
    return to_float32(stored, DTYPES[element])


def _extended(words: Words, ends: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Ends of runs, moved behind all that is equal: ends point behind a word of each run."""
    last = words[ends - 1]
    going = np.ones(len(ends), np.bool_)
    for _ in range(steps):
        going &= ends < len(words)
        going[going] = words[ends[going]] == last[going]
        ends = ends + going
    return ends


def _run_ends(words: NDArray[np.uint32]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """(type, the bytes behind runs of one value that may be an attention factor). Runs that reach the end of
    the words are left to who sees more.
    """
    sampled = words[::SAMPLED]
    equal = np.flatnonzero(sampled[1:] == sampled[:-1])
    # of neighbours in one run only the last
    value = sampled[equal]
    last = np.ones(len(equal), np.bool_)
    last[:-1] = (equal[1:] != equal[:-1] + 1) | (value[1:] != value[:-1])
    behind, value = equal[last] * SAMPLED + SAMPLED + 1, value[last]
    for element, (low, high) in RANGES.items():
        if element == "FLOAT":
            likely, unit = (value >= low) & (value <= high), words.view(np.uint32)
            ends = _extended(unit, behind[likely], SAMPLED)
        else:
            half = value & 0xFFFF
            likely = (value >> 16 == half) & (half >= low) & (half <= high)
            unit = words.view(np.uint16)
            ends = _extended(unit, behind[likely] * 2, 2 * SAMPLED + 1)
        yield element, ends[ends < len(unit)] * _bytes(element)


def _windows(file: MappedFile, overlap: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """(offset, words) of all of the file, each window beginning so many bytes before the last one's end."""
    begin = 0
    while begin + 4 <= file.size:
        length = min(WINDOW + overlap, file.size - begin)
        yield begin, np.frombuffer(file.view(begin, length - length % 4), np.uint32)
        begin += WINDOW


def _run_length(values: Float32Array) -> int:
    """Of the run that values end with."""
    other = np.flatnonzero(values != values[-1])
    return len(values) - 1 - int(other[-1]) if len(other) else len(values)


def _cosines_before(file: MappedFile, element: str, end: int, budget: _Budget) -> _Cosines | None:
    """The table of cos of which row 0 ends here."""
    size = _bytes(element)
    begin = max(end % size, end - MOST_PAIRS * size)
    run = _values(file, begin, element, (end - begin) // size)
    length, factor = _run_length(run), float(run[-1])
    least = LEAST_PAIRS[element]
    if length < least:
        return None
    allowed = SLACK * ROUNDINGS[element]
    with np.errstate(all="ignore"):
        ahead = _values(file, end, element, 3 * length).astype(np.float64) / factor
        # where row 2 may begin: by its first values, each T_2 of the one above it
        likely = np.arange(least, min(length, len(ahead) // 3) + 1)
        for pair, value in enumerate(ahead[:least]):
            likely = likely[np.abs(ahead[likely + pair] - (2 * value**2 - 1)) <= allowed]
        for pairs in map(int, likely[:MOST_TRIED]):
            if not budget.spend():
                return None
            one, two, three = ahead[: 3 * pairs].reshape(3, pairs)
            fits = np.abs(one) <= 1 + allowed
            fits &= np.abs(two - (2 * one**2 - 1)) <= allowed
            fits &= np.abs(three - (4 * one**3 - 3 * one)) <= allowed
            if fits.all():
                return _Cosines(
                    offset=end - pairs * size, element=element, factor=factor, second=one * factor
                )
    return None


def _find_cosines(file: MappedFile) -> list[_Cosines]:
    """Every table of cos, in the order of the file."""
    ends: dict[str, set[int]] = {element: set() for element in RANGES}
    for begin, words in _windows(file, 64):
        for element, found in _run_ends(words):
            room = MOST_LOOKED - len(ends[element])
            ends[element].update((begin + found[:room]).tolist())
    budget = _Budget(left=MOST_TRIED_AT_ALL)
    tables = [
        table
        for element, places in ends.items()
        for place in sorted(places)
        if (table := _cosines_before(file, element, place, budget)) is not None
    ]
    return sorted(tables, key=lambda table: table.offset)[:MOST_TABLES]


def _fits(file: MappedFile, cosines: _Cosines, offset: int) -> bool:
    """Whether the table of sin of these cosines begins here."""
    pairs = len(cosines.second)
    rows = _values(file, offset, cosines.element, 2 * pairs)
    if len(rows) < 2 * pairs or not (rows[:pairs] == 0).all():
        return False
    with np.errstate(all="ignore"):
        radius = np.hypot(rows[pairs:].astype(np.float64), cosines.second) / cosines.factor
        return bool((np.abs(radius - 1) <= SLACK * ROUNDINGS[cosines.element]).all())


def _bits_of_sine(table: _Cosines, pair: int) -> tuple[int, int]:
    """The least and the greatest bits that a pair's sine of row 1 may have: those of positive floats are in
    the order of the floats.
    """
    sine, rounding = table.sines[pair], ROUNDINGS[table.element] * table.factor
    off = rounding * (2 + 2 * abs(table.second[pair]) / max(sine, 1e-30))
    bounds = np.array([max(sine - off, 0.0), sine + off], np.float32)
    bits = convert_floats(bounds, "F32", DTYPES[table.element])
    low, high = bits.view(np.uint32 if table.element == "FLOAT" else np.uint16).tolist()
    return max(low - 1, 1), high + 1


def _sines_at(
    file: MappedFile, table: _Cosines, begin: int, words: NDArray[np.uint32], budget: _Budget
) -> Iterator[int]:
    """Where tables of sin of these cosines begin whose row 1 lies among the words at a byte of the file."""
    if budget.left <= 0:
        return
    size, pairs, place = _bytes(table.element), len(table.second), int(np.argmax(table.sines))
    low, high = _bits_of_sine(table, place)
    kind = np.dtype(np.uint32 if size == 4 else np.uint16)
    unit = words.view(kind)
    likely = np.flatnonzero(unit - kind.type(low) <= high - low) + begin // size - pairs - place
    whole = np.frombuffer(file.view(0, file.size - file.size % 4), kind)
    likely = likely[likely >= 0]
    likely = likely[(whole[likely] == 0) & (whole[likely + pairs - 1] == 0)]
    for index in likely[: budget.left]:
        if budget.spend() and _fits(file, table, int(index) * size):
            yield int(index) * size


def _alike(tables: list[_Cosines]) -> list[list[_Cosines]]:
    """Tables that begin with the same rows together."""
    found: dict[tuple[str, float, bytes], list[_Cosines]] = {}
    for table in tables:
        found.setdefault((table.element, table.factor, table.second.tobytes()), []).append(table)
    return list(found.values())[:MOST_DIFFERENT]


def _with_sines(file: MappedFile, cosines: list[_Cosines]) -> Iterator[tuple[_InFile, _InFile]]:
    """Tables of cos and of sin, in the order of the file; of several that begin alike the first with the
    first, and so on.
    """
    groups = _alike(cosines)
    sines: list[list[int]] = [[] for _ in groups]
    # the same for each, so that none is hidden by what is like another's
    budgets = [_Budget(left=MOST_FITTED // len(groups)) for _ in groups]
    for begin, words in _windows(file, 0) if groups else ():
        for group, places, budget in zip(groups, sines, budgets, strict=True):
            missing = max(0, len(group) - len(places))
            places += itertools.islice(_sines_at(file, group[0], begin, words, budget), missing)
    together = [
        (table, places[min(number, len(places) - 1)])
        for group, places in zip(groups, sines, strict=True)
        for number, table in enumerate(group)
        if places
    ]
    for table, place in sorted(together, key=lambda both: both[0].offset):
        pairs, element = len(table.second), table.element
        cos, sin = (
            _InFile(file=file, offset=begin, element=element, pairs=pairs) for begin in (table.offset, place)
        )
        yield cos, sin


def _copied(one: tuple[_InFile, _InFile], other: tuple[_InFile, _InFile], rows: int) -> bool:
    """Whether so many rows of two pairs of tables are the same bytes."""
    for table, copy in zip(one, other, strict=True):
        alike = (table.element, table.pairs) == (copy.element, copy.pairs)
        if not alike or rows > min(table.shape[0], copy.shape[0]):
            return False
        length = rows * table.pairs * _bytes(table.element)
        first, second = (np.frombuffer(t.file.view(t.offset, length), np.uint8) for t in (table, copy))
        if not np.array_equal(first, second):
            return False
    return True


def find_tables(file: MappedFile) -> tuple[ObservedTable, ...]:
    """Every set of frequencies whose tables stand in the file, in its order; of copies one. A damaged one
    ends where the damage is. file: let go of afterwards.
    """
    found: list[tuple[tuple[_InFile, _InFile], int, ObservedTable]] = []
    for cos, sin in _with_sines(file, _find_cosines(file)):
        both = cos, sin
        if len(found) >= MOST_DIFFERENT:
            break
        if any(_copied(both, other, reach + 1) for other, reach, _ in found):
            continue
        rows, factor = min(cos.shape[0], sin.shape[0]), float(cos.float32(0, 1)[0, 0])
        reach = read_bucket(cos, sin, 0, rows, factor=factor).reach or 0
        known = any(_copied(both, other, reach) for other, length, _ in found if length == reach)
        if reach >= LEAST_REACH and not known:
            found.append((both, reach, replace(read_bucket(cos, sin, 0, reach), broken=None)))
    file.forget()
    return tuple(table for _, _, table in found)
