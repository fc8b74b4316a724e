import pytest


@pytest.fixture
def convert(yarnconv, tmp_path):
    """The ONNX directory of a checkpoint, in place of one that is there."""

    def run(directory, *options):
        out = tmp_path / "onnx"
        code, _, stderr = yarnconv("onnx", directory, *options, "--force", "-o", out)
        assert code == 0, stderr
        return out

    return run
