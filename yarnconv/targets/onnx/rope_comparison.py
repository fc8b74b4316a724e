"""Rotations and tables that were found in an artefact, held against a plan fact by fact.

Tables may be exact (float64, rounded once), as `yarnconv onnx` writes them, or made in float32 as
transformers makes them: each angle is allowed what that arithmetic may lose (ANGLE_ROUNDING), and the fact
says which it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from yarnconv.model.description import ModelDescription
from yarnconv.rope.tables import Float32Array, RopeTables
from yarnconv.rope_plan import RopeGroup, RopePlan
from yarnconv.targets.facts import FactComparison
from yarnconv.targets.onnx.rope import TableLayout, lay_out_tables

# transformers' float32 frequencies are up to 1.1e-6 off (tests/rope/test_transformers.py holds them to 2e-6),
# and each angle is rounded once more
ANGLE_ROUNDING = 2e-6
VALUE_ROUNDING = 2.0**-22  # of a cosine in float32, by whoever computes it
EXACT = 2.0**-23
TABLE_VALUES = 2**20  # compared at once


class Table(Protocol):
    """A table of cos or sin."""

    @property
    def element(self) -> str:
        """Its ONNX type's name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, pairs)."""

    def float32(self, first: int, last: int) -> Float32Array:
        """Rows first..last-1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """One RotaryEmbedding node. cos, sin: names of the tables it takes its rows from, None where they are no
    tensors of the model. rounded: the narrower type that positions or rows are rounded to on their way.
    """

    pairing: str
    rotary_dim: int
    cos: str | None
    sin: str | None
    rounded: str | None

    def described(self, head_dim: int) -> str:
        """For people."""
        said = f"{self.rotary_dim or head_dim} dimensions, pairs {self.pairing}"
        return said if self.rounded is None else f"{said}, rounded to {self.rounded}"


Rotations = tuple[Rotation | None, Rotation | None]


def _compare_rotations(
    rope: RopePlan, model: ModelDescription, found: Sequence[Rotations]
) -> Iterator[FactComparison]:
    """That each layer's query and key rotate as they should. found: of each layer."""
    for group in rope.groups:
        for layer in group.layers:
            attention, wanted = model.layers[layer].attention, "none"
            if group.scaling is not None:
                wanted = f"{group.scaling.rotary_dim} dimensions, pairs {attention.pairing}"
            kinds = [
                rotation.described(attention.turning_dim) if rotation else "none" for rotation in found[layer]
            ]
            yield FactComparison(
                key=f"rotation of layer {layer}",
                expected=wanted,
                found=kinds[0] if kinds[0] == kinds[1] else f"queries {kinds[0]}; keys {kinds[1]}",
                agrees=kinds == [wanted, wanted],
            )


def _block(
    tables: RopeTables, cos: Float32Array, sin: Float32Array, first: int, rounding: float
) -> tuple[float, int | None]:
    """(largest difference from the exact table, by the attention factor; first position that is further off
    than rounding explains).
    """
    last = first + len(cos)
    with np.errstate(invalid="ignore"):
        off = np.maximum(np.abs(cos - tables.cos(first, last)), np.abs(sin - tables.sin(first, last)))
        off = off.astype(np.float64) / tables.attention_factor
        angles = np.arange(first, last, dtype=np.float64)[:, None] * tables.inv_freq
        bad = ~(off <= rounding + ANGLE_ROUNDING * angles)  # True for NaN
    rows = np.flatnonzero(bad.any(axis=1))
    return float(np.nanmax(off, initial=0.0)), first + int(rows[0]) if len(rows) else None


def _described(tables: RopeTables, cos: Table, sin: Table, offset: int, bad: int) -> str:
    """What a table says that disagrees, from its second position: there the angle is the frequency."""
    c, s = (table.float32(offset + 1, offset + 2)[0].astype(np.float64) for table in (cos, sin))
    factor = float(np.median(np.hypot(c, s)))
    with np.errstate(all="ignore"):
        off = np.abs(np.arctan2(s, c) / tables.inv_freq - 1.0)
    worst = int(np.argmax(off))
    return (
        f"attention factor {factor:.6g}, frequencies off by up to {off[worst]:.2g} (pair {worst}), "
        f"the first position that differs is {bad}"
    )


def compare_bucket(
    tables: RopeTables,
    cos: Table,
    sin: Table,
    offset: int,
    count: int,
    rounding: float = VALUE_ROUNDING,
) -> tuple[str, bool]:
    """(what the rows offset..offset+count-1 are, whether they are the bucket's). rounding: of a value, by the
    type that it is stored in.
    """
    step = max(1, TABLE_VALUES // len(tables.inv_freq))
    worst = 0.0
    for first in range(0, count, step):
        last = min(first + step, count)
        begin, end = offset + first, offset + last
        off, bad = _block(tables, cos.float32(begin, end), sin.float32(begin, end), first, rounding)
        if bad is not None:
            return _described(tables, cos, sin, offset, bad) if count > 1 else "differs", False
        worst = max(worst, off)
    made = "exact" if worst <= EXACT else f"made in float32, off by up to {worst:.1g}"
    return f"attention factor {tables.attention_factor:.6g}, {made}", True


def _compare_tables(cos: Table, sin: Table, layout: TableLayout, name: str) -> Iterator[FactComparison]:
    pairs = len(layout.buckets[0].inv_freq)
    wanted = f"FLOAT, {layout.rows} positions and one of no number, {pairs} pairs"
    kinds = []
    for table in (cos, sin):
        rows = table.shape[0] if table.shape else 0
        width = table.shape[1] if len(table.shape) == 2 else 0
        nan = width > 0 and rows > 0 and table.element == "FLOAT"
        nan = nan and bool(np.isnan(table.float32(rows - 1, rows)).all())
        kept = f"{rows - 1} positions and one of no number" if nan else f"{rows} positions"
        kinds.append(f"{table.element}, {kept}, {width} pairs")
    found = " and ".join(sorted(set(kinds)))
    yield FactComparison(key=name, expected=wanted, found=found, agrees=wanted == found)
    if any(len(t.shape) != 2 or t.shape[1] != pairs or t.element != "FLOAT" for t in (cos, sin)):
        return
    for tables, offset, count in zip(layout.buckets, layout.offsets, layout.positions, strict=True):
        key = f"{name}, factor {tables.factor:g}, positions 0 to {count - 1}"
        expected = f"attention factor {tables.attention_factor:.6g}"
        if offset + count > min(cos.shape[0], sin.shape[0]):
            yield FactComparison(key=key, expected=expected, found="too short", agrees=False)
            continue
        said, agrees = compare_bucket(tables, cos, sin, offset, count)
        yield FactComparison(key=key, expected=expected, found=said, agrees=agrees)


def _compare_group(
    rope: RopePlan,
    group: RopeGroup,
    tables: Mapping[str, Table],
    rotations: Sequence[Rotations],
    max_context: int,
) -> Iterator[FactComparison]:
    """Every table that the group's layers take rows from; they may share one or have one each. rotations: of
    every layer of the model.
    """
    layout = lay_out_tables(group, rope.original_context, max_context)
    used = {(r.cos, r.sin) for layer in group.layers for r in rotations[layer] if r}
    for cos, sin in sorted(used, key=str):
        if cos is None or sin is None:
            yield FactComparison(
                key="tables",
                expected="tensors of the model",
                found="computed in the graph",
                agrees=False,
            )
        else:
            yield from _compare_tables(tables[cos], tables[sin], layout, f"{cos}, {sin}")


def compare_rope(
    rope: RopePlan,
    model: ModelDescription,
    rotations: Sequence[Rotations],
    tables: Mapping[str, Table],
    max_context: int,
) -> Iterator[FactComparison]:
    """Every rotation and every table. rotations: of each layer. tables: by the names that rotations have for
    them. max_context: positions that they should reach.
    """
    yield from _compare_rotations(rope, model, rotations)
    for group in rope.groups:
        if group.scaling is not None:
            yield from _compare_group(rope, group, tables, rotations, max_context)
