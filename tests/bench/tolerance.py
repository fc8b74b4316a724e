"""What the tolerance of `check` stands between: the errors of right artefacts and those of wrong ones.

    python -m tests.bench.tolerance [--seeds 3]

Every family, several seeds, three sharpnesses of attention, four original contexts (factor 4, so positions up
to 131071), float32. Right: the worst window. Wrong: the same files without the temperature; the window that
shows it least.
"""

import argparse
import math
import tempfile
from collections import defaultdict
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from typer.testing import CliRunner

from tests.support.gguf_editing import load
from tests.support.models import make_checkpoint
from yarnconv.cli import app
from yarnconv.rope.request import RopeRequest
from yarnconv.verify.case import CheckOptions
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


def _reach(position):
    """The smallest of a few bounds that a position lies below."""
    return next(bound for bound in (256, 1024, 4096, 16384, 65536, 131072) if position < bound)


def _measure(directory, family, seed, sharpness, context):
    model = make_checkpoint(
        directory / "model",
        family,
        seed=seed,
        max_position_embeddings=context,
        rope_theta=1e4 if context < 8192 else 1e6,
        **({"sliding_window": None} if family == "mistral" else {}),
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
    right, wrong = defaultdict(list), defaultdict(list)
    cases = list(product(FAMILIES, range(arguments.seeds), SHARPNESS, CONTEXTS))
    for family, seed, sharpness, context in track(cases, "measuring", transient=True):
        with tempfile.TemporaryDirectory() as directory:
            good, bad = _measure(Path(directory), family, seed, sharpness, context)
        for window in good:
            right[sharpness, _reach(window.last)].append((window.relative_max, window.tolerance))
        for window in bad:
            wrong[sharpness, _reach(window.last)].append((window.relative_max, window.tolerance))
    table = Table(title=f"relative error of the worst position; {arguments.seeds} seeds, four families")
    headings = ("positions", "attention", "right, worst", "its share of the tolerance")
    for heading in (*headings, "no temperature, least", "times the tolerance, least"):
        table.add_column(heading, justify="right")
    for sharpness, reach in sorted(right, key=lambda key: (key[1], key[0])):
        good, bad = right[sharpness, reach], wrong[sharpness, reach]
        table.add_row(
            f"below {reach}",
            sharpness,
            f"{max(error for error, _ in good):.1e}",
            f"{max(error / allowed for error, allowed in good):.2f}",
            f"{min(error for error, _ in bad):.1e}",
            f"{min(error / allowed for error, allowed in bad):.0f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
