"""A graph under construction: nodes in order, small constants inside, large tensors beside it.

Nothing is traced and no shape is inferred; what a graph means stands in `decoder`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from yarnconv.targets.onnx.external_data import ExternalTensor, LinkedTensor, lay_out, reference

if TYPE_CHECKING:
    import onnx

Dimension = int | str


class Graph:
    """Collects nodes; every method that adds one returns the name of its output."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._domains: set[str] = {""}
        self._constants: dict[tuple[Any, ...], str] = {}
        self._small: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self.tensors: list[ExternalTensor] = []
        self.linked: list[LinkedTensor] = []

    def node(
        self,
        operator: str,
        *inputs: str,
        output: str | None = None,
        more_outputs: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """A node; the name of its first output. An empty input name leaves an optional input out."""
        from onnx import helper

        name = output or f"{operator}_{len(self._nodes)}"
        outputs = [name, *more_outputs]
        self._domains.add(domain)
        self._nodes.append(
            helper.make_node(
                operator, list(inputs), outputs, name=f"node_{name}", domain=domain, **attributes
            )
        )
        return name

    def split(self, tensor: str, axis: int, sizes: Sequence[int]) -> list[str]:
        """A tensor in parts of these sizes."""
        names = [f"Split_{len(self._nodes)}_{number}" for number in range(len(sizes))]
        first, *more = names
        self.node("Split", tensor, self.constant(list(sizes)), output=first, more_outputs=more, axis=axis)
        return names

    def top(self, tensor: str, count: int) -> tuple[str, str]:
        """The largest values along the last axis, and their indices."""
        name = f"TopK_{len(self._nodes)}"
        indices = f"{name}_indices"
        self.node("TopK", tensor, self.constant([count]), output=name, more_outputs=[indices], axis=-1)
        return name, indices

    def cast(self, tensor: str, element: str, *, output: str | None = None) -> str:
        """A tensor as another ONNX type, such as FLOAT, INT64 or BOOL."""
        from onnx import TensorProto

        return self.node("Cast", tensor, output=output, to=TensorProto.DataType.Value(element))

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """A small constant inside the graph; equal ones are one."""
        from onnx import numpy_helper

        array = np.asarray(values, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self._small.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def defaulted(self, name: str, value: Any) -> None:
        """Give a graph input a value that holds where the caller gives none."""
        from onnx import numpy_helper

        self._small.append(numpy_helper.from_array(np.asarray(value), name))

    def tensor(self, tensor: ExternalTensor) -> str:
        """A large tensor; its name."""
        self.tensors.append(tensor)
        return tensor.name

    def link(self, tensor: LinkedTensor) -> str:
        """A tensor that is not written; its name."""
        self.linked.append(tensor)
        return tensor.name

    def input(self, name: str, element: str, shape: list[Dimension]) -> str:
        """A graph input."""
        self._inputs.append(_value_info(name, element, shape))
        return name

    def output(self, name: str, element: str, shape: list[Dimension]) -> None:
        """A graph output that some node makes."""
        self._outputs.append(_value_info(name, element, shape))

    def size(self, tensor: str, axis: int) -> str:
        """int64[1]: a dimension of a tensor."""
        return self.node("Shape", tensor, start=axis, end=axis + 1)

    def model(self, data_file: str, metadata: dict[str, str]) -> "onnx.ModelProto":
        """The finished model, its large tensors pointing into `data_file` and into what is linked."""
        from onnx import helper

        from yarnconv import __version__

        references = [reference(tensor, data_file, offset) for tensor, offset in lay_out(self.tensors)]
        references += [reference(tensor, tensor.location, tensor.offset) for tensor in self.linked]
        graph = helper.make_graph(
            self._nodes, "decoder", self._inputs, self._outputs, [*self._small, *references]
        )
        model = helper.make_model(
            graph,
            opset_imports=[
                helper.make_opsetid(domain, self.opset if domain == "" else 1)
                for domain in sorted(self._domains)
            ],
            ir_version=IR_VERSION,
            producer_name="yarnconv",
            producer_version=__version__,
        )
        helper.set_model_props(model, metadata)
        return model


IR_VERSION = 11  # that of opset 23 and 24 in ONNX Runtime 1.23 and later


def _value_info(name: str, element: str, shape: list[Dimension]) -> "onnx.ValueInfoProto":
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.DataType.Value(element), shape)
