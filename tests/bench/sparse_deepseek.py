"""What a checkpoint of DeepSeek-V3's size costs: 671 B parameters in FP8, 91,991 tensors in 163 files, of
which all but one layer's attention and its experts' gates (4 GB) are holes.

    python -m tests.bench.sparse_deepseek DIR [--split-max-size 3G] [--parts 1] [--keep]

Measured are `plan`, the layout of the whole model (`gguf --split-jobs list`, in parts of 40 GB), and the
conversion of the largest part and of those asked for, one at a time, each deleted before the next: seconds,
and the process's anonymous memory (RssAnon), polled. It needs 12 GB of disk, and removes what it made.

The whole is that many bytes at the rate of the largest part, whose 3.8 GB of codes are real and were written
just before: a disk or a network that is slower than the rate decides instead.

Measured on two cores: the plan 0.9 s and 32 MB; the layout in 35 parts 3.7 s and 170 MB; a part of 7.52 GB
170 MB, with nothing mapped beside, and 62 s while others kept both cores busy (122 MB/s, 3.1 hours for all).
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.measuring import measure
from tests.support.sparse_checkpoint import DEEPSEEK_V3, make_sparse_checkpoint

YARNCONV = (sys.executable, "-m", "yarnconv")
REAL = re.compile(
    r"model\.layers\.3\.(self_attn|.*layernorm|mlp\.gate\.|mlp\.shared|mlp\.experts\.\d+\.gate)"
)
LIMIT_GB = 1.0  # of anonymous memory


def laid_out(model: Path, out: Path, size: str) -> list[dict]:
    """The parts that there will be: only_split, path, bytes."""
    command = [*YARNCONV, "gguf", str(model), "--split-max-size", size, "--split-jobs", "list", "--json"]
    done = subprocess.run([*command, "-o", str(out / "m.gguf")], check=True, capture_output=True)
    return json.loads(done.stdout)["parts"]


def processor_seconds() -> float:
    """Of all processes that this one started and that have ended, whatever others on the machine do."""
    spent = os.times()
    return spent.children_user + spent.children_system


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--split-max-size", default="3G", help="a part is at least as large as one tensor: 7.5 GB"
    )
    parser.add_argument("--parts", type=int, nargs="*", default=[1], help="to convert beside the largest")
    parser.add_argument("--keep", action="store_true", help="the checkpoint")
    arguments = parser.parse_args()
    model, out = arguments.directory / "deepseek-v3-sparse", arguments.directory / "sparse-out"
    table = Table(title=f"DeepSeek-V3's shape, {os.cpu_count()} cores; at most {LIMIT_GB:g} GB anonymous")
    memory = ("peak anonymous MB", "with mapped MB")
    for heading in ("command", "GB", "seconds", "CPU seconds", "MB/s", *memory):
        table.add_column(heading, justify="left" if heading == "command" else "right")

    def row(name, command, nbytes=0):
        before = processor_seconds()
        cost = measure(command)
        table.add_row(
            name,
            f"{nbytes / 1e9:.2f}" if nbytes else "",
            f"{cost.seconds:.1f}",
            f"{processor_seconds() - before:.1f}",
            f"{nbytes / cost.seconds / 1e6:.0f}" if nbytes else "",
            f"{cost.peak_anonymous / 1e6:.0f}",
            f"{cost.peak_proportional / 1e6:.0f}",
        )
        return cost

    made = time.perf_counter()
    try:
        if not (model / "config.json").exists():
            make_sparse_checkpoint(model, DEEPSEEK_V3, is_real=REAL.match)
        made = time.perf_counter() - made
        out.mkdir(parents=True, exist_ok=True)
        row("plan", [*YARNCONV, "plan", str(model)])
        row("plan --json", [*YARNCONV, "plan", str(model), "--json"])
        gguf = [*YARNCONV, "gguf", str(model), "-o", str(out / "m.gguf"), "--split-max-size"]
        whole = laid_out(model, out, "40G")
        row(f"gguf, {len(whole)} parts of 40G: list", [*gguf, "40G", "--split-jobs", "list"])
        size = arguments.split_max_size
        parts = laid_out(model, out, size)
        largest = max(parts, key=lambda part: part["bytes"])
        costs = {}
        for part in (largest, *(parts[number - 1] for number in arguments.parts)):
            name, path = part["only_split"], Path(part["path"])
            costs[name] = row(f"gguf --only-split {name}", [*gguf, size, "--only-split", name], part["bytes"])
            if part["bytes"] < 3e9:  # for more there may be no room
                row(f"cp of {name}", ["cp", str(path), str(out / "copy")], part["bytes"])
            shutil.rmtree(out)
            out.mkdir()
        total = sum(part["bytes"] for part in whole)
    finally:
        shutil.rmtree(out, ignore_errors=True)
        if not arguments.keep:
            shutil.rmtree(model, ignore_errors=True)
    console = Console(width=110)
    console.print(table)
    seconds = costs[largest["only_split"]].seconds
    hours = total / (largest["bytes"] / seconds) / 3600
    minutes = hours / len(whole) * 60
    console.print(f"The checkpoint was made in {made:.0f} s. The whole GGUF is {total / 1e12:.2f} TB:")
    console.print(
        f"{hours:.1f} hours here, or {minutes:.1f} minutes for each of {len(whole)} machines at once."
    )


if __name__ == "__main__":
    main()
