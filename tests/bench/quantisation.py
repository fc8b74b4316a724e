"""What quantisers do to weights: the measurement behind the bounds in `yarnconv/verify/weights.py`.

    python -m tests.bench.quantisation

Eleven distributions of weights, with and without an importance matrix, quantised by the ggml library that
llama-cpp-python brings and dequantised by the gguf package; INT4 by `yarnconv onnx`'s own.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from rich.console import Console
from rich.table import Table

from yarnconv.targets.gguf.steps import value_steps
from yarnconv.targets.onnx.quantisation import INT4, quantised
from yarnconv.targets.onnx.weights import FLOAT_TYPES
from yarnconv.verify.weights import BLOCK_TYPES, beyond_rounding

ROWS, WIDTH = 256, 1024


def distributions(generator):
    normal = generator.standard_normal
    yield "normal", normal((ROWS, WIDTH))
    yield "Laplace", generator.laplace(size=(ROWS, WIDTH))
    yield "Student t, 2.5", generator.standard_t(2.5, (ROWS, WIDTH))
    yield "Student t, 1.5", generator.standard_t(1.5, (ROWS, WIDTH))
    yield "uniform", generator.uniform(-1, 1, (ROWS, WIDTH))
    outliers = normal((ROWS, WIDTH))
    outliers[:, ::97] *= 30
    yield "outlier columns", outliers
    yield "log-normal columns", normal((ROWS, WIDTH)) * np.exp(generator.normal(0, 1.5, (1, WIDTH)))
    blocks = normal((ROWS, WIDTH // 32, 32)) * np.exp(generator.normal(0, 2, (ROWS, WIDTH // 32, 1)))
    yield "blocks of unlike size", blocks.reshape(ROWS, WIDTH)
    yield "sparse", normal((ROWS, WIDTH)) * (generator.random((ROWS, WIDTH)) < 0.05)
    yield "far from zero", np.abs(normal((ROWS, WIDTH))) + 3
    yield "ternary", generator.integers(-1, 2, (ROWS, WIDTH)).astype(np.float64)
    # what a checkpoint in MXFP4 holds: eight magnitudes, and a power of two for each 32 values
    grid = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    codes = grid[np.abs(normal((ROWS, WIDTH)) * 2.5).astype(int).clip(0, 7)] * generator.choice(
        [-1, 1], (ROWS, WIDTH)
    )
    powers = 2.0 ** generator.integers(-2, 3, (ROWS, WIDTH // 32, 1))
    yield "MXFP4 codes", (codes.reshape(ROWS, WIDTH // 32, 32) * powers).reshape(ROWS, WIDTH)


def ggml_quantiser():
    import llama_cpp

    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))
    quantise = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantise.restype = ctypes.c_size_t
    quantise.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    ]
    return quantise


def errors(quantise, kind, values, importance):
    """(worst relative error of a block, of all, share of values beyond half a step)."""
    values = np.ascontiguousarray(values, np.float32)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros((ROWS, WIDTH // block * size), np.uint8)
    matrix = None if importance is None else np.ascontiguousarray(importance, np.float32)
    pointer = None if matrix is None else matrix.ctypes.data
    quantise(int(kind), values.ctypes.data, out.ctypes.data, 0, ROWS, WIDTH, pointer)
    difference = gguf.quants.dequantize(out, kind) - values
    norms = np.linalg.norm(values.reshape(-1, block), axis=1)
    each = np.linalg.norm(difference.reshape(-1, block), axis=1)
    relative = each[norms > 0] / norms[norms > 0]
    steps = value_steps(out, kind)
    beyond = np.nan
    if steps is not None:
        beyond = beyond_rounding(values + difference, values, steps).mean() / (steps > 0).mean()
    return relative.max(), np.linalg.norm(difference) / np.linalg.norm(values), beyond


@dataclass(frozen=True)
class Weights:
    """A matrix [out, in] as the ONNX target takes one from a checkpoint."""

    values: np.ndarray
    dtype = "F32"

    @property
    def shape(self):
        return self.values.shape

    def block(self, rows, columns=slice(None)):
        return self.values[rows, columns]


def int4_errors(values):
    """As `errors`."""
    values = np.ascontiguousarray(values, np.float32)
    codes, scales = quantised("weights", Weights(values), INT4, FLOAT_TYPES["fp32"])
    code = INT4.unpacked(codes.rows(0, WIDTH).reshape(-1)).reshape(-1, 32, ROWS)
    step = scales.rows(0, scales.shape[0])[:, None, :]
    found, wanted = code * step, values.T.reshape(code.shape)
    steps = np.abs(step) * INT4.spacing(code)
    difference, norms = np.abs(found - wanted), np.linalg.norm(wanted, axis=1)
    each = np.linalg.norm(difference, axis=1)
    beyond = beyond_rounding(found.reshape(-1), wanted.reshape(-1), steps.astype(np.float32).reshape(-1))
    whole = np.linalg.norm(difference) / np.linalg.norm(wanted)
    return (each[norms > 0] / norms[norms > 0]).max(), whole, beyond.mean()


def add_row(table, name, explained, found):
    """The worst of each kind, and in which distribution. found: (distribution, block, tensor, beyond)."""
    block, tensor, beyond = (max(found, key=lambda row, i=index: row[i]) for index in (1, 2, 3))
    shares = ["", "", ""]
    if explained.beyond is not None:
        shares = [f"{100 * beyond[3]:.2f} %", beyond[0], f"{100 * explained.beyond:g} %"]
    table.add_row(
        *(name, f"{block[1]:.3f}", block[0], f"{explained.block:g}"),
        *(f"{tensor[2]:.3f}", tensor[0], f"{explained.tensor:g}"),
        *shares,
    )


def main():
    quantise = ggml_quantiser()
    table = Table(title="relative error of ggml's types over twelve distributions, with and without imatrix")
    for heading in (
        "type",
        *("worst block", "in", "bound"),
        *("worst tensor", "in", "bound"),
        *("beyond", "in", "bound"),
    ):
        table.add_column(heading, justify="left" if heading in {"type", "in"} else "right")
    for name, explained in BLOCK_TYPES.items():
        generator = np.random.default_rng(0)
        if name == "INT4":
            own = [(place, *int4_errors(values)) for place, values in distributions(generator)]
            add_row(table, name, explained, own)
            continue
        kind = gguf.GGMLQuantizationType[name]
        found = [
            (distribution, *errors(quantise, kind, values, importance))
            for distribution, values in distributions(generator)
            for importance in (None, np.abs(generator.standard_t(2, WIDTH)) + 1e-2)
        ]
        add_row(table, name, explained, found)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
