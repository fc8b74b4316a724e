"""Tables of cos and sin, read for what they turn by: what is said of them holds, and what is off is seen."""

from dataclasses import dataclass

import numpy as np
import pytest

from yarnconv.checkpoint.floats import convert_floats, to_float32
from yarnconv.targets.inspection.observed_table import ROUNDINGS, read_table

ELEMENTS = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}
FREQUENCIES = 10000.0 ** -(np.arange(32) / 32)


@dataclass
class Table:
    """A table that counts the most rows that were asked for at once."""

    values: np.ndarray
    element: str = "FLOAT"
    most: int = 0

    @property
    def shape(self):
        return self.values.shape

    def float32(self, first, last):
        self.most = max(self.most, last - first)
        return self.values[first:last]


def rounded(values, element):
    dtype = ELEMENTS[element]
    return to_float32(convert_floats(values.astype(np.float32), "F32", dtype), dtype)


def exact(frequencies, rows, *, factor=1.0, element="FLOAT"):
    angles = np.arange(rows)[:, None] * frequencies
    return [Table(rounded(made(angles) * factor, element), element) for made in (np.cos, np.sin)]


def in_float32(frequencies, rows, *, factor=1.0, element="FLOAT"):
    """As transformers computes them."""
    angles = np.arange(rows, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
    return [Table(rounded(made(angles) * np.float32(factor), element), element) for made in (np.cos, np.sin)]


@pytest.mark.parametrize("rows", [2, 3, 100, 4096, 131072])
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("made", [exact, in_float32])
def test_the_truth_lies_within_the_uncertainty(made, element, rows):
    """Of frequencies at random, among them slow ones and one that does not turn."""
    frequencies = np.random.default_rng(rows).uniform(1e-7, 1.0, 8) ** np.linspace(0.1, 1, 8)
    frequencies = np.append(frequencies, [1.0, 3e-7, 0.0])
    (table,) = read_table(*made(frequencies, rows, factor=1.2, element=element))
    assert (table.reach, table.broken) == (rows, None)
    off = np.abs(table.observation.inv_freq - frequencies)
    assert (off <= table.observation.uncertainty * frequencies).all()
    assert table.observation.attention_factor == pytest.approx(1.2, rel=ROUNDINGS[element])


@pytest.mark.parametrize("pair", [0, 10, 20, 31])
@pytest.mark.parametrize("element", ELEMENTS)
def test_a_frequency_off_by_three_times_the_uncertainty_is_seen(element, pair):
    """It is no more than is needed: what is off by little more lies outside of it."""
    (right,) = read_table(*exact(FREQUENCIES, 1024, element=element))
    wrong = FREQUENCIES.copy()
    wrong[pair] *= 1 + 3 * right.observation.uncertainty[pair]
    (table,) = read_table(*exact(wrong, 1024, element=element))
    off = np.abs(table.observation.inv_freq - FREQUENCIES) > table.observation.uncertainty * FREQUENCIES
    assert np.flatnonzero(off).tolist() == [pair]


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("row", [2, 16, 17, 511, 1022, 1023])
def test_a_damaged_row_is_where_the_table_ends(row, element):
    """And what was read before it is still right."""
    cos, sin = exact(FREQUENCIES, 1024, element=element)
    sin.values[row, 9] += 4 * ROUNDINGS[element] + 1e-3
    (table,) = read_table(cos, sin)
    assert table.reach == row
    assert table.broken == f"row {row} does not follow the rows before it (pair 9)"
    off = np.abs(table.observation.inv_freq / FREQUENCIES - 1)
    assert (off <= table.observation.uncertainty).all()


def test_a_damaged_row_1():
    """By its length, or by the rows behind it: of what lies on the circle nothing else is known."""
    cos, sin = exact(FREQUENCIES, 1024)
    sin.values[1, 9] += np.float32(1e-3)
    assert read_table(cos, sin)[0].broken == "row 1 is no rotation (pair 9)"
    cos, sin = exact(FREQUENCIES, 1024)
    for table, other in zip((cos, sin), exact(FREQUENCIES * 1.01, 2), strict=True):
        table.values[1, 9] = other.values[1, 9]
    assert read_table(cos, sin)[0].broken == "row 2 does not follow the rows before it (pair 9)"


DAMAGE = {
    "rows left out": lambda c, s: (np.delete(c, 700, 0), np.delete(s, 700, 0)),
    "another factor from a row on": lambda c, s: tuple(
        np.where(np.arange(1024)[:, None] < 700, t, t * np.float32(1.001)) for t in (c, s)
    ),
    "other frequencies from a row on": lambda c, s: tuple(
        np.where(np.arange(1024)[:, None] < 700, t, other.values)
        for t, other in zip((c, s), exact(FREQUENCIES / 1.001, 1024), strict=True)
    ),
    "no number": lambda c, s: (np.where(np.arange(1024)[:, None] == 700, np.nan, c), s),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_of_all_that_follows(damage):
    cos, sin = exact(FREQUENCIES, 1024)
    (table,) = read_table(*(Table(t.astype(np.float32)) for t in DAMAGE[damage](cos.values, sin.values)))
    assert table.reach == 700
    assert table.broken.startswith("row 700 does not follow")


def test_a_factor_that_is_not_that_of_all_pairs():
    cos, sin = exact(FREQUENCIES, 1024)
    for table in (cos, sin):
        table.values[1:, 5] *= np.float32(1.01)
    assert read_table(cos, sin)[0].broken == "row 1 is no rotation (pair 5)"


def test_a_table_that_turns_backwards():
    cos, sin = exact(FREQUENCIES, 1024)
    sin.values[:, 3] *= -1
    assert read_table(cos, sin)[0].broken == "row 1 turns backwards (pair 3)"


def test_buckets_begin_where_position_0_recurs():
    parts = [exact(FREQUENCIES / f, 256 * f, factor=1 + f / 10) for f in (1, 2, 4)]
    end = np.full((1, 32), np.nan, np.float32)
    cos, sin = (Table(np.concatenate([*(part[i].values for part in parts), end])) for i in (0, 1))
    tables = read_table(cos, sin)
    assert [(t.reach, t.broken) for t in tables] == [(256, None), (512, None), (1024, None)]
    for table, factor in zip(tables, (1, 2, 4), strict=True):
        np.testing.assert_allclose(table.observation.inv_freq, FREQUENCIES / factor, rtol=2e-6)
        assert table.observation.attention_factor == pytest.approx(1 + factor / 10)


def test_values_that_were_rounded_before_they_were_stored():
    """float32 of 16-bit values is no better than these."""
    tables = exact(FREQUENCIES, 1024, element="FLOAT16")
    wide = [Table(table.values) for table in tables]
    (narrow,), (table,) = read_table(*tables), read_table(*wide)
    np.testing.assert_array_equal(table.observation.uncertainty, narrow.observation.uncertainty)


def test_long_tables_are_read_in_blocks():
    cos, sin = in_float32(np.linspace(0.001, 1.0, 64), 131072)
    (table,) = read_table(cos, sin)
    assert table.reach == 131072
    assert max(cos.most, sin.most) * 64 <= 2**20
