"""What converting a 14 B model to ONNX takes in memory, and that it does not grow with the model.

    python -m tests.bench.onnx_large_bench [--layers 40] [--dtypes int4 fp16] [--directory DIR]

A Llama of Qwen3-14B's dimensions whose files are holes: it has the size (29.5 GB in bfloat16) and takes no
room on the disk. Everything made is removed afterwards. No disk is read, so the seconds are a lower bound.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.big_model import SHAPE_14B, make_big_model
from tests.bench.measuring import measure

TARGET_GB = 2.0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--dtypes", nargs="+", default=["int4", "fp16"])
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "yarnconv-bench")
    arguments = parser.parse_args()
    root = arguments.directory / "large"
    table = Table(title=f"14 B-shaped Llama, {arguments.layers} layers; at most {TARGET_GB:g} GB anonymous")
    for heading in ("dtype", "GB written", "seconds", "peak anonymous GB", "with mapped files GB"):
        table.add_column(heading, justify="left" if heading == "dtype" else "right")
    try:
        model = make_big_model(root / "model", arguments.layers, SHAPE_14B, sparse=True)
        for dtype in arguments.dtypes:
            out = root / dtype
            cost = measure(
                [
                    *(sys.executable, "-m", "yarnconv", "onnx", str(model)),
                    *("--factor", "4", "--dtype", dtype, "-o", str(out)),
                ]
            )
            table.add_row(
                dtype,
                f"{sum(path.stat().st_size for path in out.iterdir()) / 1e9:.1f}",
                f"{cost.seconds:.1f}",
                f"{cost.peak_anonymous / 1e9:.2f}",
                f"{cost.peak_proportional / 1e9:.2f}",
            )
            shutil.rmtree(out)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
