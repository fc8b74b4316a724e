"""What the tolerance of `check` stands between: the errors of right artefacts and those of wrong ones.

    python -m tests.bench.tolerance [--seeds 3] [--target gguf|onnx]

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

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from typer.testing import CliRunner

from tests.support.gguf_editing import load
from tests.support.models import make_checkpoint
from tests.support.onnx_faults import Editor
from yarnconv.cli import app
from yarnconv.rope.request import RopeRequest
from yarnconv.verify.case import CheckOptions
from yarnconv.verify.gguf.check import check_gguf
from yarnconv.verify.onnx.check import check_onnx

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TEMPERATURE = 1.0 + 0.1 * math.log(4.0)
CONTEXTS = (256, 2048, 8192, 32768)
SHARPNESS = {
    "init 0.02": {"deviation": 0.02},
    "sharp": {},
    "sharper": {"sharpness": 2.0},
}


def _convert(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def _ggufs(model, directory):
    """A right one and one without the temperature."""
    path = directory / "model.gguf"
    _convert("gguf", model, "--factor", "4", "-o", path)
    file = load(path)
    file.keys.float32(file.key("rope.scaling.attn_factor"), 1.0 / TEMPERATURE)
    return check_gguf, path, file.write(directory / "wrong.gguf")


def _onnx_models(model, directory):
    _convert("onnx", model, "--factor", "4", "-o", directory / "right")
    editor = Editor(directory / "right", directory / "wrong")
    for name in editor.tables:
        editor.stored(name)[:] /= np.float32(TEMPERATURE)
    return check_onnx, directory / "right", editor.save()


TARGETS = {"gguf": _ggufs, "onnx": _onnx_models}


def _windows(judge, path, model, seed):
    return judge(path, model, RopeRequest(factor=4.0), CheckOptions(seed=seed, coverage="none")).windows


def _reach(position):
    """The smallest of a few bounds that a position lies below."""
    return next(bound for bound in (256, 1024, 4096, 16384, 65536, 131072) if position < bound)


def _measure(directory, target, family, seed, sharpness, context):
    model = make_checkpoint(
        directory / "model",
        family,
        seed=seed,
        max_position_embeddings=context,
        rope_theta=1e4 if context < 8192 else 1e6,
        **({"sliding_window": None} if family == "mistral" else {}),
        **SHARPNESS[sharpness],
    )
    judge, right, wrong = TARGETS[target](model, directory)
    return _windows(judge, right, model, seed), _windows(judge, wrong, model, seed)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", choices=TARGETS, default="gguf")
    arguments = parser.parse_args()
    right, wrong = defaultdict(list), defaultdict(list)
    cases = list(product(FAMILIES, range(arguments.seeds), SHARPNESS, CONTEXTS))
    for family, seed, sharpness, context in track(cases, "measuring", transient=True):
        with tempfile.TemporaryDirectory() as directory:
            good, bad = _measure(Path(directory), arguments.target, family, seed, sharpness, context)
        for window in good:
            right[sharpness, _reach(window.last)].append((window.relative_max, window.tolerance))
        for window in bad:
            wrong[sharpness, _reach(window.last)].append((window.relative_max, window.tolerance))
    table = Table(
        title=f"{arguments.target}: relative error, worst position; {arguments.seeds} seeds, four families"
    )
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
