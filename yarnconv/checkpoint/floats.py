"""Float dtypes and what becomes of values between them, rounded once and as every runtime rounds.

Arrays are handled in blocks by their callers, so that what stands between is small. bfloat16 comes as its 16
bits (uint16), for NumPy has none.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.generic]

# As which NumPy type the values of a safetensors dtype are handled.
NUMPY_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@cache
def _bf16_to_f16() -> NDArray[np.uint16]:
    """float16 bits of every bfloat16: 65536 entries, the whole conversion in one look-up."""
    every = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return every.astype(np.float16).view(np.uint16)


def to_float32(rows: Rows, source: str) -> NDArray[np.float32]:
    """float32 of the same shape from a dtype (F32, F16, BF16); exact."""
    if source == "F32":
        return rows.view(np.float32)
    if source == "F16":
        return rows.astype(np.float32)
    wide = np.empty(rows.shape, dtype=np.uint32)
    np.left_shift(rows, 16, out=wide, dtype=np.uint32, casting="unsafe")
    return wide.view(np.float32)


def _float32_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest even; a NaN stays one (and becomes quiet), as in ggml_compute_fp32_to_bf16."""
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    is_nan = np.isnan(values)
    if is_nan.any():
        rounded[is_nan] = (bits[is_nan] >> 16) | 64
    return rounded.astype(np.uint16)


def convert_floats(rows: Rows, source: str, target: str) -> NDArray[np.generic]:
    """Values of one dtype (F32, F16, BF16) as contiguous values of another, of the same shape."""
    if source == target:
        return np.ascontiguousarray(rows)
    if target == "F16" and source == "BF16":
        return np.take(_bf16_to_f16(), rows.view(np.uint16))
    values = to_float32(np.ascontiguousarray(rows), source)
    if target == "F32":
        return values
    if target == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    if target == "BF16":
        return _float32_to_bf16(values)
    raise ValueError(f"nothing here writes {target}")
