"""What the tolerance of `check` stands between: the errors of right artefacts and those of wrong ones.

    python -m tests.bench.tolerance [--seeds 3]

Every family, several seeds, three sharpnesses of attention, four original contexts (factor 4, so positions up
to 131071), float32. Right: the worst position over all, by its tolerance. Wrong: the same files without the
temperature; the best position beyond the original context.
"""

import argparse
import math
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from tests.support.gguf_editing import load
from tests.support.models import make_checkpoint
from yarnconv.cli import app
from yarnconv.rope.request import RopeRequest
from yarnconv.verify.compare import tolerance
from yarnconv.verify.gguf.case import CheckOptions
from yarnconv.verify.gguf.check import check_gguf

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
CONTEXTS = (256, 2048, 8192, 32768)
SHARPNESS = {
    "init 0.02": {"deviation": 0.02},
    "sharp": {},
    "sharper": {"sharpness": 2.0},
}


def _windows(path, directory, seed):
    options = CheckOptions(seed=seed, coverage="none")
    return check_gguf(path, directory, RopeRequest(factor=4.0), options).windows


def _measure(directory, family, seed, sharpness, context):
    model = make_checkpoint(
        directory / "model",
        family,
        seed=seed,
        max_position_embeddings=context,
        rope_theta=1e4 if context < 8192 else 1e6,
        **SHARPNESS[sharpness],
    )
    path = directory / "model.gguf"
    result = CliRunner().invoke(app, ["gguf", str(model), "--factor", "4", "-o", str(path)])
    assert result.exit_code == 0, result.output
    right = _windows(path, model, seed)
    file = load(path)
    file.keys.float32(file.key("rope.scaling.attn_factor"), 1.0 / (1.0 + 0.1 * math.log(4.0)))
    wrong = _windows(file.write(directory / "wrong.gguf"), model, seed)
    return right, wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    right, wrong, shares = defaultdict(list), defaultdict(list), []
    for family in FAMILIES:
        for seed in range(arguments.seeds):
            for sharpness in SHARPNESS:
                for context in CONTEXTS:
                    with tempfile.TemporaryDirectory() as directory:
                        good, bad = _measure(Path(directory), family, seed, sharpness, context)
                    for window in good:
                        key = (sharpness, 4 * context if window.last >= context else 0)
                        right[key].append(window.relative_max)
                        shares.append(window.relative_max / tolerance(np.array([window.first]))[0])
                    for window in bad:
                        if window.first >= context:
                            wrong[sharpness, 4 * context].append(window.relative)
    table = Table(title=f"{arguments.seeds} seeds x {len(FAMILIES)} families")
    for heading in ("positions", "attention", "right, worst", "tolerance", "no temperature, least"):
        table.add_column(heading, justify="right")
    for sharpness, target in sorted(right, key=lambda key: (key[1], key[0])):
        least = wrong[sharpness, target]
        table.add_row(
            f"up to {target}" if target else "inside",
            sharpness,
            f"{max(right[sharpness, target]):.1e}",
            f"{tolerance(np.array([target]))[0]:.1e}",
            f"{min(least):.1e}" if least else "",
        )
    console = Console(width=110)
    console.print(table)
    console.print(f"right artefacts use at most {100 * max(shares):.0f} % of their tolerance")


if __name__ == "__main__":
    main()
