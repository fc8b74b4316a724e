"""The layers of a network that TensorRT's parser made, in the builder's process.

TensorRT gives every layer as a plain one; which it is stands in its type, and setting its class makes the
rest of it visible.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Layer = Any  # of whichever TensorRT it is
FLOATS = {"FLOAT": "FLOAT", "HALF": "FLOAT16", "BF16": "BFLOAT16"}  # as ONNX calls them
TOKENS_AND_POSITIONS, OTHERS = frozenset({"input_ids", "position_ids"}), "another input"
NARROW = frozenset({"HALF", "BF16"})
PASSES = ("GATHER", "CAST", "SHUFFLE", "IDENTITY", "UNSQUEEZE", "SQUEEZE")  # rows of a table through


class NetworkLayers:
    """One network. trt: the module that it is of."""

    def __init__(self, trt: Any, network: Any) -> None:
        self.trt, self.network = trt, network
        self._makers = {
            layer.get_output(index).name: layer for layer in self for index in range(layer.num_outputs)
        }
        self._made_of: dict[str, frozenset[str]] = {}

    def __iter__(self) -> Iterator[Layer]:
        for index in range(self.network.num_layers):
            yield self.network.get_layer(index)

    def as_kind(self, layer: Layer, kind: str) -> Layer:
        """A layer as what it is; the network gives all as plain ones."""
        layer.__class__ = getattr(self.trt, kind)
        return layer

    @staticmethod
    def is_of(layer: Layer, *kinds: str) -> bool:
        """Whether a layer is of one of these types."""
        return layer.type.name in kinds

    @staticmethod
    def inputs(layer: Layer) -> list[Any]:
        """Those that are given."""
        return [t for t in map(layer.get_input, range(layer.num_inputs)) if t is not None]

    def maker(self, tensor: Any) -> Layer | None:
        """What makes a tensor; None of an input."""
        return self._makers.get(tensor.name)

    def operation(self, layer: Layer) -> str:
        """What an elementwise or unary layer, or an activation, does; of others their type."""
        if self.is_of(layer, "ELEMENTWISE"):
            return str(self.as_kind(layer, "IElementWiseLayer").op.name)
        if self.is_of(layer, "UNARY"):
            return str(self.as_kind(layer, "IUnaryLayer").op.name)
        if self.is_of(layer, "ACTIVATION"):
            # of this class `type` is the activation's, once and for all, and hides the layer's own
            self.as_kind(layer, "IActivationLayer")
        return str(layer.type.name)

    def constant(self, tensor: Any) -> tuple[Layer | None, str | None]:
        """(the constant that a tensor's rows are taken from, the narrower type they are rounded to on the
        way).
        """
        rounded = None
        layer = self.maker(tensor)
        while layer is not None and not self.is_of(layer, "CONSTANT"):
            made = layer.get_output(0).dtype.name
            rounded = FLOATS[made] if made in NARROW else rounded
            if not self.is_of(layer, *PASSES):
                return None, rounded
            layer = self.maker(layer.get_input(0))
        return layer, rounded

    def number(self, tensor: Any) -> float | None:
        """The only value of a constant; None of anything else."""
        layer, _ = self.constant(tensor)
        if layer is None:
            return None
        weights = self.as_kind(layer, "IConstantLayer").weights
        return (
            float(weights.reshape(-1)[0]) if isinstance(weights, np.ndarray) and weights.size == 1 else None
        )

    def numbers(self, tensor: Any) -> list[float] | None:
        """The values of a constant of one dimension; None of anything else."""
        layer = self.maker(self.passed(tensor))
        if layer is None or not self.is_of(layer, "CONSTANT"):
            return None
        weights = self.as_kind(layer, "IConstantLayer").weights
        return weights.tolist() if isinstance(weights, np.ndarray) and weights.ndim == 1 else None

    def passed(self, tensor: Any) -> Any:
        """A tensor before its type and shape were changed."""
        layer = self.maker(tensor)
        while layer is not None and self.is_of(layer, *PASSES[1:]):
            tensor = layer.get_input(0)
            layer = self.maker(tensor)
        return tensor

    def with_number(self, tensor: Any) -> tuple[str, Any, float] | None:
        """(what is done, the tensor that it is done to, the number that it is done with), where a layer joins
        a tensor and one number.
        """
        layer = self.maker(tensor)
        if layer is None or not self.is_of(layer, "ELEMENTWISE"):
            return None
        first, second = layer.get_input(0), layer.get_input(1)
        for other, candidate in ((first, second), (second, first)):
            number = self.number(candidate)
            if number is not None and self.number(other) is None:
                return self.operation(layer), other, number
        return None

    def made_of(self, tensor: Any) -> frozenset[str]:
        """Which of the network's inputs a tensor is made of: ids and positions by their names, OTHERS for any
        others. What was asked before is known, however deep the network.
        """
        known, stack = self._made_of, [tensor]
        while stack:
            one = stack[-1]
            layer = self.maker(one)
            inputs = [] if layer is None else self.inputs(layer)
            waiting = [] if one.name in known else [i for i in inputs if i.name not in known]
            if waiting:
                stack += waiting
                continue
            stack.pop()
            if layer is None:
                known[one.name] = frozenset({one.name if one.name in TOKENS_AND_POSITIONS else OTHERS})
            else:
                known[one.name] = frozenset().union(*(known[i.name] for i in inputs))
        return known[tensor.name]

    def behind(self, outputs: Sequence[Any]) -> Iterator[tuple[Any, Layer | None]]:
        """Every tensor that these are made of, themselves too, each with what makes it."""
        seen, stack = set[str](), list(outputs)
        while stack:
            tensor = stack.pop()
            if tensor.name in seen:
                continue
            seen.add(tensor.name)
            layer = self.maker(tensor)
            yield tensor, layer
            stack += [] if layer is None else self.inputs(layer)
