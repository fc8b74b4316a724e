"""`yarnconv gguf --outtype q4_k_m` beside the same by hand: llama.cpp's converter, then its quantiser.

    python -m tests.bench.kquant_bench [--runs 3] [--layers 16] [--outtype q4_k_m] [--directory DIR]

Whole processes, each round in another order, ratios taken within a round; peak memory is the process tree's
anonymous memory, polled. The bytes are the same: tests/targets/gguf/test_quantiser.py.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.big_model import make_big_model
from tests.bench.measuring import measure_rounds, median_ratio
from tests.support.llama_cpp_source import fetch_source
from tests.support.quantise import SCRIPT

OURS, THEIRS, FLOAT = "yarnconv", "by hand", "yarnconv, bf16 only"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "yarnconv-bench")
    parser.add_argument("--layers", type=int, default=16, help="16 make 2.47 GB in bf16")
    parser.add_argument("--outtype", default="q4_k_m")
    arguments = parser.parse_args()
    model = make_big_model(arguments.directory / f"llama-{arguments.layers}", arguments.layers)
    out = arguments.directory / "kquant-out"
    whole, target = str(out / "bf16.gguf"), str(out / "model.gguf")
    converter = str(fetch_source() / "convert_hf_to_gguf.py")
    yarnconv = [sys.executable, "-m", "yarnconv", "gguf", str(model), "-o", target]
    by_hand = [
        [sys.executable, converter, str(model), "--outtype", "bf16", "--outfile", whole],
        [sys.executable, "-W", "ignore", "-c", SCRIPT, whole, target, arguments.outtype],
    ]
    commands = {
        OURS: [*yarnconv, "--outtype", arguments.outtype],
        THEIRS: ["bash", "-c", " && ".join(map(shlex.join, by_hand))],
        FLOAT: [*yarnconv, "--outtype", "bf16"],
    }
    costs = measure_rounds(commands, arguments.runs, out)
    seconds = {name: [cost.seconds for cost in spent] for name, spent in costs.items()}
    title = f"{model.name} to {arguments.outtype}, {arguments.runs} rounds, {os.cpu_count()} cores"
    table = Table(title=title)
    for heading in ("command", "median s", "min-max", "its time / ours", "peak anonymous MB"):
        table.add_column(heading, justify="left" if heading == "command" else "right")
    for name, values in seconds.items():
        table.add_row(
            name,
            f"{statistics.median(values):.1f}",
            f"{min(values):.1f}-{max(values):.1f}",
            f"{median_ratio(values, seconds[OURS]):.2f}",
            f"{max(cost.peak_anonymous for cost in costs[name]) / 1e6:.0f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
