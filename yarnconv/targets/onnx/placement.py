"""Where each of the checkpoint's tensors stands in an ONNX graph: as what, and which way round.

A matrix [out, in] of the checkpoint is stored [in, out] where MatMul takes it as it is, and [out, in] where a
Transpose stands between. The graph's nodes say which; the tensor's shape cannot, where it is square. Several
matrices may stand side by side in one tensor, whose name says which.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from yarnconv.binding import TensorBinding
from yarnconv.checkpoint.sources import TensorSource
from yarnconv.errors import BadInput
from yarnconv.plan import ConversionPlan
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.external_data import JOINT
from yarnconv.targets.onnx.quantisation import (
    BY_ELEMENT,
    INT4,
    INT4_BLOCK,
    PACKED_OFFSET,
    Scheme,
    packed_name,
    scales_name,
    unpack,
)
from yarnconv.targets.onnx.reader import FLOAT_DTYPES, OnnxModel, StoredTensor
from yarnconv.targets.onnx.weights import as_matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor of weights in an artefact.

    transposed: stored [in, out]. scheme: how it is quantised, None where it is not; then with its scales.
    """

    tensor: StoredTensor
    transposed: bool
    scheme: Scheme | None = None
    scales: StoredTensor | None = None

    @property
    def kind(self) -> str:
        """F32, F16, BF16, or the name of the scheme; of another type, ONNX's name."""
        if self.scheme is not None:
            return self.scheme.name
        return FLOAT_DTYPES.get(self.tensor.element, self.tensor.element)

    @property
    def _is_looked_up(self) -> bool:
        """Whether its codes are bytes, two in each."""
        return self.scheme is not None and not self.transposed

    @property
    def shape(self) -> tuple[int, ...]:
        """In values."""
        if not self._is_looked_up or len(self.tensor.shape) != 2:
            return self.tensor.shape
        rows, packed = self.tensor.shape
        return rows, 2 * packed

    @property
    def is_read(self) -> bool:
        """Whether its values can be read: a float, or codes with a scale for each value."""
        if self.scheme is None:
            return self.kind in FLOAT_DTYPES.values()
        if self.scales is None or self.scales.element not in FLOAT_DTYPES or len(self.shape) != 2:
            return False
        rows, width = self.shape
        if self.transposed:
            fits = self.scheme.fits((width, rows))
            return fits and self.scales.shape == self.scheme.scale_shape(rows, width)
        divides = self.tensor.element == "UINT8" and width % INT4_BLOCK == 0
        return divides and self.scales.shape == (rows, width // INT4_BLOCK)

    @property
    def unit(self) -> int:
        """Rows that can only be read together: a block of 4-bit values runs along the inputs."""
        return 1 if self.scheme is None or not self.transposed else self.scheme.block or 1

    def float32(self, first: int, last: int) -> Float32Array:
        """Rows first..last-1 as they are stored, dequantised; both multiples of `unit`."""
        if self.scheme is None:
            return self.tensor.float32(first, last)
        values: Float32Array = self.codes(first, last) * self.value_scales(first, last)
        return values

    def codes(self, first: int, last: int) -> Float32Array:
        """The codes of quantised rows first..last-1, of their shape."""
        assert self.scheme is not None
        width = self.shape[1]
        row_bytes = width // 2 if self._is_looked_up else width * self.scheme.bits // 8
        data = self.tensor.array().reshape(-1)[first * row_bytes : last * row_bytes].view(np.uint8)
        codes = unpack(data, PACKED_OFFSET) if self._is_looked_up else self.scheme.unpacked(data)
        return codes.reshape(last - first, width)

    def value_scales(self, first: int, last: int) -> Float32Array:
        """The scale of each value of quantised rows first..last-1, broadcast along them where all rows have
        the same.
        """
        assert self.scheme is not None
        assert self.scales is not None
        if not self.transposed:
            return np.repeat(self.scales.float32(first, last), INT4_BLOCK, axis=1)
        if self.scheme.block is None:
            return self.scales.float32(0, self.shape[1])[None, :]
        block = self.scheme.block
        return np.repeat(self.scales.float32(first // block, last // block), block, axis=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """One of the checkpoint's tensors in an artefact. columns: which of the stored ones are its own, None for
    all.
    """

    binding: TensorBinding
    stored: Stored
    columns: tuple[int, int] | None = None

    @property
    def matrix(self) -> TensorSource:
        """Where the checkpoint has it, as the matrix that a graph multiplies by."""
        return as_matrix(self.binding.expected.role, self.binding.source)

    @property
    def wanted_shape(self) -> tuple[int, ...]:
        """That it should have, [out, in] for a matrix, or as it lies."""
        expected = self.binding.expected
        if not self.stored.transposed or len(expected.shape) < 3:
            return expected.shape
        count, outputs, inputs = expected.shape
        return (outputs, count * inputs) if expected.role == "experts_down" else (count * outputs, inputs)

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
        wanted = self.wanted_shape
        return self.shape == (wanted[::-1] if self.stored.transposed else wanted)

    def in_own_layout(self, values: Float32Array) -> Float32Array:
        """Values as they are stored, in the shape that the checkpoint's tensor has."""
        shape = self.binding.expected.shape
        matrix = values.T if self.stored.transposed else values
        if len(shape) < 3:
            return matrix
        if self.stored.transposed and self.binding.expected.role == "experts_down":
            return matrix.reshape(shape[1], -1, shape[2]).swapaxes(0, 1)
        return matrix.reshape(-1, *shape[1:])

    def float32(self, first: int, last: int) -> Float32Array:
        """Its part of rows first..last-1 as they are stored, dequantised; both multiples of the unit."""
        rows = self.stored.float32(first, last)
        return rows if self.columns is None else np.ascontiguousarray(rows[:, self.own])

    def steps(self, first: int, last: int, source: Float32Array) -> Float32Array | None:
        """How far apart the numbers are that each value can have been rounded to; None for floats. source:
        what they should be; codes are nearer to each other on the one side of a power of two.
        """
        scheme = self.stored.scheme
        if scheme is None:
            return None
        codes = self.stored.codes(first, last)[:, self.own]
        scales = self.stored.value_scales(first, last)[:, self.own]
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            spacing = np.minimum(scheme.spacing(codes), scheme.spacing(source / scales))
        steps: Float32Array = spacing * np.abs(scales)
        return steps

    @property
    def column_scales(self) -> Float32Array | None:
        """float32[out]: the scale of each of its columns; None where it has none or one for each block."""
        scheme = self.stored.scheme
        if scheme is None or scheme.block is not None or not self.stored.transposed:
            return None
        return self.stored.value_scales(0, 0)[0, self.own]


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
    scheme = BY_ELEMENT.get(tensor.element)
    return Stored(
        tensor=tensor,
        transposed=len(tensor.shape) == 2 and _is_transposed(model, tensor.name),
        scheme=scheme,
        scales=None if scheme is None else model.tensors.get(scaled),
    )


def _looked_up(model: OnnxModel, name: str) -> Stored | None:
    """4-bit embeddings, which are stored as bytes."""
    packed = model.tensors.get(packed_name(name))
    if packed is None or len(packed.shape) != 2 or packed.element != "UINT8":
        return None
    return Stored(tensor=packed, transposed=False, scheme=INT4, scales=model.tensors.get(scales_name(name)))


def _claims(bindings: Mapping[str, TensorBinding], model: OnnxModel) -> Iterator[tuple[str, StoredWeight]]:
    """Every tensor that some output needs and whose name is one of the checkpoint's, or of several."""
    for tensor in model.tensors.values():
        parts = tensor.name.split(JOINT)
        if tensor.name not in model.needed or not bindings.keys() >= set(parts):
            continue
        stored, begin = _read(model, tensor), 0
        for part in parts:
            end = begin + bindings[part].expected.shape[0]
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
