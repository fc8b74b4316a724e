"""Every family x target x method: converted by the command line, and judged by `check` with the real runtime;
or refused before anything is written. Pairwise by default, all of it with the slow ones.
"""

import json
import re

import pytest

from tests.parity.matrix import (
    METHODS,
    README,
    TARGETS,
    cells,
    checkpoint_of,
    chosen_by_default,
    refusal,
    table_of,
    updated,
)
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.plan import plan_conversion

EVERYTHING = cells()
DTYPES = {"gguf": ("--outtype", "f32"), "onnx": ("--dtype", "fp32"), "trt": ("--dtype", "fp16")}
DEFAULT = {cell.name for cell in chosen_by_default()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """variant -> its checkpoint, made once."""
    made = {}

    def get(variant):
        if variant.name not in made:
            made[variant.name] = checkpoint_of(variant, tmp_path_factory.mktemp("matrix") / "model")
        return made[variant.name]

    return get


def marked(cell):
    return pytest.param(cell, id=cell.name, marks=() if cell.name in DEFAULT else pytest.mark.slow)


@pytest.mark.parametrize("cell", [marked(cell) for cell in EVERYTHING])
def test_matrix(cell, models, yarnconv, tmp_path):
    directory = models(cell.variant)
    with open_checkpoint(directory) as checkpoint:
        why_not = refusal(plan_conversion(checkpoint, METHODS[cell.method]), cell.target)
    command = TARGETS[cell.target][1]
    out = tmp_path / ("model.gguf" if command[0] == "gguf" else "model")
    dtype = {"gguf": ("--outtype", "f32"), "onnx": ("--dtype", "fp32"), "trt": ("--dtype", "fp16")}[
        command[0]
    ]
    code, stdout, stderr = yarnconv(*command[:1], directory, *command[1:], *cell.options, *dtype, "-o", out)
    if why_not is not None:
        assert code == 3, stdout + stderr
        assert why_not.split()[0] in stderr
        assert list(tmp_path.iterdir()) == []
        return
    assert code == 0, stderr
    # the rope options once more: what is judged is not what the artefact says of itself
    asked = cell.options or ["--method", "auto"]
    code, stdout, stderr = yarnconv("check", out, "--reference", directory, *asked, "--json")
    assert code in {0, 1, 5}, stderr
    report = json.loads(stdout)
    assert report["verdicts"]["metadata"] == "holds", report["reasons"]
    if cell.target == "trt" and code == 5:  # nothing here runs an engine: all that can be seen of it agrees
        assert "the graph that was parsed holds" in report["reasons"]["structure"]
        found, held = re.match(r"(\d+) of (\d+) tensors", report["reasons"]["weights"]).groups()
        assert found == held
        return
    assert code == 0, report["reasons"]
    assert report["parity"] is True


def test_in_the_default_choice_every_runtime_meets_all():
    chosen = [cell for cell in EVERYTHING if cell.name in DEFAULT]
    assert len(chosen) < len(EVERYTHING) / 4

    def met(cells):
        return {(c.variant.name, c.target.split()[0]) for c in cells}, {(c.target, c.method) for c in cells}

    assert met(chosen) == met(EVERYTHING)


def test_the_readmes_table_is_not_stale():
    text = README.read_text(encoding="utf-8")
    assert table_of(updated(text)) == table_of(text), "run python -m tests.parity.matrix"
