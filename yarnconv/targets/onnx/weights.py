"""The checkpoint's tensors as the graph wants them: matrices [in, out] for MatMul, in the graph's dtype."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import convert_floats, to_float32
from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.graph import PIECE_VALUES, ExternalTensor

INT4_BLOCK = 32  # values that share a scale, along the input dimension
_INT4_LOWEST = -8


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementType:
    """A float type of the graph: ONNX's name, the safetensors dtype of the same values, bits."""

    name: str
    dtype: str
    bits: int


FLOAT_TYPES = {
    "fp32": ElementType(name="FLOAT", dtype="F32", bits=32),
    "fp16": ElementType(name="FLOAT16", dtype="F16", bits=16),
    "bf16": ElementType(name="BFLOAT16", dtype="BF16", bits=16),
}


def as_it_lies(name: str, source: TensorRef, element: ElementType) -> ExternalTensor:
    """A tensor in its own layout: embeddings, norms, biases."""
    values = source.load()
    width = max(1, values.size // max(len(values), 1))
    return ExternalTensor(
        name=name,
        element=element.name,
        bits=element.bits,
        shape=source.shape,
        rows=lambda first, last: convert_floats(values[first:last], source.dtype, element.dtype),
        step=max(1, PIECE_VALUES // width),
    )


def transposed(name: str, source: TensorRef, element: ElementType) -> ExternalTensor:
    """A matrix [out, in] as [in, out]."""
    values = source.load()
    outputs, inputs = source.shape
    return ExternalTensor(
        name=name,
        element=element.name,
        bits=element.bits,
        shape=(inputs, outputs),
        rows=lambda first, last: convert_floats(
            np.ascontiguousarray(values[:, first:last].T), source.dtype, element.dtype
        ),
        step=max(1, PIECE_VALUES // outputs),
    )


def _blocks(source: TensorRef, first: int, last: int) -> Float32Array:
    """float32[blocks, INT4_BLOCK, out] of the inputs first..last-1."""
    values = np.ascontiguousarray(source.load()[:, first:last].T)
    wide: Float32Array = to_float32(values, source.dtype).reshape(-1, INT4_BLOCK, source.shape[0])
    return wide


def _scales(blocks: Float32Array) -> Float32Array:
    """float32[blocks, out]: the value of largest magnitude becomes -8, the code that has no opposite."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None, :], axis=1)[:, 0, :]
    scales: Float32Array = largest / np.float32(_INT4_LOWEST)
    return scales


def _codes(blocks: Float32Array) -> NDArray[np.uint8]:
    """Two codes a byte, the first in the low half, rows of the matrix [in, out] one after the other."""
    scales = _scales(blocks)[:, None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(scales == 0, 0, blocks / scales)
    codes = np.clip(np.rint(scaled), -8, 7).astype(np.int8).reshape(-1, blocks.shape[2]) & 0xF
    packed: NDArray[np.uint8] = (codes[:, 0::2] | (codes[:, 1::2] << 4)).astype(np.uint8)
    return packed


def quantises(shape: tuple[int, ...]) -> bool:
    """Whether a matrix [out, in] divides into blocks, and its rows of codes into bytes."""
    return shape[1] % INT4_BLOCK == 0 and shape[0] % 2 == 0


def quantised(name: str, source: TensorRef) -> tuple[ExternalTensor, ExternalTensor]:
    """(codes INT4[in, out], scales FLOAT[in / INT4_BLOCK, out]) of a matrix [out, in], symmetric."""
    outputs, inputs = source.shape
    step = max(1, PIECE_VALUES // (outputs * INT4_BLOCK))
    codes = ExternalTensor(
        name=name,
        element="INT4",
        bits=4,
        shape=(inputs, outputs),
        rows=lambda first, last: _codes(_blocks(source, first, last)),
        step=step * INT4_BLOCK,
    )
    scales = ExternalTensor(
        name=f"{name}.scales",
        element="FLOAT",
        bits=32,
        shape=(inputs // INT4_BLOCK, outputs),
        rows=lambda first, last: _scales(_blocks(source, first * INT4_BLOCK, last * INT4_BLOCK)),
        step=step,
    )
    return codes, scales
