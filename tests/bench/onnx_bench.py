"""Conversion to ONNX beside onnxruntime-genai's own model builder, in one run, as ratios of medians.

    python -m tests.bench.onnx_bench [--runs 5] [--layers 24] [--directory DIR]

Whole processes on a Llama of 0.7 B parameters; the conditions are those of `gguf_bench`. The builder writes
plain RoPE whatever the config says of YaRN, so ours does more, and its int4 quantises the head too.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.big_model import SHAPE_0_7B, make_big_model
from tests.bench.measuring import measure_rounds, median_ratio

YARNCONV = (sys.executable, "-m", "yarnconv", "onnx")
DTYPES = ("fp32", "int4")
LINKED = "yarnconv --link-weights"
TARGETS = {
    "yarnconv fp32": "0.6 x builder, 500 MB",
    "yarnconv int4": "0.7 x builder",
    LINKED: "3 s",
}


def builder(model: Path, out: Path, precision: str) -> list[str]:
    """The command of onnxruntime-genai's model builder."""
    return [
        *(sys.executable, "-m", "onnxruntime_genai.models.builder"),
        *("-i", str(model), "-o", str(out), "-p", precision, "-e", "cpu", "-c", str(out / "cache")),
    ]


def commands_for(model: Path, out: Path) -> dict[str, list[str]]:
    """Name -> argv."""
    ours = [*YARNCONV, str(model), "--factor", "4", "-o", str(out / "model")]
    commands = {}
    for dtype in DTYPES:
        commands[f"yarnconv {dtype}"] = [*ours, "--dtype", dtype]
        commands[f"builder {dtype}"] = builder(model, out / "model", dtype)
    known = subprocess.run([*YARNCONV, "--help"], check=True, capture_output=True, text=True).stdout
    if "--link-weights" in known:
        commands[LINKED] = [*ours, "--link-weights"]
    else:
        print(f"left out: {LINKED}, an option that this yarnconv does not have", file=sys.stderr)
    return commands


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=24, help="24 make 1.4 GB")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "yarnconv-bench")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # the builder looks for what a local checkpoint lacks
    model = make_big_model(
        arguments.directory / f"llama-0.7b-{arguments.layers}", arguments.layers, SHAPE_0_7B
    )
    out = arguments.directory / "out"
    costs = measure_rounds(commands_for(model, out), arguments.runs, out)
    seconds = {name: [cost.seconds for cost in spent] for name, spent in costs.items()}
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    table = Table(
        title=f"Llama of {size / 1e9:.2f} GB in bf16, {arguments.runs} rounds, {os.cpu_count()} cores"
    )
    for heading in ("command", "median s", "min-max", "x builder", "peak anonymous MB", "target: at most"):
        table.add_column(heading, justify="left" if heading == "command" else "right")
    for name, values in seconds.items():
        theirs = seconds.get(name.replace("yarnconv", "builder")) if "yarnconv" in name else None
        table.add_row(
            name,
            f"{statistics.median(values):.2f}",
            f"{min(values):.2f}-{max(values):.2f}",
            f"{median_ratio(values, theirs):.2f}" if theirs else "",
            f"{max(cost.peak_anonymous for cost in costs[name]) / 1e6:.0f}",
            TARGETS.get(name, ""),
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
