"""How long extending a GGUF of 2.47 GB takes, beside `cp` of it: `python -m tests.bench.extension_bench`."""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.big_model import make_big_model
from tests.bench.measuring import measure_rounds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "yarnconv-bench")
    arguments = parser.parse_args()
    yarnconv = [sys.executable, "-m", "yarnconv", "gguf"]
    source = arguments.directory / "plain.gguf"
    if not source.exists():
        model = make_big_model(arguments.directory / "llama-16", 16)
        subprocess.run([*yarnconv, str(model), "-o", str(source)], check=True)
    out = arguments.directory / "out"
    target = str(out / "model.gguf")
    commands = {
        "cp": ["cp", str(source), target],
        "by keys": [*yarnconv, str(source), "--factor", "4", "-o", target],
        "by rope_freqs": [*yarnconv, str(source), "--factor", "4", "--no-truncate", "-o", target],
    }

    def fetch_memory():
        # a virtual machine gives freed memory back to its host after seconds, and whoever takes it again
        # first waits for it, twice as long as for the copy: a copy that is thrown away does
        shutil.copyfile(source, out / "thrown-away")
        (out / "thrown-away").unlink()

    costs = measure_rounds(commands, arguments.runs, out, before=fetch_memory)
    size = source.stat().st_size
    table = Table(title=f"GGUF of {size / 1e9:.2f} GB, {arguments.runs} rounds, {os.cpu_count()} cores")
    for heading in ("command", "median s", "min-max", "x cp", "peak anonymous MB"):
        table.add_column(heading, justify="left" if heading == "command" else "right")
    copies = [cost.seconds for cost in costs["cp"]]
    for name, spent in costs.items():
        seconds = [cost.seconds for cost in spent]
        ratio = statistics.median(one / copy for one, copy in zip(seconds, copies, strict=True))
        peak = max(cost.peak_anonymous for cost in spent) / 1e6
        table.add_row(
            *(name, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}-{max(seconds):.2f}"),
            *(f"{ratio:.2f}", f"{peak:.0f}"),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
