"""What `yarnconv check` costs: a large quantised model, and a long context.

    python -m tests.bench.check_bench [--directory DIR] [--layers 32]

Makes an 8 B-shaped Llama of random weights (16 GB) and its q4_k_m (takes a quarter of an hour and 40 GB of
disk, once), and a tiny one with a target context of 131072 positions.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.big_model import SHAPE_8B, make_big_model
from tests.bench.measuring import measure
from tests.support.models import make_checkpoint
from tests.support.quantise import quantise

YARNCONV = (sys.executable, "-m", "yarnconv")


def _convert(model: Path, path: Path, outtype: str) -> None:
    subprocess.run(
        [*YARNCONV, "gguf", str(model), "--factor", "4", "--outtype", outtype, "-o", str(path)], check=True
    )


def _large(directory: Path, layers: int) -> tuple[Path, Path]:
    model = make_big_model(directory / f"llama-8b-{layers}", layers, SHAPE_8B)
    path = directory / f"llama-8b-{layers}-q4_k_m.gguf"
    if not path.exists():
        whole = directory / "whole.gguf"
        _convert(model, whole, "bf16")
        quantise(whole, path, "q4_k_m")
        whole.unlink()
    return model, path


def _long(directory: Path) -> tuple[Path, Path]:
    model, path = directory / "tiny-32k", directory / "tiny-131072.gguf"
    if not path.exists():
        make_checkpoint(model, "llama", max_position_embeddings=32768, rope_theta=1e6)
        _convert(model, path, "f32")
    return model, path


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "yarnconv-bench")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--only", choices=("large", "long"))
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    cases = {
        "large": lambda: _large(arguments.directory, arguments.layers),
        "long": lambda: _long(arguments.directory),
    }
    table = Table(title="yarnconv check")
    for heading in (
        "artefact",
        "GB",
        "seconds",
        "anonymous GB",
        "with mapped files GB",
        "last position",
        "exit",
    ):
        table.add_column(heading, justify="left" if heading == "artefact" else "right")
    for name in [arguments.only] if arguments.only else cases:
        model, path = cases[name]()
        out = arguments.directory / "report.json"
        command = [*YARNCONV, "check", str(path), "--reference", str(model), "--factor", "4"]
        cost = measure([*command, "--output-json", str(out)], allowed=(0, 1, 5))
        report = json.loads(out.read_text())
        table.add_row(
            path.name,
            f"{path.stat().st_size / 1e9:.2f}",
            f"{cost.seconds:.1f}",
            f"{cost.peak_anonymous / 1e9:.2f}",
            f"{cost.peak_proportional / 1e9:.2f}",
            str(max((window["last"] for window in report["windows"]), default=None)),
            str(cost.status),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
