"""A graph with other tables: its nodes and weights, and what turns positions into rotations exchanged."""

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from yarnconv.errors import BadInput
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.onnx.external_data import ExternalTensor, lay_out, reference
from yarnconv.targets.onnx.files import TABLES_FILE
from yarnconv.targets.onnx.layers import nodes_between
from yarnconv.targets.onnx.lookup import Lookup, inner_graphs, refusal
from yarnconv.targets.onnx.operators import ROPE_CONTEXT
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.targets.onnx.rope import bare_table, lay_out_tables
from yarnconv.targets.onnx.rotation_part import rotation_part

if TYPE_CHECKING:
    import onnx

PREFIX = "rope."  # of the values that a graph was given with its new tables


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedGraph:
    """proto: the model, its new tables pointing into their own file. tables: what that file holds."""

    proto: "onnx.ModelProto"
    tables: tuple[ExternalTensor, ...]


def _exchange(graph: "onnx.GraphProto", old: set[str], tables: tuple[ExternalTensor, ...]) -> None:
    """References to the new tables in place of the initialisers called `old`."""
    kept = [tensor for tensor in graph.initializer if tensor.name not in old]
    shapes = [value for value in graph.value_info if value.name not in old]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(reference(tensor, TABLES_FILE, offset) for tensor, offset in lay_out(tables))
    graph.value_info.extend(shapes)


def _copy(model: OnnxModel) -> "onnx.ModelProto":
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    return proto


def _with_longer_tables(model: OnnxModel, lookup: Lookup, rope: RopePlan, max_context: int) -> ExtendedGraph:
    """Other rows in the same two tables, for nodes that look rows up themselves."""
    layout = lay_out_tables(rope.main_group, rope.original_context, max_context)
    if len(layout.buckets) > 1:
        raise refusal("it looks rows up in one table, which cannot follow the context of a request", model)
    proto, (bucket,) = _copy(model), layout.buckets
    tables = tuple(
        bare_table(table.name, which, bucket, max_context, table.element)
        for table, which in ((lookup.cos, "cos"), (lookup.sin, "sin"))
    )
    _exchange(proto.graph, {table.name for table in tables}, tables)
    return ExtendedGraph(proto=proto, tables=tables)


def _without_lookup(model: OnnxModel, graph: "onnx.GraphProto", rows: tuple[str, str]) -> None:
    """Take away what makes the rows and what nothing else takes then."""
    hidden = [node for inner in inner_graphs(graph.node) for node in inner.node]
    users = Counter(chain.from_iterable(node.input for node in (*graph.node, *hidden)))
    users.update(output.name for output in graph.output)
    gone: set[str] = set()
    for node in reversed(nodes_between(model, "", rows)):
        if set(node.output) <= set(rows) or not any(users[output] for output in node.output):
            gone |= set(node.output)
            users.subtract(node.input)
    kept = [node for node in graph.node if not gone & set(node.output)]
    made_for = {name for node in model.proto.graph.node if gone & set(node.output) for name in node.input}
    unused = {name for name in made_for if users[name] <= 0}
    tensors = [tensor for tensor in graph.initializer if tensor.name not in unused]
    inputs = [value for value in graph.input if value.name != ROPE_CONTEXT or value.name not in unused]
    del graph.node[:], graph.initializer[:], graph.input[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensors)
    graph.input.extend(inputs)


def _with_new_lookup(
    model: OnnxModel, rows: tuple[str, str], rope: RopePlan, max_context: int
) -> ExtendedGraph:
    """Our own lookup of the new plan in place of the old one: it may have other buckets."""
    layout = lay_out_tables(rope.main_group, rope.original_context, max_context)
    part, proto = rotation_part(model, layout, max_context), _copy(model)
    graph, own = proto.graph, part.model.proto.graph
    _without_lookup(model, graph, rows)
    inputs = {value.name for value in graph.input}
    names = dict(zip(part.rows, rows, strict=True))
    for name in (*part.model.producers, *part.model.tensors):
        names.setdefault(name, name if name == ROPE_CONTEXT else PREFIX + name)
    taken = {t.name for t in graph.initializer} | {o for node in graph.node for o in node.output} | inputs
    if clash := taken & {*names.values(), *part.tables}:
        what = f"a value of it is called {min(clash)[:80]}"
        raise BadInput(what, where=model.path.name, fix="Convert the checkpoint again.")
    nodes = list(graph.node)
    del graph.node[:]
    for node in own.node:
        node.name = PREFIX + node.name
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    graph.node.extend([*own.node, *nodes])
    for tensor in own.initializer:
        if tensor.name not in part.tables:
            tensor.name = names[tensor.name]
            graph.initializer.append(tensor)
    graph.input.extend(own.input)
    _exchange(graph, set(part.tables), part.data)
    return ExtendedGraph(proto=proto, tables=part.data)


def extend_graph(model: OnnxModel, lookup: Lookup, rope: RopePlan, max_context: int) -> ExtendedGraph:
    """The model with a plan's tables of so many positions. Raises Inexpressible where it cannot have them."""
    if lookup.rows is None:
        return _with_longer_tables(model, lookup, rope, max_context)
    return _with_new_lookup(model, lookup.rows, rope, max_context)
