"""Where each of the checkpoint's tensors stands in an ONNX graph: as what, and which way round.

A matrix [out, in] of the checkpoint is stored [in, out] where MatMul takes it as it is, and [out, in] where a
Transpose stands between. The graph's nodes say which; the tensor's shape cannot, where it is square.
"""

from dataclasses import dataclass

import numpy as np

from yarnconv.plan import ConversionPlan, TensorBinding
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.reader import FLOAT_DTYPES, OnnxModel, StoredTensor
from yarnconv.targets.onnx.weights import INT4_BLOCK, PACKED_OFFSET, packed_name, scales_name, unpack

INT4 = "INT4"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """One of the checkpoint's tensors in an artefact.

    kind: F32, F16, BF16, or INT4 (symmetric blocks of 32 along the input dimension, with their scales).
    transposed: stored [in, out].
    """

    binding: TensorBinding
    tensor: StoredTensor
    kind: str
    transposed: bool
    scales: StoredTensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored, in values."""
        if self.kind != INT4 or self.transposed:
            return self.tensor.shape
        rows, packed = self.tensor.shape
        return rows, 2 * packed

    @property
    def fits(self) -> bool:
        """Whether it has the checkpoint's shape."""
        wanted = self.binding.source.shape
        return self.shape == (wanted[::-1] if self.transposed else wanted)

    @property
    def unit(self) -> int:
        """Rows that can only be read together: a block of 4-bit values runs along the inputs."""
        return INT4_BLOCK if self.kind == INT4 and self.transposed else 1

    def float32(self, first: int, last: int) -> Float32Array:
        """Rows first..last-1 as they are stored, dequantised; both multiples of `unit`."""
        if self.scales is None:
            return self.tensor.float32(first, last)
        codes, width = self.codes(first, last), self.shape[1]
        scales = self.block_scales(first, last)
        if self.transposed:
            return (codes.reshape(-1, INT4_BLOCK, width) * scales[:, None, :]).reshape(-1, width)
        return (codes.reshape(last - first, -1, INT4_BLOCK) * scales[:, :, None]).reshape(-1, width)

    def codes(self, first: int, last: int) -> Float32Array:
        """4-bit codes of rows first..last-1, from -8 to 7."""
        width = self.shape[1]
        packed = self.tensor.array().reshape(-1)[first * width // 2 : last * width // 2].view(np.uint8)
        signed = self.tensor.element == INT4
        return unpack(packed, 0 if signed else PACKED_OFFSET).reshape(last - first, width)

    def block_scales(self, first: int, last: int) -> Float32Array:
        """Scales of the blocks in rows first..last-1."""
        assert self.scales is not None
        return self.scales.float32(first // self.unit, last // self.unit)


def _is_transposed(model: OnnxModel, name: str) -> bool:
    """Whether a MatMul takes the tensor as its right side, with nothing between that turns it round."""
    for node in model.consumers.get(name, ()):
        if node.op_type == "MatMul" and node.input[1] == name:
            return True
        if node.op_type in {"Cast", "DequantizeLinear"} and node.input[0] == name:
            return _is_transposed(model, node.output[0])
    return False


def stored_weight(model: OnnxModel, binding: TensorBinding) -> StoredWeight | None:
    """Where a tensor stands; None where the artefact has none by its name."""
    name = binding.expected.name
    if (packed := model.tensors.get(packed_name(name))) is not None and len(packed.shape) == 2:
        scales = model.tensors.get(scales_name(name))
        return StoredWeight(binding=binding, tensor=packed, kind=INT4, transposed=False, scales=scales)
    if (tensor := model.tensors.get(name)) is None:
        return None
    return StoredWeight(
        binding=binding,
        tensor=tensor,
        kind=FLOAT_DTYPES.get(tensor.element, tensor.element),
        transposed=len(tensor.shape) == 2 and _is_transposed(model, name),
        scales=model.tensors.get(scales_name(name)) if tensor.element == INT4 else None,
    )


def stored_weights(plan: ConversionPlan, model: OnnxModel) -> dict[str, StoredWeight | None]:
    """By the checkpoint's names, in its order."""
    return {binding.expected.name: stored_weight(model, binding) for binding in plan.bindings}
