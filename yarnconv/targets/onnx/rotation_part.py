"""The part of our graph that looks rows up, by itself: to be held against another graph's, or put into it."""

from dataclasses import dataclass

from yarnconv.targets.onnx.external_data import ExternalTensor
from yarnconv.targets.onnx.files import TABLES_FILE
from yarnconv.targets.onnx.graph import Graph
from yarnconv.targets.onnx.operators import OPERATORS
from yarnconv.targets.onnx.reader import OnnxModel, StoredTensor
from yarnconv.targets.onnx.rope import TableLayout, request_bucket, rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationPart:
    """model: its nodes, constants and inputs; its tables are not among its tensors. tables: their names, cos
    and sin. rows: the values that the nodes make. data: the tables, to be written.
    """

    model: OnnxModel
    tables: tuple[str, str]
    rows: tuple[str, str]
    data: tuple[ExternalTensor, ...]


def rotation_part(model: OnnxModel, layout: TableLayout, max_context: int) -> RotationPart:
    """The part for a model of the same form of the cache. max_context: what the request's context is where it
    is an input that was not given.
    """
    opset = next((o.version for o in model.proto.opset_import if o.domain in {"", "ai.onnx"}), 0)
    graph, context = Graph(opset), None
    if len(layout.buckets) > 1:
        operators = OPERATORS["standard", "in-place" if model.in_place else "concat"]()
        context = operators.context(graph, None if model.requires_context else max_context)
    rows = rotation(graph, layout, request_bucket(graph, layout, context))
    cos, sin = graph.tensors
    proto = graph.model(TABLES_FILE, {})
    small = {
        tensor.name: StoredTensor(
            name=tensor.name, element="INT64", shape=tuple(tensor.dims), data=memoryview(tensor.raw_data)
        )
        for tensor in proto.graph.initializer
        if not tensor.external_data
    }
    return RotationPart(
        model=OnnxModel(path=model.path, proto=proto, tensors=small, files=()),
        tables=(cos.name, sin.name),
        rows=rows,
        data=(cos, sin),
    )
