"""The quantisation step of each stored value: how far apart the values are that its block can hold."""

import numpy as np
from numpy.typing import NDArray

from yarnconv.rope.tables import Float32Array
from yarnconv.targets.gguf.blocks import dequantise
from yarnconv.targets.gguf.file_format import BLOCKS, TensorType

# Where a block of each uniform type keeps its codes (ggml's `block_q*` structures): (first byte, end, what
# fills it for code 0, for code 1); the bytes outside are scales.
_CODES: dict[TensorType, tuple[tuple[int, int, int, int], ...]] = {
    TensorType.Q8_0: ((2, 34, 0x00, 0x01),),
    TensorType.Q4_0: ((2, 18, 0x00, 0x11),),
    TensorType.Q4_1: ((4, 20, 0x00, 0x11),),
    TensorType.Q5_0: ((2, 6, 0x00, 0x00), (6, 22, 0x00, 0x11)),
    TensorType.Q5_1: ((4, 8, 0x00, 0x00), (8, 24, 0x00, 0x11)),
    TensorType.Q2_K: ((16, 80, 0x00, 0x55),),
    TensorType.Q3_K: ((0, 32, 0x00, 0x00), (32, 96, 0x00, 0x55)),
    TensorType.Q4_K: ((16, 144, 0x00, 0x11),),
    TensorType.Q5_K: ((16, 48, 0x00, 0x00), (48, 176, 0x00, 0x11)),
    TensorType.Q6_K: ((0, 128, 0x00, 0x11), (128, 192, 0x00, 0x00)),
}


def value_steps(packed: NDArray[np.uint8], tensor_type: TensorType) -> Float32Array | None:
    """float32[rows, width] from uint8[rows, bytes of a row]; 0 where a block holds one value only, None for a
    type without steps of one size.

    The step is what one code more changes: the difference of the same scales with all codes 0 and all 1.
    """
    codes = _CODES.get(tensor_type)
    if codes is None:
        return None
    size = BLOCKS[tensor_type][1]
    filled = []
    for which in (2, 3):
        blocks = packed.reshape(-1, size).copy()
        for entry in codes:
            blocks[:, entry[0] : entry[1]] = entry[which]
        with np.errstate(over="ignore", invalid="ignore"):
            filled.append(dequantise(blocks.reshape(packed.shape), tensor_type))
    steps: Float32Array = np.abs(filled[1] - filled[0])
    return steps
