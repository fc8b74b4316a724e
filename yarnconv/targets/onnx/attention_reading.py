"""What attends in a layer of a graph: one node, or the primitive ones that softcapped scores are made of."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from yarnconv.checkpoint.floats import to_float32
from yarnconv.targets.onnx.layers import nodes_between
from yarnconv.targets.onnx.reader import FLOAT_DTYPES, OnnxModel

if TYPE_CHECKING:
    import onnx

ATTENTION = frozenset({"Attention", "GroupQueryAttention"})
PASSES = frozenset({"Cast", "CastLike", "Identity"})
HEAD_SINKS = 11  # the input of GroupQueryAttention that has them
MOST_STEPS = 16  # from scores to their softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAttention:
    """One layer's attention. query, key: the values that come into it. scale: of the scores, where one number
    says it. softcap: c of c tanh(score / c), None for none, NaN for something else that bends scores. window:
    slots that a query looks back over. sinks: whether something beside the keys' scores takes a share.
    """

    query: str
    key: str
    scale: float | None
    softcap: float | None
    window: int | None
    sinks: bool


def _number(node: "onnx.NodeProto", name: str) -> float:
    from onnx import helper

    found = next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), 0)
    return float(found) if isinstance(found, int | float) else 0.0


def _mask_window(model: OnnxModel, masks: Sequence[str]) -> int | None:
    """The constant that is added to the slots' ranks before they are compared with the query's."""
    for node in nodes_between(model, "", masks):
        added = [model.tensors[name] for name in node.input if name in model.tensors]
        compared = any(user.op_type == "Greater" for user in model.consumers.get(node.output[0], ()))
        if node.op_type == "Add" and compared and added and added[0].element == "INT64":
            return int(np.frombuffer(added[0].data, np.int64)[0])
    return None


def _of_node(model: OnnxModel, node: "onnx.NodeProto") -> ReadAttention:
    own = int(_number(node, "local_window_size"))
    by_mask = node.op_type == "Attention"
    return ReadAttention(
        query=node.input[0],
        key=node.input[1],
        scale=_number(node, "scale") or None,
        sinks=any(node.input[HEAD_SINKS:]) if node.op_type == "GroupQueryAttention" else False,
        softcap=_number(node, "softcap") or None,
        window=_mask_window(model, node.input[3:4]) if by_mask else own if own > 0 else None,
    )


def _constant(model: OnnxModel, names: Sequence[str]) -> float | None:
    """The only number among a node's inputs, through what changes its type."""
    for name in names:
        value, node = name, model.producers.get(name)
        while node is not None and node.op_type in PASSES:
            value, node = node.input[0], model.producers.get(node.input[0])
        tensor = model.tensors.get(value)
        if tensor is not None and tensor.element in FLOAT_DTYPES and math.prod(tensor.shape) == 1:
            return float(to_float32(tensor.array().reshape(1), FLOAT_DTYPES[tensor.element])[0])
    return None


def _to_softmax(model: OnnxModel, scores: str) -> Iterator["onnx.NodeProto"]:
    """The nodes from scores to their softmax; nothing where they do not lead there one by one."""
    passed, value = list["onnx.NodeProto"](), scores
    for _ in range(MOST_STEPS):
        users = model.consumers.get(value, [])
        if len(users) != 1:
            return
        if users[0].op_type == "Softmax":
            yield from passed
            return
        passed.append(users[0])
        value = users[0].output[0]


def _bend(model: OnnxModel, nodes: Sequence["onnx.NodeProto"]) -> float | None:
    """The softcap that nodes between scores and softmax make."""
    bends = [node for node in nodes if node.op_type not in {*PASSES, "Where", "Add", "Concat"}]
    if not bends:
        return None
    numbers = {number for node in (bends[0], bends[-1]) if (number := _constant(model, node.input))}
    as_made = [node.op_type for node in bends] == ["Div", "Tanh", "Mul"] and len(numbers) == 1
    return numbers.pop() if as_made else math.nan


def _scaled(model: OnnxModel, query: str) -> float | None:
    """The number that queries are multiplied by before their product with keys."""
    for _ in range(MOST_STEPS):
        node = model.producers.get(query)
        if node is None or node.op_type not in {*PASSES, "Reshape", "Mul"}:
            return None
        if node.op_type == "Mul":
            return _constant(model, node.input)
        query = node.input[0]
    return None


def _of_primitives(model: OnnxModel, present: str) -> ReadAttention | None:
    turned = [node.output[0] for node in model.consumers.get(present, ()) if node.op_type == "Transpose"]
    for value in turned:
        for product in model.consumers.get(value, ()):
            if product.op_type != "MatMul" or product.input[1] != value:
                continue
            nodes = list(_to_softmax(model, product.output[0]))
            masks = [name for node in nodes if node.op_type == "Where" for name in node.input[:1]]
            return ReadAttention(
                query=product.input[0],
                key=present,
                scale=_scaled(model, product.input[0]),
                sinks=any(node.op_type == "Concat" for node in nodes),
                softcap=_bend(model, nodes),
                window=_mask_window(model, masks),
            )
    return None


def read_attention(model: OnnxModel, index: int) -> ReadAttention | None:
    """A layer's; None where the graph does not show it."""
    present = f"present.{index}.key"
    around = [*model.consumers.get(present, ()), *filter(None, [model.producers.get(present)])]
    node = next((node for node in around if node.op_type in ATTENTION), None)
    return _of_primitives(model, present) if node is None else _of_node(model, node)
