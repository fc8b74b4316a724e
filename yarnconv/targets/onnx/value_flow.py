"""Where values of a graph come from and what is made of them, through branches and the model's functions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from yarnconv.checkpoint.floats import to_float32
from yarnconv.errors import BadInput
from yarnconv.rope.tables import Float64Array
from yarnconv.targets.onnx.reader import (
    ELEMENT_BITS,
    FLOAT_DTYPES,
    MAXIMUM_ELEMENTS,
    OnnxModel,
    StoredTensor,
    inline_bytes,
)

if TYPE_CHECKING:
    import onnx

MOST_NUMBERS = 2**16  # of a constant that is computed with
MOST_NODES = 2**20  # of a model whose functions are put in their places
MOST_DEPTH = 64  # of branches inside of branches
T = TypeVar("T")
_OTHER_TYPES = {
    "DOUBLE": "<f8",
    "INT64": "<i8",
    "INT32": "<i4",
    "INT16": "<i2",
    "UINT8": "|u1",
    "INT8": "|i1",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scope:
    """The names of a graph, or of a branch, which sees those around it too. constants: tensors, whether they
    are initialisers or nodes.
    """

    producers: "Mapping[str, onnx.NodeProto]"
    constants: Mapping[str, StoredTensor]
    outer: "Scope | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A name where it is read."""

    scope: Scope
    name: str

    @property
    def key(self) -> tuple[int, str]:
        """For dictionaries: the same for the same name in the same scope."""
        return id(self.scope), self.name


def settle(
    value: Value,
    known: dict[tuple[int, str], T],
    needs: Callable[[Value], Iterable[Value]],
    make: Callable[[Value], T],
) -> None:
    """Make a value and first all that it needs, each once, into `known`. Chains may be as long as the graph,
    so that no answer hangs on the way by which a value was reached. What needs itself is made without.
    """
    stack, begun = [value], set[tuple[int, str]]()
    while stack:
        here = stack[-1]
        if here.key in known:
            stack.pop()
        elif here.key in begun:
            stack.pop()
            known[here.key] = make(here)
        else:
            begun.add(here.key)
            stack += [part for part in needs(here) if part.key not in known and part.key not in begun]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A node with the scope in which its inputs are read."""

    scope: Scope
    node: "onnx.NodeProto"

    def input(self, index: int) -> Value | None:
        """None where it is left out."""
        name = self.node.input[index] if index < len(self.node.input) else ""
        return Value(scope=self.scope, name=name) if name else None

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Those that are given."""
        return tuple(Value(scope=self.scope, name=name) for name in self.node.input if name)

    def attribute(self, name: str) -> Any:
        """None where it has none of that name."""
        from onnx import helper

        return next((helper.get_attribute_value(a) for a in self.node.attribute if a.name == name), None)


def _stored(name: str, proto: "onnx.TensorProto") -> StoredTensor | None:
    """A tensor inside the graph; None where it is none that is read."""
    from onnx import TensorProto

    types = TensorProto.DataType
    element = types.Name(proto.data_type) if proto.data_type in types.values() else ""
    shape = tuple(proto.dims)
    strange = element not in ELEMENT_BITS or any(d < 0 for d in shape) or len(shape) > 8
    if strange or prod(shape) > MAXIMUM_ELEMENTS or proto.data_location == TensorProto.EXTERNAL:
        return None
    data = inline_bytes(proto, -(-prod(shape) * ELEMENT_BITS[element] // 8))
    return None if data is None else StoredTensor(name=name, element=element, shape=shape, data=data)


def _constant(node: "onnx.NodeProto") -> StoredTensor | None:
    for attribute in node.attribute:
        if attribute.name == "value":
            return _stored(node.output[0], attribute.t)
        if attribute.name in {"value_float", "value_floats"}:
            floats = attribute.floats if attribute.name == "value_floats" else [attribute.f]
            data = memoryview(np.array(floats, "<f4").tobytes())
            return StoredTensor(name=node.output[0], element="FLOAT", shape=(len(floats),), data=data)
        if attribute.name in {"value_int", "value_ints"}:
            ints = attribute.ints if attribute.name == "value_ints" else [attribute.i]
            data = memoryview(np.array(ints, "<i8").tobytes())
            return StoredTensor(name=node.output[0], element="INT64", shape=(len(ints),), data=data)
    return None


def numbers(tensor: StoredTensor) -> Float64Array | None:
    """Its values, flat; None where they are many or of a type that is no number."""
    if prod(tensor.shape) > MOST_NUMBERS:
        return None
    if tensor.element in FLOAT_DTYPES:
        values = np.ascontiguousarray(tensor.array().reshape(-1))
        return to_float32(values, FLOAT_DTYPES[tensor.element]).astype(np.float64)
    if tensor.element in _OTHER_TYPES:
        return np.frombuffer(tensor.data, _OTHER_TYPES[tensor.element]).astype(np.float64)
    return None


def _check_calls(proto: "onnx.ModelProto", where: str) -> None:
    """Refuse functions that call themselves, and those that would fill the memory."""
    functions = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Any, depth: int) -> int:
        total = 0
        for node in nodes:
            key = node.domain, node.op_type
            inside = [a.g for a in node.attribute if a.HasField("g")]
            inside += [graph for a in node.attribute for graph in a.graphs]
            total += 1 + sum(size(graph.node, depth + 1) for graph in inside)
            if key in functions:
                if key not in sizes:
                    sizes[key] = MOST_NODES + 1  # for who calls itself
                    sizes[key] = size(functions[key].node, depth + 1)
                total += sizes[key]
            if total > MOST_NODES or depth > MOST_DEPTH:
                what = "its functions call each other without end"
                raise BadInput(what, where=where, fix="Export the model again.")
        return total

    size(proto.graph.node, 0)


def _nodes(model: OnnxModel) -> "onnx.GraphProto":
    """The model's graph; where there are functions, one without its tensors, with them in their places."""
    if not model.proto.functions:
        return model.proto.graph
    import onnx
    from onnx import inliner

    _check_calls(model.proto, model.path.name)
    outline = onnx.ModelProto(ir_version=model.proto.ir_version)
    outline.opset_import.extend(model.proto.opset_import)
    outline.functions.extend(model.proto.functions)
    outline.graph.name = model.proto.graph.name
    outline.graph.node.extend(model.proto.graph.node)
    outline.graph.input.extend(model.proto.graph.input)
    outline.graph.output.extend(model.proto.graph.output)
    for tensor in model.proto.graph.initializer:
        outline.graph.initializer.add(name=tensor.name, data_type=onnx.TensorProto.FLOAT, dims=[0])
    try:
        return inliner.inline_local_functions(outline).graph
    except (ValueError, RuntimeError) as error:
        what = f"its functions cannot be put in their places ({' '.join(str(error).split())[:200]})"
        raise BadInput(what, where=model.path.name, fix="Export the model again.") from None


class ValueFlow:
    """A model's graph and the branches in it. root: its own names."""

    def __init__(self, model: OnnxModel) -> None:
        self._consumers: dict[tuple[int, str], list[Made]] = {}
        self._branches: dict[int, list[tuple[Scope, onnx.GraphProto]]] = {}
        self.scopes: list[Scope] = []
        self.nodes: list[Made] = []
        self._graph, self._file = _nodes(model), model.path.name
        self.root = self._enter(self._graph, model.tensors, None, 0)

    def _enter(
        self, graph: "onnx.GraphProto", given: Mapping[str, StoredTensor], outer: Scope | None, depth: int
    ) -> Scope:
        if depth > MOST_DEPTH:
            what = "its branches lie inside of each other without end"
            raise BadInput(what, where=self._file, fix="Export the model again.")
        constants = dict(given)
        producers = {output: node for node in graph.node for output in node.output if output}
        if outer is not None:
            constants |= {
                t.name: tensor for t in graph.initializer if (tensor := _stored(t.name, t)) is not None
            }
        for node in graph.node:
            if node.op_type == "Constant" and node.output and (tensor := _constant(node)) is not None:
                constants[node.output[0]] = tensor
        scope = Scope(producers=producers, constants=constants, outer=outer)
        self.scopes.append(scope)
        for node in graph.node:
            made = Made(scope=scope, node=node)
            self.nodes.append(made)
            for name in set(node.input):
                self._consumers.setdefault((id(scope), name), []).append(made)
            for attribute in node.attribute:
                for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                    inside = self._enter(inner, {}, scope, depth + 1)
                    self._branches.setdefault(id(node), []).append((inside, inner))
        return scope

    def constant(self, value: Value) -> StoredTensor | None:
        """The tensor that a value is."""
        scope: Scope | None = value.scope
        while scope is not None:
            if value.name in scope.constants:
                return scope.constants[value.name]
            if value.name in scope.producers:
                return None
            scope = scope.outer
        return None

    def maker(self, value: Value) -> Made | None:
        """The node that makes a value; None of a tensor or an input."""
        scope: Scope | None = value.scope
        while scope is not None:
            if value.name in scope.constants:
                return None
            if value.name in scope.producers:
                return Made(scope=scope, node=scope.producers[value.name])
            scope = scope.outer
        return None

    def users(self, value: Value) -> list[Made]:
        """The nodes of its own scope that take a value."""
        return self._consumers.get((id(value.scope), value.name), [])

    def branches(self, made: Made, output: str) -> Iterator[Value]:
        """What each branch gives for an output of a node of control flow."""
        index = list(made.node.output).index(output)
        for scope, graph in self._branches.get(id(made.node), ()):
            if index < len(graph.output):
                yield Value(scope=scope, name=graph.output[index].name)
