"""Where each of the checkpoint's tensors stands in an ONNX graph: as what, and which way round.

A matrix [out, in] of the checkpoint is stored [in, out] where MatMul takes it as it is, and [out, in] where a
Transpose stands between. The graph's nodes say which; the tensor's shape cannot, where it is square. Several
matrices may stand side by side in one tensor, whose name says which.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from yarnconv.errors import BadInput
from yarnconv.plan import ConversionPlan, TensorBinding
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.external_data import JOINT
from yarnconv.targets.onnx.quantisation import (
    FP8_ELEMENT,
    INT4_BLOCK,
    PACKED_OFFSET,
    QUANTISATIONS,
    Quantisation,
    from_fp8,
    packed_name,
    scales_name,
    unpack,
)
from yarnconv.targets.onnx.reader import FLOAT_DTYPES, OnnxModel, StoredTensor

INT4, FP8 = "INT4", "FP8"
_KINDS = {**FLOAT_DTYPES, FP8_ELEMENT: FP8}  # by ONNX's names


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor of weights in an artefact.

    kind: F32, F16, BF16, INT4 (symmetric blocks of 32 along the input dimension) or FP8 (E4M3), both with
    their scales.
    transposed: stored [in, out].
    """

    tensor: StoredTensor
    kind: str
    transposed: bool
    scales: StoredTensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""
        if self.kind != INT4 or self.transposed or len(self.tensor.shape) != 2:
            return self.tensor.shape
        rows, packed = self.tensor.shape
        return rows, 2 * packed

    @property
    def quantisation(self) -> Quantisation | None:
        """How it is stored, where not as floats."""
        return QUANTISATIONS.get(self.kind.lower())

    @property
    def is_read(self) -> bool:
        """Whether its values can be read: a float, or codes with the scales of their kind."""
        if self.quantisation is None:
            return self.kind in FLOAT_DTYPES.values()
        if self.scales is None or self.scales.element not in FLOAT_DTYPES or len(self.shape) != 2:
            return False
        rows, width = self.shape
        if self.kind == FP8:
            return self.transposed and self.scales.shape == (width,)
        blocks = (rows // INT4_BLOCK, width) if self.transposed else (rows, width // INT4_BLOCK)
        divides = (rows if self.transposed else width) % INT4_BLOCK == 0 and width % 2 == 0
        return divides and self.scales.shape == blocks

    @property
    def unit(self) -> int:
        """Rows that can only be read together: a block of 4-bit values runs along the inputs."""
        return INT4_BLOCK if self.kind == INT4 and self.transposed else 1

    def float32(self, first: int, last: int) -> Float32Array:
        """Rows first..last-1 as they are stored, dequantised; both multiples of `unit`."""
        if self.scales is None:
            return self.tensor.float32(first, last)
        codes, width = self._codes(first, last), self.shape[1]
        scales = self.block_scales(first, last)
        if self.kind == FP8:
            return codes * scales
        if self.transposed:
            return (codes.reshape(-1, INT4_BLOCK, width) * scales[:, None, :]).reshape(-1, width)
        return (codes.reshape(last - first, -1, INT4_BLOCK) * scales[:, :, None]).reshape(-1, width)

    def _codes(self, first: int, last: int) -> Float32Array:
        width = self.shape[1]
        if self.kind == FP8:
            return from_fp8(self.tensor.array().reshape(-1, width)[first:last].view(np.uint8))
        packed = self.tensor.array().reshape(-1)[first * width // 2 : last * width // 2].view(np.uint8)
        signed = self.tensor.element == INT4
        return unpack(packed, 0 if signed else PACKED_OFFSET).reshape(last - first, width)

    def block_scales(self, first: int, last: int) -> Float32Array:
        """Scales of the blocks in rows first..last-1; of FP8 those of the columns, float32[1, columns]."""
        assert self.scales is not None
        if self.kind == FP8:
            return self.scales.float32(0, self.shape[1])[None, :]
        return self.scales.float32(first // self.unit, last // self.unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """One of the checkpoint's tensors in an artefact. columns: which of the stored ones are its own, None for
    all.
    """

    binding: TensorBinding
    stored: Stored
    columns: tuple[int, int] | None = None

    @property
    def own(self) -> slice:
        """Its own columns."""
        return slice(None) if self.columns is None else slice(*self.columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored, in values; its own part."""
        whole = self.stored.shape
        if self.columns is None or len(whole) != 2:
            return whole
        first, last = self.columns
        return whole[0], max(min(last, whole[1]) - first, 0)

    @property
    def fits(self) -> bool:
        """Whether it has the checkpoint's shape."""
        wanted = self.binding.source.shape
        return self.shape == (wanted[::-1] if self.stored.transposed else wanted)

    def float32(self, first: int, last: int) -> Float32Array:
        """Its part of rows first..last-1 as they are stored, dequantised; both multiples of the unit."""
        rows = self.stored.float32(first, last)
        return rows if self.columns is None else np.ascontiguousarray(rows[:, self.own])

    def block_scales(self, first: int, last: int) -> Float32Array:
        """Scales of its blocks in rows first..last-1."""
        scales = self.stored.block_scales(first, last)
        return scales if self.columns is None else scales[:, self.own]


def _is_transposed(model: OnnxModel, name: str) -> bool:
    """Whether a MatMul takes the tensor as its right side, with nothing between that turns it round."""
    values = [name]
    for value in values:
        for node in model.consumers.get(value, ()):
            if node.op_type == "MatMul" and node.input[1] == value:
                return True
            if node.op_type in {"Cast", "DequantizeLinear"} and node.input[0] == value:
                values.append(node.output[0])
    return False


def _read(model: OnnxModel, tensor: StoredTensor) -> Stored:
    scaled = JOINT.join(scales_name(part) for part in tensor.name.split(JOINT))
    return Stored(
        tensor=tensor,
        kind=_KINDS.get(tensor.element, tensor.element),
        transposed=len(tensor.shape) == 2 and _is_transposed(model, tensor.name),
        scales=model.tensors.get(scaled) if tensor.element in {INT4, FP8_ELEMENT} else None,
    )


def _looked_up(model: OnnxModel, name: str) -> Stored | None:
    """4-bit embeddings, which are stored as bytes."""
    packed = model.tensors.get(packed_name(name))
    if packed is None or len(packed.shape) != 2 or packed.element != "UINT8":
        return None
    return Stored(tensor=packed, kind=INT4, transposed=False, scales=model.tensors.get(scales_name(name)))


def _claims(bindings: Mapping[str, TensorBinding], model: OnnxModel) -> Iterator[tuple[str, StoredWeight]]:
    """Every tensor that some output needs and whose name is one of the checkpoint's, or of several."""
    for tensor in model.tensors.values():
        parts = tensor.name.split(JOINT)
        if tensor.name not in model.needed or not bindings.keys() >= set(parts):
            continue
        stored, begin = _read(model, tensor), 0
        for part in parts:
            end = begin + bindings[part].source.shape[0]
            columns = (begin, end) if len(parts) > 1 else None
            yield part, StoredWeight(binding=bindings[part], stored=stored, columns=columns)
            begin = end
    for name, binding in bindings.items():
        looked_up = _looked_up(model, name)
        if looked_up is not None and looked_up.tensor.name in model.needed:
            yield name, StoredWeight(binding=binding, stored=looked_up)


def stored_weights(plan: ConversionPlan, model: OnnxModel) -> dict[str, StoredWeight | None]:
    """Where the checkpoint's tensors stand, by their names and in its order; None where no output needs one.

    Raises BadInput where two tensors claim to be the same one.
    """
    bindings = {binding.expected.name: binding for binding in plan.bindings}
    found: dict[str, StoredWeight | None] = dict.fromkeys(bindings)
    for name, weight in _claims(bindings, model):
        if found[name] is not None:
            raise BadInput(f"two tensors are called {name}", where=model.path.name, fix="Export it again.")
        found[name] = weight
    return found
