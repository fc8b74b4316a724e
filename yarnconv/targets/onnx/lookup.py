"""Where a graph takes its rotations from: one table of cos and one of sin, and the nodes that look rows up.

Either the rotating nodes look rows up themselves (GroupQueryAttention that rotates, RotaryEmbedding with
position_ids), as in what onnxruntime-genai's builder writes, or the rows are gathered once for all of them,
as `yarnconv onnx` does. What else there is cannot be extended in place and is refused.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yarnconv.errors import BadInput, Inexpressible
from yarnconv.targets.onnx.layers import nodes_between
from yarnconv.targets.onnx.reader import FLOAT_DTYPES, OnnxModel, StoredTensor

if TYPE_CHECKING:
    import onnx

MICROSOFT = "com.microsoft"
FIX = "Convert the checkpoint with `yarnconv onnx` instead."


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """cos, sin: the tables, [rows, pairs]. rows: the values of the rows of both that were gathered; None
    where the rotating nodes look them up themselves. windows: positions that attention nodes look back over,
    of those that say so.
    """

    cos: StoredTensor
    sin: StoredTensor
    rows: tuple[str, str] | None
    windows: frozenset[int]

    @property
    def pairs(self) -> int:
        """Pairs of dimensions that rotate."""
        return self.cos.shape[1]

    @property
    def positions(self) -> int:
        """Positions that the tables reach; behind gathered ones stands a row of no number."""
        return self.cos.shape[0] - (self.rows is not None)


def refusal(what: str, model: OnnxModel) -> Inexpressible:
    """That this graph cannot be extended."""
    return Inexpressible(what, where=model.path.name, fix=FIX)


def attributes(node: "onnx.NodeProto") -> Mapping[str, object]:
    """A node's attributes by name."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _rotates_by(node: "onnx.NodeProto") -> int | None:
    """Which input of a node is its table of cos, behind which stands sin; None where it does not rotate."""
    if node.op_type == "RotaryEmbedding":
        return 2 if node.domain == MICROSOFT else 1
    if node.op_type == "GroupQueryAttention" and attributes(node).get("do_rotary", 0):
        return 7
    return None


def inner_graphs(nodes: "Sequence[onnx.NodeProto]") -> "Iterator[onnx.GraphProto]":
    """The graphs inside nodes of control flow, and those inside them."""
    stack = list(nodes)
    while stack:
        for attribute in stack.pop().attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield graph
                stack += graph.node


def _check_inside(model: OnnxModel, tables: set[str]) -> None:
    """Refuse what would be overlooked: rotations, tables and files behind control flow and in functions."""
    proto = model.proto
    functions = [node for function in proto.functions for node in function.node]
    graphs = list(inner_graphs([*proto.graph.node, *functions]))
    hidden = [*functions, *(node for graph in graphs for node in graph.node)]
    for node in hidden:
        if _rotates_by(node) is not None or tables & set(node.input):
            raise refusal(f"it rotates inside of control flow or a function ({node.op_type[:40]})", model)
    for node in (*proto.graph.node, *hidden):
        for attribute in node.attribute:
            if any(t.external_data for t in (attribute.t, *attribute.tensors)):
                raise refusal("a node has data of its own outside the graph", model)
    if any(t.external_data for graph in graphs for t in graph.initializer):
        raise refusal("a node has data of its own outside the graph", model)
    if any(graph.sparse_initializer for graph in (proto.graph, *graphs)):
        raise refusal("it holds sparse tensors", model)


def _says_why(model: OnnxModel, value: str) -> str:
    """Why a value that is no tensor of the model is none."""
    made_by = {node.op_type for node in nodes_between(model, "", [value])}
    if "If" in made_by:
        return "it has two caches of cos and sin, among which the length of the sequence chooses"
    if made_by & {"Cos", "Sin"}:
        return "its cos and sin are computed at run time: there is no cache that could be exchanged"
    maker = model.producers.get(value)
    return f"its cos and sin come from {maker.op_type[:40] if maker else value[:80]}, not from tensors"


def _table(model: OnnxModel, name: str) -> StoredTensor:
    tensor = model.tensors[name]
    if name in {value.name for value in model.proto.graph.input}:
        raise refusal(f"{name[:80]} is an input too, for which a client may give another", model)
    if tensor.element not in FLOAT_DTYPES or len(tensor.shape) != 2 or min(tensor.shape) < 1:
        what = f"{name[:80]} is {tensor.element} {list(tensor.shape)}, no table of positions and pairs"
        raise BadInput(what, where=model.path.name, fix="Export the model again.")
    return tensor


def _source(model: OnnxModel, value: str) -> tuple[str, bool]:
    """(the table's name, whether its rows were gathered before)."""
    node = model.producers.get(value)
    if value in model.tensors:
        return value, False
    if node is not None and node.op_type == "Gather" and node.input[0] in model.tensors:
        return node.input[0], True
    raise refusal(_says_why(model, value), model)


def _rotating(model: OnnxModel) -> Iterator[tuple[str, str]]:
    """What each rotating node takes for cos and sin."""
    for node in model.proto.graph.node:
        place = _rotates_by(node)
        if place is None:
            continue
        cos, sin = [*node.input[place : place + 2], "", ""][:2]
        if not cos or not sin:
            what = f"{node.op_type} rotates, and has no cos or no sin"
            raise BadInput(what, where=model.path.name, fix="Export the model again.")
        yield cos, sin


def _check_users(model: OnnxModel, lookup: Lookup) -> None:
    """Refuse tables that something else takes too: what it would make of longer ones is not known."""
    for name in (lookup.cos.name, lookup.sin.name):
        for node in model.consumers.get(name, ()):
            place = _rotates_by(node)
            if lookup.rows is not None:
                known = node.op_type == "Gather" and set(node.output) <= set(lookup.rows)
            else:
                known = place is not None and name in node.input[place : place + 2]
            if not known or list(node.input).count(name) != 1:
                raise refusal(f"{name[:80]} is taken by {node.op_type[:40]} too", model)
    for row in lookup.rows or ():
        for node in model.consumers.get(row, ()):
            if _rotates_by(node) is None:
                raise refusal(f"{row[:80]} is taken by {node.op_type[:40]} too", model)


def find_lookup(model: OnnxModel) -> Lookup:
    """The one that all layers share. Raises Inexpressible where there is none, or several."""
    taken = set(_rotating(model))
    _check_inside(model, {name for pair in taken for name in pair})
    if not taken:
        computed = {"Cos", "Sin"} & {node.op_type for node in model.proto.graph.node}
        raise refusal(
            "its cos and sin are computed at run time: there is no cache that could be exchanged"
            if computed
            else "nothing in it rotates queries and keys by a table of cos and sin",
            model,
        )
    sources = {(_source(model, cos), _source(model, sin)) for cos, sin in taken}
    if len(taken) > 1 or len(sources) > 1:
        raise refusal(f"its layers rotate by {len(taken)} different pairs of cos and sin", model)
    (values,), (((cos, gathered), (sin, gathered_too)),) = taken, sources
    if cos == sin or gathered != gathered_too:
        raise refusal("cos and sin are not looked up alike", model)
    lookup = Lookup(
        cos=_table(model, cos),
        sin=_table(model, sin),
        rows=values if gathered else None,
        windows=_windows(model),
    )
    if lookup.cos.shape != lookup.sin.shape or lookup.cos.element != lookup.sin.element:
        what = f"{cos[:80]} and {sin[:80]} are not of one shape and type"
        raise BadInput(what, where=model.path.name, fix="Export the model again.")
    if lookup.positions < 2:
        what = f"{cos[:80]} of shape {list(lookup.cos.shape)} holds no position whose angle says anything"
        raise BadInput(what, where=model.path.name, fix="Export the model again.")
    _check_inside(model, {cos, sin, *values})
    _check_users(model, lookup)
    return lookup


def _windows(model: OnnxModel) -> frozenset[int]:
    sizes = [
        attributes(node).get("local_window_size", -1)
        for node in model.proto.graph.node
        if node.op_type == "GroupQueryAttention"
    ]
    return frozenset(size for size in sizes if isinstance(size, int) and size > 0)


def lookup_signature(model: OnnxModel, cos: str, sin: str, rows: tuple[str, str]) -> tuple[str, ...]:
    """The same for nodes that look the same rows up in the tables called `cos` and `sin`, whatever their
    other names.
    """
    roles, signed = {cos: "cos", sin: "sin", "": ""}, dict[str, str]()

    def leaf(name: str) -> str:
        tensor = model.tensors.get(name)
        if name in roles or tensor is None:
            return roles.get(name, name)
        digest = hashlib.sha256(f"{tensor.element} {tensor.shape}".encode())
        digest.update(tensor.data)
        return digest.hexdigest()

    for node in nodes_between(model, "", rows):
        inputs = [signed.get(name) or leaf(name) for name in node.input]
        given = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        digest = hashlib.sha256(repr((node.domain, node.op_type, inputs, given)).encode()).hexdigest()
        signed |= {output: f"{digest} {number}" for number, output in enumerate(node.output)}
    return tuple(signed.get(row, "") for row in rows)
