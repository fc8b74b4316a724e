"""A small float32 copy of an ONNX model: its own graph, its own weights dequantised, its first layers.

In float32 a right graph stands within 1e-5 of the reference and a wrong one outside 1e-3, whatever type its
weights are in; ONNX Runtime's CPU has no bfloat16 kernels, and float32 ones for everything; and a few layers
of a few thousand vocabulary entries show it as well as the whole model.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yarnconv.errors import NotJudged
from yarnconv.model.tensors import EXPERT_ROLES
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Advance
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.external_data import (
    PIECE_VALUES,
    ExternalTensor,
    data_bytes,
    lay_out,
    pieces,
    reference,
)
from yarnconv.targets.onnx.files import DATA_FILE, MODEL_FILE
from yarnconv.targets.onnx.layers import nodes_between, residuals
from yarnconv.targets.onnx.placement import Stored, StoredWeight
from yarnconv.targets.onnx.reader import ELEMENT_BITS, FLOAT_DTYPES, OnnxModel, StoredTensor
from yarnconv.targets.output_file import write_pieces

if TYPE_CHECKING:
    import onnx

VOCABULARY_ROLES = frozenset({"token_embedding", "output_head"})
LOGITS = "logits"
# which inputs are made of positions: cos, sin and ids; the mask; the lengths
POSITION_INPUTS = {
    "RotaryEmbedding": slice(1, None),
    "Attention": slice(3, 4),
    "GroupQueryAttention": slice(5, None),
    "Where": slice(0, 1),  # where scores are masked one by one
    "Log": slice(0, 1),  # by which queries grow
}
LARGE = 1024  # bytes; smaller tensors stay in the graph

_PRESENT = re.compile(r"present\.(\d{1,9})\.(key|value)")

Rows = Callable[[int, int], NDArray[np.generic]]


def _is_kept(output: str, layers: int) -> bool:
    """Whether a graph output is the logits, or the cache of one of the first layers."""
    present = _PRESENT.fullmatch(output)
    return output == LOGITS or (present is not None and int(present[1]) < layers)


class FloatCopy:
    """A copy to be written. layers: how many are kept. vocabulary: the ids that are kept, in order; they
    become 0, 1, ... experts: likewise, None for all. weights: the artefact's, by the checkpoint's names.

    Raises NotJudged where the graph does not show its layers.
    """

    def __init__(
        self,
        plan: ConversionPlan,
        model: OnnxModel,
        weights: Mapping[str, StoredWeight],
        *,
        layers: int,
        vocabulary: NDArray[np.intp],
        experts: NDArray[np.intp] | None = None,
    ) -> None:
        self._experts = experts
        self._plan, self._model, self._weights = plan, model, weights
        self._layers, self._vocabulary = layers, vocabulary
        # several weights may stand in one tensor; those that depend on the vocabulary stand alone
        self._by_tensor = {weight.stored.tensor.name: weight for weight in weights.values()}
        self._by_scales = {w.stored.scales.name: w for w in weights.values() if w.stored.scales is not None}
        self._graph = self._cut()
        self._tensors: list[ExternalTensor] = []
        self._small: list[onnx.TensorProto] = []
        used = {name for node in self._graph.node for name in node.input}
        for tensor in model.tensors.values():
            if tensor.name in used:
                self._take(tensor)

    @property
    def nbytes(self) -> int:
        """Bytes of its data file."""
        return data_bytes(self._tensors)

    # the graph

    def _cut(self) -> "onnx.GraphProto":
        """The graph without the later layers, computing in float32."""
        import onnx

        values = residuals(self._plan, self._model)
        source = self._model.proto.graph
        graph = onnx.GraphProto(name=source.name)
        keeps = [o for o in source.output if _is_kept(o.name, self._layers)]
        logits = next((o for o in keeps if o.name == LOGITS), None)
        if logits is None or not logits.type.tensor_type.shape.dim:
            raise NotJudged("the graph declares no output called logits, with a shape")
        behind = nodes_between(self._model, values[-1], [LOGITS])
        presents = [o.name for o in keeps if o.name != LOGITS]
        before = nodes_between(self._model, "", [values[self._layers], *presents])
        kept = {id(node) for node in (*before, *behind)}
        renamed = {values[-1]: values[self._layers]}  # the final norm takes what leaves the last kept layer
        exact = self._of_positions()
        nodes = [
            self._node(node, renamed, widens=id(node) not in exact)
            for node in source.node
            if id(node) in kept
        ]
        graph.node.extend(self._without_dequantisation(nodes))
        used = {name for node in graph.node for name in node.input}
        graph.input.extend(i for i in source.input if i.name in used)
        graph.output.extend(keeps)
        for declared in (*graph.input, *graph.output):
            declared.type.tensor_type.elem_type = self._float_type(declared.type.tensor_type.elem_type)
        logits = next(o for o in graph.output if o.name == LOGITS)
        logits.type.tensor_type.shape.dim[-1].dim_value = len(self._vocabulary)
        return graph

    @staticmethod
    def _float_type(element: int) -> int:
        from onnx import TensorProto

        narrow = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
        return int(TensorProto.FLOAT if element in narrow else element)

    def _of_positions(self) -> set[int]:
        """The nodes that make masks, and rotations of positions: whoever rounds there means it, and whoever
        does not had better not.
        """
        made = [
            value
            for node in self._model.proto.graph.node
            for value in node.input[POSITION_INPUTS.get(node.op_type, slice(0))]
            if node.op_type != "Where" or not self._is_of_tokens(value)
        ]
        return {id(node) for node in nodes_between(self._model, "", made)}

    def _is_of_tokens(self, value: str) -> bool:
        """Whether a choice follows from what the model computes, as that of experts does."""
        seen, waiting = set[str](), [value]
        while waiting:
            node = self._model.producers.get(waiting.pop())
            if node is None or node.output[0] in seen:
                continue
            if node.op_type == "MatMul":
                return True
            seen.add(node.output[0])
            waiting += node.input
        return False

    def _node(
        self, source: "onnx.NodeProto", renamed: Mapping[str, str], *, widens: bool
    ) -> "onnx.NodeProto":
        """A node for the copy. widens: whether it computes in float32 where it was narrower."""
        import onnx

        node = onnx.NodeProto()
        node.CopyFrom(source)
        node.input[:] = [renamed.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if widens and node.op_type == "Cast" and attribute.name == "to":
                attribute.i = self._float_type(attribute.i)
            if attribute.HasField("t"):
                attribute.t.CopyFrom(self._float_tensor(attribute.t))
        return node

    def _float_tensor(self, tensor: "onnx.TensorProto") -> "onnx.TensorProto":
        from onnx import numpy_helper

        if self._float_type(tensor.data_type) == tensor.data_type:
            return tensor
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)

    def _without_dequantisation(self, nodes: "Iterable[onnx.NodeProto]") -> "Iterator[onnx.NodeProto]":
        """Quantised weights are float32 in the copy, under the same names. Raises NotJudged where one is
        dequantised otherwise than as its scheme has it, with its own scales.
        """
        dequantised: dict[str, str] = {}
        for node in nodes:
            weight = self._by_tensor.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
            if weight is not None and weight.stored.scheme is not None:
                self._check_dequantisation(node, weight.stored)
                dequantised[node.output[0]] = node.input[0]
                continue
            node.input[:] = [dequantised.get(name, name) for name in node.input]
            yield node

    @staticmethod
    def _check_dequantisation(node: "onnx.NodeProto", stored: Stored) -> None:
        from onnx import helper

        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        scales = stored.scales.name if stored.scales is not None else ""
        as_written = (
            stored.transposed and stored.scheme is not None and attributes == stored.scheme.attributes
        )
        if list(node.input) != [stored.tensor.name, scales] or not as_written:
            raise NotJudged(f"{stored.tensor.name} is not dequantised by its own scales, in our form")

    @property
    def untaken(self) -> list[str]:
        """The checkpoint's tensors of the kept layers that no kept node takes."""
        kept = {tensor.name for tensor in self._tensors} | {tensor.name for tensor in self._small}
        return [
            name
            for name, weight in self._weights.items()
            if (weight.binding.expected.layer or 0) < self._layers and weight.stored.tensor.name not in kept
        ]

    # its tensors

    def _kept(self, weight: StoredWeight | None) -> tuple[int, NDArray[np.intp]] | None:
        """(axis, which of its entries) that the copy keeps of a weight as it is stored; None for all."""
        if weight is None:
            return None
        expected, turned = weight.binding.expected, weight.stored.transposed
        if expected.role in VOCABULARY_ROLES:
            return (1 if turned else 0), self._vocabulary
        if self._experts is None or expected.role not in EXPERT_ROLES:
            return None
        # side by side, or one below the other: each expert's own rows or columns stand together
        down = expected.role == "experts_down"
        size = 1
        if turned and len(expected.shape) == 3:
            size = expected.shape[2] if down else expected.shape[1]
        own = (self._experts[:, None] * size + np.arange(size)).reshape(-1)
        return (1 if turned and not down else 0), own

    def _take(self, tensor: StoredTensor) -> None:
        weight = self._by_tensor.get(tensor.name) or self._by_scales.get(tensor.name)
        if weight is not None and weight.stored.scheme is not None and weight.stored.transposed:
            stored = weight.stored
            self._add(tensor.name, "FLOAT", stored.shape, stored.float32, weight, stored.unit)
        elif tensor.element in FLOAT_DTYPES:
            if len(tensor.data) < LARGE and self._kept(weight) is None:
                self._keep(tensor)
            else:
                self._add(tensor.name, "FLOAT", tensor.shape, tensor.float32, weight)
        elif len(tensor.data) < LARGE and weight is None:
            self._keep(tensor)
        elif ELEMENT_BITS[tensor.element] < 8 or not tensor.shape:
            raise NotJudged(f"{tensor.name} is of type {tensor.element} and none of the checkpoint's tensors")
        else:  # such as 4-bit embeddings, which are looked up as bytes
            width = len(tensor.data) // max(tensor.shape[0], 1)
            data = tensor.array().reshape(-1, max(width, 1))
            self._add(tensor.name, tensor.element, tensor.shape, lambda first, last: data[first:last], weight)

    def _keep(self, tensor: StoredTensor) -> None:
        import onnx

        proto = onnx.TensorProto(
            name=tensor.name,
            data_type=onnx.TensorProto.DataType.Value(tensor.element),
            dims=tensor.shape,
            raw_data=bytes(tensor.data),
        )
        kept = self._float_tensor(proto)
        kept.name = tensor.name
        self._small.append(kept)

    def _add(
        self,
        name: str,
        element: str,
        shape: tuple[int, ...],
        rows: Rows,
        weight: StoredWeight | None,
        unit: int = 1,
    ) -> None:
        """A tensor of the data file, with what is kept of the vocabulary and the experts."""
        if (kept := self._kept(weight)) is not None:
            axis, own = kept
            if axis == 1:
                everything = rows
                rows = lambda first, last: everything(first, last)[:, own]  # noqa: E731
                shape = (shape[0], len(own))
            else:
                rows = _by_row(rows, own, unit)
                shape = (len(own), *shape[1:])
        width = int(np.prod(shape[1:], dtype=np.int64)) or 1
        self._tensors.append(
            ExternalTensor(
                name=name,
                element=element,
                bits=ELEMENT_BITS[element],
                shape=shape,
                rows=rows,
                step=max(1, PIECE_VALUES // (width * unit)) * unit,
            )
        )

    # the files

    def write(self, directory: Path, advance: Advance) -> Path:
        """Write it; the model's file. advance(bytes) as it goes."""
        import onnx

        write_pieces(directory / DATA_FILE, self.nbytes, pieces(self._tensors), advance, workers=1)
        graph = self._graph
        graph.initializer.extend(self._small)
        graph.initializer.extend(
            reference(tensor, DATA_FILE, offset) for tensor, offset in lay_out(self._tensors)
        )
        source = self._model.proto
        copy = onnx.ModelProto(ir_version=source.ir_version, producer_name="yarnconv", graph=graph)
        copy.opset_import.extend(source.opset_import)
        path = directory / MODEL_FILE
        path.write_bytes(copy.SerializeToString())
        return path

    def written_weights(self, directory: Path) -> dict[str, Float32Array]:
        """What `write` wrote, by the checkpoint's names and in its layout, mapped and not loaded."""
        offsets = {tensor.name: (tensor, offset) for tensor, offset in lay_out(self._tensors)}
        small = {tensor.name: tensor for tensor in self._small}
        found: dict[str, Float32Array] = {}
        for name, weight in self._weights.items():
            stored = weight.stored
            if stored.tensor.name in small:
                found[name] = np.array(weight.float32(0, weight.shape[0]))
            elif stored.tensor.name not in offsets:
                continue  # of a layer beyond the copy's
            elif stored.scheme is not None and not stored.transposed:
                rows = [weight.float32(int(row), int(row) + 1) for row in self._vocabulary]
                found[name] = np.concatenate(rows)
            else:
                tensor, offset = offsets[stored.tensor.name]
                values: Float32Array = np.memmap(
                    directory / DATA_FILE, dtype="<f4", mode="c", offset=offset, shape=tensor.shape
                )
                found[name] = weight.in_own_layout(values[:, weight.own] if stored.transposed else values)
        return found


def _by_row(rows: Rows, own: NDArray[np.intp], unit: int) -> Rows:
    """Some rows, each run of neighbours at once; of rows that can be read together only, whole units."""

    def picked(first: int, last: int) -> NDArray[np.generic]:
        chosen = own[first:last]
        runs = np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1)
        found = [rows(int(run[0]), int(run[-1]) + 1) for run in runs]
        assert not any(len(run) % unit or run[0] % unit for run in runs), "experts do not divide into blocks"
        return np.concatenate(found)

    return picked
