"""Constants of a graph, and what is made of constants alone, as flat vectors: a frequency for each pair.

Shapes are let go of on purpose: exporters reshape, expand and transpose one vector in ever new ways, and
which pair a value belongs to is its place in the vector.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import convert_floats, to_float32
from yarnconv.rope.tables import Float64Array
from yarnconv.targets.onnx.reader import FLOAT_DTYPES
from yarnconv.targets.onnx.value_flow import MOST_NUMBERS, Made, Value, ValueFlow, numbers, settle

MOST_ALTERNATIVES = 8
MOST_REMEMBERED = 2**24  # numbers of all vectors
SHAPES = frozenset({"Identity", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Transpose", "Flatten"})
CHOICES = frozenset({"Where", "If"})  # of which nobody knows which it will be
WIDTHS = {"DOUBLE": 53, "FLOAT": 24, "FLOAT16": 11, "BFLOAT16": 8}  # bits of a significand
Elements = NDArray[np.float64]
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
}
_UNARY: dict[str, Callable[[Any], Any]] = {
    "Reciprocal": np.reciprocal,
    "Neg": np.negative,
    "Exp": np.exp,
    "Log": np.log,
    "Sqrt": np.sqrt,
}
_FOLDED = SHAPES | CHOICES | {"Cast", "Concat", "Range"} | _BINARY.keys() | _UNARY.keys()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vector:
    """values: float64[n]. names: the tensors of more than one value that it is made of. element: the
    narrowest float type on the way, an ONNX name.
    """

    values: Float64Array
    names: tuple[str, ...] = ()
    element: str = "FLOAT"

    def __mul__(self, other: "Vector") -> "Vector":
        return combined([self, other], self.values * other.values)


def narrower(one: str, other: str) -> str:
    """Of two float types the one that rounds more."""
    return min(one, other, key=lambda name: WIDTHS.get(name, 24))


def combined(parts: Sequence[Vector], values: Float64Array) -> Vector:
    """A vector of what was made of others."""
    element = "DOUBLE"
    for part in parts:
        element = narrower(element, part.element)
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    return Vector(values=values, names=names, element=element)


def fits(parts: Sequence[Vector]) -> bool:
    """Whether vectors can be taken together value by value: of one length, but for those of one value."""
    return len({len(part.values) for part in parts} - {1}) < 2


def cast_type(made: Made) -> str:
    """The ONNX name of the type that a Cast makes."""
    from onnx import TensorProto

    to = made.attribute("to")
    return TensorProto.DataType.Name(to) if to in TensorProto.DataType.values() else ""


def _cast(made: Made, vector: Vector) -> Vector | None:
    """None of a type that is none of numbers."""
    name = cast_type(made)
    if name in FLOAT_DTYPES:
        single = vector.values.astype(np.float32)
        dtype = FLOAT_DTYPES[name]
        values = to_float32(convert_floats(single, "F32", dtype), dtype).astype(np.float64)
        return replace(vector, values=values, element=narrower(vector.element, name))
    if name in {"INT64", "INT32"}:
        return replace(vector, values=np.trunc(vector.values))
    return vector if name == "DOUBLE" else None


class Folding:
    """Vectors of a graph's values, each computed once."""

    def __init__(self, flow: ValueFlow) -> None:
        self.flow = flow
        self._known: dict[tuple[int, str], tuple[Vector, ...]] = {}
        self._room = MOST_REMEMBERED

    def vectors(self, value: Value | None) -> tuple[Vector, ...]:
        """What a value may be where it is made of constants alone, by the branch that is taken; nothing where
        it is made of what is given at run time, or of too much.
        """
        if value is None:
            return ()
        settle(value, self._known, self._needs, self._remembered)
        return self._known[value.key]

    def _needs(self, value: Value) -> Iterable[Value]:
        """What is looked at to know a value."""
        made = None if self.flow.constant(value) is not None else self.flow.maker(value)
        if made is None or made.node.domain not in {"", "ai.onnx"} or made.node.op_type not in _FOLDED:
            return ()
        if made.node.op_type == "If":
            return self.flow.branches(made, value.name)
        return made.inputs[:1] if made.node.op_type in SHAPES else made.inputs

    def _remembered(self, value: Value) -> tuple[Vector, ...]:
        with np.errstate(all="ignore"):
            made = self._made(value)[:MOST_ALTERNATIVES]
        self._room -= sum(len(vector.values) for vector in made)
        return made if self._room >= 0 else ()

    def _made(self, value: Value) -> tuple[Vector, ...]:
        tensor = self.flow.constant(value)
        if tensor is not None:
            values = numbers(tensor)
            if values is None or not len(values):
                return ()
            names = (value.name,) if len(values) > 1 else ()
            element = tensor.element if tensor.element in WIDTHS else "DOUBLE"
            return (Vector(values=values, names=names, element=element),)
        made = self.flow.maker(value)
        given = [self._known.get(part.key, ()) for part in self._needs(value)]
        if made is None or not given:
            return ()
        operator = made.node.op_type
        if operator in SHAPES:
            return given[0]
        if not all(given[operator == "Where" :]):
            return ()
        if operator == "If":
            return tuple(itertools.chain(*given))
        if operator == "Where":
            return tuple(itertools.chain(*given[1:]))
        chosen = itertools.islice(itertools.product(*given), MOST_ALTERNATIVES)
        results = [self._result(made, parts) for parts in chosen]
        return tuple(result for result in results if result is not None)

    def _result(self, made: Made, parts: tuple[Vector, ...]) -> Vector | None:
        operator = made.node.op_type
        if operator == "Cast":
            return _cast(made, parts[0])
        if operator in _UNARY:
            return combined(parts, np.asarray(_UNARY[operator](parts[0].values)))
        if operator in _BINARY and len(parts) == 2 and fits(parts):
            return combined(parts, np.asarray(_BINARY[operator](parts[0].values, parts[1].values)))
        if operator == "Concat" and sum(len(part.values) for part in parts) <= MOST_NUMBERS:
            return combined(parts, np.concatenate([part.values for part in parts]))
        if operator == "Range" and len(parts) == 3:
            first, limit, step = (float(part.values[0]) for part in parts)
            count = np.ceil((limit - first) / step) if step else np.inf
            if np.isfinite(count) and 0 < count <= MOST_NUMBERS:
                return combined(parts, first + step * np.arange(int(count), dtype=np.float64))
        return None
