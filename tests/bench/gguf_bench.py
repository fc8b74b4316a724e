"""Conversion to GGUF beside `cp` and llama.cpp's own converter, in one run, as ratios of medians.

    python -m tests.bench.gguf_bench [--runs 5] [--layers 16] [--directory DIR]

Whole processes, each round in another order, and ratios taken within a round, so that a machine whose
speed drifts slows all of them alike: how fast pages can be had depends on who freed them. Peak memory is
the process's anonymous memory (RssAnon), polled.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.big_model import make_big_model
from tests.bench.measuring import measure_rounds, median_ratio
from tests.support.llama_cpp_source import fetch_source

OUT_TYPES = ("bf16", "f16", "q8_0")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "yarnconv-bench")
    parser.add_argument("--layers", type=int, default=16, help="16 make 2.47 GB, 64 make 8.3 GB")
    parser.add_argument("--only", choices=OUT_TYPES)
    parser.add_argument("--without-converter", action="store_true")
    arguments = parser.parse_args()
    model = make_big_model(arguments.directory / f"llama-{arguments.layers}", arguments.layers)
    out = arguments.directory / "out"
    shards = [str(path) for path in sorted(model.glob("*.safetensors"))]
    size = sum(Path(shard).stat().st_size for shard in shards)
    converter = fetch_source() / "convert_hf_to_gguf.py"
    yarnconv = [sys.executable, "-m", "yarnconv", "gguf", str(model)]
    commands = {"cp": ["cp", *shards, str(out)]}
    for outtype in [arguments.only] if arguments.only else OUT_TYPES:
        target = str(out / "model.gguf")
        commands[f"yarnconv {outtype}"] = [*yarnconv, "--outtype", outtype, "-o", target]
        if not arguments.without_converter:
            commands[f"llama.cpp {outtype}"] = [
                *(sys.executable, str(converter), str(model)),
                *("--outtype", outtype, "--outfile", target),
            ]
    costs = measure_rounds(commands, arguments.runs, out)
    seconds = {name: [cost.seconds for cost in spent] for name, spent in costs.items()}
    table = Table(
        title=f"Llama of {size / 1e9:.2f} GB in bf16, {arguments.runs} rounds, {os.cpu_count()} cores"
    )
    for heading in ("command", "median s", "min-max", "x cp", "llama.cpp / yarnconv", "peak anonymous MB"):
        table.add_column(heading, justify="left" if heading == "command" else "right")
    for name, values in seconds.items():
        theirs = seconds.get(name.replace("yarnconv", "llama.cpp")) if "yarnconv" in name else None
        table.add_row(
            name,
            f"{statistics.median(values):.2f}",
            f"{min(values):.2f}-{max(values):.2f}",
            f"{median_ratio(values, seconds['cp']):.2f}",
            f"{median_ratio(theirs, values):.1f}" if theirs else "",
            f"{max(cost.peak_anonymous for cost in costs[name]) / 1e6:.0f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
