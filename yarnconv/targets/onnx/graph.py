"""A graph under construction: nodes in order, small constants inside, large tensors beside it.

Nothing is traced and no shape is inferred; what a graph means stands in `decoder`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

PAGE = 4096  # large tensors begin on one, so that a runtime can map them
SMALL = 64  # alignment of the others
PIECE_VALUES = 2**20  # made at once

Array = NDArray[Any]
Dimension = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalTensor:
    """A tensor of the external data file that is made row by row when it is written.

    element: its ONNX type's name (FLOAT, FLOAT16, BFLOAT16, INT4). bits: of one element.
    rows: makes rows first..last-1 as an array of the stored bytes, row-major.
    step: rows made at once.
    """

    name: str
    element: str
    bits: int
    shape: tuple[int, ...]
    rows: Callable[[int, int], Array]
    step: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (of the first dimension)."""
        return prod(self.shape[1:]) * self.bits // 8

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedTensor:
    """A tensor that stays where it lies, in another file of the model's directory.

    location: that file's name. offset: bytes from its start.
    """

    name: str
    element: str
    shape: tuple[int, ...]
    location: str
    offset: int
    nbytes: int


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

    def layout(self) -> Iterator[tuple[ExternalTensor, int]]:
        """Every external tensor and its offset in the data file."""
        offset = 0
        for tensor in self.tensors:
            alignment = PAGE if tensor.nbytes >= PAGE else SMALL
            offset = -(-offset // alignment) * alignment
            yield tensor, offset
            offset += tensor.nbytes

    def model(self, data_file: str, metadata: dict[str, str]) -> "onnx.ModelProto":
        """The finished model, its large tensors pointing into `data_file` and into what is linked."""
        from onnx import helper

        from yarnconv import __version__

        references = [
            _reference(tensor, data_file, offset, tensor.nbytes) for tensor, offset in self.layout()
        ]
        references += [
            _reference(tensor, tensor.location, tensor.offset, tensor.nbytes) for tensor in self.linked
        ]
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


def _reference(
    tensor: ExternalTensor | LinkedTensor, location: str, offset: int, nbytes: int
) -> "onnx.TensorProto":
    from onnx import TensorProto

    proto = TensorProto(
        name=tensor.name,
        data_type=TensorProto.DataType.Value(tensor.element),
        dims=tensor.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in {"location": location, "offset": str(offset), "length": str(nbytes)}.items():
        entry = proto.external_data.add()
        entry.key, entry.value = key, value
    return proto


def _value_info(name: str, element: str, shape: list[Dimension]) -> "onnx.ValueInfoProto":
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.DataType.Value(element), shape)
