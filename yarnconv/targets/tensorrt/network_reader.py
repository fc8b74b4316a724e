"""Looks at a network that TensorRT's parser made, in the builder's process: what attends, what rotates, by
which tables.

TensorRT gives every layer as a plain one; which it is stands in its type, and setting its class makes the
rest of it visible.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yarnconv.worker_side import NotHere

Layer = Any  # of whichever TensorRT it is
PRESENT_KEY = re.compile(r"present\.(\d{1,9})\.key")
FLOATS = {"FLOAT": "FLOAT", "HALF": "FLOAT16", "BF16": "BFLOAT16"}  # as ONNX calls them
NARROW = frozenset({"HALF", "BF16"})
PASSES = ("GATHER", "CAST", "SHUFFLE", "IDENTITY", "UNSQUEEZE", "SQUEEZE")  # rows of a table through


class NetworkReader:
    """One network. trt: the module that it is of."""

    def __init__(self, trt: Any, network: Any) -> None:
        self._trt, self._network = trt, network
        self._makers = {
            layer.get_output(index).name: layer
            for layer in self._layers()
            for index in range(layer.num_outputs)
        }

    def _layers(self) -> Iterator[Layer]:
        for index in range(self._network.num_layers):
            yield self._network.get_layer(index)

    def _as(self, layer: Layer, kind: str) -> Layer:
        """A layer as what it is; the network gives all as plain ones."""
        layer.__class__ = getattr(self._trt, kind)
        return layer

    def _is(self, layer: Layer, *kinds: str) -> bool:
        return layer.type.name in kinds

    def _inputs(self, layer: Layer) -> list[Any]:
        return [t for t in map(layer.get_input, range(layer.num_inputs)) if t is not None]

    def _constant(self, tensor: Any) -> tuple[Layer | None, str | None]:
        """(the constant that a tensor's rows are taken from, the narrower type they are rounded to on the
        way).
        """
        rounded = None
        layer = self._makers.get(tensor.name)
        while layer is not None and not self._is(layer, "CONSTANT"):
            made = layer.get_output(0).dtype.name
            rounded = FLOATS[made] if made in NARROW else rounded
            if not self._is(layer, *PASSES):
                return None, rounded
            layer = self._makers.get(layer.get_input(0).name)
        return layer, rounded

    def _table(self, tensor: Any, tables: dict[str, Any], out: Path) -> tuple[str | None, str | None]:
        """(name of the table, rounding); the table's values go to a file the first time."""
        layer, rounded = self._constant(tensor)
        if layer is None:
            return None, rounded
        name = str(layer.name)
        if name not in tables:
            constant = self._as(layer, "IConstantLayer")
            element = FLOATS.get(constant.get_output(0).dtype.name, constant.get_output(0).dtype.name)
            tables[name] = {"element": element, "shape": list(constant.shape), "path": None}
            if isinstance(constant.weights, np.ndarray):  # numpy has no bfloat16
                path = out / f"table-{len(tables)}.npy"
                try:
                    np.save(path, constant.weights.reshape(tuple(constant.shape)))
                except OSError as error:
                    raise NotHere(f"a table cannot be written to {path.parent}: {error.strerror}") from None
                tables[name]["path"] = str(path)
        return name, rounded

    def _before(self, tensor: Any) -> tuple[list[Layer], int | None]:
        """(all that rotates an input of the attention, the layer whose keys it is), up to the projection."""
        rotating, index, seen, stack = list[Layer](), None, set(), [tensor]
        while stack:
            value = stack.pop()
            layer = self._makers.get(value.name)
            if (key := PRESENT_KEY.fullmatch(value.name)) is not None:
                index = int(key[1])
            if layer is None or value.name in seen or self._is(layer, "MATRIX_MULTIPLY"):
                continue
            seen.add(value.name)
            if self._is(layer, "ROTARY_EMBEDDING"):
                rotating.append(layer)
                stack.append(layer.get_input(0))
            else:
                stack += self._inputs(layer)
        return rotating, index

    def _positions(self, tensor: Any) -> tuple[str | None, str | None]:
        """(which rows of a table are taken, the narrower type that these are rounded to on the way)."""
        layer = self._makers.get(tensor.name)
        while layer is not None and not self._is(layer, "GATHER"):
            layer = self._makers.get(layer.get_input(0).name) if self._is(layer, *PASSES) else None
        if layer is None:
            return None, None
        index, rounded, seen, stack = layer.get_input(1), None, set(), [layer.get_input(1)]
        while stack:
            value = stack.pop()
            maker = self._makers.get(value.name)
            if value.name not in seen and maker is not None:
                seen.add(value.name)
                rounded = FLOATS[value.dtype.name] if value.dtype.name in NARROW else rounded
                stack += self._inputs(maker)
        cast = self._makers.get(index.name)
        if cast is not None and self._is(cast, "CAST"):  # each gather has one of its own
            index = cast.get_input(0)
        return str(index.name), rounded

    def _rotation(self, layers: list[Layer], tables: dict[str, Any], out: Path) -> dict[str, Any] | None:
        if not layers:
            return None
        rotary = self._as(layers[0], "IRotaryEmbeddingLayer")
        both = [rotary.get_input(index) for index in (1, 2)]
        (cos, first), (sin, second) = (self._table(tensor, tables, out) for tensor in both)
        (of_cos, third), (of_sin, fourth) = (self._positions(tensor) for tensor in both)
        return {
            "pairing": "interleaved" if rotary.interleaved else "half",
            "rotary_dim": int(rotary.rotary_embedding_dim),
            "cos": cos if of_cos == of_sin else None,  # of one position
            "sin": sin,
            "rounded": first or second or third or fourth,
        }

    def _scale(self, tensor: Any) -> float:
        """What an input of the attention is multiplied with in front of it."""
        layer = self._makers.get(tensor.name)
        if layer is None or not self._is(layer, "ELEMENTWISE"):
            return 1.0
        multiplies = self._as(layer, "IElementWiseLayer").op == self._trt.ElementWiseOperation.PROD
        constants = [constant for t in self._inputs(layer) if (constant := self._constant(t)[0]) is not None]
        if not multiplies or len(constants) != 1:
            return 1.0
        weights = self._as(constants[0], "IConstantLayer").weights
        return float(weights.reshape(-1)[0]) if isinstance(weights, np.ndarray) and weights.size == 1 else 1.0

    def _attention(self, layer: Layer, needed: set[str], tables: dict[str, Any], out: Path) -> dict[str, Any]:
        attention = self._as(layer, "IAttentionInputLayer").attention
        query, key, value = map(layer.get_input, range(3))
        (turns_query, _), (turns_key, index), (turns_value, _) = map(self._before, (query, key, value))
        return {
            "layer": index,
            "needed": layer.get_output(0).name in needed,
            "causal": bool(attention.causal),
            "mask": attention.mask is not None,
            "scale": self._scale(query) * self._scale(key),
            "turns": [len(turns_query), len(turns_key), len(turns_value)],
            "query": self._rotation(turns_query, tables, out),
            "key": self._rotation(turns_key, tables, out),
        }

    def _needed(self, outputs: list[Any]) -> set[str]:
        """Every tensor that some output is made of."""
        found, stack = set(), list(outputs)
        while stack:
            tensor = stack.pop()
            if tensor.name not in found:
                found.add(tensor.name)
                layer = self._makers.get(tensor.name)
                stack += [] if layer is None else self._inputs(layer)
        return found

    def read(self, out: Path) -> dict[str, Any]:
        """What was parsed. out: a directory for the tables' values."""
        inputs = list(map(self._network.get_input, range(self._network.num_inputs)))
        outputs = list(map(self._network.get_output, range(self._network.num_outputs)))
        needed, tables = self._needed(outputs), dict[str, Any]()
        attentions = [
            self._attention(layer, needed, tables, out)
            for layer in self._layers()
            if self._is(layer, "ATTENTION_INPUT")
        ]
        return {
            "inputs": [{"name": t.name, "type": t.dtype.name, "shape": list(t.shape)} for t in inputs],
            "outputs": [{"name": t.name, "type": t.dtype.name, "shape": list(t.shape)} for t in outputs],
            "unused": sorted({t.name for t in inputs} - needed),
            "attentions": attentions,
            "tables": tables,
        }

    def decompose(self) -> None:
        """Let float32 attention be decomposed: there is no fused one. In the file ONNX Runtime would not know
        the attribute.
        """
        for layer in self._layers():
            if self._is(layer, "ATTENTION_INPUT") and layer.get_input(0).dtype.name == "FLOAT":
                self._as(layer, "IAttentionInputLayer").attention.decomposable = True
