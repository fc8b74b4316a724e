"""A decoder graph, layer by layer: where each begins and ends, and whether layers that should be alike are.

What is judged by running the first layers holds for the others only if they are built the same.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yarnconv.errors import NotJudged
from yarnconv.plan import ConversionPlan
from yarnconv.targets.onnx.external_data import JOINT
from yarnconv.targets.onnx.placement import StoredWeight
from yarnconv.targets.onnx.reader import OnnxModel

if TYPE_CHECKING:
    import onnx

_PAST = re.compile(r"past_key_values\.(\d{1,9})\.(key|value)")
# what the residual enters first: where there is no norm, the projections
FIRST_ROLES = ("attention_norm", "query", "query_key_value")
# what makes of a weight the one that a graph computes with: another type, a one more, another form
PREPARES = frozenset({"Cast", "DequantizeLinear", "Concat", "Transpose", "Add"})
NORMS = frozenset({"RMSNormalization", "SimplifiedLayerNormalization", "LayerNormalization"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer. nodes: those between its ends, in the order of their connections. signature: the
    same for layers that compute the same from their own tensors.
    """

    nodes: tuple["onnx.NodeProto", ...]
    signature: str


def _turned_into(model: OnnxModel, weight: str) -> Iterator[tuple["onnx.NodeProto", str]]:
    """The nodes that take a weight, or what is made of it alone: each with the value that it takes."""
    values = [
        name for name in model.tensors if name == weight or (JOINT in name and weight in name.split(JOINT))
    ]
    for value in values:
        for node in model.consumers.get(value, ()):
            if node.op_type in PREPARES and value in node.input:
                values.append(node.output[0])
            else:
                yield node, value


def _entering(model: OnnxModel, weight: str) -> str:
    """What the norm with this weight normalises, or the matrix multiplies, before its type was changed."""
    for node, value in _turned_into(model, weight):
        takes = node.op_type in NORMS or (node.op_type == "MatMul" and node.input[1] == value)
        if takes and node.input[0] != value:
            maker = model.producers.get(node.input[0])
            return str(maker.input[0] if maker is not None and maker.op_type == "Cast" else node.input[0])
    raise NotJudged(
        f"nothing takes {weight} as a norm or a matrix: the graph is not built as `yarnconv onnx` builds it",
        where=model.path.name,
    )


def residuals(plan: ConversionPlan, model: OnnxModel) -> list[str]:
    """The value that enters each layer, and last the one that enters the final norm.

    Raises NotJudged where the graph's norms and matrices do not show them.
    """
    names = {(b.expected.role, b.expected.layer): b.expected.name for b in plan.bindings}
    entries = [
        next(names[role, index] for role in FIRST_ROLES if (role, index) in names)
        for index in range(len(plan.description.layers))
    ]
    return [_entering(model, name) for name in (*entries, names["final_norm", None])]


def nodes_between(model: OnnxModel, begin: str, ends: Sequence[str]) -> tuple["onnx.NodeProto", ...]:
    """The nodes that `ends` are made by from `begin` (and from inputs and tensors), each behind those that it
    needs: an order that follows from the connections alone.
    """
    known, ordered = {begin, ""}, list[Any]()
    stack = [(value, False) for value in reversed(ends)]
    while stack:
        value, ready = stack.pop()
        node = model.producers.get(value)
        if ready:
            assert node is not None
            ordered.append(node)
        elif value not in known and node is not None:
            known |= set(node.output)
            stack.append((value, True))
            stack += [(name, False) for name in reversed(node.input)]
    return tuple(ordered)


class _Signatures:
    """Signs layers; each tensor's bytes are read once."""

    def __init__(self, model: OnnxModel, weights: Mapping[str, StoredWeight]) -> None:
        self._model = model
        self._digests: dict[str, str] = {}
        self._roles: dict[str, tuple[str, int | None]] = {}
        together: dict[str, list[StoredWeight]] = {}
        for weight in weights.values():
            together.setdefault(weight.stored.tensor.name, []).append(weight)
        for name, inside in together.items():
            expected = [weight.binding.expected for weight in inside]
            layer = expected[0].layer
            if any(one.layer != layer for one in expected):
                continue  # of several layers: as strange as any other tensor
            roles = " and ".join(one.role for one in expected)
            self._roles[name] = roles, layer
            if (scales := inside[0].stored.scales) is not None:
                self._roles[scales.name] = f"scales of {roles}", layer

    def _leaf(self, name: str, index: int) -> str:
        """A value that no node makes: a tensor of the checkpoint's by its role, another by its bytes."""
        if name in self._roles:
            role, layer = self._roles[name]
            return role if layer == index else f"{role} of layer {layer}"
        if (past := _PAST.fullmatch(name)) is not None:
            return f"past {past[2]}" if int(past[1]) == index else name
        if name in self._model.tensors:
            if name not in self._digests:
                tensor = self._model.tensors[name]
                digest = hashlib.sha256(f"{tensor.element} {tensor.shape}".encode())
                digest.update(tensor.data)
                self._digests[name] = digest.hexdigest()
            return self._digests[name]
        return name

    def sign(self, index: int, nodes: Sequence["onnx.NodeProto"], begin: str, ends: Sequence[str]) -> str:
        signed = {begin: "residual", "": ""}
        for node in nodes:
            inputs = [signed.get(name) or self._leaf(name, index) for name in node.input]
            if node.op_type == "Shape" and _PAST.fullmatch(node.input[0]):
                inputs = ["a cache"]  # all are of one length
            attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
            parts = [node.domain, node.op_type, *inputs]
            digest = hashlib.sha256(repr((parts, attributes)).encode()).hexdigest()
            for number, output in enumerate(node.output):
                if output != begin:
                    signed[output] = f"{digest} {number}"
        return " ".join(signed.get(end) or self._leaf(end, index) for end in ends)


def read_layers(plan: ConversionPlan, model: OnnxModel, weights: Mapping[str, StoredWeight]) -> list[Layer]:
    """Every layer of the graph. weights: the checkpoint's tensors in it. Raises NotJudged where it shows
    none.
    """
    values, signatures = residuals(plan, model), _Signatures(model, weights)
    found = []
    for index in range(len(plan.description.layers)):
        begin = values[index]
        ends = (values[index + 1], f"present.{index}.key", f"present.{index}.value")
        nodes = nodes_between(model, begin, ends)
        found.append(Layer(nodes=nodes, signature=signatures.sign(index, nodes, begin, ends)))
    return found


def _attributes(node: "onnx.NodeProto") -> Mapping[str, object]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def difference(one: Layer, other: Layer) -> str:
    """In what the second layer differs from the first, for people."""
    if len(one.nodes) != len(other.nodes):
        return f"{len(other.nodes)} nodes, not {len(one.nodes)}"
    for wanted, found in zip(one.nodes, other.nodes, strict=True):
        if wanted.op_type != found.op_type:
            return f"{found.op_type} in place of {wanted.op_type}"
        attributes = _attributes(wanted), _attributes(found)
        if attributes[0] != attributes[1]:
            names = sorted(
                name
                for name in {**attributes[0], **attributes[1]}
                if attributes[0].get(name) != attributes[1].get(name)
            )
            shown = ", ".join(f"{n} {attributes[1].get(n)}, not {attributes[0].get(n)}" for n in names)
            return f"{found.op_type} with {shown}"
    return "a constant or a connection"
