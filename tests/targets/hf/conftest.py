import json
import shutil

import pytest

from tests.support.models import edit_config


@pytest.fixture
def extend(yarnconv, tmp_path):
    """Extend a checkpoint: (directory, the report)."""

    def run(model, *options, name="extended"):
        out = tmp_path / name
        code, stdout, stderr = yarnconv("hf", model, *options, "-o", out, "--json")
        assert code == 0, stderr
        return out, json.loads(stdout)

    return run


@pytest.fixture
def copied(checkpoints, tmp_path):
    """A copy of a family's checkpoint that may be edited."""

    def copy(family, **edits):
        out = tmp_path / f"{family}-copy"
        shutil.copytree(checkpoints(family), out)
        edit_config(out, **edits)
        return out

    return copy
