"""Frequencies that a graph multiplies positions by at run time, as exporters of transformers' models write
them: traced from Cos and Sin back to a constant, and on to what their results are scaled by.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from yarnconv.rope.observation import Observation
from yarnconv.rope.tables import Float64Array
from yarnconv.targets.inspection.observed_table import (
    NARROW,
    ROUNDINGS,
    SMALLEST,
    ObservedTable,
    stored_precision,
)
from yarnconv.targets.onnx.constant_folding import (
    MOST_ALTERNATIVES,
    MOST_REMEMBERED,
    SHAPES,
    Folding,
    Vector,
    cast_type,
    combined,
    fits,
    narrower,
)
from yarnconv.targets.onnx.rope_comparison import ANGLE_ROUNDING
from yarnconv.targets.onnx.value_flow import Made, Value, settle

Pairing = Literal["half", "interleaved"]
PRODUCTS = frozenset({"Mul", "MatMul", "Einsum"})
PASSED = SHAPES | {"Cast", "Concat", "Slice", "Gather", "Tile"}  # by cos and sin on their way
MOST_STEPS = 2**17  # from cosines and sines to what takes them, of the whole graph


def rotation_pairing(made: Made) -> Pairing:
    """Which dimensions a rotating node turns together."""
    name = "interleaved" if made.node.op_type == "RotaryEmbedding" else "rotary_interleaved"
    return "interleaved" if made.attribute(name) else "half"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Angle:
    """What positions are multiplied by. pairing: where the angles of each pair are laid out for both of its
    dimensions. rounded: the narrower type that positions or angles are rounded to.
    """

    vector: Vector
    pairing: Pairing | None = None
    rounded: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """Rotations that are computed. values: of cos and sin. source, element: of the constant. buckets: one for
    each that a branch may choose; none where it is not known what the angles are.
    """

    values: tuple[Value, ...]
    source: str
    element: str
    buckets: tuple[ObservedTable, ...]
    pairing: Pairing | None
    notes: tuple[str, ...]


def _one_of_each(vector: Vector) -> tuple[Vector, Pairing | None]:
    """A frequency for each pair, of a vector that has one for each dimension."""
    values = vector.values
    half = len(values) // 2
    if len(values) % 2 == 0 and half > 1:
        if np.array_equal(values[:half], values[half:]):
            return replace(vector, values=values[:half]), "half"
        if np.array_equal(values[::2], values[1::2]):
            return replace(vector, values=values[::2]), "interleaved"
    return vector, None


def constant_uncertainty(frequencies: Float64Array, precision: str) -> Float64Array:
    """By how much of itself each frequency may be off that is stored itself; 1 of one that does not turn."""
    off = ROUNDINGS[precision] + SMALLEST[precision] / np.maximum(frequencies, 1e-300)
    return np.where(frequencies > 0, ANGLE_ROUNDING + np.minimum(off, 1.0), 1.0)


class _Angles:
    """Traces angles back."""

    def __init__(self, folding: Folding) -> None:
        self._folding = folding
        self._known: dict[tuple[int, str], tuple[Angle, ...]] = {}
        self._room = MOST_REMEMBERED

    def of(self, value: Value | None) -> tuple[Angle, ...]:
        """By the branch that is taken; of what are positions, as far as can be seen, one is the factor.
        Nothing of what is not read, or of too much.
        """
        if value is None:
            return ()
        settle(value, self._known, self._needs, self._remembered)
        return self._known[value.key]

    def _needs(self, value: Value) -> Iterable[Value]:
        """What is looked at to know a value."""
        made = None if self._folding.vectors(value) else self._folding.flow.maker(value)
        if made is None:
            return ()
        operator = made.node.op_type
        if operator in PRODUCTS | {"Div"} and len(made.inputs) == 2:
            return [part for part in made.inputs if not self._folding.vectors(part)]
        if operator in SHAPES | {"Tile", "Cast"}:
            return made.inputs[:1]
        if operator == "If":
            return self._folding.flow.branches(made, value.name)
        return made.inputs[operator == "Where" :] if operator in {"Concat", "Where"} else ()

    def _remembered(self, value: Value) -> tuple[Angle, ...]:
        made = self._made(value)
        self._room -= sum(len(angle.vector.values) for angle in made)
        return made if self._room >= 0 else ()

    def _made(self, value: Value) -> tuple[Angle, ...]:
        unit = (Angle(vector=Vector(values=np.ones(1), element="DOUBLE")),)
        if self._folding.vectors(value):
            return ()
        made = self._folding.flow.maker(value)
        if made is None:
            return unit
        operator = made.node.op_type
        inside = [self._known.get(part.key, ()) for part in self._needs(value)]
        if operator in PRODUCTS | {"Div"} and len(made.inputs) == 2:
            return self._product(made, inside)
        if operator in SHAPES | {"Tile", "Cast"}:
            found, to = inside[0] if inside else (), cast_type(made) if operator == "Cast" else ""
            # the angles are rounded with it, the frequencies in them are not
            return tuple(replace(a, rounded=to) for a in found) if to in NARROW else found
        if operator == "Concat":
            return self._concatenated(made, inside)
        chosen = tuple(itertools.chain(*inside)) if operator in {"Where", "If"} and all(inside) else ()
        if any(len(angle.vector.values) > 1 for angle in chosen):
            return chosen[:MOST_ALTERNATIVES]
        return unit

    def _product(self, made: Made, inside: list[tuple[Angle, ...]]) -> tuple[Angle, ...]:
        first, second = made.inputs
        constants = [self._folding.vectors(part) for part in (first, second)]
        if bool(constants[0]) == bool(constants[1]):
            return ()
        of_second = bool(constants[1])
        if made.node.op_type == "Div" and not of_second:
            return ()
        found = []
        for angle in inside[0]:
            for vector in constants[of_second]:
                if not fits([angle.vector, vector]):
                    return ()
                factor = replace(vector, values=1.0 / vector.values) if made.node.op_type == "Div" else vector
                found.append(replace(angle, vector=angle.vector * factor))
        return tuple(found[:MOST_ALTERNATIVES])

    @staticmethod
    def _concatenated(made: Made, parts: list[tuple[Angle, ...]]) -> tuple[Angle, ...]:
        if not parts:
            return ()
        first = parts[0]
        if len({len(part) for part in parts}) != 1 or not first:
            return ()
        for other in parts[1:]:
            if not all(
                np.array_equal(a.vector.values, b.vector.values) for a, b in zip(first, other, strict=True)
            ):
                return ()
        twice = len(parts) == 2 and made.node.input[0] == made.node.input[1]
        return tuple(replace(a, pairing="half" if twice else a.pairing) for a in first)


class _Scales:
    """Follows cosines and sines to what takes them. left: steps that may still be taken."""

    def __init__(self, folding: Folding) -> None:
        self._folding = folding
        self.left = MOST_STEPS

    def of(self, value: Value) -> tuple[set[float], Pairing | None]:
        """(what it is multiplied by before it meets queries and keys, how it is laid out)."""
        found: set[float] = set()
        pairing: Pairing | None = None
        stack, seen = [(value, 1.0)], set[tuple[tuple[int, str], float]]()
        while stack and self.left > 0:
            here, scale = stack.pop()
            if (here.key, scale) in seen:
                continue
            seen.add((here.key, scale))
            for made in self._folding.flow.users(here)[: self.left]:
                self.left -= 1
                operator = made.node.op_type
                outputs = [Value(scope=made.scope, name=name) for name in made.node.output[:1]]
                if operator == "Shape":
                    continue
                if operator == "Concat" and list(made.node.input[:3]) == [here.name] * 2:
                    pairing = "half"
                if operator in PASSED:
                    stack += [(output, scale) for output in outputs]
                    continue
                if (by := self._factor(made, here)) is not None:
                    stack += [(output, scale * by) for output in outputs]
                    continue
                if operator == "RotaryEmbedding":
                    pairing = rotation_pairing(made)
                found.add(scale)
        return found, pairing

    def _factor(self, made: Made, here: Value) -> float | None:
        """What a node multiplies a value by, where that is one number."""
        names = list(made.node.input[:3])
        if made.node.op_type not in {"Mul", "Div"} or len(names) != 2 or names[0] == names[1]:
            return None
        constants = self._folding.vectors(made.input(1 - names.index(here.name)))
        if len(constants) != 1 or len(constants[0].values) != 1:
            return None
        by = float(constants[0].values[0])
        if made.node.op_type == "Mul":
            return by
        if names[0] != here.name:
            return None
        return 1.0 / by if by else math.nan


def _is_rope(angles: tuple[Angle, ...]) -> bool:
    """Whether positions are multiplied by a frequency for each of several pairs."""
    vectors = [angle.vector.values for angle in angles]
    return bool(vectors) and all(
        len(v) > 1 and np.isfinite(v).all() and (v >= 0).all() and (v > 0).any() for v in vectors
    )


def _precision(vector: Vector) -> str:
    return stored_precision(vector.values.astype(np.float32), narrower(vector.element, "FLOAT"))


def _table(vector: Vector, factor: float) -> ObservedTable:
    precision = _precision(vector)
    return ObservedTable(
        reach=None,
        observation=Observation(
            inv_freq=vector.values,
            uncertainty=constant_uncertainty(vector.values, precision),
            attention_factor=factor,
        ),
    )


def _unknown(made: Made, why: str) -> Computed:
    value = Value(scope=made.scope, name=made.node.output[0])
    return Computed(values=(value,), source=value.name, element="", buckets=(), pairing=None, notes=(why,))


def _computed(scales: _Scales, angles: tuple[Angle, ...], nodes: list[Made]) -> Computed:
    """Of the Cos and the Sin of one angle."""
    values = [Value(scope=made.scope, name=made.node.output[0]) for made in nodes]
    scaled = [scales.of(value) for value in values]
    factors, notes = set().union(*(found for found, _ in scaled)), []
    if scales.left <= 0:
        notes.append("its cos and sin go so many ways that not all that they are scaled by was looked at")
    if {made.node.op_type for made in nodes} != {"Cos", "Sin"}:
        notes.append("of cos and sin only one is computed of these angles")
    if len(factors) > 1:
        said = ", ".join(f"{factor:.6g}" for factor in sorted(factors)[:4])
        notes.append(f"cos and sin are not all scaled alike: by {said}")
    notes += [
        f"its angles are rounded to {rounded}, so that positions far away turn wrongly"
        for rounded in sorted({angle.rounded for angle in angles if angle.rounded is not None})
    ]
    factor = factors.pop() if len(factors) == 1 else 1.0
    reduced = [_one_of_each(angle.vector) for angle in angles]
    pairings = [a.pairing for a in angles] + [pairing for _, pairing in (*reduced, *scaled)]
    vector = combined([one for one, _ in reduced], reduced[0][0].values)
    if (precision := _precision(vector)) != vector.element and precision != "FLOAT":
        notes.append(
            f"its frequencies were rounded to {precision} before they were stored as {vector.element}"
        )
    return Computed(
        values=tuple(values),
        source=", ".join(vector.names),
        element=vector.element,
        buckets=tuple(_table(one, factor) for one, _ in reduced),
        pairing=next((pairing for pairing in pairings if pairing is not None), None),
        notes=tuple(notes),
    )


def find_computed(folding: Folding) -> list[Computed]:
    """Every angle of which the graph takes cosine and sine."""
    tracer, scales = _Angles(folding), _Scales(folding)
    together: dict[tuple[int, str], list[Made]] = {}
    for made in folding.flow.nodes:
        if made.node.op_type in {"Cos", "Sin"} and made.node.domain in {"", "ai.onnx"} and made.inputs:
            together.setdefault((id(made.scope), made.node.input[0]), []).append(made)
    found = []
    for nodes in together.values():
        angles = tracer.of(nodes[0].input(0))
        if folding.vectors(nodes[0].input(0)):
            continue  # of constants, and so no rotation by positions
        if _is_rope(angles):
            found.append(_computed(scales, angles, nodes))
        else:
            found.append(_unknown(nodes[0], "its cos and sin are made of angles in a way that is not read"))
    return found
