"""Importance matrices of a model's tensors, in both formats, made from a seed.

Their counts are powers of two, so that the means come back to the last bit.
"""

import struct
from pathlib import Path

import gguf
import numpy as np


def made_values(model: Path, seed=0):
    """tensor -> float32[width]: mean squares of what a GGUF's matrices could be multiplied with."""
    generator = np.random.default_rng(seed)
    return {
        tensor.name: generator.gamma(0.5, 1.0, int(tensor.shape[0])).astype(np.float32)
        for tensor in gguf.GGUFReader(model).tensors
        if len(tensor.shape) == 2 and tensor.name not in {"token_embd.weight", "output.weight"}
    }


def write_gguf(path: Path, values, *, count=8, dataset="words.txt") -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, found in values.items():
        writer.add_tensor(f"{name}.in_sum2", (found * np.float32(count))[None])
        writer.add_tensor(f"{name}.counts", np.full((1, 1), count, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_legacy(path: Path, values, *, calls=4) -> Path:
    with path.open("wb") as file:
        file.write(struct.pack("<i", len(values)))
        for name, found in values.items():
            file.write(struct.pack("<i", len(name)) + name.encode())
            file.write(struct.pack("<ii", calls, len(found)))
            file.write((found * np.float32(calls)).tobytes())
        dataset = b"words.txt"
        file.write(struct.pack("<ii", 3, len(dataset)) + dataset)
    return path
