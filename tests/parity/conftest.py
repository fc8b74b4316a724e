import pytest

from tests.parity.onnx_requests import MODELS


@pytest.fixture
def convert(yarnconv, tmp_path):
    """The ONNX directory of a checkpoint, in place of one that is there."""

    def run(directory, *options):
        out = tmp_path / "onnx"
        code, _, stderr = yarnconv("onnx", directory, *options, "--force", "-o", out)
        assert code == 0, stderr
        return out

    return run


@pytest.fixture
def model_of(checkpoints):
    """The tiny checkpoint of one of `MODELS`, by its name."""

    def get(name):
        family, changes = MODELS[name]
        return checkpoints(family, **changes)

    return get
