"""Looks at a network that TensorRT's parser made, in the builder's process: what attends, what rotates, by
which tables. And changes of it what TensorRT would not build.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from yarnconv.targets.tensorrt.network_layers import FLOATS, NARROW, PASSES, Layer, NetworkLayers
from yarnconv.targets.tensorrt.scores_reader import ScoresReader
from yarnconv.worker_side import NotHere

PRESENT_KEY = re.compile(r"present\.(\d{1,9})\.key")


class NetworkReader:
    """One network. trt: the module that it is of."""

    def __init__(self, trt: Any, network: Any) -> None:
        self._trt, self._network = trt, network
        self._layers = NetworkLayers(trt, network)
        self._scores = ScoresReader(self._layers)
        self._constants: list[Any] = []

    def _table(self, tensor: Any, tables: dict[str, Any], out: Path) -> tuple[str | None, str | None]:
        """(name of the table, rounding); the table's values go to a file the first time."""
        layer, rounded = self._layers.constant(tensor)
        if layer is None:
            return None, rounded
        name = str(layer.name)
        if name not in tables:
            constant = self._layers.as_kind(layer, "IConstantLayer")
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
            layer = self._layers.maker(value)
            if (key := PRESENT_KEY.fullmatch(value.name)) is not None:
                index = int(key[1])
            if layer is None or value.name in seen or self._layers.is_of(layer, "MATRIX_MULTIPLY"):
                continue
            seen.add(value.name)
            if self._layers.is_of(layer, "ROTARY_EMBEDDING"):
                rotating.append(layer)
                stack.append(layer.get_input(0))
            else:
                stack += self._layers.inputs(layer)
        return rotating, index

    def _positions(self, tensor: Any) -> tuple[str | None, str | None]:
        """(which rows of a table are taken, the narrower type that these are rounded to on the way)."""
        layer = self._layers.maker(tensor)
        while layer is not None and not self._layers.is_of(layer, "GATHER"):
            layer = self._layers.maker(layer.get_input(0)) if self._layers.is_of(layer, *PASSES) else None
        if layer is None:
            return None, None
        index, rounded, seen, stack = layer.get_input(1), None, set(), [layer.get_input(1)]
        while stack:
            value = stack.pop()
            maker = self._layers.maker(value)
            if value.name not in seen and maker is not None:
                seen.add(value.name)
                rounded = FLOATS[value.dtype.name] if value.dtype.name in NARROW else rounded
                stack += self._layers.inputs(maker)
        cast = self._layers.maker(index)
        if cast is not None and self._layers.is_of(cast, "CAST"):  # each gather has one of its own
            index = cast.get_input(0)
        return str(index.name), rounded

    def _rotation(self, layers: list[Layer], tables: dict[str, Any], out: Path) -> dict[str, Any] | None:
        if not layers:
            return None
        rotary = self._layers.as_kind(layers[0], "IRotaryEmbeddingLayer")
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

    def _attention(
        self,
        ends: tuple[Any, Any, Any],
        output: Any,
        needed: set[str],
        tables: dict[str, Any],
        out: Path,
    ) -> dict[str, Any]:
        """What every form of it has. ends: query, key and value."""
        query, key, _ = ends
        (turns_query, _), (turns_key, index), (turns_value, _) = map(self._before, ends)
        scales, growth = self._scores.factors(query, key)
        return {
            "layer": index,
            "needed": output.name in needed,
            "scales": scales,
            "growth": None if growth is None else list(growth),
            "turns": [len(turns_query), len(turns_key), len(turns_value)],
            "query": self._rotation(turns_query, tables, out),
            "key": self._rotation(turns_key, tables, out),
        }

    def _fused(self, layer: Layer, needed: set[str], tables: dict[str, Any], out: Path) -> dict[str, Any]:
        attention = self._layers.as_kind(layer, "IAttentionInputLayer").attention
        query, key, value = map(layer.get_input, range(3))
        mask = attention.mask
        return {
            **self._attention((query, key, value), layer.get_output(0), needed, tables, out),
            "causal": bool(attention.causal),
            "mask": mask is not None,
            "window": None if mask is None else self._scores.window(mask),
            "softcap": None,
            "sinks": False,
        }

    def _without_sinks(self, shares: Any) -> Any:
        """What the softmax made, of which sinks' shares may have been cut off."""
        tensor = self._layers.passed(shares)
        layer = self._layers.maker(tensor)
        if layer is None or not self._layers.is_of(layer, "SLICE"):
            return tensor
        return self._layers.passed(layer.get_input(0))

    def _of_primitives(
        self, softmax: Layer, needed: set[str], tables: dict[str, Any], out: Path
    ) -> dict[str, Any] | None:
        """An attention made of primitive layers, as softcapped ones are; None where it is none's softmax."""
        found, shares = self._scores.primitives(softmax), softmax.get_output(0)
        products = [
            layer
            for layer in self._layers
            if self._layers.is_of(layer, "MATRIX_MULTIPLY")
            and self._without_sinks(layer.get_input(0)).name == shares.name
        ]
        if found is None or len(products) != 1:
            return None
        scores, mask, softcap, sinks = found
        ends = scores.get_input(0), scores.get_input(1), products[0].get_input(1)
        return {
            **self._attention(ends, products[0].get_output(0), needed, tables, out),
            "causal": False,
            "mask": mask is not None,
            "window": None if mask is None else self._scores.window(mask),
            "softcap": softcap,
            "sinks": sinks,
        }

    def _attentions(self, needed: set[str], tables: dict[str, Any], out: Path) -> list[dict[str, Any]]:
        found = []
        for layer in list(self._layers):
            if self._layers.is_of(layer, "ATTENTION_INPUT"):
                found.append(self._fused(layer, needed, tables, out))
            elif self._layers.is_of(layer, "SOFTMAX"):
                made = self._of_primitives(layer, needed, tables, out)
                found += [] if made is None else [made]
        return found

    def read(self, out: Path) -> dict[str, Any]:
        """What was parsed. out: a directory for the tables' values."""
        inputs = list(map(self._network.get_input, range(self._network.num_inputs)))
        outputs = list(map(self._network.get_output, range(self._network.num_outputs)))
        needed = {tensor.name for tensor, _ in self._layers.behind(outputs)}
        tables = dict[str, Any]()
        attentions = self._attentions(needed, tables, out)
        return {
            "inputs": [{"name": t.name, "type": t.dtype.name, "shape": list(t.shape)} for t in inputs],
            "outputs": [{"name": t.name, "type": t.dtype.name, "shape": list(t.shape)} for t in outputs],
            "unused": sorted({t.name for t in inputs} - needed),
            "attentions": attentions,
            "tables": tables,
        }

    def prepare(self) -> None:
        """Change what TensorRT would not build, and nothing that it computes."""
        for layer in list(self._layers):
            # there is no fused attention in float32; in the file ONNX Runtime would not know the attribute
            if self._layers.is_of(layer, "ATTENTION_INPUT") and layer.get_input(0).dtype.name == "FLOAT":
                self._layers.as_kind(layer, "IAttentionInputLayer").attention.decomposable = True
            if self._layers.is_of(layer, "ROTARY_EMBEDDING"):
                rotary = self._layers.as_kind(layer, "IRotaryEmbeddingLayer")
                if rotary.interleaved:
                    self._turn_halves(rotary)

    def _gathered(self, tensor: Any, order: list[int]) -> Any:
        """Dimensions of heads in another order."""
        indices = np.array(order, np.int32)
        constant = self._network.add_constant((len(order),), indices).get_output(0)
        self._constants.append(indices)  # the network points into it
        return self._network.add_gather(tensor, constant, 3).get_output(0)

    def _turn_halves(self, rotary: Layer) -> None:
        """Rotate interleaved pairs as pairs of halves, between two gathers. TensorRT-RTX 1.7 parses
        interleaved ones and does not build decoders with them: CHECK(false) in Myelin's ssa.cpp.
        """
        given, made = rotary.get_input(0), rotary.get_output(0)
        width, turned = given.shape[3], int(rotary.rotary_embedding_dim) or given.shape[3]
        order = halves_first(turned, width)
        users = [
            (layer, index)
            for layer in list(self._layers)
            for index in range(layer.num_inputs)
            if layer.get_input(index) is not None and layer.get_input(index).name == made.name
        ]
        rotary.set_input(0, self._gathered(given, order))
        rotary.interleaved = False
        back = self._gathered(made, sorted(range(width), key=order.__getitem__))
        for layer, index in users:
            layer.set_input(index, back)


def halves_first(turned: int, width: int) -> list[int]:
    """The order in which the first `turned` of `width` dimensions, in interleaved pairs, are pairs of
    halves; the others stay.
    """
    return [*range(0, turned, 2), *range(1, turned, 2), *range(turned, width)]
