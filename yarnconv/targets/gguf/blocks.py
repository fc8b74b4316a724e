"""Rows of weights from the checkpoint's dtype to ggml's block types, byte for byte as ggml rounds.

Everything works on small blocks of rows, so that the intermediate arrays stay in the cache and the
memory bounded whatever the tensor's size. bfloat16 comes as its 16 bits (uint16).
"""

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import Rows, convert_floats, to_float32
from yarnconv.targets.gguf.file_format import BLOCKS, TensorType

Bytes = NDArray[np.uint8]

# The largest float32 below one half: adding it and truncating rounds half away from zero as C's
# roundf does, for every float32 whose fraction is exact (adding 0.5 itself would lift
# 0.49999997 to 1).
_JUST_BELOW_HALF = np.float32(0.49999997)
_Q8_VALUES = BLOCKS[TensorType.Q8_0][0]

# What a checkpoint's dtypes are called here.
SOURCE_TYPES = {"F32": TensorType.F32, "F16": TensorType.F16, "BF16": TensorType.BF16}


def _to_q8_0(values: NDArray[np.float32]) -> Bytes:
    """Per 32 values a float16 scale d = max|x| / 127 and 32 int8 round(x / d) (ggml's
    quantize_row_q8_0_ref).
    """
    blocks = values.reshape(-1, _Q8_VALUES)
    scratch = np.abs(blocks)
    # Halving the whole array is five times as fast as a maximum per row of 32, and floats that are
    # not negative are in the order of their bits.
    bits = scratch.reshape(-1).view(np.uint32)
    while len(bits) > len(blocks):
        bits = np.maximum(bits[0::2], bits[1::2])
    scale = bits.view(np.float32).reshape(-1, 1) / np.float32(127)
    # A block of nothing but zeros or denormals divides by 0 or overflows, here as in ggml.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        scaled = blocks * inverse
        np.copysign(_JUST_BELOW_HALF, scaled, out=scratch)
        scaled += scratch
    out = np.empty((len(blocks), BLOCKS[TensorType.Q8_0][1]), dtype=np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        out[:, :2] = scale.astype(np.float16).view(np.uint8)
        np.copyto(out[:, 2:].view(np.int8), scaled, casting="unsafe")
    return out


def mxfp4_rows(codes: Bytes, exponents: Bytes) -> Bytes:
    """Rows of ggml's MXFP4 blocks: per 32 values their exponent and 16 bytes, of which each holds a value in
    the low half and the one 16 further on in the high half (`block_mxfp4`). codes: uint8[rows, blocks, 16],
    neighbours in one byte; exponents: uint8[rows, blocks].
    """
    rows, blocks, width = codes.shape
    out = np.empty((rows, blocks, width + 1), dtype=np.uint8)
    out[..., 0] = exponents
    first, second = codes[..., : width // 2], codes[..., width // 2 :]
    out[..., 1::2] = (first & 0xF) | (second << 4)
    out[..., 2::2] = (first >> 4) | (second & 0xF0)
    return out.reshape(rows, -1)


def dequantise(packed: Bytes, tensor_type: TensorType) -> NDArray[np.float32]:
    """float32[rows, width] of the blocks uint8[rows, bytes of a row]. Raises NotImplementedError for a type
    that the gguf package cannot read.
    """
    import gguf

    values: NDArray[np.float32] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(tensor_type))
    return values


def interleave_heads(rows: Rows, size: int) -> Rows:
    """Rows of heads of `size` as llama.cpp's llama architecture wants them: rows i and i + size/2, which
    transformers rotates together, become neighbours. rows: [heads * size, width].
    """
    return rows.reshape(-1, 2, size // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def separate_heads(rows: Rows, size: int) -> Rows:
    """The inverse of `interleave_heads`."""
    return rows.reshape(-1, size // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def convert_rows(rows: Rows, source: TensorType, target: TensorType) -> NDArray[np.generic]:
    """Rows of one float type as the contiguous data of another type."""
    if target is TensorType.Q8_0:
        return _to_q8_0(to_float32(np.ascontiguousarray(rows), source.name))
    return convert_floats(rows, source.name, target.name)
